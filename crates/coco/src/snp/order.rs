//! Whether things happen in the right order: the reverse map follows the leaf, never the other way.
//!
//! A frame is assigned before a private leaf maps it, and becomes the hypervisor's after the last leaf is gone and TLBs were
//! flushed. [`Order`] hears what happens, act by act, and keeps what was wrong.

use std::collections::{BTreeMap, BTreeSet};

use slat_mmu::spte::Pfn;

use super::audit::{Reach, SnpViolation};
use crate::rmp::Rmp;

/// Something that happens to frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// A leaf maps so many frames from the first one on.
    Mapped {
        /// The first frame.
        pfn: Pfn,
        /// How many.
        pages: u64,
        /// Whether they are private.
        private: bool,
    },
    /// A leaf is gone.
    Unmapped {
        /// The first frame.
        pfn: Pfn,
        /// How many.
        pages: u64,
    },
    /// All TLBs are empty.
    Flushed,
    /// Frames are about to become the hypervisor's.
    GivenBack {
        /// The first frame.
        pfn: Pfn,
        /// How many.
        pages: u64,
    },
}

/// Hears what happens, and finds what is out of order: N16 and N17.
///
/// ```
/// use slat_coco::rmp::{Asid, Rmp, RmpSize, RmpState};
/// use slat_coco::snp::{Act, Order};
/// use slat_memslot::Gfn;
/// use slat_mmu::spte::Pfn;
///
/// let (rmp, pfn, pages) = (Rmp::new(0x1000), Pfn::new(0x300), 1);
/// let state = RmpState::private(Asid::new(5).unwrap(), Gfn::new(7), RmpSize::Size4K);
/// rmp.rmpupdate(pfn, &state).unwrap();
/// let mut order = Order::default();
/// order.act(&rmp, Act::Mapped { pfn, pages, private: true });
/// order.act(&rmp, Act::Unmapped { pfn, pages });
/// // Some CPU may still use the translation.
/// order.act(&rmp, Act::GivenBack { pfn, pages });
/// assert_eq!(order.found()[0].code(), "N16");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// How many leaves map a frame.
    mapped: BTreeMap<Pfn, u32>,
    /// Frames that were mapped since TLBs were last flushed, and are not any more.
    stale: BTreeSet<Pfn>,
    found: Vec<SnpViolation>,
}

impl Order {
    /// Something happens now. The reverse map is as it is at this moment.
    pub fn act(&mut self, rmp: &Rmp, act: Act) {
        match act {
            Act::Mapped {
                pfn,
                pages,
                private,
            } => frames(pfn, pages).for_each(|pfn| {
                *self.mapped.entry(pfn).or_default() += 1;
                if private && !rmp.entry(pfn).assigned {
                    self.found.push(SnpViolation::MappedTooEarly(pfn));
                }
            }),
            Act::Unmapped { pfn, pages } => {
                frames(pfn, pages).for_each(|pfn| self.unmapped(pfn));
            }
            Act::Flushed => self.stale.clear(),
            Act::GivenBack { pfn, pages } => frames(pfn, pages).for_each(|pfn| {
                let reach = if self.mapped.contains_key(&pfn) {
                    Reach::Mapped
                } else if self.stale.contains(&pfn) {
                    Reach::NotFlushed
                } else {
                    return;
                };
                self.found.push(SnpViolation::GivenBackTooEarly(pfn, reach));
            }),
        }
    }

    fn unmapped(&mut self, pfn: Pfn) {
        self.stale.insert(pfn);
        if let Some(leaves) = self.mapped.get_mut(&pfn) {
            *leaves -= 1;
            if *leaves == 0 {
                self.mapped.remove(&pfn);
            }
        }
    }

    /// What was out of order.
    pub fn found(&self) -> &[SnpViolation] {
        &self.found
    }
}

fn frames(pfn: Pfn, pages: u64) -> impl Iterator<Item = Pfn> {
    (pfn.raw()..pfn.raw() + pages).map(Pfn::new)
}
