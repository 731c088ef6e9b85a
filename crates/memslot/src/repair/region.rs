//! Repairs of set-region calls.

use super::Repair;
use crate::set_region::{MAX_PAGES, low_half};
use crate::{
    Call, FileRef, GmemId, Memory, PAGE_SIZE, Pages, Region, RegionError, RegionVersion, SlotFlags,
    SlotId, SlotKey, VmType,
};

const V1_FLAGS: u32 = SlotFlags::LOG_DIRTY_PAGES.union(SlotFlags::READONLY).bits();

impl Memory {
    pub(super) fn repair_region(&self, request: &Region, reason: &RegionError) -> Repair {
        let request = *request;
        let edited = |edit: Region| Repair::edit(Call::SetRegion(edit));
        let without = |flag: SlotFlags| {
            edited(Region {
                flags: request.flags & !flag.bits(),
                ..request
            })
        };
        let toggled = |flag: SlotFlags| {
            edited(Region {
                flags: request.flags ^ flag.bits(),
                ..request
            })
        };
        match *reason {
            RegionError::NoRegion2 {} => edited(Region {
                version: RegionVersion::V1,
                flags: request.flags & V1_FLAGS,
                ..request
            }),
            RegionError::FlagsOfV2 { .. } if self.profile().region2.get() => edited(Region {
                version: RegionVersion::V2,
                ..request
            }),
            RegionError::FlagsOfV2 { .. } => edited(Region {
                flags: request.flags & V1_FLAGS,
                ..request
            }),
            RegionError::SlotId { .. } => self.with_free_id(request),
            RegionError::UnknownFlags { unknown } => edited(Region {
                flags: request.flags & !unknown,
                ..request
            }),
            RegionError::GmemUnsupported { .. } => without(SlotFlags::GUEST_MEMFD),
            RegionError::LogWithGmem {} => without(SlotFlags::LOG_DIRTY_PAGES),
            RegionError::ReadonlyWithGmem {} | RegionError::ReadonlyProtected { .. } => {
                without(SlotFlags::READONLY)
            }
            RegionError::SizeUnaligned { size } => edited(Region {
                size: round_up(size),
                ..request
            }),
            RegionError::GpaUnaligned { gpa } => edited(Region {
                gpa: round_down(gpa),
                ..request
            }),
            RegionError::HvaUnaligned { hva } => edited(Region {
                hva: round_down(hva),
                ..request
            }),
            RegionError::HvaNotUser { limit, .. } => edited(into_user_space(request, limit)),
            RegionError::GmemOffsetUnaligned { offset } => edited(Region {
                gmem_offset: round_down(offset),
                ..request
            }),
            RegionError::GmemOffsetWraps { .. } => edited(Region {
                gmem_offset: 0,
                ..request
            }),
            RegionError::AddressSpace { .. } => edited(Region {
                slot: u32::from(low_half(request.slot)),
                ..request
            }),
            RegionError::GpaWraps { .. } => edited(Region { gpa: 0, ..request }),
            RegionError::TooManyPages { .. } => edited(Region {
                size: Pages::new(MAX_PAGES).bytes(),
                ..request
            }),
            RegionError::DeleteAbsent { slot } => self.create_first(slot, request),
            RegionError::GmemOnLiveSlot { slot } | RegionError::GmemSlotImmutable { slot } => {
                Repair::after(
                    Call::SetRegion(Region::delete(slot)),
                    Call::SetRegion(request),
                )
            }
            RegionError::HvaChanged { old, .. } => edited(Region {
                hva: old | low_bits(request.hva),
                ..request
            }),
            RegionError::SizeChanged { old, .. } => edited(Region {
                size: old | low_bits(request.size),
                ..request
            }),
            RegionError::ReadonlyChanged { .. } => toggled(SlotFlags::READONLY),
            RegionError::ZapLeafsChanged { .. } | RegionError::ZapLeafsRequired {} => {
                toggled(SlotFlags::ZAP_LEAFS_ONLY)
            }
            RegionError::ZapLeafsNeedsTdpMmu {}
                if self.vm_type() == VmType::Tdx && request.has(SlotFlags::GUEST_MEMFD) =>
            {
                Repair::Impossible {
                    why: "a TD's guest_memfd slot needs the flag, and the flag needs the TDP MMU",
                }
            }
            RegionError::ZapLeafsNeedsTdpMmu {} => without(SlotFlags::ZAP_LEAFS_ONLY),
            RegionError::Overlap { .. }
            | RegionError::GfnTooHigh { .. }
            | RegionError::GfnShared { .. } => self.elsewhere(request),
            RegionError::GmemNotOpen { .. }
            | RegionError::GmemOtherFile { .. }
            | RegionError::GmemForeign {}
            | RegionError::GmemBound { .. } => self.with_new_file(request),
            RegionError::GmemBeyondFile { file_size, .. } => edited(into_file(request, file_size)),
            RegionError::MoveTracked { .. } => Repair::Impossible {
                why: "detach the external page-track user (KVMGT), or delete and create",
            },
        }
    }

