//! One refused call for every reason: the smallest VM and the call that meet it.

use slat_memslot::{
    Buffer, Call, ClearBits, Errno, FileCall, FileRef, Gate, GmemId, MapCall, MapId, Memory,
    OtherFile, PAGE_SIZE, Profile, Region, RegionVersion, SlotFlags, SlotKey, VmType, cap,
};

/// A VM and a call that it refuses.
pub(crate) struct Trigger {
    /// The reason's code.
    pub(crate) code: &'static str,
    /// What the kernel answers.
    pub(crate) errno: Errno,
    /// The offending value, as the message has to name it.
    pub(crate) shows: &'static str,
    pub(crate) memory: Memory,
    pub(crate) call: Call,
}

const MIB: u64 = 1 << 20;
const HVA: u64 = 0x7f00_0000_0000;
const KEEP: u32 = 1;
const PUNCH: u32 = 2;

fn trigger(
    code: &'static str,
    errno: Errno,
    shows: &'static str,
    memory: Memory,
    call: Call,
) -> Trigger {
    Trigger {
        code,
        errno,
        shows,
        memory,
        call,
    }
}

fn vm(vm_type: VmType) -> Memory {
    Memory::new(Profile::latest(), vm_type)
}

fn default_vm() -> Memory {
    vm(VmType::Default)
}

fn on(profile: &str) -> Memory {
    Memory::new(
        Profile::named(profile).expect("a profile of that name"),
        VmType::Default,
    )
}

/// The VM after calls that it accepts.
fn after(mut memory: Memory, calls: &[Call]) -> Memory {
    for call in calls {
        memory.call(call).expect("a call that sets the VM up");
    }
    memory
}

/// A default VM with slot 1: 1 MiB at guest address 1 MiB.
fn with_slot(flags: SlotFlags) -> Memory {
    after(default_vm(), &[slot(1, MIB).with_flags(flags).into_call()])
}

/// A default VM with a guest_memfd of 1 MiB.
fn with_file(flags: u64) -> Memory {
    after(default_vm(), &[gmem(MIB, flags)])
}

/// The same, mapped.
fn with_mapping() -> Memory {
    after(with_file(3), &[mmap(MIB, 3, 1, 0)])
}

/// A default VM with a guest_memfd of 1 MiB that slot 1 is bound to.
fn with_bound_file() -> Memory {
    after(with_file(0), &[slot(1, MIB).with_gmem(FILE, 0).into_call()])
}

const FILE: GmemId = GmemId::new(0);
const MAP: MapId = MapId::new(0);

trait IntoCall {
    fn into_call(self) -> Call;
}

impl IntoCall for Region {
    fn into_call(self) -> Call {
        Call::SetRegion(self)
    }
}

/// 1 MiB of slot `id`.
fn slot(id: u16, gpa: u64) -> Region {
    Region::new(SlotKey::normal(id), gpa, MIB, HVA)
}

/// The same through the newer struct, bound to what `file` names.
fn bound(file: FileRef, offset: u64) -> Region {
    Region {
        gmem: file,
        ..slot(2, 16 * MIB).with_gmem(FILE, offset)
    }
}

fn gmem(size: u64, flags: u64) -> Call {
    Call::CreateGmem {
        size,
        flags,
        reserved: 0,
    }
}

fn mmap(len: u64, prot: u32, flags: u32, offset: u64) -> Call {
    let call = FileCall::Mmap {
        len,
        prot,
        flags,
        offset,
    };
    Call::File(FILE, call)
}

fn fallocate(mode: u32, offset: u64, len: u64) -> Call {
    Call::File(FILE, FileCall::Fallocate { mode, offset, len })
}

fn set_attributes(address: u64, size: u64, attributes: u64, flags: u64) -> Call {
    Call::SetAttributes {
        address,
        size,
        attributes,
        flags,
    }
}

fn get_log(slot: u32) -> Call {
    Call::GetDirtyLog {
        slot,
        buffer: Buffer::Good,
    }
}

fn clear_log(first_page: u64, num_pages: u32) -> Call {
    Call::ClearDirtyLog {
        slot: 1,
        first_page,
        num_pages,
        bits: ClearBits::All,
    }
}

fn enable(cap: u32, arg: u64) -> Call {
    Call::EnableCap {
        cap,
        flags: 0,
        args: [arg, 0, 0, 0],
    }
}

fn ring(bytes: u64) -> Call {
    enable(cap::DIRTY_LOG_RING_ACQ_REL, bytes)
}

