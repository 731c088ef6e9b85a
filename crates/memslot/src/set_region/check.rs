//! Every test of a set-region call, in kernel order.

use super::{Change, ChangeKind, Effects, LogSwitch, Requests, Zap, ZapReach, ZapRule};
use crate::{
    AsId, FileRef, Gfn, GfnRange, Gpa, ManualProtect, Memory, PAGE_SIZE, Pages, Quirks, Refusal,
    Region, RegionError, RegionVersion, Slot, SlotFlags, SlotId, SlotKey, SlotZap, VmType,
};

/// The most pages a slot can hold (`KVM_MEM_MAX_NR_PAGES`).
pub(crate) const MAX_PAGES: u64 = (1 << 31) - 1;

const fn unaligned(value: u64) -> bool {
    value % PAGE_SIZE != 0
}

impl Memory {
    /// Whether KVM will take a set-region call: the plan of what it will do, or the reason why not.
    ///
    /// Pure: the VM does not change. Resource limits of the host (`ENOMEM`, `EFAULT`) are not foreseen.
    ///
    /// # Errors
    /// The first test that fails in the kernel's order, with what KVM leaves behind when it fails.
    ///
    /// ```
    /// use slat_memslot::{Errno, Memory, Profile, Region, RegionError, SlotKey, VmType};
    /// let memory = Memory::new(Profile::latest(), VmType::Default);
    /// let slot = SlotKey::normal(0);
    /// let plan = memory.check_region(&Region::new(slot, 0, 0x10_0000, 0x7000_0000_0000)).unwrap();
    /// println!("{plan}");
    /// let refusal = memory.check_region(&Region::new(slot, 0x800, 0x1000, 0x7000_0000_0000)).unwrap_err();
    /// assert_eq!(refusal.errno(), Errno::EINVAL);
    /// assert_eq!(refusal.reason, RegionError::GpaUnaligned { gpa: 0x800 }.into());
    /// ```
    pub fn check_region(&self, request: &Region) -> Result<Change, Refusal> {
        self.check_gate()?;
        self.check_struct(request)?;
        let as_id = self.check_arguments(request)?;
        let key = SlotKey {
            as_id,
            id: SlotId::new(low_half(request.slot)),
        };
        let old = self.space(as_id).by_id(key.id);
        let kind = classify(request, key, old)?;
        let change = self.plan(request, kind, key, old);
        if let (ChangeKind::Create | ChangeKind::Move, Some(range)) = (kind, change.new) {
            self.check_new_range(request, key, range, &change)?;
        }
        Ok(change)
    }

    /// The tests of the two structs, before any lock.
    fn check_struct(&self, request: &Region) -> Result<(), RegionError> {
        if request.version == RegionVersion::V2 && !self.profile().region2.get() {
            return Err(RegionError::NoRegion2 {});
        }
        let v1_flags = SlotFlags::LOG_DIRTY_PAGES.union(SlotFlags::READONLY).bits();
        let unknown = request.flags & !v1_flags;
        if request.version == RegionVersion::V1 && unknown != 0 {
            return Err(RegionError::FlagsOfV2 {
                flags: request.flags,
            });
        }
        let id = low_half(request.slot);
        if !SlotId::new(id).is_user() {
            return Err(RegionError::SlotId { id });
        }
        Ok(())
    }

    /// The tests of single arguments, which apply to every request, deletes included.
    fn check_arguments(&self, request: &Region) -> Result<AsId, RegionError> {
        self.check_flags(request)?;
        let Region { gpa, size, hva, .. } = *request;
        if unaligned(size) {
            return Err(RegionError::SizeUnaligned { size });
        }
        if unaligned(gpa) {
            return Err(RegionError::GpaUnaligned { gpa });
        }
        if unaligned(hva) {
            return Err(RegionError::HvaUnaligned { hva });
        }
        let limit = self.profile().user_end.get();
        if hva.checked_add(size).is_none_or(|end| end > limit) {
            return Err(RegionError::HvaNotUser { hva, size, limit });
        }
        if request.has(SlotFlags::GUEST_MEMFD) {
            check_gmem_offset(request)?;
        }
        let as_id = self.check_address_space(request)?;
        if gpa.checked_add(size).is_none() {
            return Err(RegionError::GpaWraps { gpa, size });
        }
        let pages = Pages::in_bytes(size).raw();
        if pages > MAX_PAGES {
            return Err(RegionError::TooManyPages { pages });
        }
        Ok(as_id)
    }

