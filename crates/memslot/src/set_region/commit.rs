//! Carrying a set-region plan out.

use super::{Change, ChangeKind, Effects, LogSwitch, Zap, ZapReach, ZapRule};
use crate::{
    Binding, DirtyBitmap, FileRef, Generation, GfnRange, GmemFlags, Hva, InitialBits, LpageInfo,
    ManualProtect, Memory, PAGE_SHIFT, Refusal, Region, Slot, SlotFlags, SlotKey,
};

/// The VM's memory has changed since the plan was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the plan was made for another state of the VM's memory; check the request again")]
pub struct StalePlan;

impl Memory {
    /// Checks a set-region call and carries it out, or leaves behind what the kernel's refusal leaves behind.
    ///
    /// # Errors
    /// As [`Memory::check_region`].
    pub fn set_region(&mut self, request: &Region) -> Result<Effects, Refusal> {
        match self.check_region(request) {
            Ok(change) => Ok(self.carry_out(&change)),
            Err(refusal) => {
                if let Some(effects) = refusal.effects {
                    let space = self.space_mut(effects.slot.as_id);
                    space.generation = effects.generation;
                    // It was taken out of use, and is put into use again.
                    space.set_anew(effects.slot.id);
                    self.set_invalid(effects.slot, false);
                    self.mark_changed();
                }
                Err(refusal)
            }
        }
    }

    /// The first half of deleting or moving a slot, for whoever lets faults go on meanwhile: from now on those on the slot
    /// have to wait (`kvm_main.c:kvm_invalidate_memslot`). Then its mappings go; the call that deletes or moves it is the
    /// second half, and a refused move makes the slot what it was. `None` if there is no such slot.
    ///
    /// ```
    /// use slat_memslot::{Memory, Profile, Region, SlotKey, VmType};
    /// let mut memory = Memory::new(Profile::latest(), VmType::Default);
    /// let slot = Region::new(SlotKey::normal(3), 0, 0x4000, 0x7000_0000_0000);
    /// memory.set_region(&slot).unwrap();
    /// assert_eq!(memory.invalidate_slot(SlotKey::normal(3)), Some(()));
    /// assert!(memory.slot(3).unwrap().is_invalid());
    /// let moved = Region::new(SlotKey::normal(3), 0x10000, 0x4000, 0x7000_0000_0000);
    /// memory.set_region(&moved).unwrap();
    /// assert!(!memory.slot(3).unwrap().is_invalid());
    /// ```
    pub fn invalidate_slot(&mut self, slot: SlotKey) -> Option<()> {
        self.set_invalid(slot, true)
    }

    fn set_invalid(&mut self, slot: SlotKey, invalid: bool) -> Option<()> {
        let slot = self.space_mut(slot.as_id).by_id_mut(slot.id)?;
        slot.invalid = invalid;
        Some(())
    }

    /// Carries a plan out.
    ///
    /// # Errors
    /// The plan is stale: something was set between check and commit. Nothing happens then.
    pub fn commit_region(&mut self, change: Change) -> Result<Effects, StalePlan> {
        match change.version == self.version {
            true => Ok(self.carry_out(&change)),
            false => Err(StalePlan),
        }
    }

    /// What a log that was switched asks of page tables (`x86.c:kvm_mmu_slot_apply_flags`): nothing where the slot was made
    /// or moved, since nothing is mapped there, and nothing where it is read-only, since no leaf of it can be written to.
    pub fn log_of_tables(&self, effects: &Effects) -> Option<LogSwitch> {
        let slot = self.space(effects.slot.as_id).by_id(effects.slot.id);
        let readonly = slot.is_some_and(Slot::is_readonly);
        let asks = effects.kind == ChangeKind::FlagsOnly && !readonly;
        effects.log.filter(|_| asks)
    }

    fn carry_out(&mut self, change: &Change) -> Effects {
        let wrap = self.wrap_between(change.before, change.swaps);
        match change.kind {
            ChangeKind::Nothing => {}
            ChangeKind::Create => self.create(change),
            ChangeKind::Delete => self.delete(change.slot),
            ChangeKind::Move => self.move_slot(change),
            ChangeKind::FlagsOnly => self.change_flags(change),
        }
        if change.kind != ChangeKind::Nothing {
            self.mark_changed();
            self.shadow_pages |= change.kind == ChangeKind::Create;
            self.space_mut(change.slot.as_id).generation = change.after;
        }
        Effects {
            kind: change.kind,
            slot: change.slot,
            zap: change.zap,
            wrap,
            log: change.log,
            generation: change.after,
        }
    }

