//! Guests that follow scripts, from boot to teardown, on a VMM that knows its work and on ones that do not.

use slat_memslot::{
    Call, Gfn, GfnRange, Outcome, Pages, TdxCall, TdxConversion, TdxCount, TdxFinding, TdxHost,
};
use slat_vmm::tdx_vm::script::{
    AcceptHow, CarefulVmm, Conversions, Guest, GuestError, Plan, Ran, Step,
};
use slat_vmm::{MemoryVm, model};

use super::vm;

const KERNEL: &str = "linux-7.3-rc1-tdx";
/// 8 MiB.
const RAM: Pages = Pages::new(2048);

fn range(start: u64, pages: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), Pages::new(pages)).unwrap()
}

fn booted(plan: &Plan) -> (model::Vm, CarefulVmm, Guest) {
    let mut vm = vm(KERNEL);
    let vmm = CarefulVmm::boot(&mut vm, plan).unwrap();
    let guest = Guest::new(0).with_image(range(0, plan.image.raw()));
    (vm, vmm, guest)
}

fn count(vm: &model::Vm, what: TdxCount) -> u64 {
    vm.td().unwrap().count(what)
}

/// Nothing is wrong, and nothing is left when all is closed.
fn ends_well(mut vm: model::Vm) {
    assert_eq!(vm.td().unwrap().audit(), []);
    let end = vm.call(&Call::Tdx(TdxCall::Host(TdxHost::Teardown)));
    assert_eq!(end, Ok(Outcome::Value(0)));
}

/// Everything is accepted ahead of time: 2 MiB at a time, which are 512 small pages each.
#[test]
fn an_eager_guest() {
    let (mut vm, mut vmm, mut guest) = booted(&Plan::new(RAM));
    let rest = range(16, RAM.raw() - 16);
    let script = [
        Step::Accept(rest, AcceptHow::Largest),
        Step::Write(Gfn::new(600), 7),
        Step::Expect(Gfn::new(600), 7),
        Step::Expect(Gfn::new(2047), 0),
    ];
    let ran = guest.follow(&mut vm, &mut vmm, &script).unwrap();
    let eager = Ran {
        accepts: RAM.raw() - 16,
        mismatches: 3,
        ..Ran::default()
    };
    assert_eq!(ran, eager);
    assert_eq!(count(&vm, TdxCount::PrivatePages), RAM.raw());
    assert_eq!(vm.td().unwrap().findings(), [TdxFinding::LargeAcceptSplit]);
    ends_well(vm);
}

/// Only what is used is accepted, and only that has pages.
#[test]
fn a_lazy_guest() {
    let (mut vm, mut vmm, mut guest) = booted(&Plan::new(RAM));
    let used = (16..2048).step_by(100).map(Gfn::new);
    let script: Vec<Step> = used
        .clone()
        .map(|gfn| Step::Write(gfn, gfn.raw()))
        .collect();
    let ran = guest.follow(&mut vm, &mut vmm, &script).unwrap();
    assert_eq!(ran.accepts, used.clone().count() as u64);
    assert_eq!(count(&vm, TdxCount::PrivatePages), 16 + ran.accepts);
    let script: Vec<Step> = used.map(|gfn| Step::Expect(gfn, gfn.raw())).collect();
    guest.follow(&mut vm, &mut vmm, &script).unwrap();
    assert_eq!(vm.td().unwrap().findings(), []);
    ends_well(vm);
}

/// A signal comes after every second page of the image: the VMM goes on, and all of it is there.
#[test]
fn an_image_with_signals() {
    let plan = Plan {
        signal: Some(2),
        ..Plan::new(RAM)
    };
    let (vm, ..) = booted(&plan);
    assert_eq!(count(&vm, TdxCount::PrivatePages), 16);
    assert_eq!(vm.td().unwrap().findings(), []);
    ends_well(vm);
}

/// Pages go there and back; each time what was private is lost, and neither side is kept twice.
#[test]
fn a_storm_of_conversions() {
    let (mut vm, mut vmm, mut guest) = booted(&Plan::new(RAM));
    let script = [Step::Storm(range(500, 24), 5)];
    let ran = guest.follow(&mut vm, &mut vmm, &script).unwrap();
    assert_eq!((ran.hypercalls, ran.accepts), (240, 120));
    assert_eq!((ran.memory_faults, ran.accepted_before), (0, 0));
    assert_eq!(count(&vm, TdxCount::DoublePages), 0);
    assert_eq!(vm.td().unwrap().findings(), []);
    ends_well(vm);
}

