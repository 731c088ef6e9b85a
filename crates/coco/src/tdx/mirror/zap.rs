//! What takes mappings away.

use slat_memslot::{AsId, Attributes, Gfn, GfnRange};
use slat_mmu::tdp::{
    Passes, Progress, RootTypes, Uninterrupted, Unobserved, ZapAll, ZapInvalidated, ZapLeafs,
};

use super::backend::{Bug, Stage};
use super::vm::TdxMmu;
use crate::sync::{lock, read};
use crate::tdx::{Answer, VpId};

/// How a slot is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SlotZap {
    /// Leaves of the slot, in both kinds of roots: what every VM type but the default one gets.
    #[default]
    Leafs,
    /// All shared tables are thrown away, and leaves of the slot in the mirror: the alternative of the thread of May 2024.
    SharedRootsAndLeafs,
    /// All roots are thrown away, the mirror with them: what `KVM_X86_QUIRK_SLOT_ZAP_ALL` means for the default VM type.
    /// No call of the module takes an S-EPT with mapped pages away.
    AllRoots,
}

impl TdxMmu {
    /// Says that frames are private, which takes away what the shared side maps
    /// (`KVM_SET_MEMORY_ATTRIBUTES`). What is so already is left alone.
    pub fn set_private(&self, range: GfnRange) {
        self.set_attribute(range, true);
    }

    /// Says that frames are shared, which takes away what the private side maps, and with it its content. The pages of
    /// guest_memfd stay.
    pub fn set_shared(&self, range: GfnRange) {
        self.set_attribute(range, false);
    }

    fn set_attribute(&self, range: GfnRange, private: bool) {
        let attributes = if private {
            Attributes::PRIVATE
        } else {
            Attributes::empty()
        };
        if lock(&self.kvm).private.has(range, attributes) {
            return;
        }
        self.invalidate(range, || {
            let types = if private {
                RootTypes::Direct
            } else {
                RootTypes::Mirror
            };
            self.zap_leafs(range, types);
            lock(&self.kvm).private.set(range, attributes);
        });
    }

    /// Gives pages of guest_memfd back to the host (`FALLOC_FL_PUNCH_HOLE`), after taking their mappings away.
    pub fn punch(&self, range: GfnRange) {
        self.invalidate(range, || {
            self.zap_leafs(range, RootTypes::Mirror);
            self.release_gmem(range);
        });
    }

    /// Takes the private mappings of frames away; pages stay.
    pub(super) fn zap_private(&self, range: GfnRange) {
        self.invalidate(range, || {
            self.zap_leafs(range, RootTypes::Mirror);
        });
    }

    /// Deletes a slot, and the guest_memfd behind it if it has one of its own. Other slots lose nothing by the first policy; the last one fails.
    ///
    /// # Errors
    /// The rule that is broken; the slot stays.
    pub fn delete_slot(&self, id: u16, policy: SlotZap) -> Result<(), Bug> {
        let Some(range) = self.start_deletion(id) else {
            return Ok(());
        };
        // Faults that come now find the slot invalid; those under way see the sequence.
        self.invalidate(range, || match policy {
            SlotZap::Leafs => {
                self.zap_leafs(range, RootTypes::Mirror);
                self.zap_leafs(range, RootTypes::Direct);
            }
            SlotZap::SharedRootsAndLeafs => {
                self.zap_leafs(range, RootTypes::Mirror);
                self.zap_direct_roots();
            }
            SlotZap::AllRoots => self.zap_every_table(),
        });
        let mut kvm = lock(&self.kvm);
        if let Some(bug) = self.bug_of(policy) {
            if let Some(slot) = kvm.slots.get_mut(&id) {
                slot.deleting = false;
            }
            return Err(bug);
        }
        let own = kvm.slots.get(&id).and_then(|slot| slot.file);
        drop(kvm);
        if own.is_some_and(|(file, _)| file.is_of_slot()) {
            self.release_gmem(range);
        }
        lock(&self.kvm).slots.remove(&id);
        Ok(())
    }