    fn check_address_space(&self, request: &Region) -> Result<AsId, RegionError> {
        let as_id = high_half(request.slot);
        let count = self.address_space_count();
        let known = u8::try_from(as_id)
            .ok()
            .filter(|index| *index < count)
            .and_then(AsId::new);
        known.ok_or(RegionError::AddressSpace { as_id, count })
    }

    /// `check_memory_region_flags`: which flags this VM's slots take, and together with which.
    fn check_flags(&self, request: &Region) -> Result<(), RegionError> {
        let vm_type = self.vm_type();
        let experiment = self.profile().slot_zap.get() == SlotZap::BySlotFlag;
        let known = if experiment {
            SlotFlags::all()
        } else {
            SlotFlags::UPSTREAM
        };
        let unknown = request.flags & !known.bits();
        if unknown != 0 {
            return Err(RegionError::UnknownFlags { unknown });
        }
        let flags = SlotFlags::from_bits_truncate(request.flags);
        if flags.contains(SlotFlags::GUEST_MEMFD) {
            if !self.profile().allows_gmem_slots(vm_type) {
                return Err(RegionError::GmemUnsupported { vm_type });
            }
            if flags.contains(SlotFlags::LOG_DIRTY_PAGES) {
                return Err(RegionError::LogWithGmem {});
            }
            if flags.contains(SlotFlags::READONLY) {
                return Err(RegionError::ReadonlyWithGmem {});
            }
        }
        if flags.contains(SlotFlags::READONLY) && vm_type.has_protected_state() {
            return Err(RegionError::ReadonlyProtected { vm_type });
        }
        Ok(())
    }

    /// What the change will do.
    fn plan(
        &self,
        request: &Region,
        kind: ChangeKind,
        slot: SlotKey,
        old: Option<&Slot>,
    ) -> Change {
        // Empty when the slot is deleted.
        let new = GfnRange::new(Gpa::new(request.gpa).gfn(), Pages::in_bytes(request.size));
        let log = self.log_switch(request, kind, old);
        let swaps = match kind {
            ChangeKind::Nothing => 0,
            ChangeKind::Create | ChangeKind::FlagsOnly => 1,
            ChangeKind::Delete | ChangeKind::Move => 2,
        };
        let before = self.space(slot.as_id).generation();
        let zap = match (kind, old) {
            (ChangeKind::Delete | ChangeKind::Move, Some(old)) => Some(self.slot_zap(old)),
            _ => None,
        };
        Change {
            request: *request,
            kind,
            slot,
            old: old.map(Slot::range),
            new,
            zap,
            log,
            requests: self.requests(request, kind, log),
            swaps,
            before,
            after: before.after(swaps, self.address_space_count()),
            version: self.version,
        }
    }

    /// What deleting or moving a slot would zap now (`kvm_arch_flush_shadow_memslot`).
    pub fn slot_zap(&self, slot: &Slot) -> Zap {
        let quirk = !self.disabled_quirks().contains(Quirks::SLOT_ZAP_ALL);
        let flagged = slot.flags().contains(SlotFlags::ZAP_LEAFS_ONLY);
        let rule = match (self.profile().slot_zap.get(), self.vm_type()) {
            (SlotZap::AlwaysAll, _) => ZapRule::KernelBeforeQuirk,
            (SlotZap::BySlotFlag, _) if flagged => ZapRule::Flag,
            (SlotZap::BySlotFlag, _) => ZapRule::NoFlag,
            (SlotZap::ByTypeAndQuirk, VmType::Default) if quirk => ZapRule::DefaultVm,
            (SlotZap::ByTypeAndQuirk, VmType::Default) => ZapRule::QuirkDisabled,
            (SlotZap::ByTypeAndQuirk, other) => ZapRule::VmType(other),
        };
        let reach = match rule {
            ZapRule::Flag | ZapRule::QuirkDisabled | ZapRule::VmType(_) => ZapReach::Leafs {
                as_id: slot.key().as_id,
                range: slot.range(),
            },
            ZapRule::KernelBeforeQuirk
            | ZapRule::DefaultVm
            | ZapRule::NoFlag
            | ZapRule::MmioGenerationWrap => ZapReach::AllRoots,
        };
        Zap { reach, rule }
    }

