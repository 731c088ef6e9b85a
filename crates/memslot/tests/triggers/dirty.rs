//! Refusals of dirty logs and dirty rings.

use slat_memslot::{
    Buffer, Call, Errno, Memory, PAGE_SIZE, Profile, Region, SlotFlags, VmType, cap,
};

use super::{
    IntoCall, MIB, Trigger, after, clear_log, default_vm, enable, get_log, ring, slot, trigger,
    with_slot, with_vcpu,
};

pub(super) fn dirty_log() -> Vec<Trigger> {
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

pub(super) fn dirty_ring() -> Vec<Trigger> {
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
