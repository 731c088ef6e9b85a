//! What is done to all leaves of some frames: the host takes pages away, asks whether they were used, or logs their writes.

use slat_memslot::{AsId, Gfn, GfnRange, Level, Memory, PageSize, Slot};

use super::beside::TdpBeside;
use super::held::ShadowLocked;
use super::page::SpteRef;
use super::rmap::LEAF_LEVELS;
use crate::spte::{Format, Spte};
use crate::tdp::{ByWhat, Observer};

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
    /// The frames of a range over which there are leaves of a level.
    pub(super) fn frames_with_leafs(&self, as_id: AsId, level: Level, range: GfnRange) -> Vec<Gfn> {
        let mut found = Vec::new();
        let mut from = range.start();
        while let Some((gfn, _)) = self.mmu.frames.next_leafs(as_id, level, from, range.end()) {
            found.push(gfn);
            let Some(next) = gfn.round_down(level).checked_add(level.pages()) else {
                break;
            };
            from = next;
        }
        found
    }

    /// Zaps all leaves that map some frames; says whether there were any (`mmu.c:kvm_unmap_gfn_range`).
    pub fn zap_frames(&mut self, as_id: AsId, range: GfnRange) -> bool {
        let mut flush = false;
        for level in LEAF_LEVELS {
            for gfn in self.frames_with_leafs(as_id, level, range) {
                flush |= self.zap_leafs_of(as_id, level, gfn);
            }
        }
        if flush {
            self.flush();
        }
        flush
    }

    /// A slot goes, and only what it maps: its leaves, and the pages that follow tables in it
    /// (`mmu.c:kvm_mmu_zap_memslot`).
    pub fn zap_slot(&mut self, as_id: AsId, range: GfnRange) {
        let mut flush = false;
        for level in LEAF_LEVELS {
            for gfn in self.frames_with_leafs(as_id, level, range) {
                flush |= self.zap_leafs_of(as_id, level, gfn);
            }
        }
        if self.mmu.has_indirect() {
            let mut tables: Vec<Gfn> = self.mmu.active().map(|page| page.gfn).collect();
            tables.sort_unstable();
            tables.dedup();
            for gfn in tables.into_iter().filter(|gfn| range.contains(*gfn)) {
                for page in self.followers(gfn) {
                    // One may have gone with another.
                    if self
                        .mmu
                        .role_of(page)
                        .is_some_and(|role| !role.is_invalid())
                    {
                        self.prepare_zap(page);
                    }
                }
            }
        }
        self.flush_or_zap(flush);
    }

    /// Whether pages were used since this was last asked, and forgets it (`mmu.c:kvm_age_rmap`).
    pub fn age(&mut self, as_id: AsId, range: GfnRange) -> bool {
        let mut young = false;
        for level in LEAF_LEVELS {
            for gfn in self.frames_with_leafs(as_id, level, range) {
                young |= self.age_leafs_of(as_id, level, gfn);
            }
        }
        young
    }

    fn age_leafs_of(&mut self, as_id: AsId, level: Level, gfn: Gfn) -> bool {
        let codec = self.mmu.codec;
        let head = self.mmu.frames.leafs(as_id, level, gfn);
        let leafs: Vec<SpteRef> = self.mmu.lists.iter(head).collect();
        let mut young = false;
        for leaf in leafs {
            let old = self.entry(leaf);
            if codec.is_accessed(old) {
                self.store(leaf, codec.track_access(old));
                young = true;
            }
        }
        young
    }

    /// Takes write permission from the leaves of a range, from a size on; they can have it back without asking
    /// (`mmu.c:kvm_mmu_slot_remove_write_access`).
    pub fn write_protect_range(&mut self, as_id: AsId, range: GfnRange, smallest: PageSize) {
        let codec = self.mmu.codec;
        let protect = |spte: Spte<F>| codec.write_protect(spte);
        for level in LEAF_LEVELS.into_iter().filter(|at| *at >= smallest.level()) {
            for gfn in self.frames_with_leafs(as_id, level, range) {
                self.change_leafs_of(as_id, level, gfn, protect);
            }
        }
    }

    /// Clears the dirty bits of small leaves, or write-protects where there are none
    /// (`mmu.c:kvm_mmu_slot_leaf_clear_dirty`).
    pub fn clear_dirty_range(&mut self, as_id: AsId, range: GfnRange) {
        let codec = self.mmu.codec;
        let clear = |spte| clean(&codec, spte);
        for gfn in self.frames_with_leafs(as_id, Level::L1, range) {
            self.change_leafs_of(as_id, Level::L1, gfn, clear);
        }
    }

    /// Lets the next write to some of 64 frames be seen (`mmu.c:kvm_mmu_write_protect_pt_masked`,
    /// `mmu.c:kvm_mmu_clear_dirty_pt_masked`).
    pub fn clear_dirty_masked(&mut self, as_id: AsId, first: Gfn, mask: u64, by: ByWhat) {
        let codec = self.mmu.codec;
        for bit in (0..u64::from(u64::BITS)).filter(|bit| mask >> bit & 1 != 0) {
            let gfn = Gfn::new(first.raw() + bit);
            let protect = |spte: Spte<F>| match by {
                ByWhat::WriteProtection => codec.write_protect(spte),
                ByWhat::DirtyBit => clean(&codec, spte),
            };
            self.change_leafs_of(as_id, Level::L1, gfn, protect);
        }
    }

    /// Takes write permission from the leaves of a frame, from a size on, for good
    /// (`mmu.c:kvm_mmu_slot_gfn_write_protect`).
    pub fn write_track(&mut self, as_id: AsId, gfn: Gfn, smallest: PageSize) -> bool {
        self.write_protect(as_id, gfn, smallest.level())
    }

    /// Zaps small leaves of direct pages where a larger one could be (`mmu.c:kvm_rmap_zap_collapsible_sptes`). `backed` says
    /// how large the host maps what is behind a frame.
    pub fn zap_collapsible(
        &mut self,
        memory: &Memory,
        slot: &Slot,
        backed: impl Fn(Gfn) -> PageSize,
    ) {
        let (as_id, mut flush) = (slot.key().as_id, false);
        for level in [Level::L1, Level::L2] {
            for gfn in self.frames_with_leafs(as_id, level, slot.range()) {
                flush |= self.zap_collapsible_at((as_id, level, gfn), memory, slot, &backed);
            }
        }
        if flush {
            self.flush();
        }
    }

    fn zap_collapsible_at(
        &mut self,
        (as_id, level, gfn): (AsId, Level, Gfn),
        memory: &Memory,
        slot: &Slot,
        backed: impl Fn(Gfn) -> PageSize,
    ) -> bool {
        let head = self.mmu.frames.leafs(as_id, level, gfn);
        let leafs: Vec<SpteRef> = self.mmu.lists.iter(head).collect();
        let mut zapped = false;
        for leaf in leafs {
            let page = self.mmu.pages.get(leaf.page);
            let (direct, first) = (page.role.is_direct(), page.gfn);
            let most = backed(first).min(self.mmu.codec.host().largest_page);
            let possible = self.mmu.largest_page(memory, slot, first, most);
            if direct && page.level() < possible.level() {
                self.drop_leaf(leaf);
                zapped = true;
            }
        }
        zapped
    }
}

/// A leaf whose next write shows: by its dirty bit where hardware keeps one, else by a fault.
fn clean<F: Format>(codec: &crate::spte::Codec<F>, spte: Spte<F>) -> Spte<F> {
    if codec.needs_write_protection(spte) || !codec.host().ad_enabled() {
        codec.write_protect(spte)
    } else {
        codec.clear_dirty(spte)
    }
}
