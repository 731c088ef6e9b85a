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
