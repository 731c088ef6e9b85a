//! Refusals of set-region calls, and the gate before every call.

use slat_memslot::{
    Errno, FileRef, Gate, Memory, OtherFile, PAGE_SIZE, Profile, Region, RegionVersion, SlotFlags,
    SlotKey, VmType,
};

use super::{
    FILE, HVA, IntoCall, MIB, Trigger, after, bound, default_vm, experiment, gmem, on, slot,
    trigger, vm, with_bound_file, with_file, with_slot,
};

pub(super) fn gate() -> Vec<Trigger> {
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

pub(super) fn region_arguments() -> Vec<Trigger> {
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

pub(super) fn region_against_slots() -> Vec<Trigger> {
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

pub(super) fn region_new_range() -> Vec<Trigger> {
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
