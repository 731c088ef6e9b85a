//! System calls on a guest_memfd.

use super::Mapping;
use crate::{
    FileCall, FileError, GmemFlags, GmemId, Hva, MapId, Memory, Outcome, PAGE_SIZE, Profile,
    Refusal,
};

/// `FALLOC_FL_*` modes.
mod falloc {
    pub(super) const KEEP_SIZE: u32 = 0x01;
    pub(super) const PUNCH_HOLE: u32 = 0x02;
    pub(super) const COLLAPSE_RANGE: u32 = 0x08;
    pub(super) const ZERO_RANGE: u32 = 0x10;
    pub(super) const INSERT_RANGE: u32 = 0x20;
    pub(super) const UNSHARE_RANGE: u32 = 0x40;
}

/// `PROT_EXEC`.
pub(super) const PROT_EXEC: u32 = 4;
const MAP_SHARED: u32 = 1;
const MAP_PRIVATE: u32 = 2;
const MAP_SHARED_VALIDATE: u32 = 3;
const MAP_TYPE: u32 = 0xf;

/// The largest file offset.
const MAX_OFFSET: u64 = i64::MAX.unsigned_abs();

/// Where `mmap` looks for room unless it is told an address: 47 bits even with 5-level paging (`DEFAULT_MAP_WINDOW`).
const MMAP_WINDOW: u64 = (1 << 47) - PAGE_SIZE;

impl Memory {
    /// A system call on a guest_memfd.
    ///
    /// # Errors
    /// The first test that fails, of the VFS or of guest_memfd.
    pub fn file_call(&mut self, id: GmemId, call: FileCall) -> Result<Outcome, Refusal> {
        check_before_descriptor(call)?;
        let file = self
            .gmem_file(id)
            .filter(|f| f.is_open())
            .ok_or(FileError::Closed {})?;
        let (size, flags) = (file.size(), file.flags());
        match call {
            FileCall::Close => {
                self.close(id);
                Ok(Outcome::Done)
            }
            FileCall::Read | FileCall::Write => Err(FileError::NoReadWrite {}.into()),
            FileCall::Pread | FileCall::Pwrite | FileCall::Lseek => {
                Err(FileError::NotSeekable {}.into())
            }
            FileCall::Truncate { .. } | FileCall::Chmod => Err(FileError::SetAttr {}.into()),
            FileCall::Size => Ok(Outcome::Value(size)),
            FileCall::Blocks => Ok(Outcome::Value(0)),
            FileCall::Fallocate { mode, offset, len } => {
                check_fallocate(mode, offset, len, size)?;
                if mode & falloc::PUNCH_HOLE != 0 {
                    self.discard_file(id, offset, len);
                }
                Ok(Outcome::Done)
            }
            FileCall::Mmap {
                len,
                prot,
                flags: map_flags,
                offset,
            } => {
                let request = MmapRequest {
                    len,
                    prot,
                    flags: map_flags,
                    offset,
                };
                request.check(flags, self.profile())?;
                Ok(self.map(Mapping {
                    file: id,
                    len,
                    prot,
                    offset,
                    live: true,
                }))
            }
        }
    }

    fn close(&mut self, id: GmemId) {
        if let Some(file) = self.gmem_file_mut(id) {
            file.descriptor_open = false;
        }
        self.release_if_dead(id);
        self.mark_changed();
    }

    fn map(&mut self, mapping: Mapping) -> Outcome {
        if let Some(file) = self.gmem_file_mut(mapping.file) {
            file.mappings += 1;
        }
        let index = self.maps.len();
        self.maps.push(mapping);
        Outcome::Mapped(
            MapId::new(u32::try_from(index).unwrap_or(u32::MAX)),
            self.address_of_map(index),
        )
    }

    /// Any page-aligned address will do; a real kernel chooses another one each time.
    pub(crate) fn address_of_map(&self, index: usize) -> Hva {
        let address = 0x7000_0000_0000 + (index as u64) * (1 << 30);
        Hva::new(address & (self.profile().user_end.get() / 2))
    }
}

