//! What the tables hold, as a value and as one stable text: roots, roles, mapped ranges.
//!
//! [`Tables::dump`](super::Tables::dump) takes a [`Dump`]; [`Display`](core::fmt::Display) writes it, `parse` reads it back, and
//! [`Dump::diff`] compares two. `docs/dump.md` is the reference of the text. Leaves that follow each other in the guest
//! and on the host, and are alike in everything else, are one [`Range`].
//!
//! KVM has no such dump on x86; arm64 has one in debugfs (`arch/arm64/kvm/ptdump.c`).
//!
//! ```
//! use slat_memslot::{Gfn, PageSize};
//! use slat_mmu::role::{TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
//! use slat_mmu::tdp::dump::{Detail, Dump};
//! use slat_mmu::{host::Host, spte::{Npt, Pfn}, tdp::{MapRequest, Tables, Unobserved}};
//!
//! let mut tables = Tables::<Npt>::new(&Host::npt(48));
//! let role = root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::Npt4));
//! let empty = tables.dump(Detail::Ranges);
//! let mut observer = Unobserved;
//! let mut locked = tables.exclusive(&mut observer);
//! let root = locked.acquire_root(role).unwrap().root();
//! let root = locked.root_table(root).unwrap();
//! for gfn in 0..3 {
//!     let request = MapRequest::page(Gfn::new(gfn), PageSize::Size4K, Pfn::new(0x4000 + gfn));
//!     locked.map(root, &request).unwrap();
//! }
//! let dump = locked.dump(Detail::Ranges);
//! assert!(dump.to_string().contains("0x0..0x3 l1 rwx pfn 0x4000 hw mw ad pat"));
//! assert_eq!(dump.to_string().parse::<Dump>().unwrap(), dump);
//! assert_eq!(empty.diff(&dump).roots.len(), 1);
//! ```
#![warn(clippy::indexing_slicing)]

mod diff;
mod line;
mod load;
mod read;
mod take;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
mod words;
mod write;

use core::fmt;

use slat_memslot::{Gfn, GfnRange, Level, Pages};

pub use diff::{Diff, HostChange, RootDiff};
pub use line::DumpError;
pub use load::LoadError;
pub use words::{access_letters, ad_word, memory_word};

use crate::host::Host;
use crate::role::PageRole;
use crate::spte::{Access, Leaf, MmioGeneration, Pfn};

/// How much a dump tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Detail {
    /// Roots and mapped ranges.
    #[default]
    Ranges,
    /// Every table and every entry that is not the empty one, too.
    Entries,
}

/// What the tables of a VM hold.
///
/// Written and read back it is the same, if it was taken from tables or read: a role that fits no layout cannot be written,
/// nor can address widths of more than 52 bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dump {
    /// The host that the tables were made for. Its second stage says how entries are read.
    pub host: Host,
    /// The roots, the newest first.
    pub roots: Vec<Root>,
}

/// One root and what it maps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Root {
    /// Its name.
    pub number: RootNumber,
    /// Its role, `invalid` included.
    pub role: PageRole,
    /// References, the TDP MMU's own included.
    pub references: u32,
    /// How many tables there are by level, from 1; the root's own is among them.
    pub tables: [u32; 5],
    /// What is mapped, in the order of frames.
    pub ranges: Vec<Range>,
    /// Every table with its entries, parents before children; nothing unless [`Detail::Entries`] was asked for.
    pub entries: Vec<RawTable>,
}

/// The name of a root: its place, and how often the place had been used before ([`RootId`](crate::roots::RootId)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootNumber {
    /// The place.
    pub place: u32,
    /// How often it had been used before.
    pub generation: u32,
}

impl fmt::Display for RootNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.place, self.generation)
    }
}

/// Frames that are mapped alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// The frames.
    pub frames: GfnRange,
    /// The level of the entries.
    pub level: Level,
    /// What the first entry says; each next one goes on where the one before ends.
    pub content: Content,
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// A page. Its level is that of the range.
    Leaf(Leaf),
    /// No slot.
    Mmio {
        /// The frame that the entry names; anything but its own is a fault.
        gfn: Gfn,
        /// The access that the entry has kept.
        access: Access,
        /// The generation of slots.
        generation: MmioGeneration,
    },
    /// Frozen: somebody was about to replace it.
    Frozen,
}

/// One table with its entries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RawTable {
    /// The table's number.
    pub table: u32,
    /// Its level.
    pub level: Level,
    /// The first frame that it covers.
    pub gfn: Gfn,
    /// Every entry that is not the empty one, by its index.
    pub entries: Vec<(u16, u64)>,
}

impl Content {
    /// What an entry says that lies so many frames further on.
    #[must_use]
    fn after(self, pages: Pages) -> Self {
        match self {
            Self::Leaf(leaf) => Self::Leaf(Leaf {
                pfn: Pfn::new(leaf.pfn.raw().wrapping_add(pages.raw())),
                ..leaf
            }),
            Self::Mmio {
                gfn,
                access,
                generation,
            } => Self::Mmio {
                gfn: Gfn::new(gfn.raw().wrapping_add(pages.raw())),
                access,
                generation,
            },
            Self::Frozen => Self::Frozen,
        }
    }
}

impl Range {
    /// Whether `next` says what this range would say if it went on.
    fn goes_on_as(&self, next: &Self) -> bool {
        self.frames.end() == next.frames.start()
            && self.level == next.level
            && self.content.after(self.frames.pages()) == next.content
    }

    /// The part of the range in these frames.
    fn within(&self, frames: GfnRange) -> Option<Self> {
        let frames = self.frames.intersection(frames)?;
        let before = frames.start() - self.frames.start();
        Some(Self {
            frames,
            content: self.content.after(before),
            ..*self
        })
    }
}

/// Adds a range behind the last, or makes the last one longer.
fn push(ranges: &mut Vec<Range>, next: Range) {
    if let Some(last) = ranges.last_mut().filter(|last| last.goes_on_as(&next)) {
        if let Some(both) = GfnRange::between(last.frames.start(), next.frames.end()) {
            last.frames = both;
            return;
        }
    }
    ranges.push(next);
}

impl Dump {
    /// The same with ranges joined that go on as each other. What was taken from tables is so already.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        for root in &mut self.roots {
            let mut joined = Vec::with_capacity(root.ranges.len());
            for range in root.ranges.drain(..) {
                push(&mut joined, range);
            }
            root.ranges = joined;
        }
        self
    }
}
