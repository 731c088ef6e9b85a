//! Repairs of guest_memfd calls.

use super::Repair;
use super::region::{round_down, round_up};
use crate::{
    Call, FileCall, FileError, GmemError, GmemFlags, GmemId, MapCall, MapError, MapId, Memory,
    PAGE_SIZE,
};

/// The largest page-aligned file.
const MAX_FILE: u64 = i64::MAX.unsigned_abs() & !(PAGE_SIZE - 1);
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const PROT_EXEC: u32 = 4;
const MAP_SHARED: u32 = 1;

impl Memory {
    pub(super) fn repair_create_gmem(&self, call: &Call, reason: &GmemError) -> Repair {
        let Call::CreateGmem {
            size,
            flags,
            reserved,
        } = *call
        else {
            return Repair::Impossible {
                why: "the kernel has no guest_memfd",
            };
        };
        let (size, flags) = match *reason {
            GmemError::NotBuiltIn {} => {
                return Repair::Impossible {
                    why: "the kernel has no guest_memfd",
                };
            }
            GmemError::Flags { supported, .. } => (size, flags & supported),
            GmemError::Size { size: 0 } => (PAGE_SIZE, flags),
            GmemError::Size { .. } => (MAX_FILE, flags),
            GmemError::SizeUnaligned { size } => (round_up(size).min(MAX_FILE), flags),
        };
        Repair::edit(Call::CreateGmem {
            size,
            flags,
            reserved,
        })
    }

    pub(super) fn repair_file(&self, file: GmemId, call: FileCall, reason: &FileError) -> Repair {
        match call {
            FileCall::Fallocate { mode, offset, len } => {
                let size = self
                    .gmem_file(file)
                    .map_or(PAGE_SIZE, crate::GmemFile::size);
                repair_fallocate(mode, offset, len, size, reason).map_or(
                    Repair::Impossible {
                        why: "the file is closed",
                    },
                    |call| Repair::edit(Call::File(file, call)),
                )
            }
            FileCall::Mmap {
                len,
                prot,
                flags,
                offset,
            } => self.repair_mmap(file, (len, prot, flags, offset), reason),
            _ => Repair::Impossible {
                why: "a guest_memfd can only be mapped, punched and bound to slots",
            },
        }
    }

    fn repair_mmap(
        &self,
        file: GmemId,
        (len, prot, flags, offset): (u64, u32, u32, u64),
        reason: &FileError,
    ) -> Repair {
        let call = |len, prot, flags, offset| FileCall::Mmap {
            len,
            prot,
            flags,
            offset,
        };
        let edited = match *reason {
            FileError::MmapRange { .. } => call(len.max(1), prot, flags, round_down(offset)),
            FileError::MmapTooBig { .. } => call(PAGE_SIZE, prot, flags, offset),
            FileError::MmapOverflow { .. } => call(len, prot, flags, 0),
            FileError::MmapKind { .. } | FileError::MmapPrivate {} => {
                call(len, prot, MAP_SHARED, offset)
            }
            FileError::MmapExec {} => call(len, prot & !PROT_EXEC, flags, offset),
            FileError::MmapUnsupported {} => {
                return self.map_another(file, call(len, prot, flags, offset));
            }
            _ => {
                return Repair::Impossible {
                    why: "the file is closed",
                };
            }
        };
        Repair::edit(Call::File(file, edited))
    }

    /// The same mapping of a file that can be mapped.
    fn map_another(&self, file: GmemId, call: FileCall) -> Repair {
        let mappable = self
            .profile()
            .gmem_flags_for(self.vm_type())
            .contains(GmemFlags::MMAP);
        match (self.gmem_file(file), u32::try_from(self.files.len())) {
            (Some(old), Ok(index)) if mappable => {
                let flags = (old.flags() | GmemFlags::MMAP).bits();
                let create = Call::CreateGmem {
                    size: old.size(),
                    flags,
                    reserved: 0,
                };
                Repair::after(create, Call::File(GmemId::new(index), call))
            }
            _ => Repair::Impossible {
                why: "this kernel's guest_memfds cannot be mapped",
            },
        }
    }
}

fn repair_fallocate(
    mode: u32,
    offset: u64,
    len: u64,
    size: u64,
    reason: &FileError,
) -> Option<FileCall> {
    let (mode, offset, len) = match *reason {
        FileError::FallocateRange { .. } | FileError::FallocateTooBig { .. } => {
            let offset = if offset > MAX_FILE { 0 } else { offset };
            let longest = MAX_FILE - offset;
            if len == 0 || longest == 0 {
                (mode, offset.min(MAX_FILE - PAGE_SIZE), PAGE_SIZE)
            } else {
                (mode, offset, len.min(longest))
            }
        }
        FileError::FallocateMode { .. } if mode & PUNCH_HOLE != 0 => {
            (PUNCH_HOLE | KEEP_SIZE, offset, len)
        }
        FileError::FallocateMode { .. } => (KEEP_SIZE, offset, len),
        FileError::FallocateKeepSize { .. } => (KEEP_SIZE, offset, len),
        FileError::FallocateOther { .. } => (mode & (PUNCH_HOLE | KEEP_SIZE), offset, len),
        FileError::FallocateUnaligned { .. } => (mode, round_down(offset), round_up(len)),
        FileError::FallocateBeyond { .. } if len <= size => (mode, size - len, len),
        FileError::FallocateBeyond { .. } => (mode, 0, size),
        _ => return None,
    };
    Some(FileCall::Fallocate { mode, offset, len })
}

pub(super) fn repair_map(map: MapId, call: MapCall, reason: &MapError) -> Repair {
    let edited = match (*reason, call) {
        (MapError::Advice { .. }, _) => MapCall::Madvise { advice: 4 },
        (MapError::Protection { prot }, _) => MapCall::Mprotect { prot: prot & 7 },
        (MapError::Exec {}, MapCall::Mprotect { prot }) => MapCall::Mprotect {
            prot: prot & !PROT_EXEC,
        },
        _ => {
            return Repair::Impossible {
                why: "the mapping is gone",
            };
        }
    };
    Repair::edit(Call::Map(map, edited))
}
