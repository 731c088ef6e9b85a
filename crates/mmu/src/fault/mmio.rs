//! What a vCPU remembers of its last access without a slot (`x86.h:vcpu_cache_mmio_info`).

use slat_memslot::{Generation, Gfn};

use crate::access::Access;

/// The last access without a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioAccess {
    /// The frame by which it is found again: of the address that faulted, which is the guest's own where its tables are
    /// shadowed.
    pub place: Gfn,
    /// The frame that the guest's tables gave for it.
    pub gfn: Gfn,
    /// Whether these tables allow writes, and user mode.
    pub access: Access,
}

/// The last MMIO access of a vCPU, and the generation of slots in which nothing was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmioCache {
    last: Option<(MmioAccess, Generation)>,
}

impl MmioCache {
    /// Remembers an access by its frame, unless slots are being exchanged.
    pub const fn remember(&mut self, gfn: Gfn, generation: Generation) {
        let access = Access::WRITE.union(Access::USER);
        let place = gfn;
        self.remember_at(MmioAccess { place, gfn, access }, generation);
    }

    /// The same by the address that faulted.
    pub const fn remember_at(&mut self, access: MmioAccess, generation: Generation) {
        if generation.raw() & Generation::UPDATE_IN_PROGRESS == 0 {
            self.last = Some((access, generation));
        }
    }

    /// Forgets it.
    pub const fn clear(&mut self) {
        self.last = None;
    }

    /// Forgets it if it was at this place.
    pub fn clear_at(&mut self, place: Gfn) {
        self.last = self.last.filter(|(last, _)| last.place != place);
    }

    /// The last access, if it was at this place, and slots have not changed since. Frame 0 is never remembered.
    pub fn at(&self, place: Gfn, generation: Generation) -> Option<MmioAccess> {
        let (last, then) = self.last?;
        (place.raw() != 0 && last.place == place && then == generation).then_some(last)
    }

    /// Whether the last access was at this place, and slots have not changed since.
    pub fn has(&self, place: Gfn, generation: Generation) -> bool {
        self.at(place, generation).is_some()
    }
}