    fn bug_of(&self, policy: SlotZap) -> Option<Bug> {
        (policy == SlotZap::AllRoots).then(|| self.bug()).flatten()
    }

    /// Marks a slot as being deleted, and gives its frames.
    pub(super) fn start_deletion(&self, id: u16) -> Option<GfnRange> {
        let mut kvm = lock(&self.kvm);
        let slot = kvm.slots.get_mut(&id)?;
        slot.deleting = true;
        Some(slot.range)
    }

    /// `mmu_invalidate_begin`, what takes mappings away, `mmu_invalidate_end`.
    fn invalidate(&self, range: GfnRange, act: impl FnOnce()) {
        {
            // Faults that have passed the test have taken the lock for reading: wait for them.
            let _alone = crate::sync::write(&self.tables);
            lock(&self.kvm).invalidating = Some(range);
        }
        act();
        let _alone = crate::sync::write(&self.tables);
        let mut kvm = lock(&self.kvm);
        kvm.sequence += 1;
        kvm.invalidating = None;
    }

    /// Zaps the leaves of a range in roots of one kind, and gives their number; attributes and pages stay. Direct roots are
    /// indexed with the SHARED bit.
    pub fn zap_leafs(&self, range: GfnRange, types: RootTypes) -> u64 {
        let range = if types == RootTypes::Direct {
            let (start, last) = (
                self.shared_gfn(range.start()),
                self.shared_gfn(range.last()),
            );
            GfnRange::between(start, Gfn::new(last.raw() + 1)).unwrap_or(range)
        } else {
            range
        };
        self.exclusively(|tables| {
            let mut zap = ZapLeafs::of_address_space(AsId::NORMAL, range).with_types(types);
            let mut locked = tables.exclusive(Unobserved);
            let done = zap.run(&mut locked, &mut Uninterrupted);
            debug_assert_eq!(done, Progress::Done);
            zap.zapped()
        })
    }

    /// Throws the tables of shared memory away (`mmu.c:kvm_mmu_zap_all_fast`, which leaves mirrors alone). vCPUs get a
    /// new root of the same role when they load one.
    pub fn zap_direct_roots(&self) {
        self.exclusively(|tables| {
            let mut locked = tables.exclusive(Unobserved);
            locked.invalidate_roots();
            self.replace_direct(&mut locked);
        });
        let tables = read(&self.tables);
        let Some(mut reader) = tables.reader() else {
            return;
        };
        let mut zap = ZapInvalidated::new(Passes::default());
        let mut locked = tables.shared(&mut reader, Unobserved);
        let _done = zap.run(&mut locked, &mut Uninterrupted);
    }

    /// Takes the mirror's tables too, whatever stage the TD is at.
    fn zap_every_table(&self) {
        self.exclusively(|tables| {
            let mut zap = ZapAll::of_mirrors_too(Passes::default());
            let mut locked = tables.exclusive(Unobserved);
            let _done = zap.run(&mut locked, &mut Uninterrupted);
        });
    }

    /// Ends the TD: its key is freed, then all pages are reclaimed, tables after what they map, the TD's own at last.
    ///
    /// # Errors
    /// What the module says.
    pub fn destroy(&self) -> Answer {
        let (module, td) = (self.module(), self.td());
        for vp in (0..module.vcpus(td)).map(VpId) {
            if module.is_inside(td, vp) {
                module.vp_exit(td, vp)?;
            }
            module.tdh_vp_flush(td, vp)?;
        }
        module.tdh_mng_vpflushdone(td)?;
        module.tdh_phymem_cache_wb(td)?;
        module.tdh_mng_key_freeid(td)?;
        self.backend.state().stage = Stage::KeyFreed;
        self.zap_every_table();
        module.reclaim_own(td)
    }
}
