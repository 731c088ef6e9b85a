//! Scripts of operations on the page tables of one VM's TDP MMU: a host, roots, what is mapped and zapped, and what each
//! is expected to give. `docs/dump.md` is the reference of the text.
//!
//! [`parse`] checks a script as a whole: unknown roots, roots that an earlier line has made unusable, frames that the host
//! or a root does not have, ranges that would take more tables than [`MAX_TABLES`]. [`run`] then plays it on
//! [`slat_mmu::tdp::Tables`], in either format.
//!
//! ```
//! use slat_vmm::tables;
//!
//! let script = tables::parse(
//!     "host ept 46
//!      root a
//!      map a 0x0..0x200 0x1000
//!      map a 0x200 0x5200 2m
//!      expect fixed
//!      zap 0x10..0x20
//!      expect zapped 16",
//! )?;
//! let report = tables::run(&script, &tables::Options::default());
//! assert_eq!(report.failures().count(), 0);
//! assert_eq!(report.dump.roots[0].ranges.len(), 3);
//! assert!(tables::parse("map b 0x0 0x1000").is_err());
//! # Ok::<(), slat_vmm::scenario::ParseError>(())
//! ```
#![warn(clippy::indexing_slicing)]

mod args;
mod expect;
mod parse;
mod run;
#[cfg(test)]
mod tests;

use slat_memslot::{Generation, Gfn, GfnRange, Level, PageSize};
use slat_mmu::host::Host;
use slat_mmu::role::PageRole;
use slat_mmu::spte::{NxHugePages, Pfn};
use slat_mmu::tdp::Passes;

pub use crate::parse_error::ParseError;
pub use expect::{Expect, Outcome};
pub use parse::parse;
pub use run::{Options, Report, StepReport, run, run_traced};

/// The most tables that a script may ask for in all.
pub const MAX_TABLES: u32 = 1 << 16;

/// What a script says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The host; an AMD host with 48 address bits if there is no `host` line.
    pub host: Host,
    /// The lines that do something, in order.
    pub steps: Vec<Step>,
}

/// One line that does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The line in the text, from 1.
    pub line: u32,
    /// What to do.
    pub operation: Operation,
    /// The line's text without its comment.
    pub text: String,
    /// What it is expected to give; `None` accepts all but an error.
    pub expect: Option<Expect>,
}

/// The place of a root's name among those of a script, from 0. A name that is taken again has a new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootName(pub usize);

/// What a line does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Takes a reference to the root of a role.
    Root {
        /// Which name it gets.
        root: RootName,
        /// The role.
        role: PageRole,
    },
    /// A fault maps one page.
    Map {
        /// In which root.
        root: RootName,
        /// The frame.
        gfn: Gfn,
        /// The page.
        page: Page,
    },
    /// Pages that follow each other are mapped at once.
    MapRange {
        /// In which root.
        root: RootName,
        /// The frames.
        frames: GfnRange,
        /// The first page.
        page: Page,
    },
    /// A fault finds no slot.
    Mmio {
        /// In which root.
        root: RootName,
        /// The frame.
        gfn: Gfn,
        /// The generation of slots.
        generation: Generation,
    },
    /// Leaves of a range go, in all valid roots.
    Zap(GfnRange),
    /// The table of this level that leads to a frame goes.
    ZapPage {
        /// In which root.
        root: RootName,
        /// The frame.
        gfn: Gfn,
        /// The table's level.
        level: Level,
    },
    /// Huge leaves of a range become smaller, in all valid roots.
    Split {
        /// The frames.
        frames: GfnRange,
        /// The size that is wanted.
        size: PageSize,
    },
    /// A table makes room for a huge leaf.
    Collapse {
        /// In which root.
        root: RootName,
        /// The frame.
        gfn: Gfn,
        /// The size of the huge leaf.
        size: PageSize,
        /// How.
        how: slat_mmu::tdp::Collapse,
    },
    /// All roots become invalid.
    FastZap(FastZap),
    /// Roots that were invalidated and left are zapped (`zap-invalidated`).
    ZapInvalidated,
    /// Gives up a root.
    Put(RootName),
}

/// Who zaps the roots that were invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FastZap {
    /// The call itself, in these passes.
    BeforeReturn(Passes),
    /// Somebody later.
    Worker,
    /// Nobody looks at leaves.
    Discard,
}

/// A page, and how it is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Page {
    /// Its first frame.
    pub pfn: Pfn,
    /// Its size.
    pub size: PageSize,
    /// What else is to be said.
    pub options: PageOptions,
    /// Whether huge leaves may be executable.
    pub nx_huge_pages: NxHugePages,
}

bitflags::bitflags! {
    /// What a `map` line can say about a page.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct PageOptions: u8 {
        /// The host allows no writes (`ro`).
        const READ_ONLY = 1 << 0;
        /// Nobody has asked yet (`prefetch`).
        const PREFETCH = 1 << 1;
        /// Writes are tracked (`tracked`).
        const TRACKED = 1 << 2;
        /// Writes are logged (`log`).
        const LOG = 1 << 3;
        /// The guest only reads (`read`).
        const READ = 1 << 4;
    }
}
