//! What the module and a logical processor know of one vCPU.

use rustc_hash::FxHashMap;
use slat_memslot::{Gfn, Level};
use slat_mmu::spte::Pfn;

use super::stepping::Stepping;

/// A translation in a TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cached {
    pub(crate) page: Pfn,
    pub(crate) level: Level,
    pub(crate) writable: bool,
}

/// Where a vCPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) enum Where {
    /// It does not run.
    #[default]
    Outside,
    /// It runs.
    Inside,
    /// It runs, and the module works for it.
    InCall,
}

/// A vCPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vp {
    pub(crate) initialized: bool,
    pub(crate) associated: bool,
    pub(crate) place: Where,
    /// The epoch in which it entered last; 0 before it ever did.
    pub(crate) epoch: u64,
    pub(crate) rip: u64,
    pub(crate) stepping: Stepping,
    pub(crate) tlb: FxHashMap<Gfn, Cached>,
}

impl Vp {
    pub(crate) const fn is_inside(&self) -> bool {
        !matches!(self.place, Where::Outside)
    }

    /// What the TLB has for a frame, whichever size it was cached with.
    pub(crate) fn cached(&self, gfn: Gfn) -> Option<Cached> {
        [Level::L1, Level::L2, Level::L3]
            .into_iter()
            .find_map(|level| {
                let cached = self.tlb.get(&gfn.round_down(level))?;
                (cached.level == level).then_some(*cached)
            })
    }
}
