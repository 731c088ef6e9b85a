//! Taking permissions away, and giving them back: access tracking, write protection, dirty and accessed bits.
//!
//! Without hardware A/D bits KVM finds accesses by taking all permissions from an entry. Those to read and execute are
//! kept in ignored bits; that to write is not, since the write has to be logged anyway.

use super::bits;
use super::{Codec, Format, Spte};

impl<F: Format> Codec<F> {
    /// Whether permissions were taken from a present entry to find the next access (`spte.h:is_access_track_spte`).
    #[inline]
    pub const fn is_access_tracked(&self, spte: Spte<F>) -> bool {
        spte.raw() & (self.masks.ad_mask | self.masks.tracked) == self.masks.ad_disabled
    }

    /// Makes the next access to a present leaf visible (`spte.c:mark_spte_for_access_track`).
    ///
    /// With hardware A/D bits that means to clear the accessed bit.
    #[must_use]
    pub const fn track_access(&self, spte: Spte<F>) -> Spte<F> {
        if !self.is_ad_disabled(spte) {
            return spte.without(self.masks.accessed);
        }
        if self.is_access_tracked(spte) {
            return spte;
        }
        let saved = (spte.raw() & self.masks.saved) << self.masks.saved_shift;
        spte.with(saved)
            .without(self.masks.tracked | self.masks.accessed)
    }

    /// Gives an access-tracked leaf its permissions back, but for writing (`spte.h:restore_acc_track_spte`).
    ///
    /// Since 6.13 the fast fault that does this sets the accessed bit too ([`Codec::mark_accessed`]).
    #[must_use]
    pub const fn restore_access(&self, spte: Spte<F>) -> Spte<F> {
        let saved = self.saved_permissions(spte);
        spte.without(self.masks.tracked | self.masks.saved << self.masks.saved_shift)
            .with(saved)
    }

    /// The permissions that access tracking has put aside, where they belong.
    pub(super) const fn saved_permissions(&self, spte: Spte<F>) -> u64 {
        (spte.raw() >> self.masks.saved_shift) & self.masks.saved
    }

    /// With the accessed bit, where the host's rules know one.
    #[must_use]
    pub const fn mark_accessed(&self, spte: Spte<F>) -> Spte<F> {
        spte.with(self.masks.accessed)
    }

    /// Without the dirty bit.
    #[must_use]
    pub const fn clear_dirty(&self, spte: Spte<F>) -> Spte<F> {
        spte.without(self.masks.dirty)
    }

    /// Writable for hardware. Right for an MMU-writable leaf only (`mmu.c:fast_page_fault`).
    #[must_use]
    pub const fn make_writable(&self, spte: Spte<F>) -> Spte<F> {
        spte.with(bits::WRITABLE)
    }

    /// Not writable for hardware; the next write can be allowed without asking (dirty log).
    #[must_use]
    pub const fn write_protect(&self, spte: Spte<F>) -> Spte<F> {
        spte.without(bits::WRITABLE)
    }

    /// Not writable, and not without asking either, since writes to the page are tracked
    /// (`tdp_mmu.c:write_protect_gfn`).
    #[must_use]
    pub const fn write_track(&self, spte: Spte<F>) -> Spte<F> {
        spte.without(bits::WRITABLE | self.masks.mmu_writable)
    }
}