    /// The zap that a wrap of the MMIO generation brings, if one of `swaps` exchanges after `before` wraps.
    pub(crate) fn wrap_between(&self, before: Generation, swaps: u32) -> Option<Zap> {
        let count = self.address_space_count();
        let bits = self.profile().mmio_generation_bits.get();
        let wraps = (1..=swaps).any(|n| before.after(n, count).wraps_mmio(bits, count));
        wraps.then_some(Zap {
            reach: ZapReach::AllRoots,
            rule: ZapRule::MmioGenerationWrap,
        })
    }

    fn create(&mut self, change: &Change) {
        let Some(range) = change.new else { return };
        let request = &change.request;
        let slot = Slot {
            key: change.slot,
            flags: SlotFlags::from_bits_truncate(request.flags),
            binding: self.bind(request, change.slot, range),
            dirty: self.new_bitmap(change.log, range),
            lpage: LpageInfo::new(range, Hva::new(request.hva)),
            invalid: false,
        };
        self.total_pages += range.pages();
        self.logged_slots += u32::from(slot.is_logged());
        self.space_mut(change.slot.as_id).insert(slot);
    }

    /// Binds the range of a guest_memfd that a checked request names.
    fn bind(&mut self, request: &Region, slot: SlotKey, range: GfnRange) -> Option<Binding> {
        let (FileRef::Gmem(id), true) = (request.gmem, request.has(SlotFlags::GUEST_MEMFD)) else {
            return None;
        };
        let first_page = request.gmem_offset >> PAGE_SHIFT;
        let file = self.gmem_file_mut(id)?;
        file.bind(first_page, range.pages().raw(), slot);
        let gmem_only = file.flags().contains(GmemFlags::MMAP);
        Some(Binding {
            file: Some(id),
            first_page,
            gmem_only,
        })
    }

    /// The bitmap of a slot whose log is being switched on; rings make bitmaps unnecessary.
    fn new_bitmap(&self, log: Option<LogSwitch>, range: GfnRange) -> Option<DirtyBitmap> {
        if !matches!(log, Some(LogSwitch::On | LogSwitch::OnInitiallySet)) || self.has_rings() {
            return None;
        }
        let initially = match self.manual_protect().contains(ManualProtect::INITIALLY_SET) {
            true => InitialBits::Set,
            false => InitialBits::Clear,
        };
        Some(DirtyBitmap::new(range.pages(), initially))
    }

    fn delete(&mut self, key: SlotKey) {
        let Some(slot) = self.space_mut(key.as_id).remove(key.id) else {
            return;
        };
        self.total_pages -= slot.pages();
        self.logged_slots -= u32::from(slot.is_logged());
        if let Some(Binding {
            file: Some(file),
            first_page,
            ..
        }) = slot.binding
        {
            if let Some(gmem) = self.gmem_file_mut(file) {
                gmem.unbind(first_page);
            }
        }
    }

    /// The slot goes to other frames: same host memory and id, same bitmap if logging goes on.
    fn move_slot(&mut self, change: &Change) {
        let Some(range) = change.new else { return };
        let bitmap = self.new_bitmap(change.log, range);
        let space = self.space_mut(change.slot.as_id);
        let Some(mut slot) = space.remove(change.slot.id) else {
            return;
        };
        slot.invalid = false;
        slot.lpage = LpageInfo::new(range, slot.hva());
        slot.take_flags(change, bitmap);
        space.insert(slot);
        self.count_logged(change.log);
    }

    fn change_flags(&mut self, change: &Change) {
        let bitmap = change
            .new
            .and_then(|range| self.new_bitmap(change.log, range));
        if let Some(slot) = self.space_mut(change.slot.as_id).by_id_mut(change.slot.id) {
            slot.take_flags(change, bitmap);
        }
        self.space_mut(change.slot.as_id).set_anew(change.slot.id);
        self.count_logged(change.log);
    }

    fn count_logged(&mut self, log: Option<LogSwitch>) {
        match log {
            Some(LogSwitch::On | LogSwitch::OnInitiallySet) => self.logged_slots += 1,
            Some(LogSwitch::Off) => self.logged_slots -= 1,
            None => {}
        }
    }
}

impl Slot {
    /// Takes the flags of a request; a log that goes on keeps its bitmap, one that starts takes `bitmap`.
    fn take_flags(&mut self, change: &Change, bitmap: Option<DirtyBitmap>) {
        self.flags = SlotFlags::from_bits_truncate(change.request.flags);
        if change.log.is_some() {
            self.dirty = bitmap;
        }
    }
}
