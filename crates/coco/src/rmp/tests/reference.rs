//! The rules once more: a plain list of entries, and each instruction as one function without locks, sharing, or haste.

use super::*;

/// Two regions.
pub(super) const FRAMES: u64 = 1024;

#[derive(Clone, Debug)]
pub(super) struct Reference {
    pub(super) entries: Vec<RmpEntry>,
    rules: Rules,
}

impl Reference {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            entries: vec![RmpEntry::HYPERVISOR; FRAMES as usize],
            rules,
        }
    }

    pub(super) fn at(&self, pfn: u64) -> RmpEntry {
        self.entries[pfn as usize]
    }

    fn head(&self, pfn: u64) -> RmpEntry {
        self.at(pfn / 512 * 512)
    }

    fn is_huge(entry: RmpEntry) -> bool {
        entry.assigned && entry.size == RmpSize::Size2M
    }

    /// The frame whose entry decides.
    pub(super) fn decides(&self, pfn: u64) -> u64 {
        if Self::is_huge(self.head(pfn)) {
            pfn / 512 * 512
        } else {
            pfn
        }
    }

    pub(super) fn rmpupdate(&mut self, pfn: u64, state: &RmpState) -> u32 {
        let huge = state.size == RmpSize::Size2M;
        let odd = if state.assigned {
            state.asid == 0 && !state.immutable
        } else {
            state.asid != 0 || state.immutable
        };
        if pfn >= FRAMES
            || (huge && pfn % 512 != 0)
            || state.gpa >= 1 << 51
            || state.gpa % if huge { 0x20_0000 } else { 0x1000 } != 0
            || state.asid > 0x3ff
            || (odd && self.rules.odd_operand == OddOperand::Refused)
        {
            return 1;
        }
        let old = self.at(pfn);
        if old.immutable || old.in_use || old.firmware == FirmwareUse::HvFixed {
            return 2;
        }
        if huge {
            let tails = &self.entries[pfn as usize + 1..pfn as usize + 512];
            if tails
                .iter()
                .any(|tail| tail.firmware == FirmwareUse::HvFixed)
            {
                return 2;
            }
            if tails.iter().any(|tail| tail.assigned) {
                return 4;
            }
        } else if Self::is_huge(self.head(pfn)) {
            return 4;
        }
        let mut new = RmpEntry::HYPERVISOR;
        new.assigned = state.assigned;
        new.immutable = state.immutable;
        new.gfn = Gfn::new(state.gpa / 4096);
        new.asid = asid(state.asid);
        if state.assigned {
            new.size = state.size;
        }
        if state.assigned && state.asid != 0 {
            new.permissions = VmplPermissions::RESET;
        }
        let same = new.assigned == old.assigned
            && new.immutable == old.immutable
            && new.gfn == old.gfn
            && new.asid == old.asid
            && new.size == old.size
            && old.firmware == FirmwareUse::None;
        if !(same && self.rules.same_update == SameUpdate::Keeps) {
            self.entries[pfn as usize] = new;
        }
        0
    }

    pub(super) fn psmash(&mut self, pfn: u64) -> u32 {
        let pfn = match self.rules.unaligned_psmash {
            UnalignedPsmash::RoundedDown => pfn - pfn % 512,
            UnalignedPsmash::Refused => pfn,
        };
        if pfn >= FRAMES {
            return 4;
        }
        if pfn % 512 != 0 {
            return 1;
        }
        let head = self.at(pfn);
        if head.immutable || head.in_use || head.firmware == FirmwareUse::HvFixed {
            return 2;
        }
        if !Self::is_huge(head) {
            return match self.rules.nothing_to_smash {
                NothingToSmash::Input => 1,
                NothingToSmash::BadAddress => 4,
            };
        }
        for index in 0..512 {
            let mut entry = head;
            entry.size = RmpSize::Size4K;
            entry.gfn = Gfn::new(head.gfn.raw() + index);
            self.entries[(pfn + index) as usize] = entry;
        }
        0
    }

    /// Whether the page is the guest's; the frame whose entry says so.
    fn guests(&self, cpu: GuestCpu, page: GuestPage) -> Option<u64> {
        let pfn = page.pfn.raw();
        if pfn >= FRAMES {
            return None;
        }
        let decides = self.decides(pfn);
        let entry = self.at(decides);
        let gfn = entry.gfn.raw() + (pfn - decides);
        (entry.assigned && entry.asid == cpu.asid && gfn == page.gfn.raw()).then_some(decides)
    }

    fn npf(more: u64) -> GuestError {
        let code = 1 << 31 | 1 << 34 | 1 << 32 | 0b111 | more;
        GuestError::Fault(Fault::Nested(ErrorCode::from_bits_retain(code)))
    }

    fn changeable(
        &self,
        cpu: GuestCpu,
        page: GuestPage,
        size: RmpSize,
    ) -> Result<usize, GuestError> {
        let decides = self.guests(cpu, page).ok_or(Self::npf(0))?;
        let entry = self.at(decides);
        if entry.immutable {
            return Err(Self::npf(0));
        }
        match (size, entry.size, page.nested) {
            (RmpSize::Size4K, RmpSize::Size2M, _) => Err(Self::npf(1 << 35)),
            (RmpSize::Size2M, RmpSize::Size4K, _) => Err(GuestError::SizeMismatch),
            (RmpSize::Size2M, RmpSize::Size2M, PageSize::Size4K) => {
                Err(match self.rules.smaller_nested {
                    SmallerNested::SizeMismatch => GuestError::SizeMismatch,
                    SmallerNested::NestedFault => Self::npf(0),
                })
            }
            _ => Ok(decides as usize),
        }
    }

    pub(super) fn pvalidate(
        &mut self,
        cpu: GuestCpu,
        page: GuestPage,
        size: RmpSize,
        validate: bool,
    ) -> Result<Validation, GuestError> {
        if cpu.vmpl != Vmpl::Vmpl0 {
            return Err(GuestError::Fault(Fault::Gp));
        }
        if size == RmpSize::Size2M && page.gfn.raw() % 512 != 0 {
            return Err(GuestError::Input);
        }
        let at = self.changeable(cpu, page, size)?;
        let entry = &mut self.entries[at];
        if entry.validated == validate {
            return Ok(Validation::Unchanged);
        }
        entry.validated = validate;
        if !validate {
            entry.vmsa = false;
        }
        Ok(Validation::Changed)
    }

    pub(super) fn rmpadjust(
        &mut self,
        cpu: GuestCpu,
        page: GuestPage,
        size: RmpSize,
        to: Adjustment,
    ) -> Result<(), GuestError> {
        let huge = size == RmpSize::Size2M;
        if huge && (page.gfn.raw() % 512 != 0 || to.vmsa) {
            return Err(GuestError::Input);
        }
        let both_0 = cpu.vmpl == Vmpl::Vmpl0 && to.target == Vmpl::Vmpl0;
        let lenient = both_0 && self.rules.adjust_self == AdjustSelf::Ignored;
        if cpu.vmpl >= to.target && !lenient {
            return Err(GuestError::Permission);
        }
        let at = self.changeable(cpu, page, size)?;
        let entry = &mut self.entries[at];
        if !entry.validated {
            return Err(GuestError::Fault(Fault::Vc(0x404)));
        }
        if lenient {
            return Ok(());
        }
        let has = entry.permissions.of(cpu.vmpl);
        if !(to.permissions - has).is_empty()
            || (to.vmsa && cpu.vmpl != Vmpl::Vmpl0)
            || entry.in_use
        {
            return Err(GuestError::Permission);
        }
        entry.permissions = entry.permissions.with(to.target, to.permissions);
        if cpu.vmpl == Vmpl::Vmpl0 {
            entry.vmsa = to.vmsa;
        }
        Ok(())
    }

    pub(super) fn rmpquery(
        &self,
        cpu: GuestCpu,
        page: GuestPage,
        target: Vmpl,
    ) -> Result<Query, GuestError> {
        if target < cpu.vmpl {
            return Err(GuestError::Permission);
        }
        let decides = self.guests(cpu, page).ok_or(Self::npf(0))?;
        let entry = self.at(decides);
        Ok(Query {
            size: entry.size,
            permissions: entry.permissions.of(target),
            vmsa: entry.vmsa,
        })
    }

    /// What an access raises.
    pub(super) fn access(&self, by: Accessor, touch: Touch, page: &Reached) -> Option<Fault> {
        let pfn = page.pfn.raw();
        let write = matches!(touch, Touch::Write | Touch::TableWrite);
        let table = matches!(touch, Touch::Table | Touch::TableWrite);
        let fetch = matches!(touch, Touch::Fetch { .. });
        let assigned = if pfn >= FRAMES {
            false
        } else if page.size == PageSize::Size4K {
            self.at(self.decides(pfn)).assigned
        } else {
            let first = (pfn / 512 * 512) as usize;
            self.entries[first..first + 512]
                .iter()
                .any(|entry| entry.assigned)
        };
        let code = 1 | 1 << 31 | u64::from(write) << 1 | u64::from(fetch) << 4;
        let stage = if table { 1 << 33 } else { 1 << 32 };
        let npf = |more: u64| {
            let code = code | 4 | stage | more;
            Some(Fault::Nested(ErrorCode::from_bits_retain(code)))
        };
        match by {
            Accessor::Host { user } if write && assigned => {
                let code = code | u64::from(user) << 2;
                Some(Fault::Host(ErrorCode::from_bits_retain(code)))
            }
            Accessor::Device if write && assigned => Some(Fault::Device),
            Accessor::Guest(visibility) if (write || table) && assigned => {
                npf(u64::from(visibility == Visibility::Private) << 34)
            }
            Accessor::Snp(_, Visibility::Shared) if !table && !fetch => {
                let checked = write || self.rules.shared_read == SharedRead::Faults;
                if checked && assigned { npf(0) } else { None }
            }
            Accessor::Snp(cpu, _) => {
                let enc = 1 << 34;
                let reached = GuestPage {
                    gfn: page.gfn,
                    pfn: page.pfn,
                    nested: page.size,
                };
                let Some(decides) = self.guests(cpu, reached) else {
                    return npf(enc);
                };
                let entry = self.at(decides);
                if (entry.size == RmpSize::Size2M) != (page.size != PageSize::Size4K) {
                    return npf(enc);
                }
                if !entry.validated {
                    return Some(Fault::Vc(0x404));
                }
                let has = entry.permissions.of(cpu.vmpl);
                let needs = match touch {
                    Touch::Read | Touch::Table => Permissions::READ,
                    Touch::Write | Touch::TableWrite => Permissions::WRITE,
                    Touch::Fetch { user: true } => Permissions::EXECUTE_USER,
                    Touch::Fetch { user: false } => Permissions::EXECUTE_SUPERVISOR,
                };
                if !has.contains(needs) {
                    return npf(enc | 1 << 36);
                }
                if write && entry.immutable {
                    return npf(enc);
                }
                None
            }
            _ => None,
        }
    }
}
