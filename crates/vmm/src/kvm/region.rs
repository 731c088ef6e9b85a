//! Set-region calls, with the files that they name.
#![expect(unsafe_code, reason = "slots give the kernel host addresses")]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use slat_memslot::{Errno, FileRef, OtherFile, Outcome, Region, RegionVersion};

use super::Vm;
use super::ioctl::errno;

/// A descriptor number that no process has open.
const NOT_OPEN: RawFd = i32::MAX;

/// Where a slot lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) gpa: u64,
    pub(super) size: u64,
    pub(super) hva: u64,
}

/// Open files that are no guest_memfd of this VM, opened when first named.
#[derive(Debug, Default)]
pub(super) struct OtherFiles {
    null: Option<File>,
    memfd: Option<OwnedFd>,
    foreign: Option<(OwnedFd, VmFd)>,
}

impl Vm {
    pub(super) fn set_region(&mut self, request: &Region) -> Result<Outcome, Errno> {
        let result = match request.version {
            RegionVersion::V1 => {
                let raw = kvm_userspace_memory_region::from(request);
                // SAFETY: a guest of this VM runs only in pages of `HostMemory`, which outlives the VM; all other
                // slots are never accessed, so their host addresses may be any number.
                unsafe { self.vm.set_user_memory_region(raw) }
            }
            RegionVersion::V2 => {
                let descriptor = self.descriptor(request.gmem)?;
                let raw = request.to_region2(|_| descriptor);
                // SAFETY: as above.
                unsafe { self.vm.set_user_memory_region2(raw) }
            }
        };
        // A refused move has thrown the roots away as well.
        let moves = |placed: &Placed| request.size == 0 || placed.gpa != request.gpa;
        self.stale_root |= self.has_root && self.placed.get(&request.slot).is_some_and(moves);
        result.map_err(errno)?;
        match request.size {
            0 => drop(self.placed.remove(&request.slot)),
            size => {
                let Region { gpa, hva, .. } = *request;
                self.placed.insert(request.slot, Placed { gpa, size, hva });
            }
        }
        Ok(Outcome::Done)
    }

    fn descriptor(&mut self, file: FileRef) -> Result<RawFd, Errno> {
        Ok(match file {
            FileRef::NotOpen(number) if number < 0 => number,
            FileRef::NotOpen(_) => NOT_OPEN,
            FileRef::Gmem(id) => self.file_descriptor(id),
            FileRef::Foreign => self.others.foreign(&self.kvm)?,
            FileRef::Other(OtherFile::Null) => self.others.null()?,
            FileRef::Other(OtherFile::Memfd) => self.others.memfd()?,
            FileRef::Other(OtherFile::Vm) => self.fd(),
            FileRef::Other(OtherFile::Kvm) => self.kvm.as_raw_fd(),
        })
    }

    /// The number of a guest_memfd, or one that is not open when it is closed.
    pub(super) fn file_descriptor(&self, id: slat_memslot::GmemId) -> RawFd {
        self.files
            .get(id.index())
            .and_then(Option::as_ref)
            .map_or(NOT_OPEN, AsRawFd::as_raw_fd)
    }
}

impl OtherFiles {
    fn null(&mut self) -> Result<RawFd, Errno> {
        if self.null.is_none() {
            let file = File::options().read(true).write(true).open("/dev/null");
            self.null = Some(file.map_err(|e| Errno::new(e.raw_os_error().unwrap_or(0)))?);
        }
        Ok(self.null.as_ref().map_or(NOT_OPEN, AsRawFd::as_raw_fd))
    }

    fn memfd(&mut self) -> Result<RawFd, Errno> {
        if self.memfd.is_none() {
            // SAFETY: the name is a constant C string; a descriptor that comes back is ours.
            let fd = unsafe { libc::memfd_create(c"slat".as_ptr(), libc::MFD_CLOEXEC) };
            let fd = super::ioctl::result(fd)?;
            // SAFETY: the descriptor is open, and nobody else owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: the descriptor is open; the call takes no pointer.
            super::ioctl::result(unsafe { libc::ftruncate(fd.as_raw_fd(), 1 << 20) })?;
            self.memfd = Some(fd);
        }
        Ok(self.memfd.as_ref().map_or(NOT_OPEN, AsRawFd::as_raw_fd))
    }

    fn foreign(&mut self, kvm: &Kvm) -> Result<RawFd, Errno> {
        if self.foreign.is_none() {
            let vm = kvm.create_vm().map_err(errno)?;
            let file = super::file::create(&vm, 1 << 20, 0, 0)?;
            self.foreign = Some((file, vm));
        }
        Ok(self
            .foreign
            .as_ref()
            .map_or(NOT_OPEN, |(file, _)| file.as_raw_fd()))
    }
}
