//! Plans, vector by vector.

use slat_memslot::{
    FileCall, Gfn, GfnRange, Memory, PageSize, Pages, Profile, Region, SlotKey, VmType,
};

use crate::convert::{
    Cause, Devices, Found, Left, LeftBehind, NoPrivateSide, Plan, PlanError, Policy, Request,
    Unbacked,
};
use crate::migration::{Status, StatusList};

pub(super) fn range(start: u64, end: u64) -> GfnRange {
    GfnRange::between(Gfn::new(start), Gfn::new(end)).expect("a range")
}

pub(super) fn request(start: u64, end: u64, to: Status) -> Request {
    Request {
        range: range(start, end),
        to,
        hint: PageSize::Size4K,
        cause: Cause::Hypercall,
    }
}

/// Slot 0 over frames 0x10..0x20 and slot 1 over 0x20..0x40 of one file, a hole, slot 2 over 0x50..0x60 without a file, slot 3 over
/// 0x60..0x70 with the second half of the file.
pub(super) fn memory(vm_type: VmType) -> Memory {
    let mut memory = Memory::new(Profile::latest(), vm_type);
    let file = memory.create_gmem(0x40_0000, 0).expect("a file");
    let slot = |id, gfn: u64, pages: u64, hva: u64| {
        Region::new(SlotKey::normal(id), gfn << 12, pages << 12, hva)
    };
    let regions = [
        slot(0, 0x10, 0x10, 0x7f00_0001_0000).with_gmem(file, 0x1_0000),
        slot(1, 0x20, 0x20, 0x7f10_0000_0000).with_gmem(file, 0x2_0000),
        slot(2, 0x50, 0x10, 0x7f20_0000_0000),
        slot(3, 0x60, 0x10, 0x7f30_0000_0000).with_gmem(file, 0x20_0000),
    ];
    for region in regions {
        let _effects = memory.set_region(&region).expect("a slot");
    }
    memory
}

fn plan(memory: &Memory, request: &Request, policy: &Policy) -> String {
    let plan = Plan::new(memory, request, policy).expect("a plan");
    plan.steps().map(|step| format!("{step}\n")).collect()
}

const DEVICES: Policy = Policy {
    left_behind: LeftBehind::Discard,
    unbacked_to_private: Unbacked::Refuse,
    unbacked_to_shared: Unbacked::Set,
    devices: Devices::Mapped,
};

#[test]
fn one_call_for_two_slots_and_devices_go_first() {
    let memory = memory(VmType::SwProtected);
    assert_eq!(
        plan(&memory, &request(0x18, 0x30, Status::Private), &DEVICES),
        "unmap [0x18, 0x20) from devices\n\
         unmap [0x20, 0x30) from devices\n\
         make [0x18, 0x30) private\n\
         discard the shared side of [0x18, 0x20), at 0x7f0000018000\n\
         discard the shared side of [0x20, 0x30), at 0x7f1000000000\n"
    );
}

#[test]
fn to_shared_devices_come_before_anything_is_discarded() {
    let mut memory = memory(VmType::SwProtected);
    memory
        .set_attributes(0x1_8000, 0x1_8000, 8, 0)
        .expect("set");
    assert_eq!(
        plan(&memory, &request(0x10, 0x40, Status::Shared), &DEVICES),
        "make [0x18, 0x30) shared\n\
         map [0x18, 0x20) for devices\n\
         map [0x20, 0x30) for devices\n\
         discard the private side of [0x18, 0x20), at 0x18000 of file 0\n\
         discard the private side of [0x20, 0x30), at 0x20000 of file 0\n"
    );
}

#[test]
fn what_is_so_already_is_left_alone() {
    let mut memory = memory(VmType::SwProtected);
    memory
        .set_attributes(0x2_0000, 0x1_0000, 8, 0)
        .expect("set");
    assert_eq!(
        plan(
            &memory,
            &request(0x1c, 0x34, Status::Private),
            &Policy::default()
        ),
        "make [0x1c, 0x34) private\n\
         discard the shared side of [0x1c, 0x20), at 0x7f000001c000\n\
         discard the shared side of [0x30, 0x34), at 0x7f1000010000\n"
    );
    let same = Plan::new(
        &memory,
        &request(0x20, 0x30, Status::Private),
        &Policy::default(),
    );
    assert!(same.expect("a plan").is_empty());
}

