//! Reasons of guest_memfd: creation, the file, its mappings.

use super::{fixed_errno, reasons};

reasons! {
    /// Why `KVM_CREATE_GUEST_MEMFD` is refused.
    pub enum GmemError {
        /// The kernel has no guest_memfd.
        NotBuiltIn {} = "no-guest-memfd", ENOTTY, "kvm_main.c:kvm_vm_ioctl", "until 6.7, and where not built in",
            "this kernel has no KVM_CREATE_GUEST_MEMFD";
        /// A flag that this VM's guest_memfds do not take.
        Flags { unsupported: u64, supported: u64 } = "gmem-flags", EINVAL, "guest_memfd.c:kvm_gmem_create",
            "since 6.8", "guest_memfd flag bits {unsupported:#x} are not among this VM's {supported:#x}";
        /// An empty file, or one whose length is negative as a signed number.
        Size { size: u64 } = "gmem-size", EINVAL, "guest_memfd.c:kvm_gmem_create", "since 6.8",
            "a guest_memfd of {size:#x} bytes: the length must be positive as a signed number";
        /// The length is no whole number of pages.
        SizeUnaligned { size: u64 } = "gmem-size-unaligned", EINVAL, "guest_memfd.c:kvm_gmem_create", "since 6.8",
            "guest_memfd length {size:#x} is no multiple of 4096";
    }
}

reasons! {
    /// Why a system call on a guest_memfd fails.
    pub enum FileError {
        /// The descriptor is closed.
        Closed {} = "file-closed", EBADF, "fs: the file table", "always", "the guest_memfd is closed";
        /// guest_memfds are neither read nor written.
        NoReadWrite {} = "gmem-no-read-write", EINVAL, "fs/read_write.c:vfs_read", "since 6.8",
            "a guest_memfd has neither read nor write";
        /// guest_memfds have no file position.
        NotSeekable {} = "gmem-not-seekable", ESPIPE, "fs/read_write.c:vfs_llseek", "since 6.8",
            "a guest_memfd has no file position";
        /// The length is negative as a signed number.
        TruncateNegative { len: u64 } = "truncate-negative", EINVAL, "fs/open.c:do_sys_ftruncate", "always",
            "ftruncate to {len:#x}: the length is negative as a signed number";
        /// The attributes of a guest_memfd are fixed, its length among them.
        SetAttr {} = "gmem-setattr", EINVAL, "guest_memfd.c:kvm_gmem_setattr", "since 6.8",
            "length and mode of a guest_memfd are fixed";
        /// An empty or negative range.
        FallocateRange { offset: u64, len: u64 } = "fallocate-range", EINVAL, "fs/open.c:vfs_fallocate", "always",
            "fallocate range {offset:#x} + {len:#x}: the offset must not be negative, the length must be positive";
        /// A mode that no file system knows, or a combination that none takes.
        FallocateMode { mode: u32 } = "fallocate-mode", EOPNOTSUPP, "fs/open.c:vfs_fallocate", "always",
            "fallocate mode {mode:#x} is no valid combination";
        /// The range leaves the largest file size.
        FallocateTooBig { offset: u64, len: u64 } = "fallocate-too-big", EFBIG, "fs/open.c:vfs_fallocate", "always",
            "fallocate range {offset:#x} + {len:#x} goes beyond 2^63 - 1";
        /// The length of a guest_memfd is fixed, so it must be kept.
        FallocateKeepSize { mode: u32 } = "fallocate-keep-size", EOPNOTSUPP, "guest_memfd.c:kvm_gmem_fallocate",
            "since 6.8", "fallocate mode {mode:#x} lacks FALLOC_FL_KEEP_SIZE, and a guest_memfd has a fixed length";
        /// A mode that guest_memfd does not implement.
        FallocateOther { mode: u32 } = "fallocate-other", EOPNOTSUPP, "guest_memfd.c:kvm_gmem_fallocate",
            "since 6.8", "fallocate mode {mode:#x}: guest_memfd knows KEEP_SIZE and PUNCH_HOLE only";
        /// The range is not page aligned.
        FallocateUnaligned { offset: u64, len: u64 } = "fallocate-unaligned", EINVAL,
            "guest_memfd.c:kvm_gmem_fallocate", "since 6.8",
            "fallocate range {offset:#x} + {len:#x} is not page aligned";
        /// Memory cannot be allocated behind the end.
        FallocateBeyond { offset: u64, len: u64, size: u64 } = "fallocate-beyond", EINVAL,
            "guest_memfd.c:kvm_gmem_allocate", "since 6.8",
            "fallocate range {offset:#x} + {len:#x} goes beyond the file's {size:#x} bytes";
        /// An empty mapping, or one whose offset is not page aligned.
        MmapRange { len: u64, offset: u64 } = "mmap-range", EINVAL, "mm/mmap.c:do_mmap", "always",
            "mmap of {len:#x} bytes at {offset:#x}: the length must not be 0, the offset must be page aligned";
        /// No mapping of that size can exist.
        MmapTooBig { len: u64 } = "mmap-too-big", ENOMEM, "mm/mmap.c:do_mmap", "always",
            "mmap of {len:#x} bytes does not fit the address space";
        /// The range leaves what a file offset can say.
        MmapOverflow { len: u64, offset: u64 } = "mmap-overflow", EOVERFLOW, "mm/mmap.c:do_mmap", "always",
            "mmap of {len:#x} bytes at {offset:#x} goes beyond the largest file offset";
        /// Neither shared nor private.
        MmapKind { flags: u32 } = "mmap-kind", EINVAL, "mm/mmap.c:do_mmap", "always",
            "mmap flags {flags:#x} name neither MAP_SHARED nor MAP_PRIVATE";
        /// guest_memfds lie on a file system mounted noexec.
        MmapExec {} = "mmap-exec", EPERM, "mm/mmap.c:do_mmap", "since 6.18",
            "a guest_memfd cannot be mapped with PROT_EXEC";
        /// The file was made without the flag.
        MmapUnsupported {} = "mmap-unsupported", ENODEV, "guest_memfd.c:kvm_gmem_mmap", "since 6.8",
            "the guest_memfd was made without GUEST_MEMFD_FLAG_MMAP";
        /// Copy-on-write makes no sense for guest memory.
        MmapPrivate {} = "mmap-private", EINVAL, "guest_memfd.c:kvm_gmem_mmap", "since 6.18",
            "a guest_memfd can be mapped with MAP_SHARED only";
    }
}

reasons! {
    /// Why a system call on a mapping of a guest_memfd fails.
    pub enum MapError {
        /// The mapping is gone, or never was.
        NotMapped {} = "not-mapped", ENOMEM, "mm: the address space", "always", "there is no such mapping";
        /// An advice that means nothing.
        Advice { advice: u32 } = "unknown-advice", EINVAL, "mm/madvise.c:do_madvise", "always",
            "madvise {advice} is no known advice";
        /// A protection that means nothing.
        Protection { prot: u32 } = "unknown-protection", EINVAL, "mm/mprotect.c:do_mprotect_pkey", "always",
            "mprotect {prot:#x} holds unknown bits";
        /// guest_memfds lie on a file system mounted noexec.
        Exec {} = "mprotect-exec", EACCES, "mm/mprotect.c:do_mprotect_pkey", "since 6.18",
            "a mapping of a guest_memfd cannot become executable";
    }
}

fixed_errno!(GmemError, FileError, MapError);
