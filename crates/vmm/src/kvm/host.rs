//! Host memory for slots: the areas that scenario files call `A`, `UN` and `RO`.
#![expect(unsafe_code, reason = "memory is mapped and accessed through pointers")]

use std::io;
use std::ptr::NonNull;

use slat_memslot::{Errno, Hva, PAGE_SIZE};

use crate::Areas;

/// A private anonymous mapping, unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    address: NonNull<libc::c_void>,
    len: usize,
}

// SAFETY: the mapping is owned, and all accesses go through volatile copies of bytes that a guest may race with.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn new(len: usize, protection: i32) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        match NonNull::new(address).filter(|p| p.as_ptr() != libc::MAP_FAILED) {
            Some(address) => Ok(Self { address, len }),
            None => Err(io::Error::last_os_error()),
        }
    }

    /// Asks for small pages only, so that a second stage has small leaves. A kernel without huge pages refuses, and has
    /// none.
    pub(super) fn keep_small(&self) {
        // SAFETY: the range is a mapping of this value; the advice does not change what is in it.
        let _refused =
            unsafe { libc::madvise(self.address.as_ptr(), self.len, libc::MADV_NOHUGEPAGE) };
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn start(&self) -> u64 {
        self.address.as_ptr() as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and nothing else unmaps it.
        unsafe { libc::munmap(self.address.as_ptr(), self.len) };
    }
}

/// Memory of this process that slots can use.
///
/// `A` is 1 GiB, writable and aligned to 1 GiB, taken from the system page by page as it is touched; `UN` is 2 MiB
/// that no access reaches; `RO` is 2 MiB that can only be read. None of it is ever made of huge pages, so that a model
/// need not be told how large the host maps what.
#[derive(Debug)]
pub struct HostMemory {
    _writable: Mapping,
    _unreachable: Mapping,
    _readonly: Mapping,
    areas: Areas,
}

const GIB: u64 = 1 << 30;

impl HostMemory {
    /// Maps the three areas.
    ///
    /// # Errors
    /// The address space is exhausted.
    pub fn new() -> io::Result<Self> {
        // Twice as much, so that a part aligned to 1 GiB lies inside.
        let writable = Mapping::new(2 << 30, libc::PROT_READ | libc::PROT_WRITE)?;
        let unreachable = Mapping::new(2 << 20, libc::PROT_NONE)?;
        let readonly = Mapping::new(2 << 20, libc::PROT_READ)?;
        writable.keep_small();
        readonly.keep_small();
        let areas = Areas {
            writable: Hva::new(writable.start().next_multiple_of(GIB)),
            unreachable: Hva::new(unreachable.start()),
            readonly: Hva::new(readonly.start()),
        };
        Ok(Self {
            _writable: writable,
            _unreachable: unreachable,
            _readonly: readonly,
            areas,
        })
    }

    /// Where the areas lie.
    pub fn areas(&self) -> &Areas {
        &self.areas
    }

    /// A range of whole pages in the writable area, as an address and a length.
    fn part(&self, at: Hva, size: u64) -> Option<(u64, usize)> {
        let offset = at.raw().checked_sub(self.areas.writable.raw())?;
        let inside = offset <= GIB && size <= GIB - offset && (offset | size) % PAGE_SIZE == 0;
        let size = usize::try_from(size).ok().filter(|_| inside)?;
        Some((at.raw(), size))
    }

    /// Fills a range of the writable area; `None` when it does not lie inside it.
    pub(super) fn fill(&self, at: Hva, size: u64, byte: u8) -> Option<()> {
        let (address, size) = self.part(at, size)?;
        // SAFETY: the range lies in a writable mapping that lives as long as `self` and is never borrowed; the one thread that
        // drives guests is here.
        unsafe { std::ptr::write_bytes(address as *mut u8, byte, size) };
        Some(())
    }

    /// Whether a range of the writable area holds one byte everywhere; `None` when it does not lie inside it.
    pub(super) fn holds(&self, at: Hva, size: u64, byte: u8) -> Option<bool> {
        let (address, size) = self.part(at, size)?;
        // SAFETY: the range lies in a readable mapping that lives as long as `self`; nobody writes there while this borrow
        // lasts, since the one thread that drives guests is here.
        let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, size) };
        Some(bytes.iter().all(|found| *found == byte))
    }

    /// `MADV_DONTNEED` on a range of the writable area; `None` when it does not lie inside it.
    pub(super) fn discard(&self, at: Hva, size: u64) -> Option<Result<(), Errno>> {
        let (address, size) = self.part(at, size)?;
        let place = address as *mut libc::c_void;
        // SAFETY: the range is a mapping of this value that nobody borrows; what it holds may change.
        let done = unsafe { libc::madvise(place, size, libc::MADV_DONTNEED) };
        Some(super::ioctl::result(done).map(drop))
    }

    /// Writes bytes into the writable area; gives `false` when they do not lie inside it.
    pub(super) fn write(&self, at: Hva, bytes: &[u8]) -> bool {
        let start = self.areas.writable.raw();
        let end = at.raw().checked_add(bytes.len() as u64);
        if at.raw() < start || end.is_none_or(|end| end > start + GIB) {
            return false;
        }
        for (address, byte) in (at.raw()..).zip(bytes) {
            // SAFETY: the address lies in a writable mapping that lives as long as `self`; it is never borrowed, and
            // a guest that races sees single bytes.
            unsafe { std::ptr::write_volatile(address as *mut u8, *byte) };
        }
        true
    }
}