fn pre_fault(gpa: u64, size: u64, flags: u64) -> Call {
    Call::PreFault {
        vcpu: 0,
        gpa,
        size,
        flags,
    }
}

fn with_vcpu(memory: Memory) -> Memory {
    after(memory, &[Call::CreateVcpu])
}

/// A VM of any type on a kernel with the proposed slot flag.
fn experiment(vm_type: VmType) -> Memory {
    Memory::new(Profile::latest().with_zap_leafs_flag(), vm_type)
}

/// Every reason that a call on a VM can meet, in the order of the catalogue.
pub(crate) fn triggers() -> Vec<Trigger> {
    let mut all = gate();
    all.extend(region_arguments());
    all.extend(region_against_slots());
    all.extend(region_new_range());
    all.extend(gmem_creation());
    all.extend(gmem_file());
    all.extend(gmem_fallocate());
    all.extend(gmem_mmap());
    all.extend(gmem_map());
    all.extend(attributes());
    all.extend(dirty_log());
    all.extend(dirty_ring());
    all.extend(capabilities());
    all.extend(pre_faults());
    all.extend(vm_calls());
    all
}

fn gate() -> Vec<Trigger> {
    let closed = |gate| {
        let mut memory = default_vm();
        memory.set_gate(gate);
        memory
    };
    let call = || slot(0, 0).into_call();
    vec![
        trigger(
            "other-process",
            Errno::EIO,
            "another process",
            closed(Gate::OtherProcess),
            call(),
        ),
        trigger("vm-dead", Errno::EIO, "dead", closed(Gate::Dead), call()),
    ]
}

fn region_arguments() -> Vec<Trigger> {
    let t = |code, shows, memory, region: Region| {
        trigger(code, Errno::EINVAL, shows, memory, region.into_call())
    };
    let plain = slot(1, MIB);
    let v2 = Region {
        version: RegionVersion::V2,
        ..plain
    };
    let both = |flag: SlotFlags| Region {
        flags: (SlotFlags::GUEST_MEMFD | flag).bits(),
        ..v2
    };
    vec![
        Trigger {
            errno: Errno::ENOTTY,
            ..t("no-region2", "REGION2", on("linux-6.1"), v2)
        },
        t(
            "flags-of-v2",
            "0x4",
            default_vm(),
            plain.with_flags(SlotFlags::GUEST_MEMFD),
        ),
        t("slot-id", "32764", default_vm(), slot(32764, 0)),
        t(
            "unknown-flags",
            "0x8",
            default_vm(),
            Region { flags: 8, ..v2 },
        ),
        t(
            "gmem-unsupported",
            "default",
            on("linux-6.12"),
            both(SlotFlags::empty()),
        ),
        t(
            "log-with-gmem",
            "KVM_MEM_LOG_DIRTY_PAGES",
            default_vm(),
            both(SlotFlags::LOG_DIRTY_PAGES),
        ),
        t(
            "readonly-with-gmem",
            "KVM_MEM_READONLY",
            default_vm(),
            both(SlotFlags::READONLY),
        ),
        t(
            "readonly-protected",
            "sev-es",
            vm(VmType::SevEs),
            plain.with_flags(SlotFlags::READONLY),
        ),
        t(
            "size-unaligned",
            "0x1001",
            default_vm(),
            Region {
                size: 0x1001,
                ..plain
            },
        ),
        t(
            "gpa-unaligned",
            "0xfff",
            default_vm(),
            Region {
                gpa: 0xfff,
                ..plain
            },
        ),
        t(
            "hva-unaligned",
            "0x7f0000000001",
            default_vm(),
            Region {
                hva: HVA + 1,
                ..plain
            },
        ),
        t(
            "hva-not-user",
            "0x7ffffffff000",
            default_vm(),
            Region {
                hva: 0x7fff_ffff_f000,
                ..plain
            },
        ),
        t(
            "gmem-offset-unaligned",
            "0x801",
            default_vm(),
            bound(FileRef::Foreign, 0x801),
        ),
        t(
            "gmem-offset-wraps",
            "0xfffffffffff00000",
            default_vm(),
            bound(FileRef::Foreign, MIB.wrapping_neg()),
        ),
        t(
            "address-space",
            "2",
            default_vm(),
            Region {
                slot: 2 << 16 | 1,
                ..plain
            },
        ),
        t(
            "gpa-wraps",
            "0xfffffffffff00000",
            default_vm(),
            Region {
                gpa: MIB.wrapping_neg(),
                ..plain
            },
        ),
        t(
            "too-many-pages",
            "0x80000000",
            default_vm(),
            Region {
                size: 1 << 43,
                hva: 0,
                ..plain
            },
        ),
    ]
}

