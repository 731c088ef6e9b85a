//! What a vCPU remembers of its last access without a slot (`x86.h:vcpu_cache_mmio_info`).

use slat_memslot::{Generation, Gfn};

/// The frame of the last MMIO access, and the generation of slots in which nothing was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmioCache {
    last: Option<(Gfn, Generation)>,
}

impl MmioCache {
    /// Remembers an access, unless slots are being exchanged.
    pub const fn remember(&mut self, gfn: Gfn, generation: Generation) {
        if generation.raw() & Generation::UPDATE_IN_PROGRESS == 0 {
            self.last = Some((gfn, generation));
        }
    }

    /// Forgets it.
    pub const fn clear(&mut self) {
        self.last = None;
    }

    /// Forgets it if it was this one.
    pub fn clear_at(&mut self, gfn: Gfn) {
        self.last = self.last.filter(|(last, _)| *last != gfn);
    }

    /// Whether this access was the last, and slots have not changed since. Frame 0 is never remembered.
    pub fn has(&self, gfn: Gfn, generation: Generation) -> bool {
        gfn.raw() != 0 && self.last == Some((gfn, generation))
    }
}
