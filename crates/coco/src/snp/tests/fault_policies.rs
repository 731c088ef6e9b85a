//! "KVM: SVM: Add support to handle the RMP nested page fault" (kvm list, July 2021): may KVM demand a page-state change before
//! an access, shall the reverse map follow the tables or the tables the reverse map, and what of vCPUs that fight over a
//! frame?

use super::*;
use crate::psc::Direction;
use crate::rmp::{ErrorCode, Fault, PageState};

fn each(access: Visibility, start: impl Fn(&mut One)) -> [GuestReply; 3] {
    RmpFaultPolicy::ALL.map(|policy| {
        let mut one = One::new(policy, RmpSize::Size4K);
        start(&mut one);
        one.write(7, access, 2)
    })
}

/// A page that was written as shared is written as private, without a word before.
#[test]
fn an_implicit_change_to_private() {
    let [upstream, rfc, strict] = each(PRIVATE, |one| {
        assert_eq!(one.write(7, SHARED, 1), GuestReply::Done);
    });
    let exit = SnpExit::MemoryFault {
        gfn: gfn(7),
        access: PRIVATE,
    };
    assert_eq!(upstream, GuestReply::Exit(exit));
    // The page is the guest's now, and the guest has to validate it.
    assert_eq!(rfc, NOT_VALIDATED);
    assert_eq!(strict, GuestReply::Exit(SnpExit::Injected(gfn(7))));
}

/// A page that is private is written as shared.
#[test]
fn an_implicit_change_to_shared() {
    let [upstream, rfc, strict] = each(SHARED, |one| {
        one.vm.set_attributes(range(7, 1), Direction::ToPrivate);
        // Under the proposal, validating is what makes the page private.
        let _ = one.validate(7);
        assert_eq!(one.write(7, PRIVATE, 1), GuestReply::Done);
    });
    let exit = SnpExit::MemoryFault {
        gfn: gfn(7),
        access: SHARED,
    };
    assert_eq!(upstream, GuestReply::Exit(exit));
    assert_eq!(rfc, GuestReply::Done);
    assert_eq!(strict, GuestReply::Exit(SnpExit::Injected(gfn(7))));
}

/// With a page-state change first, all three let the guest do what it likes.
#[test]
fn an_explicit_change_works_under_each() {
    for policy in RmpFaultPolicy::ALL {
        let mut one = One::new(policy, RmpSize::Size4K);
        assert_eq!(one.write(7, SHARED, 1), GuestReply::Done);
        let pages = range(7, 1);
        let _validated = one.vm.unshare(&mut one.vcpu, pages, Vmm::CAREFUL);
        assert_eq!(one.write(7, PRIVATE, 2), GuestReply::Done, "{policy:?}");
        assert_eq!(one.read(7, PRIVATE), tag(2));
        // Only a VM with a file has attributes.
        let private = [6, 7, 8].map(|at| one.vm.is_private(gfn(at)));
        assert_eq!(private, [false, policy.has_file(), false]);
        let _shared = one.vm.share(&mut one.vcpu, pages, Vmm::CAREFUL);
        assert_eq!(one.write(7, SHARED, 3), GuestReply::Done);
        assert_eq!(one.vm.host_read(gfn(7)), Some(Found::Value(Value::Tag(3))));
        assert!(!one.vm.is_private(gfn(7)));
        one.assert_clean();
    }
}