    /// What the CPUs are asked to do beside the zap.
    fn requests(&self, request: &Region, kind: ChangeKind, log: Option<LogSwitch>) -> Requests {
        let last_log = self.logged_slots == 1 && log == Some(LogSwitch::Off);
        let first_log = self.logged_slots == 0
            && matches!(log, Some(LogSwitch::On | LogSwitch::OnInitiallySet));
        let encrypted = matches!(self.vm_type(), VmType::Sev | VmType::SevEs);
        let readonly = request.has(SlotFlags::READONLY);
        Requests {
            flush_slot: kind == ChangeKind::FlagsOnly && log == Some(LogSwitch::On) && !readonly,
            write_back_caches: encrypted && matches!(kind, ChangeKind::Delete | ChangeKind::Move),
            update_dirty_logging: self.profile().pml.get() && (first_log || last_log),
        }
    }

    fn log_switch(
        &self,
        request: &Region,
        kind: ChangeKind,
        old: Option<&Slot>,
    ) -> Option<LogSwitch> {
        let was = old.is_some_and(Slot::is_logged);
        let will = kind != ChangeKind::Delete && request.has(SlotFlags::LOG_DIRTY_PAGES);
        match (was, will) {
            (false, true) if self.manual_protect().contains(ManualProtect::INITIALLY_SET) => {
                Some(LogSwitch::OnInitiallySet)
            }
            (false, true) => Some(LogSwitch::On),
            (true, false) => Some(LogSwitch::Off),
            _ => None,
        }
    }

    /// The tests of a range that is new to its slot: overlap, binding, and what the architecture allows. The last
    /// ones come after a slot that is to move has been zapped.
    fn check_new_range(
        &self,
        request: &Region,
        key: SlotKey,
        range: GfnRange,
        change: &Change,
    ) -> Result<(), Refusal> {
        let space = self.space(key.as_id);
        if let Some(other) = space.overlap(range, space.index_of(key.id)) {
            return Err(RegionError::Overlap {
                slot: key,
                with: other.key(),
                range: other.range(),
            }
            .into());
        }
        if request.has(SlotFlags::GUEST_MEMFD) {
            self.check_binding(request)?;
        }
        self.check_arch(request, key, range, change.kind)
            .map_err(|reason| Refusal {
                reason: reason.into(),
                effects: self.failed_move(change),
            })
    }

    /// `kvm_gmem_bind`.
    fn check_binding(&self, request: &Region) -> Result<(), RegionError> {
        let Region {
            gmem: file,
            gmem_offset: offset,
            size,
            ..
        } = *request;
        let id = match file {
            FileRef::NotOpen(_) => return Err(RegionError::GmemNotOpen { file }),
            FileRef::Other(_) => return Err(RegionError::GmemOtherFile { file }),
            FileRef::Foreign => return Err(RegionError::GmemForeign {}),
            FileRef::Gmem(id) => id,
        };
        let open = self.gmem_file(id).filter(|f| f.is_open());
        let gmem = open.ok_or(RegionError::GmemNotOpen { file })?;
        if !self.fits_file(offset, size, gmem.size()) {
            return Err(RegionError::GmemBeyondFile {
                offset,
                size,
                file_size: gmem.size(),
            });
        }
        let errno = self.profile().gmem_bind_conflict.get();
        match gmem.bound(Pages::in_bytes(offset).raw(), Pages::in_bytes(size).raw()) {
            Some(by) => Err(RegionError::GmemBound {
                offset,
                size,
                by,
                errno,
            }),
            None => Ok(()),
        }
    }

    /// Whether a range passes for one inside a file. Kernels that compute with signed offsets let a range pass whose
    /// end is 2^63 or more, since that end is negative.
    fn fits_file(&self, offset: u64, size: u64, file_size: u64) -> bool {
        let end = offset + size;
        match i64::try_from(offset) {
            Err(_) => false,
            Ok(_) if self.profile().gmem_signed_offsets.get() => {
                i64::try_from(end).is_err() || end <= file_size
            }
            Ok(_) => end <= file_size,
        }
    }

    /// `kvm_arch_prepare_memory_region`.
    fn check_arch(
        &self,
        request: &Region,
        slot: SlotKey,
        range: GfnRange,
        kind: ChangeKind,
    ) -> Result<(), RegionError> {
        if kind == ChangeKind::Move && self.has_page_track_user() {
            return Err(RegionError::MoveTracked { slot });
        }
        let (last, max) = (range.last().raw(), self.profile().max_gfn());
        if last > max {
            return Err(RegionError::GfnTooHigh { last, max });
        }
        match self.shared_bit() {
            Some(bit) if Gfn::new(last).raw() & bit != 0 => {
                return Err(RegionError::GfnShared {
                    last,
                    shared_bit: bit,
                });
            }
            _ => {}
        }
        if self.profile().slot_zap.get() == SlotZap::BySlotFlag {
            self.check_zap_leafs(request)?;
        }
        Ok(())
    }