#[test]
fn frames_without_a_private_side() {
    let memory = memory(VmType::SwProtected);
    let all = request(0x30, 0x70, Status::Private);
    let refused = Plan::new(&memory, &all, &Policy::default());
    let hole = PlanError::NothingPrivate {
        range: range(0x40, 0x50),
        why: NoPrivateSide::Hole,
    };
    assert_eq!(refused, Err(hole));
    let no_file = Plan::new(
        &memory,
        &request(0x58, 0x68, Status::Private),
        &Policy::default(),
    );
    let why = NoPrivateSide::NoFile(SlotKey::normal(2));
    let found = PlanError::NothingPrivate {
        range: range(0x58, 0x60),
        why,
    };
    assert_eq!(no_file, Err(found));
    let policy = |unbacked| Policy {
        unbacked_to_private: unbacked,
        left_behind: LeftBehind::Keep,
        ..Policy::default()
    };
    let skipped = "make [0x30, 0x40) private\nmake [0x60, 0x70) private\n";
    assert_eq!(plan(&memory, &all, &policy(Unbacked::Skip)), skipped);
    let set = "make [0x30, 0x70) private\n";
    assert_eq!(plan(&memory, &all, &policy(Unbacked::Set)), set);
}

/// Firmware asks that an aperture of 70 TiB be shared, which it is: nothing is to be done.
#[test]
fn an_aperture_that_is_shared_is_no_work() {
    let memory = memory(VmType::Tdx);
    let aperture = request(0x400_0000, 0x400_0000 + (70 << 28), Status::Shared);
    let plan = Plan::new(&memory, &aperture, &Policy::default()).expect("a plan");
    assert!(plan.is_empty());
    assert_eq!(plan.steps().count(), 0);
}

#[test]
fn a_closed_file_is_no_private_side() {
    let mut memory = memory(VmType::SwProtected);
    let file = slat_memslot::GmemId::new(0);
    memory.file_call(file, FileCall::Close).expect("closed");
    let refused = Plan::new(
        &memory,
        &request(0x10, 0x11, Status::Private),
        &Policy::default(),
    );
    let why = NoPrivateSide::FileClosed(SlotKey::normal(0));
    let range = range(0x10, 0x11);
    assert_eq!(refused, Err(PlanError::NothingPrivate { range, why }));
}

#[test]
fn host_memory_that_other_frames_use_too_is_not_discarded() {
    let mut memory = memory(VmType::SwProtected);
    // Frames 0x80..0x84 are the host memory of 0x18..0x1c.
    let alias = Region::new(SlotKey::normal(9), 0x80 << 12, 4 << 12, 0x7f00_0001_8000);
    let _effects = memory.set_region(&alias).expect("a slot");
    assert_eq!(
        plan(
            &memory,
            &request(0x10, 0x20, Status::Private),
            &Policy::default()
        ),
        "make [0x10, 0x20) private\n\
         discard the shared side of [0x10, 0x18), at 0x7f0000010000\n\
         discard the shared side of [0x1c, 0x20), at 0x7f000001c000\n"
    );
}

/// Since 6.18 a file can be mapped and be both sides: there is nothing to discard, and nothing is lost.
#[test]
fn a_file_that_is_both_sides_loses_nothing() {
    let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
    let file = memory
        .create_gmem(0x20_0000, 1)
        .expect("a file that can be mapped");
    let ram = Region::new(SlotKey::normal(0), 0, 0x20_0000, 0x7f00_0000_0000);
    let _effects = memory.set_region(&ram.with_gmem(file, 0)).expect("a slot");
    let plan = Plan::new(&memory, &request(0, 8, Status::Private), &Policy::default());
    let plan = plan.expect("a plan");
    assert_eq!(plan.steps().count(), 1);
    let [loss] = plan.losses() else {
        panic!("{plan}")
    };
    assert_eq!((loss.left, loss.found), (Left::Same, Found::Same));
    assert_eq!(plan.lost_pages(), Pages::new(0));
}