fn region_against_slots() -> Vec<Trigger> {
    let t = |code, shows, memory, region: Region| {
        trigger(code, Errno::EINVAL, shows, memory, region.into_call())
    };
    let live = || with_slot(SlotFlags::empty());
    let flagged = Region {
        version: RegionVersion::V2,
        ..slot(1, MIB).with_flags(SlotFlags::ZAP_LEAFS_ONLY)
    };
    vec![
        t(
            "delete-absent",
            "slot 7",
            default_vm(),
            Region::delete(SlotKey::normal(7)),
        ),
        t(
            "gmem-on-live-slot",
            "slot 1",
            with_bound_file(),
            slot(1, MIB).with_gmem(FILE, 0),
        ),
        t(
            "hva-changed",
            "0x7f0000001000",
            live(),
            Region {
                hva: HVA + PAGE_SIZE,
                ..slot(1, MIB)
            },
        ),
        t(
            "size-changed",
            "0x200000",
            live(),
            Region {
                size: 2 * MIB,
                ..slot(1, MIB)
            },
        ),
        t(
            "readonly-changed",
            "slot 1",
            live(),
            slot(1, MIB).with_flags(SlotFlags::READONLY),
        ),
        t(
            "gmem-slot-immutable",
            "slot 1",
            with_bound_file(),
            slot(1, 2 * MIB),
        ),
        t(
            "zap-leafs-changed",
            "slot 1",
            after(experiment(VmType::Default), &[slot(1, MIB).into_call()]),
            flagged,
        ),
    ]
}

fn region_new_range() -> Vec<Trigger> {
    let t = |code, errno, shows, memory, region: Region| {
        trigger(code, errno, shows, memory, region.into_call())
    };
    let mut tracked = with_slot(SlotFlags::empty());
    tracked.set_page_track_user(true);
    let mut no_tdp_mmu = Profile::latest().with_zap_leafs_flag();
    no_tdp_mmu.tdp_mmu.set(false);
    let flagged = Region {
        version: RegionVersion::V2,
        ..slot(1, MIB).with_flags(SlotFlags::ZAP_LEAFS_ONLY)
    };
    vec![
        t(
            "overlap",
            Errno::EEXIST,
            "slot 1",
            with_slot(SlotFlags::empty()),
            slot(2, 2 * MIB - PAGE_SIZE),
        ),
        t(
            "gmem-not-open",
            Errno::EBADF,
            "-1",
            default_vm(),
            bound(FileRef::NotOpen(-1), 0),
        ),
        t(
            "gmem-other-file",
            Errno::EINVAL,
            "Memfd",
            default_vm(),
            bound(FileRef::Other(OtherFile::Memfd), 0),
        ),
        t(
            "gmem-foreign",
            Errno::EINVAL,
            "another VM",
            default_vm(),
            bound(FileRef::Foreign, 0),
        ),
        t(
            "gmem-beyond-file",
            Errno::EINVAL,
            "0x1000",
            with_file(0),
            bound(FileRef::Gmem(FILE), PAGE_SIZE),
        ),
        t(
            "gmem-bound",
            Errno::EINVAL,
            "slot 1",
            with_bound_file(),
            bound(FileRef::Gmem(FILE), 0),
        ),
        t(
            "move-tracked",
            Errno::EINVAL,
            "slot 1",
            tracked,
            slot(1, 8 * MIB),
        ),
        t(
            "gfn-too-high",
            Errno::EINVAL,
            "0x4000000ff",
            default_vm(),
            slot(1, 1 << 46),
        ),
        t(
            "gfn-shared",
            Errno::EINVAL,
            "0x100000",
            {
                let mut td = vm(VmType::Tdx);
                td.set_shared_bit(1 << 20);
                td
            },
            slot(1, 1 << 32),
        ),
        t(
            "zap-leafs-required",
            Errno::EINVAL,
            "KVM_MEM_ZAP_LEAFS_ONLY",
            after(experiment(VmType::Tdx), &[gmem(MIB, 0)]),
            bound(FileRef::Gmem(FILE), 0),
        ),
        t(
            "zap-leafs-needs-tdp-mmu",
            Errno::EINVAL,
            "TDP MMU",
            Memory::new(no_tdp_mmu, VmType::Default),
            flagged,
        ),
    ]
}

