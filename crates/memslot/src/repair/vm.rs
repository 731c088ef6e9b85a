//! Repairs of the calls on a VM as a whole.

use super::Repair;
use super::region::{round_down, round_up};
use crate::dirty::MAX_RING_BYTES;
use crate::{
    AttributeError, Buffer, Call, CapError, ClearBits, DirtyLogError, DirtyRingError, Memory,
    PAGE_SIZE, Pages, PreFaultError, Region, RegionVersion, SlotFlags, SlotKey, VmError, cap,
};

const NO_OTHER_CALL: Repair = Repair::Impossible {
    why: "no change of the call helps",
};

impl Memory {
    pub(super) fn repair_attributes(&self, call: &Call, reason: &AttributeError) -> Repair {
        let Call::SetAttributes {
            address,
            size,
            attributes,
            flags,
        } = *call
        else {
            return NO_OTHER_CALL;
        };
        let (address, size, attributes, flags) = match *reason {
            AttributeError::NotBuiltIn {} => {
                return Repair::Impossible {
                    why: "this kernel is built without memory attributes",
                };
            }
            AttributeError::Flags { .. } => (address, size, attributes, 0),
            AttributeError::Unsupported { unsupported, .. } => {
                (address, size, attributes & !unsupported, flags)
            }
            AttributeError::Range { size: 0, .. } => (
                address.min(u64::MAX - PAGE_SIZE),
                PAGE_SIZE,
                attributes,
                flags,
            ),
            AttributeError::Range { .. } => (0, size, attributes, flags),
            AttributeError::Unaligned { .. } => {
                (round_down(address), round_up(size), attributes, flags)
            }
        };
        Repair::edit(Call::SetAttributes {
            address,
            size,
            attributes,
            flags,
        })
    }

    pub(super) fn repair_dirty_log(&self, call: &Call, reason: &DirtyLogError) -> Repair {
        match *reason {
            DirtyLogError::RingMode {} => Repair::Impossible {
                why: "harvest the dirty rings; on x86 they replace the bitmaps",
            },
            DirtyLogError::Slot { .. } => Repair::edit(on_slot(call, 0)),
            DirtyLogError::NoSlot { slot } => self.create_logged(slot, call),
            DirtyLogError::NotLogged { slot } => self.log_first(slot, call),
            DirtyLogError::FirstPage { first_page } => {
                edit_clear(call, |first, _, _| *first = first_page & !63)
            }
            DirtyLogError::ClearBeyond { pages, .. } => edit_clear(call, |first, num, _| {
                *first = if *first > pages { 0 } else { *first };
                *num = u32::try_from(pages - *first).unwrap_or(u32::MAX);
            }),
            DirtyLogError::ClearPartial { pages, .. } => edit_clear(call, |first, num, _| {
                let rest = u32::try_from(pages - *first).unwrap_or(u32::MAX);
                *num = num.next_multiple_of(64).min(rest);
            }),
            DirtyLogError::Buffer {} => match call {
                Call::GetDirtyLog { slot, .. } => Repair::edit(Call::GetDirtyLog {
                    slot: *slot,
                    buffer: Buffer::Good,
                }),
                _ => edit_clear(call, |_, _, bits| *bits = ClearBits::All),
            },
        }
    }

    fn create_logged(&self, slot: SlotKey, call: &Call) -> Repair {
        let Some(range) = self.free_range(slot, Pages::new(1)) else {
            return Repair::Impossible {
                why: "there is no such slot, and no room to make one",
            };
        };
        let create = Region::new(slot, range.start().gpa().raw(), PAGE_SIZE, 0);
        Repair::after(
            Call::SetRegion(create.with_flags(SlotFlags::LOG_DIRTY_PAGES)),
            call.clone(),
        )
    }

