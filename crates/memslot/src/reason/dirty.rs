//! Reasons of dirty logs and dirty rings.

use super::{fixed_errno, reasons};
use crate::SlotKey;

reasons! {
    /// Why `KVM_GET_DIRTY_LOG` or `KVM_CLEAR_DIRTY_LOG` is refused.
    pub enum DirtyLogError {
        /// The VM keeps rings, and on x86 then no bitmaps.
        RingMode {} = "dirty-ring-mode", ENXIO, "kvm_main.c:kvm_get_dirty_log_protect", "since 5.11",
            "the VM keeps dirty rings, not bitmaps";
        /// Address space or slot id out of range.
        Slot { slot: u32 } = "dirty-slot", EINVAL, "kvm_main.c:kvm_get_dirty_log_protect", "always",
            "slot {slot:#x} names no address space and user slot of this VM";
        /// The range to clear must start at a word of the bitmap.
        FirstPage { first_page: u64 } = "clear-first-page", EINVAL, "kvm_main.c:kvm_clear_dirty_log_protect",
            "since 5.0", "first_page {first_page} is no multiple of 64";
        /// No such slot.
        NoSlot { slot: SlotKey } = "dirty-no-slot", ENOENT, "kvm_main.c:kvm_get_dirty_log_protect", "always",
            "slot {slot} does not exist";
        /// The slot keeps no log.
        NotLogged { slot: SlotKey } = "dirty-not-logged", ENOENT, "kvm_main.c:kvm_get_dirty_log_protect", "always",
            "slot {slot} exists without KVM_MEM_LOG_DIRTY_PAGES";
        /// The range leaves the slot.
        ClearBeyond { first_page: u64, num_pages: u32, pages: u64 } = "clear-beyond", EINVAL,
            "kvm_main.c:kvm_clear_dirty_log_protect", "since 5.0",
            "pages {first_page} + {num_pages} go beyond the slot's {pages}";
        /// The range must end at a word of the bitmap or at the slot's end.
        ClearPartial { first_page: u64, num_pages: u32, pages: u64 } = "clear-partial", EINVAL,
            "kvm_main.c:kvm_clear_dirty_log_protect", "since 5.0",
            "pages {first_page} + {num_pages} end neither at a multiple of 64 nor at the slot's end ({pages})";
        /// The bitmap cannot be copied; without manual protection the bits are cleared and lost all the same.
        Buffer {} = "dirty-buffer", EFAULT, "kvm_main.c:kvm_get_dirty_log_protect", "always",
            "the bitmap's pointer cannot be used";
    }
}

reasons! {
    /// Why a dirty ring cannot be enabled, harvested or reset.
    pub enum DirtyRingError {
        /// The kernel has no dirty rings.
        NotBuiltIn {} = "no-dirty-ring", EINVAL, "kvm_main.c:kvm_vm_ioctl_enable_dirty_log_ring", "until 5.10",
            "this kernel has no dirty rings";
        /// The size must be a power of two.
        NotPowerOfTwo { size: u64 } = "ring-not-power-of-two", EINVAL,
            "kvm_main.c:kvm_vm_ioctl_enable_dirty_log_ring", "since 5.11",
            "a ring of {size:#x} bytes: the size must be a power of two";
        /// The size must hold the entries that KVM keeps in reserve, and fill a page.
        TooSmall { size: u64, min: u64 } = "ring-too-small", EINVAL,
            "kvm_main.c:kvm_vm_ioctl_enable_dirty_log_ring", "since 5.11",
            "a ring of {size:#x} bytes is smaller than {min:#x}";
        /// The most a ring can have.
        TooBig { size: u64, max: u64 } = "ring-too-big", E2BIG, "kvm_main.c:kvm_vm_ioctl_enable_dirty_log_ring",
            "since 5.11", "a ring of {size:#x} bytes is larger than {max:#x}";
        /// Rings are enabled once.
        AlreadyEnabled { size: u64 } = "ring-enabled", EINVAL, "kvm_main.c:kvm_vm_ioctl_enable_dirty_log_ring",
            "since 5.11", "dirty rings are enabled already, with {size:#x} bytes";
        /// Rings are enabled before the first vCPU.
        HasVcpu { vcpus: u32 } = "ring-after-vcpu", EINVAL, "kvm_main.c:kvm_vm_ioctl_enable_dirty_log_ring",
            "since 5.11", "dirty rings must be enabled before the first of the {vcpus} vCPUs";
        /// Bitmaps beside rings exist on other architectures only.
        WithBitmap {} = "ring-with-bitmap", EINVAL, "kvm_main.c:kvm_vm_ioctl_enable_cap_generic", "since 6.2",
            "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP does not exist on x86";
        /// There is nothing to reset.
        NotEnabled {} = "ring-not-enabled", EINVAL, "kvm_main.c:kvm_vm_ioctl_reset_dirty_pages", "since 5.11",
            "the VM has no dirty rings";
        /// There is no ring to harvest.
        NoRing { vcpu: u32 } = "no-ring", EINVAL, "kvm_main.c:kvm_vcpu_mmap", "since 5.11",
            "vCPU {vcpu} does not exist or has no dirty ring";
    }
}

fixed_errno!(DirtyLogError, DirtyRingError);
