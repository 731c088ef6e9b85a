//! Refusals of guest_memfds and their mappings.

use slat_memslot::{Call, Errno, FileCall, MapCall, PAGE_SIZE};

use super::{
    FILE, KEEP, MAP, MIB, PUNCH, Trigger, after, default_vm, fallocate, gmem, mmap, on, trigger,
    with_file, with_mapping,
};

pub(super) fn gmem_creation() -> Vec<Trigger> {
    vec![
        trigger(
            "no-guest-memfd",
            Errno::ENOTTY,
            "KVM_CREATE_GUEST_MEMFD",
            on("linux-6.1"),
            gmem(MIB, 0),
        ),
        trigger(
            "gmem-flags",
            Errno::EINVAL,
            "0x4",
            default_vm(),
            gmem(MIB, 5),
        ),
        trigger(
            "gmem-size",
            Errno::EINVAL,
            "0x8000000000000000",
            default_vm(),
            gmem(1 << 63, 0),
        ),
        trigger(
            "gmem-size-unaligned",
            Errno::EINVAL,
            "0xfff",
            default_vm(),
            gmem(0xfff, 0),
        ),
    ]
}

pub(super) fn gmem_file() -> Vec<Trigger> {
    let t = |code, errno, shows, memory, call| {
        trigger(code, errno, shows, memory, Call::File(FILE, call))
    };
    vec![
        t(
            "file-closed",
            Errno::EBADF,
            "closed",
            after(with_file(0), &[Call::File(FILE, FileCall::Close)]),
            FileCall::Size,
        ),
        t(
            "gmem-no-read-write",
            Errno::EINVAL,
            "read",
            with_file(0),
            FileCall::Read,
        ),
        t(
            "gmem-not-seekable",
            Errno::ESPIPE,
            "position",
            with_file(0),
            FileCall::Pread,
        ),
        t(
            "truncate-negative",
            Errno::EINVAL,
            "0x8000000000000000",
            with_file(0),
            FileCall::Truncate { len: 1 << 63 },
        ),
        t(
            "gmem-setattr",
            Errno::EINVAL,
            "fixed",
            with_file(0),
            FileCall::Truncate { len: 0 },
        ),
    ]
}

pub(super) fn gmem_fallocate() -> Vec<Trigger> {
    let t = |code, errno, shows, call| trigger(code, errno, shows, with_file(0), call);
    let end = i64::MAX.unsigned_abs();
    vec![
        t(
            "fallocate-range",
            Errno::EINVAL,
            "0x1000 + 0x0",
            fallocate(KEEP, PAGE_SIZE, 0),
        ),
        t(
            "fallocate-mode",
            Errno::EOPNOTSUPP,
            "0x2",
            fallocate(PUNCH, 0, PAGE_SIZE),
        ),
        t(
            "fallocate-too-big",
            Errno::EFBIG,
            "0x7fffffffffffffff",
            fallocate(KEEP, 1, end),
        ),
        t(
            "fallocate-keep-size",
            Errno::EOPNOTSUPP,
            "0x0",
            fallocate(0, 0, PAGE_SIZE),
        ),
        t(
            "fallocate-other",
            Errno::EOPNOTSUPP,
            "0x11",
            fallocate(0x10 | KEEP, 0, PAGE_SIZE),
        ),
        t(
            "fallocate-unaligned",
            Errno::EINVAL,
            "0x1 + 0x1000",
            fallocate(PUNCH | KEEP, 1, PAGE_SIZE),
        ),
        t(
            "fallocate-beyond",
            Errno::EINVAL,
            "0x100000 bytes",
            fallocate(KEEP, MIB, PAGE_SIZE),
        ),
    ]
}

pub(super) fn gmem_mmap() -> Vec<Trigger> {
    let t = |code, errno, shows, call| trigger(code, errno, shows, with_file(3), call);
    vec![
        t("mmap-range", Errno::EINVAL, "0x801", mmap(MIB, 3, 1, 0x801)),
        t("mmap-kind", Errno::EINVAL, "0x20", mmap(MIB, 3, 0x20, 0)),
        t("mmap-exec", Errno::EPERM, "PROT_EXEC", mmap(MIB, 5, 1, 0)),
        trigger(
            "mmap-unsupported",
            Errno::ENODEV,
            "GUEST_MEMFD_FLAG_MMAP",
            with_file(0),
            mmap(MIB, 3, 1, 0),
        ),
        t(
            "mmap-private",
            Errno::EINVAL,
            "MAP_SHARED",
            mmap(MIB, 3, 2, 0),
        ),
        t(
            "mmap-too-big",
            Errno::ENOMEM,
            "0x800000000000",
            mmap(1 << 47, 3, 1, 0),
        ),
        t(
            "mmap-overflow",
            Errno::EOVERFLOW,
            "0x7ffffffffffff000",
            mmap(MIB, 3, 1, 0x7fff_ffff_ffff_f000),
        ),
    ]
}

pub(super) fn gmem_map() -> Vec<Trigger> {
    let t = |code, errno, shows, memory, call| {
        trigger(code, errno, shows, memory, Call::Map(MAP, call))
    };
    vec![
        t(
            "not-mapped",
            Errno::ENOMEM,
            "no such mapping",
            after(with_mapping(), &[Call::Map(MAP, MapCall::Unmap)]),
            MapCall::Touch { offset: 0 },
        ),
        t(
            "unknown-advice",
            Errno::EINVAL,
            "77",
            with_mapping(),
            MapCall::Madvise { advice: 77 },
        ),
        t(
            "unknown-protection",
            Errno::EINVAL,
            "0x13",
            with_mapping(),
            MapCall::Mprotect { prot: 0x13 },
        ),
        t(
            "mprotect-exec",
            Errno::EACCES,
            "executable",
            with_mapping(),
            MapCall::Mprotect { prot: 5 },
        ),
    ]
}