    fn log_first(&self, key: SlotKey, call: &Call) -> Repair {
        let Some(slot) = self.space(key.as_id).by_id(key.id) else {
            return NO_OTHER_CALL;
        };
        if slot.flags().contains(SlotFlags::GUEST_MEMFD) {
            return Repair::Impossible {
                why: "a guest_memfd slot cannot be logged",
            };
        }
        let gpa = slot.range().start().gpa().raw();
        let version = match self.profile().region2.get() {
            true => RegionVersion::V2,
            false => RegionVersion::V1,
        };
        // The newer struct takes every flag that the slot may have already.
        let same = Region {
            version,
            ..Region::new(key, gpa, slot.pages().bytes(), slot.hva().raw())
        };
        Repair::after(
            Call::SetRegion(same.with_flags(slot.flags() | SlotFlags::LOG_DIRTY_PAGES)),
            call.clone(),
        )
    }

    pub(super) fn repair_dirty_ring(&self, call: &Call, reason: &DirtyRingError) -> Repair {
        let with_size = |size: u64| match *call {
            Call::EnableCap { cap, flags, .. } => Repair::edit(Call::EnableCap {
                cap,
                flags,
                args: [size, 0, 0, 0],
            }),
            _ => NO_OTHER_CALL,
        };
        let smallest = self.min_ring_bytes().next_power_of_two();
        match *reason {
            DirtyRingError::NotPowerOfTwo { size } => with_size(
                size.checked_next_power_of_two()
                    .unwrap_or(MAX_RING_BYTES)
                    .max(1),
            ),
            DirtyRingError::TooSmall { .. } => with_size(smallest),
            DirtyRingError::TooBig { max, .. } => with_size(max),
            DirtyRingError::NotEnabled {}
                if self.vcpus() == 0 && self.profile().dirty_ring.get() =>
            {
                let args = [smallest, 0, 0, 0];
                Repair::after(
                    Call::EnableCap {
                        cap: cap::DIRTY_LOG_RING,
                        flags: 0,
                        args,
                    },
                    call.clone(),
                )
            }
            DirtyRingError::NotEnabled {} | DirtyRingError::HasVcpu { .. } => Repair::Impossible {
                why: "enable the rings in a new VM, before its first vCPU",
            },
            DirtyRingError::AlreadyEnabled { .. } => Repair::Impossible {
                why: "the rings are there; their size is fixed",
            },
            DirtyRingError::NotBuiltIn {}
            | DirtyRingError::WithBitmap {}
            | DirtyRingError::NoRing { .. } => NO_OTHER_CALL,
        }
    }

    pub(super) fn repair_pre_fault(&self, call: &Call, reason: &PreFaultError) -> Repair {
        let Call::PreFault {
            vcpu,
            gpa,
            size,
            flags,
        } = *call
        else {
            return match reason {
                PreFaultError::NoVcpu { .. } => Repair::after(Call::CreateVcpu, call.clone()),
                PreFaultError::NoShadowPages {} => {
                    Repair::after(Call::SetNrMmuPages { pages: 64 }, call.clone())
                }
                _ => NO_OTHER_CALL,
            };
        };
        let (gpa, size, flags) = match *reason {
            PreFaultError::Flags { .. } => (gpa, size, 0),
            PreFaultError::Unaligned { .. } => (round_down(gpa), round_up(size), flags),
            PreFaultError::Range { size: 0, .. } => {
                (gpa.min(u64::MAX - 2 * PAGE_SIZE + 1), PAGE_SIZE, flags)
            }
            PreFaultError::Range { .. } => (0, size, flags),
            PreFaultError::NoVcpu { vcpu: missing } if missing == self.vcpus() => {
                return Repair::after(Call::CreateVcpu, call.clone());
            }
            PreFaultError::NoPrivateMemory { gpa } => {
                let share = Call::SetAttributes {
                    address: gpa,
                    size: PAGE_SIZE,
                    attributes: 0,
                    flags: 0,
                };
                return Repair::after(share, call.clone());
            }
            PreFaultError::NoSlot { .. } => return self.create_for(gpa, call),
            PreFaultError::NotAllowed { .. } => {
                return Repair::Impossible {
                    why: "finalize the VM's launch first",
                };
            }
            PreFaultError::NoShadowPages {} => {
                return Repair::after(Call::SetNrMmuPages { pages: 64 }, call.clone());
            }
            PreFaultError::NoTdp {} => {
                return Repair::Impossible {
                    why: "pre-faulting needs EPT or NPT, and a vCPU not in a nested guest",
                };
            }
            PreFaultError::NotBuiltIn {} | PreFaultError::NoVcpu { .. } => return NO_OTHER_CALL,
        };
        Repair::edit(Call::PreFault {
            vcpu,
            gpa,
            size,
            flags,
        })
    }

