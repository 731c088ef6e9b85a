//! The text form of a run, `*.slat`: calls, one a line, and what each is expected to give.
//!
//! The same file drives the model, a real kernel, or both; a differential run writes one when it finds a
//! divergence. `docs/scenario.md` is the reference of the format.
//!
//! A text names files, mappings and host memory; [`Request::resolve`] puts the numbers of a running machine in their
//! place, from [`Names`], and [`Recorder`] goes the other way, from calls with numbers to a text with names.
//!
//! ```
//! use slat_memslot::{Call, Hva, Outcome};
//! use slat_vmm::scenario::{self, Area, Names, StepKind};
//!
//! let text = "set_user_memory_region slot=0 gpa=0 size=64K hva=A+0x1000 => ok\n";
//! let scenario = scenario::parse(text)?;
//! let names = Names::new([Area::new("A", Hva::new(0x7f00_0000_0000), 1 << 30)]);
//! for step in &scenario.steps {
//!     if let StepKind::Call(request) = &step.kind {
//!         let Call::SetRegion(region) = request.resolve(&names)? else { panic!() };
//!         assert_eq!(region.hva, 0x7f00_0000_1000);
//!         assert!(step.expect.as_ref().is_some_and(|e| e.accepts(&Ok(Outcome::Done))));
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![warn(clippy::indexing_slicing)]

mod args;
mod calls;
mod contents;
mod convert;
mod expect;
pub(crate) mod lex;
mod names;
mod parse;
mod record;
mod request;
mod sev;
mod snp;
mod tdx;
#[cfg(test)]
mod tests;
mod words;
mod write;

use crate::convert::ConvertOp;
pub use crate::parse_error::ParseError;
pub use expect::Expect;
pub(crate) use lex::number as bytes;
pub use names::{Area, DEFAULT_VM, HOST_AREAS, Names};
pub use parse::parse;
pub use record::{Recorder, write};
pub use request::{Request, Unbound};
pub use snp::SnpStep;

/// What a scenario file says, without its comments.
///
/// [`Display`](core::fmt::Display) gives the text in its canonical form, and [`parse`] reads it back.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Scenario {
    /// The lines, in order.
    pub steps: Vec<Step>,
}

/// One line of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The line in the text, from 1.
    pub line: u32,
    /// What to do.
    pub kind: StepKind,
    /// What it is expected to give; `None` leaves it open.
    pub expect: Option<Expect>,
}

/// What a line of a scenario asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// `profile NAME`: the kernel that the expectations come from.
    Profile(String),
    /// `case "title"`: drops all VMs and names, and starts anew with a fresh VM of the default type, [`DEFAULT_VM`].
    Case(String),
    /// `vm NAME`: makes VM `NAME` the current one, creating it where there is none.
    Vm {
        /// The VM's name in the text.
        name: String,
        /// The type to create it with, 0 without; an existing VM keeps its own.
        vm_type: Option<u32>,
    },
    /// `drop_vm NAME`: closes VM `NAME` with everything it made; was it the current one, [`DEFAULT_VM`] is current then.
    DropVm(String),
    /// A call on the current VM.
    Call(Request),
    /// Something that is done with the current VM as an SNP guest.
    Snp(SnpStep),
    /// Its VMM converts memory.
    Convert(ConvertOp),
}

impl Scenario {
    /// The kernel that the expectations come from: the last `profile` line.
    pub fn profile(&self) -> Option<&str> {
        self.steps.iter().rev().find_map(|step| match &step.kind {
            StepKind::Profile(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The titles of the cases, in order.
    pub fn cases(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().filter_map(|step| match &step.kind {
            StepKind::Case(title) => Some(title.as_str()),
            _ => None,
        })
    }

    /// The same with the line numbers that the canonical text has.
    #[must_use]
    pub fn renumbered(mut self) -> Self {
        let mut line = 0;
        for (at, step) in self.steps.iter_mut().enumerate() {
            line += write::lines(at, step);
            step.line = line;
        }
        self
    }
}