    /// The checks that came with the proposed flag.
    fn check_zap_leafs(&self, request: &Region) -> Result<(), RegionError> {
        let flagged = request.has(SlotFlags::ZAP_LEAFS_ONLY);
        let private = request.has(SlotFlags::GUEST_MEMFD);
        if self.vm_type() == VmType::Tdx && private && !flagged {
            return Err(RegionError::ZapLeafsRequired {});
        }
        if flagged && !self.profile().tdp_mmu.get() {
            return Err(RegionError::ZapLeafsNeedsTdpMmu {});
        }
        Ok(())
    }

    /// What a move that fails late has done by then: the old slot is zapped, and the slots were exchanged twice.
    fn failed_move(&self, change: &Change) -> Option<Effects> {
        (change.kind == ChangeKind::Move).then_some(Effects {
            kind: ChangeKind::Nothing,
            slot: change.slot,
            zap: change.zap,
            wrap: self.wrap_between(change.before, change.swaps),
            log: None,
            generation: change.after,
        })
    }
}

fn check_gmem_offset(request: &Region) -> Result<(), RegionError> {
    let Region {
        gmem_offset: offset,
        size,
        ..
    } = *request;
    if unaligned(offset) {
        return Err(RegionError::GmemOffsetUnaligned { offset });
    }
    match offset.checked_add(size) {
        Some(_) => Ok(()),
        None => Err(RegionError::GmemOffsetWraps { offset, size }),
    }
}

/// Which change a request is to a slot that exists or not, if it may be one at all.
fn classify(request: &Region, key: SlotKey, old: Option<&Slot>) -> Result<ChangeKind, RegionError> {
    let Some(old) = old else {
        return match request.size {
            0 => Err(RegionError::DeleteAbsent { slot: key }),
            _ => Ok(ChangeKind::Create),
        };
    };
    if request.size == 0 {
        return Ok(ChangeKind::Delete);
    }
    check_modification(request, key, old)?;
    let flags = SlotFlags::from_bits_truncate(request.flags);
    match () {
        () if Gpa::new(request.gpa).gfn() != old.range().start() => Ok(ChangeKind::Move),
        () if flags != old.flags() => Ok(ChangeKind::FlagsOnly),
        () => Ok(ChangeKind::Nothing),
    }
}

/// What of a live slot must stay as it is.
fn check_modification(request: &Region, slot: SlotKey, old: &Slot) -> Result<(), RegionError> {
    if request.has(SlotFlags::GUEST_MEMFD) {
        return Err(RegionError::GmemOnLiveSlot { slot });
    }
    if old.flags().contains(SlotFlags::GUEST_MEMFD) {
        return Err(RegionError::GmemSlotImmutable { slot });
    }
    if request.hva != old.hva().raw() {
        return Err(RegionError::HvaChanged {
            slot,
            old: old.hva().raw(),
            new: request.hva,
        });
    }
    if request.size != old.pages().bytes() {
        return Err(RegionError::SizeChanged {
            slot,
            old: old.pages().bytes(),
            new: request.size,
        });
    }
    if request.has(SlotFlags::READONLY) != old.is_readonly() {
        return Err(RegionError::ReadonlyChanged {
            slot,
            old: old.flags(),
        });
    }
    if request.has(SlotFlags::ZAP_LEAFS_ONLY) != old.flags().contains(SlotFlags::ZAP_LEAFS_ONLY) {
        return Err(RegionError::ZapLeafsChanged { slot });
    }
    Ok(())
}

pub(crate) const fn low_half(slot: u32) -> u16 {
    (slot & 0xffff) as u16
}

pub(crate) const fn high_half(slot: u32) -> u16 {
    (slot >> 16) as u16
}

impl RegionError {
    /// Whether KVM finds this out only after a slot that is to move has been zapped.
    pub fn comes_after_zap(&self) -> bool {
        matches!(
            self,
            Self::MoveTracked { .. }
                | Self::GfnTooHigh { .. }
                | Self::GfnShared { .. }
                | Self::ZapLeafsRequired {}
                | Self::ZapLeafsNeedsTdpMmu {}
        )
    }
}