fn gmem_creation() -> Vec<Trigger> {
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

fn gmem_file() -> Vec<Trigger> {
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

fn gmem_fallocate() -> Vec<Trigger> {
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

fn gmem_mmap() -> Vec<Trigger> {
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

fn gmem_map() -> Vec<Trigger> {
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

fn attributes() -> Vec<Trigger> {
    let t = |code, shows, call| trigger(code, Errno::EINVAL, shows, vm(VmType::SwProtected), call);
    vec![
        trigger(
            "no-attributes",
            Errno::ENOTTY,
            "KVM_SET_MEMORY_ATTRIBUTES",
            on("debian-6.12.117"),
            set_attributes(0, MIB, 0, 0),
        ),
        t("attribute-flags", "0x2", set_attributes(0, MIB, 8, 2)),
        trigger(
            "attribute-unsupported",
            Errno::EINVAL,
            "default",
            default_vm(),
            set_attributes(0, MIB, 8, 0),
        ),
        t(
            "attribute-range",
            "0xfffffffffff00000",
            set_attributes(MIB.wrapping_neg(), MIB, 8, 0),
        ),
        t(
            "attribute-unaligned",
            "0x801",
            set_attributes(0x801, MIB, 8, 0),
        ),
    ]
}

fn dirty_log() -> Vec<Trigger> {
    // 100 pages: no multiple of 64.
    let logged = || {
        let region = Region {
            size: 100 * PAGE_SIZE,
            ..slot(1, MIB).with_flags(SlotFlags::LOG_DIRTY_PAGES)
        };
        after(default_vm(), &[region.into_call()])
    };
    vec![
        trigger(
            "dirty-ring-mode",
            Errno::ENXIO,
            "dirty rings",
            after(logged(), &[ring(0x4000)]),
            get_log(1),
        ),
        trigger(
            "dirty-slot",
            Errno::EINVAL,
            "0x20001",
            logged(),
            get_log(2 << 16 | 1),
        ),
        trigger(
            "clear-first-page",
            Errno::EINVAL,
            "63",
            logged(),
            clear_log(63, 1),
        ),
        trigger(
            "dirty-no-slot",
            Errno::ENOENT,
            "slot 9",
            logged(),
            get_log(9),
        ),
        trigger(
            "dirty-not-logged",
            Errno::ENOENT,
            "slot 1",
            with_slot(SlotFlags::READONLY),
            get_log(1),
        ),
        trigger(
            "clear-beyond",
            Errno::EINVAL,
            "100",
            logged(),
            clear_log(64, 37),
        ),
        trigger(
            "clear-partial",
            Errno::EINVAL,
            "64 + 35",
            logged(),
            clear_log(64, 35),
        ),
        trigger(
            "dirty-buffer",
            Errno::EFAULT,
            "pointer",
            logged(),
            Call::GetDirtyLog {
                slot: 1,
                buffer: Buffer::Null,
            },
        ),
    ]
}

fn dirty_ring() -> Vec<Trigger> {
    let mut without = Profile::latest();
    without.dirty_ring.set(false);
    let t = |code, shows, memory, call| trigger(code, Errno::EINVAL, shows, memory, call);
    vec![
        t(
            "no-dirty-ring",
            "no dirty rings",
            Memory::new(without, VmType::Default),
            ring(0x4000),
        ),
        t(
            "ring-not-power-of-two",
            "0x4001",
            default_vm(),
            ring(0x4001),
        ),
        t("ring-too-small", "0x2000", default_vm(), ring(0x2000)),
        trigger(
            "ring-too-big",
            Errno::E2BIG,
            "0x200000",
            default_vm(),
            ring(0x20_0000),
        ),
        t(
            "ring-enabled",
            "0x4000",
            after(default_vm(), &[ring(0x4000)]),
            ring(0x8000),
        ),
        t(
            "ring-after-vcpu",
            "1 vCPU",
            with_vcpu(default_vm()),
            ring(0x4000),
        ),
        t(
            "ring-with-bitmap",
            "x86",
            default_vm(),
            enable(cap::DIRTY_LOG_RING_WITH_BITMAP, 1),
        ),
        t(
            "ring-not-enabled",
            "no dirty rings",
            default_vm(),
            Call::ResetDirtyRings,
        ),
        t(
            "no-ring",
            "vCPU 3",
            with_vcpu(default_vm()),
            Call::HarvestDirtyRing { vcpu: 3 },
        ),
    ]
}

fn capabilities() -> Vec<Trigger> {
    let t = |code, shows, call| trigger(code, Errno::EINVAL, shows, default_vm(), call);
    let flagged = Call::EnableCap {
        cap: cap::EXIT_HYPERCALL,
        flags: 6,
        args: [0; 4],
    };
    vec![
        t("unknown-cap", "9999", enable(9999, 0)),
        t("cap-flags", "0x6", flagged),
        t(
            "manual-protect-bits",
            "0x2",
            enable(cap::MANUAL_DIRTY_LOG_PROTECT2, 2),
        ),
        t(
            "quirk-unsupported",
            "0x8000000000000000",
            enable(cap::DISABLE_QUIRKS2, 1 << 63 | 1),
        ),
        t(
            "hypercall-bits",
            "0x800",
            enable(cap::EXIT_HYPERCALL, 0x1800),
        ),
    ]
}

fn pre_faults() -> Vec<Trigger> {
    let ready = || with_vcpu(with_slot(SlotFlags::empty()));
    vec![
        trigger(
            "no-pre-fault",
            Errno::EINVAL,
            "KVM_PRE_FAULT_MEMORY",
            with_vcpu(on("linux-6.8")),
            pre_fault(0, MIB, 0),
        ),
        trigger(
            "pre-fault-flags",
            Errno::EINVAL,
            "0x1",
            ready(),
            pre_fault(MIB, MIB, 1),
        ),
        trigger(
            "pre-fault-unaligned",
            Errno::EINVAL,
            "0x1001",
            ready(),
            pre_fault(MIB, 0x1001, 0),
        ),
        trigger(
            "pre-fault-range",
            Errno::EINVAL,
            "0x100000 + 0x0",
            ready(),
            pre_fault(MIB, 0, 0),
        ),
        trigger(
            "pre-fault-not-allowed",
            Errno::EOPNOTSUPP,
            "snp",
            with_vcpu(vm(VmType::Snp)),
            pre_fault(0, MIB, 0),
        ),
        trigger(
            "no-shadow-pages",
            Errno::ENOSPC,
            "KVM_SET_NR_MMU_PAGES",
            with_vcpu(on("linux-6.18.44-pvm")),
            pre_fault(0, MIB, 0),
        ),
        trigger(
            "pre-fault-no-tdp",
            Errno::EOPNOTSUPP,
            "two-dimensional",
            with_shadow_pages(with_vcpu(on("linux-6.18.44-pvm"))),
            pre_fault(0, MIB, 0),
        ),
        trigger(
            "pre-fault-no-slot",
            Errno::ENOENT,
            "0x200000",
            ready(),
            pre_fault(2 * MIB, MIB, 0),
        ),
        trigger(
            "no-vcpu",
            Errno::EBADF,
            "vCPU 0",
            default_vm(),
            pre_fault(0, MIB, 0),
        ),
    ]
}

fn with_shadow_pages(mut memory: Memory) -> Memory {
    let limit = Call::SetNrMmuPages { pages: 64 };
    memory.call(&limit).expect("64 pages are enough");
    memory
}

fn vm_calls() -> Vec<Trigger> {
    let t = |code, shows, memory, call| trigger(code, Errno::EINVAL, shows, memory, call);
    vec![
        t(
            "nr-mmu-pages",
            "63",
            default_vm(),
            Call::SetNrMmuPages { pages: 63 },
        ),
        t(
            "tss-addr",
            "0xffffe000",
            default_vm(),
            Call::SetTssAddr { gpa: 0xffff_e000 },
        ),
        t(
            "identity-after-vcpu",
            "first vCPU",
            with_vcpu(default_vm()),
            Call::SetIdentityMapAddr { gpa: 0 },
        ),
        trigger(
            "irqchip-exists",
            Errno::EEXIST,
            "already",
            after(default_vm(), &[Call::CreateIrqchip]),
            Call::CreateIrqchip,
        ),
        t(
            "irqchip-after-vcpu",
            "first vCPU",
            with_vcpu(default_vm()),
            Call::CreateIrqchip,
        ),
        t(
            "too-many-vcpus",
            "4096",
            after(default_vm(), &vec![Call::CreateVcpu; 4096]),
            Call::CreateVcpu,
        ),
    ]
}
