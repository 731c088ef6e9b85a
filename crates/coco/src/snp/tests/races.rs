//! Interleavings that lose data (P1 to P10, but P6, which is about MapGPA of TDX), each as it goes wrong and as it goes right.

use super::*;
use crate::psc::{
    Answer, Direction, MapGpaRange, Psc, PscEntry, PscOperation, PscQuirks, PscResult, PscSettings,
    PscStep, Scratch,
};
use crate::rmp::Validation;

fn frames_in_use(one: &One) -> (usize, usize) {
    let file = crate::sync::lock(&one.vm.file).frames().count();
    (file, crate::sync::lock(&one.vm.shared).len())
}

#[test]
fn p1_an_implicit_exit_obeyed_blindly_loses_private_data() {
    for (vmm, kept) in [(Vmm::OBEDIENT, false), (Vmm::CAREFUL, true)] {
        let mut one = One::upstream();
        let mut other = one.vm.create_vcpu().unwrap();
        let _ = one.vm.unshare(&mut one.vcpu, range(7, 1), vmm);
        assert_eq!(one.write(7, PRIVATE, 1), GuestReply::Done);
        let stray = GuestOp::Write(gfn(7), SHARED, Value::Tag(2));
        let _ = one.vm.run(&mut other, &stray, vmm);
        assert_eq!(one.read(7, PRIVATE) == tag(1), kept);
        one.assert_clean();
    }
}

#[test]
fn p2_a_hole_punched_before_the_attributes_change_is_filled_again() {
    let left_behind = |attributes_first: bool| {
        let mut one = One::upstream();
        one.own(7, 1);
        let touch = |one: &mut One| {
            let _ = one.read(7, PRIVATE);
        };
        if attributes_first {
            one.vm.set_attributes(range(7, 1), Direction::ToShared);
            touch(&mut one);
            one.vm.punch_hole(range(7, 1));
        } else {
            one.vm.punch_hole(range(7, 1));
            touch(&mut one);
            one.vm.set_attributes(range(7, 1), Direction::ToShared);
        }
        one.assert_clean();
        frames_in_use(&one).0
    };
    assert_eq!((left_behind(true), left_behind(false)), (0, 1));
}

#[test]
fn p3_a_device_that_goes_on_writes_into_a_page_that_nobody_reads() {
    let mut one = One::upstream();
    assert_eq!(one.write(7, SHARED, 1), GuestReply::Done);
    let _ = one.vm.unshare(&mut one.vcpu, range(7, 1), Vmm::CAREFUL);
    assert_eq!(one.write(7, PRIVATE, 2), GuestReply::Done);
    assert_eq!(frames_in_use(&one), (1, 0));
    // No error anywhere: a page comes to life behind the private one.
    assert_eq!(one.vm.host_write(gfn(7), Value::Tag(3)), Some(true));
    assert_eq!(frames_in_use(&one), (1, 1));
    assert_eq!(one.read(7, PRIVATE), tag(2));
    one.assert_clean();
}

#[test]
fn p4_an_error_with_an_effect_leaves_guest_and_host_apart() {
    let exit = MapGpaRange {
        range: range(7, 1),
        to: Direction::ToShared,
        hint: slat_memslot::PageSize::Size4K,
    };
    for rolled_back in [false, true] {
        let mut one = One::upstream();
        one.own(7, 1);
        // The guest asks; attributes change; punching fails; the VMM answers with an error.
        let entry = PscEntry::new(gfn(7), PscOperation::Shared, RmpSize::Size4K);
        let buffer = SharedBuffer::new(&[entry]);
        let mut psc = Psc::new(PscSettings::new(PscQuirks::strict()));
        let scratch = Scratch::in_ghcb(slat_memslot::Gpa::new(0), slat_memslot::Gpa::new(0x800));
        assert_eq!(psc.begin(&buffer, scratch.unwrap()), PscStep::Map(exit));
        one.vm.set_attributes(range(7, 1), Direction::ToShared);
        if rolled_back {
            one.vm.set_attributes(range(7, 1), Direction::ToPrivate);
        }
        let told = psc.complete(&buffer, Answer::Failed);
        assert_eq!(told, PscStep::Resume(PscResult::Generic));
        // The guest goes on with the page as it was.
        assert_eq!(one.read(7, PRIVATE) == tag(1), rolled_back);
    }
}

