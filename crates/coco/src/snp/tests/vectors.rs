//! Vectors R12 to R16: what KVM makes of a fault.

use super::*;
use crate::psc::Direction;
use crate::rmp::{ErrorCode, PageState, Touch};

/// The code of an access's fault, without the bits that every fault has.
fn raised(one: &mut One, at: u64, visibility: Visibility, touch: Touch) -> (ErrorCode, u64) {
    match one
        .vm
        .hardware(&mut one.vcpu, gfn(at), visibility, touch, |_| ())
    {
        Err(Raised::Npf(code)) => (code, code.bits() & !(0x7 | 1 << 32)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn r12_a_private_access_to_a_shared_page_goes_to_userspace() {
    let mut one = One::upstream();
    assert_eq!(one.write(7, SHARED, 1), GuestReply::Done);
    let (code, upper) = raised(&mut one, 7, PRIVATE, Touch::Write);
    assert_eq!(upper, 1 << 31 | 1 << 34);
    let exit = SnpExit::MemoryFault {
        gfn: gfn(7),
        access: PRIVATE,
    };
    let answer = one.vm.nested_fault(&mut one.vcpu, gfn(7), code);
    assert_eq!(answer, Err(exit));
    one.assert_clean();
}

#[test]
fn r13_a_shared_write_to_a_private_page_goes_to_userspace() {
    let mut one = One::upstream();
    one.own(7, 1);
    let (code, upper) = raised(&mut one, 7, SHARED, Touch::Write);
    assert_eq!(upper, 1 << 31);
    let exit = SnpExit::MemoryFault {
        gfn: gfn(7),
        access: SHARED,
    };
    let answer = one.vm.nested_fault(&mut one.vcpu, gfn(7), code);
    assert_eq!(answer, Err(exit));
    assert_eq!(one.read(7, PRIVATE), tag(1));
}

/// A page of the file of 2 MiB, mapped in 4 KiB since another page of the 2 MiB is shared.
fn smaller_than_entry() -> (One, SnpVcpu) {
    let mut one = One::huge();
    one.vm.set_attributes(range(512, 511), Direction::ToPrivate);
    // The access maps the page, and finds the entry too large.
    let absent = ErrorCode::ENCRYPTED | ErrorCode::WRITE;
    let done = one.vm.nested_fault(&mut one.vcpu, gfn(515), absent);
    assert_eq!(done, Ok(None));
    let second = one.vm.create_vcpu().unwrap();
    (one, second)
}

#[test]
fn r14_a_leaf_smaller_than_its_entry_has_the_entry_taken_apart() {
    let (mut one, _) = smaller_than_entry();
    let (code, upper) = raised(&mut one, 515, PRIVATE, Touch::Read);
    assert_eq!(upper, 1 << 31 | 1 << 34);
    let done = one.vm.nested_fault(&mut one.vcpu, gfn(515), code);
    assert_eq!(done, Ok(Some(RmpFault::Smashed)));
    // The leaf is gone, and comes back with the next fault.
    let (code, upper) = raised(&mut one, 515, PRIVATE, Touch::Read);
    assert_eq!(upper, 1 << 34);
    let done = one.vm.nested_fault(&mut one.vcpu, gfn(515), code);
    assert_eq!(done, Ok(None));
    assert_eq!(one.read(515, PRIVATE), NOT_VALIDATED);
    one.assert_clean();
}

#[test]
fn r15_the_second_of_two_finds_nothing_to_do() {
    let (mut one, mut second) = smaller_than_entry();
    let (code, _) = raised(&mut one, 515, PRIVATE, Touch::Read);
    let first = one.vm.nested_fault(&mut one.vcpu, gfn(515), code);
    assert_eq!(first, Ok(Some(RmpFault::Smashed)));
    let again = one.vm.nested_fault(&mut second, gfn(515), code);
    assert_eq!(again, Ok(Some(RmpFault::Spurious)));
    // It has mapped the page again, and has not zapped it.
    let vc = one.vm.guest_read(&mut second, gfn(515), PRIVATE);
    assert_eq!(vc, Err(SnpExit::Vc(0x404)));
}

#[test]
fn r16_a_hole_of_one_page_takes_the_entry_apart() {
    let mut one = One::huge();
    one.vm.set_attributes(range(512, 512), Direction::ToPrivate);
    let validate = GuestOp::Validate(gfn(512), RmpSize::Size2M);
    assert_eq!(
        one.careful(&validate),
        GuestReply::Validated(crate::rmp::Validation::Changed)
    );
    let pfn = one.pfn(515);
    assert_eq!(one.vm.rmp().entry(pfn).size, RmpSize::Size2M);
    let done = one.vm.punch_hole(range(515, 1));
    let expected = Invalidated {
        smashed: 1,
        small: 1,
        ..Invalidated::default()
    };
    assert_eq!(done, expected);
    assert_eq!(one.vm.rmp().entry(pfn).state(), PageState::Hypervisor);
    assert_eq!(one.vm.rmp().assigned().count(), 511);
    one.assert_clean();
    // The others are as they were.
    assert_eq!(one.write(514, PRIVATE, 9), GuestReply::Done);
    assert_eq!(one.read(515, PRIVATE), NOT_VALIDATED);
}

#[test]
fn validating_a_page_of_a_huge_entry_takes_it_apart() {
    let mut one = One::huge();
    one.vm.set_attributes(range(512, 512), Direction::ToPrivate);
    assert_eq!(
        one.careful(&GuestOp::ValidateAll(gfn(512))),
        GuestReply::Validated(crate::rmp::Validation::Changed)
    );
    // R6, with KVM in between.
    assert_eq!(
        one.validate(515),
        GuestReply::Validated(crate::rmp::Validation::Unchanged)
    );
    assert_eq!(one.vm.rmp().entry(one.pfn(515)).size, RmpSize::Size4K);
    one.assert_clean();
}

/// KVM zaps 512 frames from the faulting one on, not those of its 2 MiB: a neighbour's leaf goes too, and comes back.
#[test]
fn taking_an_entry_apart_zaps_the_next_leaf_too() {
    let mut one = One::huge();
    one.vm.set_attributes(range(0, 1024), Direction::ToPrivate);
    for at in [0, 512] {
        let _ = one.careful(&GuestOp::Validate(gfn(at), RmpSize::Size2M));
        assert_eq!(one.write(at, PRIVATE, at), GuestReply::Done);
    }
    let mapped = |one: &mut One, at| {
        one.vm
            .hardware(&mut one.vcpu, gfn(at), PRIVATE, Touch::Read, |_| ())
            .is_ok()
    };
    assert_eq!(one.vm.rmp_fault(gfn(3)), RmpFault::Smashed);
    assert!(!mapped(&mut one, 0) && !mapped(&mut one, 512));
    assert_eq!(one.read(512, PRIVATE), tag(512));
    // From the first frame on, the neighbour stays.
    one.vm.rmp_fault(gfn(512));
    assert_eq!(one.read(0, PRIVATE), tag(0));
    one.assert_clean();
}
