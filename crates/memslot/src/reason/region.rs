//! Reasons of the set-region ioctls, in kernel order.

use super::reasons;
use crate::{Errno, FileRef, GfnRange, SlotFlags, SlotKey, VmType};

reasons! {
    /// Why `KVM_SET_USER_MEMORY_REGION` or `KVM_SET_USER_MEMORY_REGION2` is refused.
    pub enum RegionError {
        /// The kernel does not know the newer struct.
        NoRegion2 {} = "no-region2", ENOTTY, "kvm_main.c:kvm_vm_ioctl", "until 6.7",
            "this kernel has no KVM_SET_USER_MEMORY_REGION2";
        /// The older struct knows two flags only.
        FlagsOfV2 { flags: u32 } = "flags-of-v2", EINVAL, "kvm_main.c:kvm_vm_ioctl_set_memory_region", "always",
            "flags {flags:#x}: the older struct takes LOG_DIRTY_PAGES and READONLY only";
        /// The slot id is not for user space.
        SlotId { id: u16 } = "slot-id", EINVAL, "kvm_main.c:kvm_vm_ioctl_set_memory_region", "always",
            "slot id {id} is not below 32764";
        /// A bit that names no flag.
        UnknownFlags { unknown: u32 } = "unknown-flags", EINVAL, "kvm_main.c:check_memory_region_flags", "always",
            "flag bits {unknown:#x} are unknown to this kernel";
        /// The VM cannot have guest_memfd slots.
        GmemUnsupported { vm_type: VmType } = "gmem-unsupported", EINVAL, "kvm_main.c:check_memory_region_flags",
            "since 6.8; on VM types without private memory until 6.17",
            "KVM_MEM_GUEST_MEMFD is not for a VM of type {vm_type} on this kernel";
        /// Private memory cannot be dirty-logged.
        LogWithGmem {} = "log-with-gmem", EINVAL, "kvm_main.c:check_memory_region_flags", "since 6.8",
            "KVM_MEM_LOG_DIRTY_PAGES and KVM_MEM_GUEST_MEMFD exclude each other";
        /// guest_memfd memory is always writable.
        ReadonlyWithGmem {} = "readonly-with-gmem", EINVAL, "kvm_main.c:check_memory_region_flags", "since 6.8",
            "KVM_MEM_READONLY and KVM_MEM_GUEST_MEMFD exclude each other";
        /// KVM cannot emulate writes of a VM whose state it cannot see.
        ReadonlyProtected { vm_type: VmType } = "readonly-protected", EINVAL, "kvm_main.c:check_memory_region_flags",
            "since 6.8", "a VM of type {vm_type} has protected state and takes no KVM_MEM_READONLY slot";
        /// The length is no whole number of pages.
        SizeUnaligned { size: u64 } = "size-unaligned", EINVAL, "kvm_main.c:kvm_set_memory_region", "always",
            "memory_size {size:#x} is no multiple of 4096";
        /// The guest-physical address is not page aligned; a delete is checked too.
        GpaUnaligned { gpa: u64 } = "gpa-unaligned", EINVAL, "kvm_main.c:kvm_set_memory_region", "always",
            "guest_phys_addr {gpa:#x} is no multiple of 4096";
        /// The host address is not page aligned; a delete is checked too.
        HvaUnaligned { hva: u64 } = "hva-unaligned", EINVAL, "kvm_main.c:kvm_set_memory_region", "always",
            "userspace_addr {hva:#x} is no multiple of 4096";
        /// The host range leaves the user half of the address space.
        HvaNotUser { hva: u64, size: u64, limit: u64 } = "hva-not-user", EINVAL, "kvm_main.c:kvm_set_memory_region",
            "always", "userspace_addr {hva:#x} + {size:#x} goes beyond user space, which ends at {limit:#x}";
        /// The offset into the guest_memfd is not page aligned.
        GmemOffsetUnaligned { offset: u64 } = "gmem-offset-unaligned", EINVAL, "kvm_main.c:kvm_set_memory_region",
            "since 6.8", "guest_memfd_offset {offset:#x} is no multiple of 4096";
        /// The range of the guest_memfd leaves 64 bits.
        GmemOffsetWraps { offset: u64, size: u64 } = "gmem-offset-wraps", EINVAL, "kvm_main.c:kvm_set_memory_region",
            "since 6.8", "guest_memfd_offset {offset:#x} + {size:#x} wraps around";
        /// The upper half of `slot` names no address space.
        AddressSpace { as_id: u16, count: u8 } = "address-space", EINVAL, "kvm_main.c:kvm_set_memory_region",
            "always", "address space {as_id} does not exist, this VM has {count}";
        /// The guest-physical range leaves 64 bits; a sum of exactly 2^64 counts.
        GpaWraps { gpa: u64, size: u64 } = "gpa-wraps", EINVAL, "kvm_main.c:kvm_set_memory_region", "always",
            "guest_phys_addr {gpa:#x} + {size:#x} wraps around";
        /// More pages than a slot can hold (`KVM_MEM_MAX_NR_PAGES`).
        TooManyPages { pages: u64 } = "too-many-pages", EINVAL, "kvm_main.c:kvm_set_memory_region", "always",
            "{pages:#x} pages are more than the 2^31 - 1 that a slot can hold";
        /// There is nothing to delete.
        DeleteAbsent { slot: SlotKey } = "delete-absent", EINVAL, "kvm_main.c:kvm_set_memory_region", "always",
            "slot {slot} does not exist and cannot be deleted";
        /// A slot that exists cannot become a guest_memfd slot, nor can a guest_memfd slot be set again.
        GmemOnLiveSlot { slot: SlotKey } = "gmem-on-live-slot", EINVAL, "kvm_main.c:kvm_set_memory_region",
            "since 6.8", "slot {slot} exists, and KVM_MEM_GUEST_MEMFD is for new slots only";
        /// A guest_memfd slot can only be deleted.
        GmemSlotImmutable { slot: SlotKey } = "gmem-slot-immutable", EINVAL, "kvm_main.c:kvm_set_memory_region",
            "since 6.8", "slot {slot} is bound to a guest_memfd and can only be deleted";
        /// The host address of a slot is fixed.
        HvaChanged { slot: SlotKey, old: u64, new: u64 } = "hva-changed", EINVAL, "kvm_main.c:kvm_set_memory_region",
            "always", "slot {slot} exists at userspace_addr {old:#x}, which cannot become {new:#x}";
        /// The size of a slot is fixed.
        SizeChanged { slot: SlotKey, old: u64, new: u64 } = "size-changed", EINVAL,
            "kvm_main.c:kvm_set_memory_region", "always",
            "slot {slot} exists with {old:#x} bytes, which cannot become {new:#x}";
        /// Whether a slot is read-only is fixed.
        ReadonlyChanged { slot: SlotKey, old: SlotFlags } = "readonly-changed", EINVAL,
            "kvm_main.c:kvm_set_memory_region", "always",
            "slot {slot} exists, and KVM_MEM_READONLY cannot be switched on a live slot";
        /// The proposed flag cannot be switched on a live slot.
        ZapLeafsChanged { slot: SlotKey } = "zap-leafs-changed", EINVAL, "proposed: kvm_main.c:__kvm_set_memory_region",
            "experiment", "slot {slot} exists, and KVM_MEM_ZAP_LEAFS_ONLY cannot be switched on a live slot";
        /// Another slot of the same address space holds some of these frames.
        Overlap { slot: SlotKey, with: SlotKey, range: GfnRange } = "overlap", EEXIST,
            "kvm_main.c:kvm_check_memslot_overlap", "always",
            "slot {slot} would overlap slot {with}, which holds guest frames {range}";
        /// The number names no open file.
        GmemNotOpen { file: FileRef } = "gmem-not-open", EBADF, "guest_memfd.c:kvm_gmem_bind", "since 6.8",
            "guest_memfd names no open file ({file:?})";
        /// The file is something else.
        GmemOtherFile { file: FileRef } = "gmem-other-file", EINVAL, "guest_memfd.c:kvm_gmem_bind", "since 6.8",
            "guest_memfd names a file that is no guest_memfd ({file:?})";
        /// A guest_memfd belongs to the VM that made it.
        GmemForeign {} = "gmem-foreign", EINVAL, "guest_memfd.c:kvm_gmem_bind", "since 6.8",
            "the guest_memfd belongs to another VM";
        /// The range leaves the file.
        GmemBeyondFile { offset: u64, size: u64, file_size: u64 } = "gmem-beyond-file", EINVAL,
            "guest_memfd.c:kvm_gmem_bind", "since 6.8",
            "guest_memfd_offset {offset:#x} + {size:#x} goes beyond the file's {file_size:#x} bytes";
        /// Some of the file's range is bound to another slot.
        GmemBound { offset: u64, size: u64, by: SlotKey, errno: Errno } = "gmem-bound", EINVAL,
            "guest_memfd.c:kvm_gmem_bind", "since 6.8; EEXIST from about 7.2",
            "the guest_memfd's range {offset:#x} + {size:#x} is already bound to slot {by}";
        /// KVMGT or the like watches guest page tables by slot and does not follow a move.
        MoveTracked { slot: SlotKey } = "move-tracked", EINVAL, "x86.c:kvm_arch_prepare_memory_region", "always",
            "slot {slot} cannot move while an external page-track user is attached";
        /// The slot reaches above what the MMU can map (`kvm_mmu_max_gfn`).
        GfnTooHigh { last: u64, max: u64 } = "gfn-too-high", EINVAL, "x86.c:kvm_arch_prepare_memory_region",
            "since 5.19", "the last frame {last:#x} is above {max:#x}, the highest that the MMU can map";
        /// The slot reaches into the shared half of a TD's address space.
        GfnShared { last: u64, shared_bit: u64 } = "gfn-shared", EINVAL, "x86.c:kvm_arch_prepare_memory_region",
            "since 6.16", "the last frame {last:#x} has the TD's shared bit {shared_bit:#x} set";
        /// As proposed: private memory of a TD must be zapped by leaves.
        ZapLeafsRequired {} = "zap-leafs-required", EINVAL, "proposed: x86.c:kvm_arch_prepare_memory_region",
            "experiment", "a TD's guest_memfd slot needs KVM_MEM_ZAP_LEAFS_ONLY";
        /// As proposed: the flag works with the TDP MMU only.
        ZapLeafsNeedsTdpMmu {} = "zap-leafs-needs-tdp-mmu", EINVAL,
            "proposed: x86.c:kvm_arch_prepare_memory_region", "experiment",
            "KVM_MEM_ZAP_LEAFS_ONLY works with the TDP MMU only";
    }
}

impl RegionError {
    /// The error number that the ioctl gives.
    pub fn errno(&self) -> Errno {
        match self {
            Self::GmemBound { errno, .. } => *errno,
            other => other.info().errno,
        }
    }
}
