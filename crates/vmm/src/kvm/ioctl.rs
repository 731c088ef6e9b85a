//! The ioctls that kvm-ioctls lacks, or offers without the freedom to pass wrong arguments.
#![expect(unsafe_code, reason = "ioctls take pointers")]

use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{KVMIO, kvm_clear_dirty_log, kvm_dirty_log, kvm_pre_fault_memory};
use slat_memslot::Errno;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr, ioctl_iowr_nr};

ioctl_io_nr!(KVM_SET_NR_MMU_PAGES, KVMIO, 0x44);
ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);
ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// The error number of the last system call.
pub(crate) fn last_errno() -> Errno {
    Errno::new(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// The error number of a wrapper's error.
pub(crate) fn errno(error: kvm_ioctls::Error) -> Errno {
    Errno::new(error.errno())
}

/// A system call's result, where a negative number means that errno is set.
pub(crate) fn result(value: i32) -> Result<i32, Errno> {
    if value < 0 {
        Err(last_errno())
    } else {
        Ok(value)
    }
}

/// A borrowed descriptor number as the wrappers want it.
struct Fd(RawFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

pub(crate) fn set_nr_mmu_pages(vm: RawFd, pages: u64) -> Result<i32, Errno> {
    // SAFETY: the argument is a number; the kernel reads no memory.
    result(unsafe { ioctl_with_val(&Fd(vm), KVM_SET_NR_MMU_PAGES(), pages) })
}

pub(crate) fn reset_dirty_rings(vm: RawFd) -> Result<i32, Errno> {
    // SAFETY: the ioctl has no argument.
    result(unsafe { ioctl(&Fd(vm), KVM_RESET_DIRTY_RINGS()) })
}

/// `words` must hold a bit for every page of the slot, or be `None` for a null pointer.
pub(crate) fn get_dirty_log(vm: RawFd, slot: u32, words: Option<&mut [u64]>) -> Result<i32, Errno> {
    let mut log = kvm_dirty_log {
        slot,
        ..Default::default()
    };
    log.__bindgen_anon_1.dirty_bitmap =
        words.map_or(std::ptr::null_mut(), |w| w.as_mut_ptr().cast());
    // SAFETY: the kernel writes one bit per page of the slot, rounded up to 64; the caller sized the words by the
    // slot's pages, and a null pointer is refused.
    result(unsafe { ioctl_with_ref(&Fd(vm), KVM_GET_DIRTY_LOG(), &log) })
}

/// `words` must hold a bit for every page of the range, or be `None` for a null pointer.
pub(crate) fn clear_dirty_log(
    vm: RawFd,
    slot: u32,
    first_page: u64,
    num_pages: u32,
    words: Option<&[u64]>,
) -> Result<i32, Errno> {
    let mut log = kvm_clear_dirty_log {
        slot,
        first_page,
        num_pages,
        ..Default::default()
    };
    log.__bindgen_anon_1.dirty_bitmap =
        words.map_or(std::ptr::null_mut(), |w| w.as_ptr().cast_mut().cast());
    // SAFETY: the kernel only reads the words, one bit per page of the range, rounded up to 64; ranges that leave
    // the slot are refused before anything is read.
    result(unsafe { ioctl_with_ref(&Fd(vm), KVM_CLEAR_DIRTY_LOG(), &log) })
}

pub(crate) fn pre_fault(vcpu: RawFd, range: &mut kvm_pre_fault_memory) -> Result<i32, Errno> {
    // SAFETY: the kernel reads and writes the struct, whose size is part of the request number.
    result(unsafe { ioctl_with_mut_ref(&Fd(vcpu), KVM_PRE_FAULT_MEMORY(), range) })
}
