//! System calls on guest_memfds and their mappings.
#![expect(unsafe_code, reason = "raw descriptors and mappings")]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use kvm_bindings::kvm_create_guest_memfd;
use kvm_ioctls::VmFd;
use slat_memslot::{Errno, FileCall, GmemId, Hva, MapCall, MapId, Outcome, PAGE_SIZE};

use super::Vm;
use super::ioctl::errno;
use super::ioctl::{last_errno, result};

/// A mapping of a guest_memfd, unmapped on drop.
#[derive(Debug)]
pub(super) struct FileMapping {
    address: NonNull<libc::c_void>,
    len: usize,
    prot: u32,
}

// SAFETY: the mapping is owned; it is accessed only by system calls that fail instead of faulting.
unsafe impl Send for FileMapping {}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped for this value and nothing else unmaps it.
        unsafe { libc::munmap(self.address.as_ptr(), self.len) };
    }
}

/// `KVM_CREATE_GUEST_MEMFD`.
pub(crate) fn create(vm: &VmFd, size: u64, flags: u64, reserved: u64) -> Result<OwnedFd, Errno> {
    let request = kvm_create_guest_memfd {
        size,
        flags,
        reserved: [reserved; 6],
    };
    let fd = vm.create_guest_memfd(request).map_err(errno)?;
    // SAFETY: the ioctl gave a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a guest_memfd cannot be mapped executable, where one can be made at all. The test for it comes before the
/// one for whether it can be mapped.
pub(super) fn is_noexec(vm: &VmFd) -> Option<bool> {
    let file = create(vm, PAGE_SIZE, 0, 0).ok()?;
    let (flags, prot) = (libc::MAP_SHARED, libc::PROT_READ | libc::PROT_EXEC);
    // SAFETY: the kernel chooses the address, so no existing mapping is touched.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, file.as_raw_fd(), 0) };
    if address == libc::MAP_FAILED {
        return Some(last_errno() == Errno::EPERM);
    }
    // SAFETY: the mapping was made above and is used nowhere.
    unsafe { libc::munmap(address, 4096) };
    Some(false)
}

impl Vm {
    pub(super) fn file_call(&mut self, id: GmemId, call: FileCall) -> Result<Outcome, Errno> {
        let fd = self.file_descriptor(id);
        match call {
            FileCall::Close => return self.close(id),
            FileCall::Size => return Ok(Outcome::Value(non_negative(stat(fd)?.st_size))),
            FileCall::Blocks => return Ok(Outcome::Value(non_negative(stat(fd)?.st_blocks))),
            FileCall::Mmap {
                len,
                prot,
                flags,
                offset,
            } => return self.mmap(fd, len, prot, flags, offset),
            _ => {}
        }
        plain_file_call(fd, call)?;
        Ok(Outcome::Done)
    }

    fn close(&mut self, id: GmemId) -> Result<Outcome, Errno> {
        let file = self.files.get_mut(id.index()).and_then(Option::take);
        file.map(|_closed_on_drop| Outcome::Done)
            .ok_or(Errno::EBADF)
    }

    fn mmap(
        &mut self,
        fd: RawFd,
        len: u64,
        prot: u32,
        flags: u32,
        offset: u64,
    ) -> Result<Outcome, Errno> {
        let size = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        // MAP_FIXED could replace memory in use.
        let flags = flags.cast_signed_bits() & !(libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE);
        let offset = offset.cast_signed_bits();
        // SAFETY: the kernel chooses the address, so no existing mapping is touched.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                prot.cast_signed_bits(),
                flags,
                fd,
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let address = NonNull::new(address).ok_or(Errno::ENOMEM)?;
        self.maps.push(Some(FileMapping {
            address,
            len: size,
            prot,
        }));
        let index = u32::try_from(self.maps.len() - 1).map_err(|_| Errno::ENOMEM)?;
        Ok(Outcome::Mapped(
            MapId::new(index),
            Hva::new(address.as_ptr() as u64),
        ))
    }

    pub(super) fn map_call(&mut self, id: MapId, call: MapCall) -> Result<Outcome, Errno> {
        let entry = self.maps.get_mut(id.index()).ok_or(Errno::ENOMEM)?;
        let mapping = entry.as_mut().ok_or(Errno::ENOMEM)?;
        let (address, len) = (mapping.address.as_ptr(), mapping.len);
        match call {
            MapCall::Touch { offset } => return Ok(Outcome::Value(mapping.touch(offset)?)),
            MapCall::Madvise { advice } => {
                // SAFETY: the range is ours, and its contents are borrowed nowhere.
                result(unsafe { libc::madvise(address, len, advice.cast_signed_bits()) })?;
            }
            MapCall::Mprotect { prot } => {
                // SAFETY: as above.
                result(unsafe { libc::mprotect(address, len, prot.cast_signed_bits()) })?;
                mapping.prot = prot;
            }
            MapCall::Unmap => *entry = None,
        }
        Ok(Outcome::Done)
    }
}

impl FileMapping {
    /// The signal that writing one byte would raise, or 0. The write is the kernel's own, into the mapping, and gives
    /// an error instead of a signal.
    fn touch(&self, offset: u64) -> Result<u64, Errno> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let mapped = self
            .len
            .next_multiple_of(usize::try_from(PAGE_SIZE).unwrap_or(4096));
        if offset >= mapped || self.prot & libc::PROT_WRITE.cast_unsigned_bits() == 0 {
            return Ok(u64::from(libc::SIGSEGV.cast_unsigned_bits()));
        }
        let zero =
            File::open("/dev/zero").map_err(|e| Errno::new(e.raw_os_error().unwrap_or(0)))?;
        // SAFETY: one byte inside the mapping, which is borrowed nowhere.
        let count =
            unsafe { libc::read(zero.as_raw_fd(), self.address.as_ptr().byte_add(offset), 1) };
        match (count, last_errno()) {
            (1, _) => Ok(0),
            (_, Errno::EFAULT) => Ok(u64::from(libc::SIGBUS.cast_unsigned_bits())),
            (_, errno) => Err(errno),
        }
    }
}