#[test]
fn p5_validating_twice_keeps_what_is_there() {
    let mut one = One::upstream();
    one.own(7, 1);
    let again = one.validate(7);
    assert_eq!(again, GuestReply::Validated(Validation::Unchanged));
    assert_eq!(one.read(7, PRIVATE), tag(1));
}

#[test]
fn p7_a_hole_that_the_guest_does_not_know_of_loses_its_data() {
    let mut one = One::upstream();
    one.own(7, 1);
    one.vm.punch_hole(range(7, 1));
    assert_eq!(one.read(7, PRIVATE), NOT_VALIDATED);
    // A guest that validates whatever is not finds noise where its data was.
    let _ = one.validate(7);
    assert_eq!(one.read(7, PRIVATE), GuestReply::Read(Found::Scrambled));
    one.assert_clean();
}

#[test]
fn p8_an_exit_that_is_not_completed_before_saving_is_done_twice() {
    for completed in [false, true] {
        let one = One::upstream();
        let entry = PscEntry::new(gfn(7), PscOperation::Private, RmpSize::Size4K);
        let buffer = SharedBuffer::new(&[entry]);
        let mut psc = Psc::new(PscSettings::new(PscQuirks::kvm()));
        let scratch = Scratch::in_ghcb(slat_memslot::Gpa::new(0), slat_memslot::Gpa::new(0x800));
        let PscStep::Map(exit) = psc.begin(&buffer, scratch.unwrap()) else {
            panic!();
        };
        one.vm.map_gpa_range(&exit, Hole::Punched);
        if completed {
            // KVM_RUN with immediate_exit.
            let done = psc.complete(&buffer, Answer::Done);
            assert_eq!(done, PscStep::Resume(PscResult::Success));
        }
        // The guest that is restored from here sees a change that was made as not made.
        assert_eq!(buffer.header().cur_entry, u16::from(completed));
    }
}

#[test]
fn p9_two_conversions_of_one_range_need_one_lock() {
    // Thread A makes the page shared. Between its two steps thread B makes it private again, and the guest uses it.
    let mut one = One::upstream();
    one.own(7, 1);
    one.vm.set_attributes(range(7, 1), Direction::ToShared);
    one.vm
        .convert(range(7, 1), Direction::ToPrivate, Hole::Punched);
    let _ = one.validate(7);
    assert_eq!(one.write(7, PRIVATE, 2), GuestReply::Done);
    one.vm.punch_hole(range(7, 1));
    assert_eq!(one.read(7, PRIVATE), NOT_VALIDATED);

    // Each conversion as a whole.
    let mut one = One::upstream();
    one.own(7, 1);
    one.vm
        .convert(range(7, 1), Direction::ToShared, Hole::Punched);
    one.vm
        .convert(range(7, 1), Direction::ToPrivate, Hole::Punched);
    let _ = one.validate(7);
    assert_eq!(one.write(7, PRIVATE, 2), GuestReply::Done);
    assert_eq!(one.read(7, PRIVATE), tag(2));
    one.assert_clean();
}

#[test]
fn p10_a_mismatch_that_is_ignored_leaves_the_tail_invalid() {
    let mut one = One::upstream();
    let entry = PscEntry::new(gfn(512), PscOperation::Private, RmpSize::Size2M);
    let asked = one.careful(&GuestOp::Psc(vec![entry]));
    assert_eq!(asked, GuestReply::Psc(PscResult::Success));
    let huge = one.careful(&GuestOp::Validate(gfn(512), RmpSize::Size2M));
    let GuestReply::Refused(error) = huge else {
        panic!("{huge:?}");
    };
    assert_eq!(error.code(), Some(6));
    assert_eq!(one.read(600, PRIVATE), NOT_VALIDATED);
    let all = one.careful(&GuestOp::ValidateAll(gfn(512)));
    assert_eq!(all, GuestReply::Validated(Validation::Changed));
    assert_eq!(one.write(600, PRIVATE, 1), GuestReply::Done);
    one.assert_clean();
}