/// What is lost, by type of VM, direction and policy.
#[test]
fn losses() {
    use Found::{LastKept, UndefinedOnceValidated, ZerosOnceAccepted};
    use LeftBehind::{Discard, Keep};
    use Status::{Private, Shared};
    let table = [
        (VmType::SwProtected, Private, Discard, Left::Gone, LastKept),
        (VmType::SwProtected, Private, Keep, Left::Kept, LastKept),
        (VmType::SwProtected, Shared, Discard, Left::Gone, LastKept),
        (VmType::SwProtected, Shared, Keep, Left::Kept, LastKept),
        (
            VmType::Snp,
            Private,
            Discard,
            Left::Gone,
            UndefinedOnceValidated,
        ),
        (
            VmType::Snp,
            Private,
            Keep,
            Left::Kept,
            UndefinedOnceValidated,
        ),
        (VmType::Snp, Shared, Discard, Left::Gone, LastKept),
        (VmType::Snp, Shared, Keep, Left::Kept, LastKept),
        (VmType::Tdx, Private, Discard, Left::Gone, ZerosOnceAccepted),
        (VmType::Tdx, Private, Keep, Left::Kept, ZerosOnceAccepted),
        (VmType::Tdx, Shared, Discard, Left::Gone, LastKept),
        // The page is taken from the TD whatever the VMM does with its file.
        (VmType::Tdx, Shared, Keep, Left::Gone, LastKept),
    ];
    for (vm_type, to, left_behind, left, found) in table {
        let mut memory = memory(vm_type);
        if to == Shared {
            memory
                .set_attributes(0x1_0000, 0x1_0000, 8, 0)
                .expect("set");
        }
        let policy = Policy {
            left_behind,
            ..Policy::default()
        };
        let plan = Plan::new(&memory, &request(0x10, 0x20, to), &policy).expect("a plan");
        let [loss] = plan.losses() else {
            panic!("{plan}")
        };
        assert_eq!(
            (loss.left, loss.found),
            (left, found),
            "{vm_type} {to} {left_behind:?}"
        );
        let lost = if left == Left::Gone { 0x10 } else { 0 };
        assert_eq!(plan.lost_pages(), Pages::new(lost));
    }
}

/// SEV has no call: the VMM notes it, and all that was there is read by the wrong key.
#[test]
fn sev_is_noted() {
    let mut list = StatusList::new();
    list.set(range(0x18, 0x1c), Status::Shared);
    let plan = Plan::noted(VmType::Sev, &list, &request(0x10, 0x30, Status::Shared));
    assert_eq!(
        plan.to_string(),
        "note [0x10, 0x30) as shared\n\
         [0x10, 0x18) becomes shared: what was there is read by the wrong key; it finds noise\n\
         [0x1c, 0x30) becomes shared: what was there is read by the wrong key; it finds noise\n"
    );
    assert_eq!(plan.lost_pages(), Pages::new(0x1c));
    let memory = memory(VmType::SevEs);
    let refused = Plan::new(
        &memory,
        &request(0x10, 0x30, Status::Shared),
        &Policy::default(),
    );
    assert_eq!(refused, Err(PlanError::NoAttributes(VmType::SevEs)));
}

#[test]
fn what_kvm_would_refuse_is_refused() {
    let mut memory = memory(VmType::SwProtected);
    memory.set_gate(slat_memslot::Gate::Dead);
    let refused = Plan::new(
        &memory,
        &request(0x10, 0x20, Status::Private),
        &Policy::default(),
    );
    assert!(
        matches!(refused, Err(PlanError::Attributes(_))),
        "{refused:?}"
    );
}
