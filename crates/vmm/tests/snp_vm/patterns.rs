//! What authors of VMMs and guests have got wrong, as far as it takes a whole VM to show it; each with where it was found.
//! Those that take no more than a reverse map or an engine are with `slat-coco`.

use slat_coco::psc::{PscEntry, PscOperation};
use slat_coco::rmp::{RmpSize, Visibility};
use slat_coco::snp::{Found, Hole, Value};
use slat_memslot::{Call, FileCall, Gfn, Outcome, Region, SlotKey, VmType};
use slat_vmm::snp_vm::{EncryptOp, GuestAct, SnpAnswer, SnpCommand, SnpOp, SnpStop, VmmWays};
use slat_vmm::{CallError, Machine, MemoryVm, model};

use super::{BASE, act, assert_clean, guest, launch, machine, private, shared};

use Visibility::{Private, Shared};

const fn gfn(page: u64) -> Gfn {
    Gfn::new(page)
}

fn validate(vm: &mut model::Vm, page: u64) -> SnpAnswer {
    act(vm, GuestAct::Validate(gfn(page), RmpSize::Size4K))
}

fn rescind(vm: &mut model::Vm, page: u64) -> SnpAnswer {
    act(vm, GuestAct::Rescind(gfn(page), RmpSize::Size4K))
}

/// Private, validated, written.
fn own(vm: &mut model::Vm, page: u64, tag: u64) {
    private(vm, page, 1);
    assert_eq!(validate(vm, page), SnpAnswer::Changed);
    let write = GuestAct::Write(gfn(page), Private, tag);
    assert_eq!(act(vm, write), SnpAnswer::Done);
}

fn psc(vm: &mut model::Vm, pages: core::ops::Range<u64>, to: PscOperation) -> SnpAnswer {
    let entries = pages.map(|page| PscEntry::new(gfn(page), to, RmpSize::Size4K));
    act(vm, GuestAct::Psc(entries.collect()))
}

fn exits(answer: &SnpAnswer) -> usize {
    match answer {
        SnpAnswer::Psc(0, _, exits) => exits.len(),
        other => panic!("{other:?}"),
    }
}

fn file_pages(vm: &model::Vm) -> u64 {
    vm.snp_state().unwrap().file_pages().raw()
}

/// Slots are gone over without order, and what lies between them (Cloud Hypervisor, `hypervisor/src/kvm/mod.rs`): a range
/// over two slots and the gap between them.
#[test]
fn a_conversion_over_two_slots_and_a_gap_frees_the_pages_of_both() {
    let mut vm = machine().create_vm(VmType::Snp.raw()).unwrap();
    for (slot, first) in [(0, 0), (1, 16)] {
        let file = vm.create_guest_memfd(0x8000, 0).unwrap();
        let region = Region::new(
            SlotKey::normal(slot),
            first << 12,
            0x8000,
            BASE + (first << 12),
        );
        vm.set_user_memory_region(&region.with_gmem(file, 0))
            .unwrap();
    }
    vm.enable_cap(slat_memslot::cap::EXIT_HYPERCALL, 1 << 12)
        .unwrap();
    vm.call(&Call::CreateVcpu).unwrap();
    launch(&mut vm);
    private(&mut vm, 0, 24);
    for page in [0, 7, 16, 23] {
        assert_eq!(validate(&mut vm, page), SnpAnswer::Changed);
    }
    assert_eq!(file_pages(&vm), 4);
    let answer = psc(&mut vm, 0..24, PscOperation::Shared);
    assert_eq!((exits(&answer), file_pages(&vm)), (1, 0));
    // The gap is shared now, as if it were memory.
    assert!(!vm.memory().is_private(gfn(12)));
    assert_clean(&mut vm);
}

/// The punch fails, which is only logged (the same file): old contents come back.
#[test]
fn a_hole_that_fails_unseen_brings_old_contents_back() {
    let mut vm = guest(16, 1);
    own(&mut vm, 3, 1);
    assert_eq!(rescind(&mut vm, 3), SnpAnswer::Changed);
    let ways = VmmWays {
        explicit: Hole::Kept,
        ..VmmWays::CAREFUL
    };
    vm.snp(&SnpOp::Vmm(ways)).unwrap();
    let _ = psc(&mut vm, 3..4, PscOperation::Shared);
    assert_eq!(file_pages(&vm), 1);
    let _ = psc(&mut vm, 3..4, PscOperation::Private);
    assert_eq!(validate(&mut vm, 3), SnpAnswer::Changed);
    let read = act(&mut vm, GuestAct::Read(gfn(3), Private));
    assert_eq!(read, SnpAnswer::Found(Found::Value(Value::Tag(1))));
    assert_clean(&mut vm);
}