/// Two vCPUs want one frame, one as private and one as shared.
#[test]
fn vcpus_fight_over_a_frame() {
    let fight = |policy, vmm: Vmm| {
        let mut one = One::new(policy, RmpSize::Size4K);
        let mut other = one.vm.create_vcpu().unwrap();
        one.own(7, 1);
        let (mut lost, mut changes, mut stopped) = (0, 0, 0);
        for round in 0..20 {
            let shared = GuestOp::Write(gfn(7), SHARED, Value::Tag(100 + round));
            match one.vm.run(&mut other, &shared, vmm) {
                GuestReply::Done => changes += 1,
                _ => stopped += 1,
            }
            match one.run(&GuestOp::Read(gfn(7), PRIVATE), vmm) {
                reply if reply == tag(1) => {}
                _ => lost += 1,
            }
        }
        (lost, changes, stopped, one.vm.audit())
    };
    // Each write takes the page, and what was in it, from the vCPU that owned it.
    let rfc = fight(RmpFaultPolicy::Rfc2021, Vmm::CAREFUL);
    assert_eq!((rfc.0, rfc.1, rfc.2), (20, 20, 0));
    // So it is upstream, if the VMM obeys: the fight has moved to userspace.
    let obeyed = fight(RmpFaultPolicy::Upstream, Vmm::OBEDIENT);
    assert_eq!((obeyed.0, obeyed.1, obeyed.2), (20, 20, 0));
    // A VMM that takes an access for no more than a hint, or a host that demands the change, stops the wrong one.
    for policy in [RmpFaultPolicy::Upstream, RmpFaultPolicy::Strict] {
        let kept = fight(policy, Vmm::CAREFUL);
        assert_eq!((kept.0, kept.1, kept.2), (0, 0, 20), "{policy:?}");
    }
    for (_, _, _, audit) in [rfc, obeyed] {
        assert_eq!(audit, []);
    }
}

/// What the reviewers feared of changing the reverse map outside `mmu_lock`: the page is found in the tables, goes to somebody
/// else, and is assigned to the guest then. Step by step here; schedules of threads find it too.
#[test]
fn the_proposal_assigns_a_page_that_is_not_the_guests_any_more() {
    let mut one = One::new(RmpFaultPolicy::Rfc2021, RmpSize::Size4K);
    assert_eq!(one.write(7, SHARED, 1), GuestReply::Done);
    let pfn = crate::sync::lock(&one.vm.shared)[&gfn(7)];
    // The vCPU has faulted and found the page. Before it updates the entry, the host takes the page back.
    one.vm.discard_shared(range(7, 1));
    one.assert_clean();
    let state = crate::rmp::RmpState::private(asid(), gfn(7), RmpSize::Size4K);
    crate::sync::lock(&one.vm.frames).adjust_direct_map(pfn, RmpSize::Size4K);
    one.vm.rmp().rmpupdate(pfn, &state).unwrap();
    let codes: Vec<&str> = one.vm.audit().iter().map(SnpViolation::code).collect();
    assert_eq!(codes, ["N07"]);
    // Whoever gets the page next takes the host down when he clears it.
    assert_eq!(one.write(8, SHARED, 1), GuestReply::Done);
    assert!(matches!(one.vm.oopses()[..], [(at, Fault::Host(_))] if at == pfn));
}

/// Upstream the order is the other way: assigned before it is mapped, unmapped before it is given back.
#[test]
fn upstream_the_entry_follows_the_attribute() {
    let mut one = One::upstream();
    one.vm.set_attributes(range(7, 1), Direction::ToPrivate);
    assert_eq!(one.vm.rmp().assigned().count(), 0);
    let absent = ErrorCode::ENCRYPTED | ErrorCode::WRITE;
    let _ = one.vm.nested_fault(&mut one.vcpu, gfn(7), absent);
    let pfn = one.pfn(7);
    assert_eq!(one.vm.rmp().entry(pfn).state(), PageState::GuestInvalid);
    // Shared by attribute: unmapped, and assigned still. That is right.
    one.vm.set_attributes(range(7, 1), Direction::ToShared);
    assert_eq!(one.vm.rmp().entry(pfn).state(), PageState::GuestInvalid);
    one.assert_clean();
    one.vm.punch_hole(range(7, 1));
    assert_eq!(one.vm.rmp().entry(pfn).state(), PageState::Hypervisor);
    one.assert_clean();
}

/// An RMP fault that KVM has no answer for is left alone.
#[test]
fn an_unexpected_rmp_fault_changes_nothing() {
    let one = One::upstream();
    assert_eq!(one.vm.rmp_fault(gfn(7)), RmpFault::Unexpected);
    assert_eq!(one.vm.rmp_fault(gfn(1 << 30)), RmpFault::Unexpected);
    assert_eq!(one.vm.rmp().assigned().count(), 0);
}
