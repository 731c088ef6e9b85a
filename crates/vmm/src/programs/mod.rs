//! Programs on purpose: each makes one thing happen to page tables, as briefly as it can be shown.
//!
//! They are made of the operations of recordings ([`Op`]), for a [`Driver`](crate::live::Driver) to make on a real kernel.
//! [`all`] has those that a kernel can make; together they cover slots that go and move under both policies, private memory and
//! its faults, pre-faults, SMM, dirty logs with huge pages split at once or when they are written to, pages that must not
//! execute while they are huge, the host's memory management, and MMIO. [`make`] makes one and gives the recording.
//!
//! [`Tally`] counts what the tables of a recording went through, operation by operation.
//!
//! ```no_run
//! use slat_vmm::live::{abilities, here};
//! use slat_vmm::programs::{self, Tally};
//! use slat_vmm::replay::predict;
//! use slat_vmm::traces::Recording;
//!
//! let machine = here()?;
//! for program in programs::all(abilities(&machine)) {
//!     let text = programs::make(&program)?;
//!     let recording = Recording::parse(&text)?;
//!     println!("{}: {:?}", program.name, predict(&recording, &machine));
//!     println!("{} operations", Tally::of(&recording, &machine.host).len());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod deletion;
mod host;
mod log;
mod make;
mod pre_fault;
mod private;
mod script;
mod smm;
mod tally;

pub use make::{make, make_into};
pub use tally::Tally;

use crate::live::{Abilities, Program};
#[cfg(doc)]
use crate::traces::Op;

/// A program with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// What it shows: `slot-delete-leaves`.
    pub name: &'static str,
    /// What it is made of.
    pub program: Program,
}

/// What a kernel must have for a program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    PrivateMemory,
    PreFault,
    Smm,
    /// Private memory that is mapped ahead.
    PrivatePreFault,
}

impl Need {
    const fn is_met(self, abilities: Abilities) -> bool {
        match self {
            Self::Nothing => true,
            Self::PrivateMemory => abilities.private_memory,
            Self::PreFault => abilities.pre_fault,
            Self::Smm => abilities.smm,
            Self::PrivatePreFault => abilities.private_memory && abilities.pre_fault,
        }
    }
}

/// A program: its name, what it needs, and what writes it.
type Entry = (&'static str, Need, fn() -> Program);

/// All programs that a kernel of these abilities can make.
pub fn all(abilities: Abilities) -> Vec<Named> {
    let families = [
        deletion::ALL,
        private::ALL,
        pre_fault::ALL,
        smm::ALL,
        log::ALL,
        host::ALL,
    ];
    let programs = families.into_iter().flatten();
    let can = programs.filter(|(_, need, _)| need.is_met(abilities));
    can.map(|(name, _, write)| Named {
        name,
        program: write(),
    })
    .collect()
}

/// Those that delete a slot: by both policies, and of a VM with private memory.
pub fn deletions(abilities: Abilities) -> Vec<Named> {
    let mut all = all(abilities);
    all.retain(|program| program.name.starts_with("slot-delete"));
    all
}
