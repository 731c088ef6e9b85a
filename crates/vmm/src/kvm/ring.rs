//! Dirty rings, as userspace has them: mapped.
#![expect(unsafe_code, reason = "the dirty ring is shared with the kernel")]

use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use slat_memslot::{Errno, PAGE_SIZE};

use super::ioctl::last_errno;

/// Where a vCPU's mapping holds its dirty ring, in pages (`KVM_DIRTY_LOG_PAGE_OFFSET`).
const RING_PAGE: i64 = 64;
/// `KVM_DIRTY_GFN_F_DIRTY` and `KVM_DIRTY_GFN_F_RESET`.
const DIRTY: u32 = 1;
const RESET: u32 = 2;

/// One entry of a dirty ring (`struct kvm_dirty_gfn`).
#[repr(C)]
struct RingEntry {
    flags: AtomicU32,
    slot: AtomicU32,
    offset: std::sync::atomic::AtomicU64,
}

/// A vCPU's dirty ring, mapped.
#[derive(Debug)]
pub(crate) struct Ring {
    entries: NonNull<RingEntry>,
    count: usize,
    next: usize,
}

// SAFETY: the entries are atomics in memory that this value owns a mapping of.
unsafe impl Send for Ring {}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the range was mapped for this value and nothing else unmaps it.
        unsafe {
            libc::munmap(
                self.entries.as_ptr().cast(),
                self.count * size_of::<RingEntry>(),
            )
        };
    }
}

impl Ring {
    /// Maps the ring of a vCPU.
    pub(crate) fn map(vcpu: RawFd, bytes: u64) -> Result<Self, Errno> {
        let len = usize::try_from(bytes).map_err(|_| Errno::ENOMEM)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let page = i64::try_from(PAGE_SIZE).map_err(|_| Errno::EINVAL)?;
        // SAFETY: a new shared mapping of the vCPU's file at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                vcpu,
                RING_PAGE * page,
            )
        };
        // SAFETY: the range was mapped just now. A child must not keep the vCPU open.
        unsafe { libc::madvise(address, len, libc::MADV_DONTFORK) };
        match NonNull::new(address).filter(|p| p.as_ptr() != libc::MAP_FAILED) {
            Some(address) => Ok(Self {
                entries: address.cast(),
                count: len / size_of::<RingEntry>(),
                next: 0,
            }),
            None => Err(last_errno()),
        }
    }

    fn entry(&self, index: usize) -> &RingEntry {
        // SAFETY: the index is taken modulo the number of entries in the mapping, and all fields are atomics.
        unsafe { self.entries.add(index % self.count).as_ref() }
    }

    /// Takes the published entries and marks them harvested.
    pub(crate) fn harvest(&mut self) -> Vec<(u32, u64)> {
        let mut taken = Vec::new();
        while self.entry(self.next).flags.load(Ordering::Acquire) & (DIRTY | RESET) == DIRTY {
            let entry = self.entry(self.next);
            taken.push((
                entry.slot.load(Ordering::Relaxed),
                entry.offset.load(Ordering::Relaxed),
            ));
            entry.flags.store(RESET, Ordering::Release);
            self.next = (self.next + 1) % self.count;
        }
        taken
    }
}