    /// The lowest id that names no slot.
    fn with_free_id(&self, request: Region) -> Repair {
        let space = self.space(self.space_of(request.slot));
        let free = (0..crate::USER_SLOTS).find(|id| space.by_id(SlotId::new(*id)).is_none());
        match free {
            Some(id) => {
                let slot = request.slot & !0xffff | u32::from(id);
                Repair::edit(Call::SetRegion(Region { slot, ..request }))
            }
            None => Repair::Impossible {
                why: "all slot ids are in use",
            },
        }
    }

    /// The delete of a slot that is created for the purpose.
    fn create_first(&self, slot: SlotKey, request: Region) -> Repair {
        match self.free_range(slot, Pages::new(1)) {
            Some(range) => {
                let create = Region::new(slot, range.start().gpa().raw(), PAGE_SIZE, 0);
                Repair::after(Call::SetRegion(create), Call::SetRegion(request))
            }
            None => Repair::Impossible {
                why: "there is no such slot, and no room to make one",
            },
        }
    }

    /// The same slot where nothing is in its way.
    fn elsewhere(&self, request: Region) -> Repair {
        let slot = SlotKey {
            as_id: self.space_of(request.slot),
            id: SlotId::new(low_half(request.slot)),
        };
        match self.free_range(slot, Pages::in_bytes(request.size)) {
            Some(range) => Repair::edit(Call::SetRegion(Region {
                gpa: range.start().gpa().raw() | low_bits(request.gpa),
                ..request
            })),
            None => Repair::Impossible {
                why: "no gap between the slots is large enough",
            },
        }
    }

    /// The same range of a guest_memfd made for the purpose.
    fn with_new_file(&self, request: Region) -> Repair {
        let end = request.gmem_offset.saturating_add(request.size);
        if i64::try_from(end).is_err() {
            return Repair::Impossible {
                why: "no file is as long as guest_memfd_offset + memory_size",
            };
        }
        let Ok(index) = u32::try_from(self.files.len()) else {
            return Repair::Impossible {
                why: "there are too many files",
            };
        };
        let create = Call::CreateGmem {
            size: end,
            flags: 0,
            reserved: 0,
        };
        let gmem = FileRef::Gmem(GmemId::new(index));
        Repair::after(create, Call::SetRegion(Region { gmem, ..request }))
    }
}

/// The part of an address or size that is no whole page. Repairs of other reasons keep it, so that a reason cannot
/// pass for this one by its repair.
const fn low_bits(value: u64) -> u64 {
    value % PAGE_SIZE
}

pub(super) const fn round_down(value: u64) -> u64 {
    value & !(PAGE_SIZE - 1)
}

/// Up to the next page, or down where that would wrap.
pub(super) const fn round_up(value: u64) -> u64 {
    match value.checked_next_multiple_of(PAGE_SIZE) {
        Some(up) => up,
        None => round_down(value),
    }
}

/// A range that ends beyond user space, cut to its end; one that starts there, moved down.
fn into_user_space(request: Region, limit: u64) -> Region {
    let (size, hva) = (round_down(request.size), round_down(request.hva));
    match limit.checked_sub(size) {
        _ if hva < limit => Region {
            size: (limit - hva) | low_bits(request.size),
            ..request
        },
        Some(start) => Region {
            hva: start | low_bits(request.hva),
            ..request
        },
        None => Region {
            hva: 0,
            size: limit,
            ..request
        },
    }
}

/// A range that ends beyond its file, moved back to the file's end; one larger than the file, cut.
fn into_file(request: Region, file_size: u64) -> Region {
    match file_size.checked_sub(request.size) {
        Some(gmem_offset) => Region {
            gmem_offset,
            ..request
        },
        None => Region {
            gmem_offset: 0,
            size: file_size,
            ..request
        },
    }
}