    /// A slot of one page where a pre-fault found none.
    fn create_for(&self, gpa: u64, call: &Call) -> Repair {
        let space = self.space(crate::AsId::NORMAL);
        let free = (0..crate::USER_SLOTS).find(|id| space.by_id(crate::SlotId::new(*id)).is_none());
        match free {
            Some(id) => {
                let create = Region::new(SlotKey::normal(id), gpa, PAGE_SIZE, 0);
                Repair::after(Call::SetRegion(create), call.clone())
            }
            None => Repair::Impossible {
                why: "all slot ids are in use",
            },
        }
    }
}

/// The same call on another slot.
fn on_slot(call: &Call, to: u32) -> Call {
    let mut call = call.clone();
    if let Call::GetDirtyLog { slot, .. } | Call::ClearDirtyLog { slot, .. } = &mut call {
        *slot = to;
    }
    call
}

fn edit_clear(call: &Call, edit: impl FnOnce(&mut u64, &mut u32, &mut ClearBits)) -> Repair {
    let mut call = call.clone();
    if let Call::ClearDirtyLog {
        first_page,
        num_pages,
        bits,
        ..
    } = &mut call
    {
        edit(first_page, num_pages, bits);
    }
    Repair::edit(call)
}

pub(super) fn repair_cap(call: &Call, reason: &CapError) -> Repair {
    let Call::EnableCap { cap, flags, args } = *call else {
        return NO_OTHER_CALL;
    };
    let [arg, ..] = args;
    let (flags, arg) = match *reason {
        CapError::Unknown { .. } => return NO_OTHER_CALL,
        CapError::Flags { .. } => (0, arg),
        CapError::ManualProtect { bits } if bits & 2 != 0 => (flags, 3),
        CapError::ManualProtect { bits } => (flags, bits & 1),
        CapError::Quirks { unsupported, .. } | CapError::Hypercalls { unsupported } => {
            (flags, arg & !unsupported)
        }
    };
    Repair::edit(Call::EnableCap {
        cap,
        flags,
        args: [arg, 0, 0, 0],
    })
}

pub(super) fn repair_vm(call: &Call, reason: &VmError) -> Repair {
    match (*reason, call) {
        (VmError::NrMmuPages { .. }, _) => Repair::edit(Call::SetNrMmuPages { pages: 64 }),
        (VmError::TssAddr { .. }, _) => Repair::edit(Call::SetTssAddr { gpa: 0xfffb_d000 }),
        (VmError::IdentityAfterVcpu {} | VmError::IrqchipAfterVcpu {}, _) => Repair::Impossible {
            why: "make this call before the first vCPU",
        },
        (VmError::NoSmm {}, Call::Guest(access)) => Repair::edit(Call::Guest(crate::GuestAccess {
            as_id: crate::AsId::NORMAL,
            ..*access
        })),
        (VmError::IrqchipExists {}, _) => Repair::Impossible {
            why: "the VM has one already",
        },
        (
            VmError::VmType { .. }
            | VmError::TooManyVcpus { .. }
            | VmError::NoSmm {}
            | VmError::NotTd {}
            | VmError::NotSev {},
            _,
        ) => NO_OTHER_CALL,
    }
}