/// The file or the flag is forgotten when the slot is made (kata-containers, PR 13066): the frame can be called private, and
/// the VMM is asked the same again and again. It needs a limit.
#[test]
fn a_slot_whose_file_was_forgotten_asks_for_ever() {
    let mut vm = guest(16, 1);
    let region = Region::new(SlotKey::normal(1), 0x100_0000, 0x10000, BASE + 0x100_0000);
    vm.set_user_memory_region(&region).unwrap();
    let page = gfn(0x1000);
    let fault = SnpAnswer::Stopped(SnpStop::MemoryFault(page, Private));
    for _ in 0..8 {
        let read = act(&mut vm, GuestAct::Read(page, Private));
        assert_eq!(read, fault);
        private(&mut vm, 0x1000, 1);
    }
}

/// Shared memory that cannot be discarded, as that of hugetlb (QEMU, `kvm_convert_memory`): it stays, twice the memory, and
/// what the guest has written there is found again.
#[test]
fn shared_pages_that_cannot_be_discarded_stay_with_what_is_in_them() {
    for (hole, expected) in [(Hole::Kept, Value::Tag(9)), (Hole::Punched, Value::Zero)] {
        let mut vm = guest(16, 1);
        let write = GuestAct::Write(gfn(3), Shared, 9);
        assert_eq!(act(&mut vm, write), SnpAnswer::Done);
        let ways = VmmWays {
            explicit: hole,
            ..VmmWays::CAREFUL
        };
        vm.snp(&SnpOp::Vmm(ways)).unwrap();
        let _ = psc(&mut vm, 3..4, PscOperation::Private);
        let _ = psc(&mut vm, 3..4, PscOperation::Shared);
        let read = act(&mut vm, GuestAct::Read(gfn(3), Shared));
        assert_eq!(read, SnpAnswer::Found(Found::Value(expected)));
        assert_clean(&mut vm);
    }
}

/// One page at a time (Dstack-TEE, PR 1220): an exit each, where a buffer takes one for all.
#[test]
fn a_page_at_a_time_costs_an_exit_each() {
    let mut vm = guest(512, 1);
    vm.watch(true);
    let mut changes = 0;
    for page in 0..253 {
        let answer = act(&mut vm, GuestAct::Msr(1 << 52 | page << 12 | 0x014));
        assert_eq!(answer, SnpAnswer::Msr(0x015));
        changes += 1;
    }
    shared(&mut vm, 0, 253);
    let answer = psc(&mut vm, 0..253, PscOperation::Private);
    assert_eq!((changes, exits(&answer)), (253, 1));
}

/// The way back after a failure validates what was never rescinded (microsoft/OHCL-Linux-Kernel, PR 160): the carry flag
/// tells, and only that.
#[test]
fn an_undo_that_goes_too_far_is_told_by_the_carry_flag_alone() {
    let mut vm = guest(16, 1);
    (0..4).for_each(|page| own(&mut vm, page, page));
    // Two of four are rescinded when something fails; all four are validated again.
    for page in 0..2 {
        assert_eq!(rescind(&mut vm, page), SnpAnswer::Changed);
    }
    let again: Vec<SnpAnswer> = (0..4).map(|page| validate(&mut vm, page)).collect();
    let (changed, not) = (SnpAnswer::Changed, SnpAnswer::Unchanged);
    assert_eq!(again, [changed.clone(), changed, not.clone(), not]);
    assert_clean(&mut vm);
}