/// The tests that come before the descriptor is looked up.
fn check_before_descriptor(call: FileCall) -> Result<(), FileError> {
    match call {
        FileCall::Mmap { len, offset, .. } if offset % PAGE_SIZE != 0 => {
            Err(FileError::MmapRange { len, offset })
        }
        FileCall::Truncate { len } if len > MAX_OFFSET => Err(FileError::TruncateNegative { len }),
        _ => Ok(()),
    }
}

/// `vfs_fallocate`, then `kvm_gmem_fallocate`.
fn check_fallocate(mode: u32, offset: u64, len: u64, size: u64) -> Result<(), FileError> {
    if offset > MAX_OFFSET || len == 0 || len > MAX_OFFSET {
        return Err(FileError::FallocateRange { offset, len });
    }
    if !is_valid_mode(mode) {
        return Err(FileError::FallocateMode { mode });
    }
    if offset + len > MAX_OFFSET {
        return Err(FileError::FallocateTooBig { offset, len });
    }
    if mode & falloc::KEEP_SIZE == 0 {
        return Err(FileError::FallocateKeepSize { mode });
    }
    if mode & !(falloc::KEEP_SIZE | falloc::PUNCH_HOLE) != 0 {
        return Err(FileError::FallocateOther { mode });
    }
    if offset % PAGE_SIZE != 0 || len % PAGE_SIZE != 0 {
        return Err(FileError::FallocateUnaligned { offset, len });
    }
    if mode & falloc::PUNCH_HOLE == 0 && offset + len > size {
        return Err(FileError::FallocateBeyond { offset, len, size });
    }
    Ok(())
}

/// Which modes the VFS lets through: one operation at a time, and for some a fixed answer to keeping the size.
fn is_valid_mode(mode: u32) -> bool {
    let keeps = mode & falloc::KEEP_SIZE != 0;
    match mode & !falloc::KEEP_SIZE {
        0 | falloc::UNSHARE_RANGE | falloc::ZERO_RANGE => true,
        falloc::PUNCH_HOLE => keeps,
        falloc::COLLAPSE_RANGE | falloc::INSERT_RANGE => !keeps,
        _ => false,
    }
}

/// The arguments of an `mmap`.
#[derive(Clone, Copy)]
struct MmapRequest {
    len: u64,
    prot: u32,
    flags: u32,
    offset: u64,
}

impl MmapRequest {
    /// `do_mmap`, then `kvm_gmem_mmap`.
    fn check(self, file: GmemFlags, profile: &Profile) -> Result<(), FileError> {
        self.check_range(profile.user_end.get().min(MMAP_WINDOW))?;
        let kind = self.flags & MAP_TYPE;
        if !matches!(kind, MAP_SHARED | MAP_PRIVATE | MAP_SHARED_VALIDATE) {
            return Err(FileError::MmapKind { flags: self.flags });
        }
        if self.prot & PROT_EXEC != 0 && profile.gmem_noexec.get() {
            return Err(FileError::MmapExec {});
        }
        if !file.contains(GmemFlags::MMAP) {
            return Err(FileError::MmapUnsupported {});
        }
        match kind {
            MAP_PRIVATE => Err(FileError::MmapPrivate {}),
            _ => Ok(()),
        }
    }

    fn check_range(self, room: u64) -> Result<(), FileError> {
        let Self { len, offset, .. } = self;
        if len == 0 {
            return Err(FileError::MmapRange { len, offset });
        }
        if len > room {
            return Err(FileError::MmapTooBig { len });
        }
        let pages = (MAX_OFFSET - len.next_multiple_of(PAGE_SIZE)) / PAGE_SIZE;
        match offset / PAGE_SIZE > pages {
            true => Err(FileError::MmapOverflow { len, offset }),
            false => Ok(()),
        }
    }
}