/// The calls that take no pointers but to a page of our own.
fn plain_file_call(fd: RawFd, call: FileCall) -> Result<(), Errno> {
    let mut page = [0u8; 4096];
    let (buffer, len) = (page.as_mut_ptr().cast::<libc::c_void>(), page.len());
    // SAFETY: the buffer lives through the call and has `len` bytes; a descriptor that is not open is refused.
    let value = unsafe {
        match call {
            FileCall::Read => libc::read(fd, buffer, len),
            FileCall::Write => libc::write(fd, buffer, len),
            FileCall::Pread => libc::pread(fd, buffer, len, 0),
            FileCall::Pwrite => libc::pwrite(fd, buffer, len, 0),
            FileCall::Lseek => long(libc::lseek(fd, 0, libc::SEEK_SET)),
            FileCall::Chmod => int(libc::fchmod(fd, 0o600)),
            FileCall::Truncate { len } => int(libc::ftruncate(fd, len.cast_signed_bits())),
            FileCall::Fallocate { mode, offset, len } => int(libc::fallocate(
                fd,
                mode.cast_signed_bits(),
                offset.cast_signed_bits(),
                len.cast_signed_bits(),
            )),
            FileCall::Close | FileCall::Size | FileCall::Blocks | FileCall::Mmap { .. } => 0,
        }
    };
    if value < 0 { Err(last_errno()) } else { Ok(()) }
}

fn stat(fd: RawFd) -> Result<libc::stat, Errno> {
    let mut stat = std::mem::MaybeUninit::uninit();
    // SAFETY: the kernel fills the struct that the pointer names.
    result(unsafe { libc::fstat(fd, stat.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so the struct is filled.
    Ok(unsafe { stat.assume_init() })
}

fn non_negative(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn int(value: i32) -> isize {
    isize::try_from(value).unwrap_or(-1)
}

fn long(value: i64) -> isize {
    isize::try_from(value).unwrap_or(-1)
}

/// The same bits under the other sign, for system calls whose arguments this crate keeps unsigned.
trait SameBits {
    type Signed;
    fn cast_signed_bits(self) -> Self::Signed;
}

impl SameBits for u32 {
    type Signed = i32;
    fn cast_signed_bits(self) -> i32 {
        i32::from_ne_bytes(self.to_ne_bytes())
    }
}

impl SameBits for u64 {
    type Signed = i64;
    fn cast_signed_bits(self) -> i64 {
        i64::from_ne_bytes(self.to_ne_bytes())
    }
}

trait UnsignedBits {
    fn cast_unsigned_bits(self) -> u32;
}

impl UnsignedBits for i32 {
    fn cast_unsigned_bits(self) -> u32 {
        u32::from_ne_bytes(self.to_ne_bytes())
    }
}
