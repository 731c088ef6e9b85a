//! Refusals of calls on the VM and its vCPUs.

use slat_memslot::{
    Attributes, Call, Errno, GuestAccess, Memory, PAGE_SIZE, Profile, SevCall, SevCommand,
    SlotFlags, TdxCall, TdxHost, VmType, cap,
};

use super::{
    MIB, Trigger, after, default_vm, enable, on, pre_fault, set_attributes, trigger, vm, with_slot,
    with_vcpu,
};

pub(super) fn attributes() -> Vec<Trigger> {
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

pub(super) fn capabilities() -> Vec<Trigger> {
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

pub(super) fn pre_faults() -> Vec<Trigger> {
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
            "pre-fault-no-private-memory",
            Errno::EFAULT,
            "0x200000",
            with_private_page(with_vcpu(vm(VmType::SwProtected))),
            pre_fault(2 * MIB, MIB, 0),
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

fn with_private_page(mut memory: Memory) -> Memory {
    let private = Attributes::PRIVATE.bits();
    memory
        .set_attributes(2 * MIB, PAGE_SIZE, private, 0)
        .expect("the VM has private memory");
    memory
}

fn with_shadow_pages(mut memory: Memory) -> Memory {
    let limit = Call::SetNrMmuPages { pages: 64 };
    memory.call(&limit).expect("64 pages are enough");
    memory
}

fn without_smm() -> Profile {
    let mut profile = Profile::latest();
    profile.smm.set(false);
    profile
}

pub(super) fn vm_calls() -> Vec<Trigger> {
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
            "no-smm",
            "system management mode",
            with_vcpu(Memory::new(without_smm(), VmType::Default)),
            Call::Guest(GuestAccess::write(0).in_smm()),
        ),
        trigger(
            "not-td",
            Errno::ENOTTY,
            "no TD",
            default_vm(),
            Call::Tdx(TdxCall::Host(TdxHost::Teardown)),
        ),
        trigger(
            "not-sev",
            Errno::ENOTTY,
            "no SEV guest",
            default_vm(),
            Call::Sev(SevCall::Command(SevCommand::Init2)),
        ),
        t(
            "too-many-vcpus",
            "4096",
            after(default_vm(), &vec![Call::CreateVcpu; 4096]),
            Call::CreateVcpu,
        ),
    ]
}