/// 5 MiB shared are three exits; what is beside them keeps its content.
#[test]
fn a_large_conversion() {
    let (mut vm, mut vmm, mut guest) = booted(&Plan::new(RAM));
    let middle = range(256, 1280);
    let script = [
        Step::Write(Gfn::new(255), 1),
        Step::Write(Gfn::new(1536), 2),
        Step::Convert(middle, TdxConversion::Shared),
        Step::WriteShared(Gfn::new(700), 3),
        Step::Expect(Gfn::new(255), 1),
        Step::Expect(Gfn::new(1536), 2),
        Step::ExpectShared(Gfn::new(700), 3),
        Step::Convert(middle, TdxConversion::Private),
        Step::Expect(Gfn::new(700), 0),
        Step::Expect(Gfn::new(255), 1),
    ];
    let ran = guest.follow(&mut vm, &mut vmm, &script).unwrap();
    assert_eq!(ran.hypercalls, 6);
    assert_eq!(ran.accepts, 2 + 1280);
    ends_well(vm);
}

/// Memory is plugged, used, unplugged, plugged again at the same place: it is new.
#[test]
fn memory_is_plugged_and_unplugged() {
    let (mut vm, mut vmm, mut guest) = booted(&Plan::new(RAM));
    let more = range(0x10_0000, 1024);
    let at = more.start();
    let first = [
        Step::Write(Gfn::new(20), 9),
        Step::Plug(3, more),
        Step::Accept(more, AcceptHow::Largest),
        Step::Write(at, 7),
        Step::Unplug(3, more),
    ];
    guest.follow(&mut vm, &mut vmm, &first).unwrap();
    assert_eq!(count(&vm, TdxCount::PrivatePages), 17);
    let again = [
        Step::Plug(3, more),
        Step::Expect(at, 0),
        Step::Expect(Gfn::new(20), 9),
    ];
    guest.follow(&mut vm, &mut vmm, &again).unwrap();
    assert_eq!(count(&vm, TdxCount::PrivatePages), 18);
    ends_well(vm);
}

/// Two guests on two vCPUs share one memory: who accepts second is told so.
#[test]
fn two_vcpus() {
    let plan = Plan {
        vcpus: 2,
        ..Plan::new(RAM)
    };
    let (mut vm, mut vmm, mut first) = booted(&plan);
    let mut second = Guest::new(1);
    let gfn = Gfn::new(100);
    first
        .follow(&mut vm, &mut vmm, &[Step::Write(gfn, 5)])
        .unwrap();
    let ran = second.follow(&mut vm, &mut vmm, &[Step::Expect(gfn, 5)]);
    assert_eq!(ran.unwrap().accepted_before, 1);
    assert_eq!(vm.td().unwrap().findings(), [TdxFinding::AcceptedBefore]);
    ends_well(vm);
}

/// A VMM that gives nothing back: every page that was converted takes twice the room.
#[test]
fn a_vmm_that_keeps_everything() {
    let (mut vm, vmm, mut guest) = booted(&Plan::new(RAM));
    let keeps = Conversions {
        punches_when_asked: false,
        punches_after_fault: false,
        discards: false,
    };
    let mut vmm = vmm.with(keeps);
    let script = [Step::Storm(range(600, 10), 2)];
    guest.follow(&mut vm, &mut vmm, &script).unwrap();
    assert_eq!(count(&vm, TdxCount::DoublePages), 10);
    let found = [TdxFinding::PrivatePageKept, TdxFinding::SharedPageKept];
    assert_eq!(vm.td().unwrap().findings(), found);
    ends_well(vm);
}

/// A guest that forgets to accept is killed, and the report says why.
#[test]
fn a_guest_that_does_not_accept() {
    let (mut vm, mut vmm, _) = booted(&Plan::new(RAM));
    let forgetful = range(0, RAM.raw());
    let mut guest = Guest::new(0).with_image(forgetful);
    let script = [Step::Write(Gfn::new(100), 1)];
    let error = guest.follow(&mut vm, &mut vmm, &script).unwrap_err();
    let GuestError::Call(error) = error else {
        panic!("{error}");
    };
    assert_eq!(error.code(), Some("tdx-unaccepted"));
    assert_eq!(vm.td().unwrap().findings(), [TdxFinding::TouchedUnaccepted]);
}