/// A launch that is interrupted says how far it got, and has to be gone on with (public Cloud Hypervisor bring-up notes, item
/// 10, for TDX; QEMU loops).
#[test]
fn a_launch_that_stops_early_is_gone_on_with() {
    let mut vm = machine().create_vm(VmType::Snp.raw()).unwrap();
    let file = vm.create_guest_memfd(0x10000, 0).unwrap();
    let region = Region::new(SlotKey::normal(0), 0, 0x10000, BASE).with_gmem(file, 0);
    vm.set_user_memory_region(&region).unwrap();
    private(&mut vm, 0, 4);
    let mut op = |command| vm.memory_encrypt_op(&EncryptOp::Snp(command));
    op(SnpCommand::LaunchStart {
        policy: 0x3_0000,
        flags: 0,
    })
    .unwrap();
    let update = |gpa, size| SnpCommand::LaunchUpdate {
        gpa,
        size,
        page: 1,
        tag: 1,
        flags: 0,
    };
    let left = Outcome::Remaining {
        gpa: 0x4000,
        size: 0x4000,
    };
    assert_eq!(op(update(0, 0x8000)), Ok(left));
    // From the start again: those that are done cannot be done again.
    assert!(matches!(
        op(update(0, 0x8000)),
        Err(CallError::Refused { .. })
    ));
    private(&mut vm, 4, 4);
    let done = vm.memory_encrypt_op(&EncryptOp::Snp(update(0x4000, 0x4000)));
    assert_eq!(done, Ok(Outcome::Done));
    assert_clean(&mut vm);
}

/// A page of the initial image that is given back goes without a trace (microsoft/openvmm, PR 334): the guest finds an
/// invalid page where its secrets were.
#[test]
fn a_launched_page_that_is_moved_is_lost() {
    let mut vm = machine().create_vm(VmType::Snp.raw()).unwrap();
    let file = vm.create_guest_memfd(0x10000, 0).unwrap();
    let region = Region::new(SlotKey::normal(0), 0, 0x10000, BASE).with_gmem(file, 0);
    vm.set_user_memory_region(&region).unwrap();
    vm.call(&Call::CreateVcpu).unwrap();
    private(&mut vm, 0, 16);
    for command in [
        SnpCommand::LaunchStart {
            policy: 0x3_0000,
            flags: 0,
        },
        SnpCommand::LaunchUpdate {
            gpa: 0x3000,
            size: 0x1000,
            page: 5,
            tag: 42,
            flags: 0,
        },
        SnpCommand::LaunchFinish { flags: 0 },
    ] {
        vm.memory_encrypt_op(&EncryptOp::Snp(command)).unwrap();
    }
    let read = GuestAct::Read(gfn(3), Private);
    let secrets = SnpAnswer::Found(Found::Value(Value::Tag(42)));
    assert_eq!(act(&mut vm, read.clone()), secrets);
    let hole = FileCall::Fallocate {
        mode: 3,
        offset: 0x3000,
        len: 0x1000,
    };
    vm.call(&Call::File(file, hole)).unwrap();
    assert_eq!(act(&mut vm, read), SnpAnswer::Stopped(SnpStop::Vc(0x404)));
    assert_clean(&mut vm);
}

/// A stray access is taken for the end of the VM (microsoft/openvmm, PR 1340, 1764): with the strict policy it is the guest's
/// own error, and everybody goes on.
#[test]
fn a_stray_access_is_the_guests_own_error() {
    let mut vm = guest(16, 1);
    own(&mut vm, 3, 1);
    vm.snp(&SnpOp::Host {
        policy: slat_coco::snp::RmpFaultPolicy::Strict,
        folio: RmpSize::Size4K,
    })
    .unwrap();
    let stray = act(&mut vm, GuestAct::Write(gfn(3), Shared, 9));
    assert_eq!(stray, SnpAnswer::Stopped(SnpStop::Injected(gfn(3))));
    let read = act(&mut vm, GuestAct::Read(gfn(3), Private));
    assert_eq!(read, SnpAnswer::Found(Found::Value(Value::Tag(1))));
    assert_clean(&mut vm);
}

/// The VM is closed with everything in it: nothing stays assigned.
#[test]
fn nothing_is_assigned_when_the_vm_is_gone() {
    let mut vm = guest(64, 2);
    (0..32).for_each(|page| own(&mut vm, page, page));
    vm.paging_mut().unwrap().close();
    let snp = vm.snp_state().unwrap();
    assert_eq!(snp.rmp().assigned().count(), 0);
    assert_eq!(vm.audit_snp(), []);
}
