//! Which ioctl is legal when. Oracle: the fact sheet's table of preconditions.

use slat_memslot::Errno;

use crate::tdx::ioctl::*;

const INIT_VM: TdxCall = TdxCall::InitVm {
    flags: 0,
    reserved: 0,
    nent: 8,
    nent_again: 8,
};
const CREATE: TdxCall = TdxCall::CreateVcpu {
    split_irqchip: true,
};
const INIT_VCPU: TdxCall = TdxCall::InitVcpu { vcpu: 0, flags: 0 };
const REGION: TdxCall = TdxCall::InitMemRegion { vcpu: 0, flags: 1 };
const FINALIZE: TdxCall = TdxCall::FinalizeVm { flags: 0 };

/// A VM that has come so far.
fn after(calls: &[TdxCall]) -> TdxStages {
    let mut td = TdxStages::new(1);
    for call in calls {
        td.call(*call, 0).unwrap();
    }
    td
}

#[test]
fn every_call_at_every_stage() {
    let (ok, inval, io, opnotsupp) = (None, Some(22), Some(5), Some(95));
    let stages: [&[TdxCall]; 5] = [
        &[],
        &[INIT_VM],
        &[INIT_VM, CREATE],
        &[INIT_VM, CREATE, INIT_VCPU],
        &[INIT_VM, CREATE, INIT_VCPU, FINALIZE],
    ];
    let table = [
        (INIT_VM, [ok, inval, inval, inval, inval]),
        (CREATE, [io, ok, inval, inval, inval]),
        (INIT_VCPU, [inval, inval, ok, inval, inval]),
        (REGION, [inval, inval, inval, ok, inval]),
        (FINALIZE, [inval, ok, ok, ok, inval]),
        (
            TdxCall::PreFault,
            [opnotsupp, opnotsupp, opnotsupp, opnotsupp, ok],
        ),
    ];
    for (call, wanted) in table {
        for (stage, wanted) in stages.iter().zip(wanted) {
            let mut td = after(stage);
            let before = td.clone();
            let answer = td.call(call, 0);
            let errno = answer.map_err(|refusal| refusal.errno()).err();
            assert_eq!(errno, wanted.map(Errno::new), "{call:?} after {stage:?}");
            assert!(errno.is_none() || td == before);
        }
    }
}

#[test]
fn values_that_are_refused() {
    let init = |flags, reserved, nent, nent_again| {
        let call = TdxCall::InitVm {
            flags,
            reserved,
            nent,
            nent_again,
        };
        TdxStages::new(1).check(call, 0)
    };
    assert_eq!(init(1, 0, 8, 8), Err(TdxRefusal::Flags(1)));
    assert_eq!(init(0, 2, 8, 8), Err(TdxRefusal::Reserved(2)));
    assert_eq!(init(0, 0, 8, 9), Err(TdxRefusal::EntriesChanged(8, 9)));
    let many = init(0, 0, 257, 257).unwrap_err();
    assert_eq!(many.errno(), Errno::E2BIG);
    assert_eq!(init(0, 0, 256, 256), Ok(()));
    let dirty = TdxStages::new(1).check(INIT_VM, 1);
    assert_eq!(dirty, Err(TdxRefusal::HwError(1)));
    let td = after(&[INIT_VM]);
    let irqchip = TdxCall::CreateVcpu {
        split_irqchip: false,
    };
    assert_eq!(td.check(irqchip, 0), Err(TdxRefusal::IrqChip));
    let td = after(&[INIT_VM, CREATE, INIT_VCPU]);
    let flags = TdxCall::InitMemRegion { vcpu: 0, flags: 2 };
    assert_eq!(td.check(flags, 0), Err(TdxRefusal::Flags(2)));
}

/// The names are those that scenarios and reports use; the functions are those of Linux 6.18.
#[test]
fn each_refusal_has_its_name_its_errno_and_its_place() {
    use Errno as E;
    let (early, late) = (TdState::Uninitialized, TdState::Runnable);
    let table = [
        (
            TdxRefusal::HwError(1),
            "tdx-hw-error",
            E::EINVAL,
            "tdx_get_cmd",
        ),
        (
            TdxRefusal::Stage(late),
            "tdx-stage",
            E::EINVAL,
            "tdx_vm_ioctl",
        ),
        (
            TdxRefusal::VcpuStage(early),
            "tdx-vcpu-stage",
            E::EIO,
            "tdx_vcpu_create",
        ),
        (TdxRefusal::Flags(1), "tdx-flags", E::EINVAL, "tdx_vm_ioctl"),
        (
            TdxRefusal::Reserved(1),
            "tdx-reserved",
            E::EINVAL,
            "tdx_td_init",
        ),
        (
            TdxRefusal::TooManyEntries(257),
            "tdx-cpuid-too-many",
            E::E2BIG,
            "tdx_td_init",
        ),
        (
            TdxRefusal::EntriesChanged(1, 2),
            "tdx-cpuid-changed",
            E::EINVAL,
            "tdx_td_init",
        ),
        (
            TdxRefusal::IrqChip,
            "tdx-irqchip",
            E::EINVAL,
            "tdx_vcpu_create",
        ),
        (
            TdxRefusal::NoVcpu(1),
            "tdx-no-vcpu",
            E::EINVAL,
            "kvm_vm_ioctl_create_vcpu",
        ),
        (
            TdxRefusal::VcpuState(0),
            "tdx-vcpu-state",
            E::EINVAL,
            "tdx_vcpu_ioctl",
        ),
        (
            TdxRefusal::TooManyVcpus(8),
            "tdx-too-many-vcpus",
            E::EINVAL,
            "kvm_vm_ioctl_create_vcpu",
        ),
        (
            TdxRefusal::PreFaultTooEarly,
            "tdx-pre-fault-early",
            E::EOPNOTSUPP,
            "kvm_arch_vcpu_pre_fault_memory",
        ),
    ];
    for (refusal, code, errno, function) in table {
        assert_eq!((refusal.code(), refusal.errno()), (code, errno));
        let (_file, site) = refusal.kernel_site().split_once(':').unwrap();
        assert_eq!(site, function, "{code}");
    }
    assert_eq!(after(&[]).state(), TdState::Uninitialized);
    assert_eq!(after(&[INIT_VM]).state(), TdState::Initialized);
}
