//! What authors of VMMs and guests have got wrong with SNP, each with where it was found.

use super::*;
use crate::psc::{Direction, PscEntry, PscOperation, PscResult, PscSettings};
use crate::rmp::{
    Accessor, Adjustment, LaunchPage, NotPermitted, PageState, Permissions, Reached, RmpState,
    RmpupdateError, Touch, Validation, Vmpl,
};

/// A guest validates pages that are shared already (project-oak/oak, PR 4218): it asks for a private page without knowing.
#[test]
fn validating_a_shared_page_again_makes_it_private_behind_the_device() {
    let mut one = One::upstream();
    one.own(7, 1);
    let _ = one.vm.share(&mut one.vcpu, range(7, 1), Vmm::OBEDIENT);
    assert_eq!(one.write(7, SHARED, 2), GuestReply::Done);
    // A careful VMM stops here; an obedient one changes the page, and what the device was to read is gone.
    let again = one.rescind(7);
    assert!(matches!(
        again,
        GuestReply::Exit(SnpExit::MemoryFault {
            access: PRIVATE,
            ..
        })
    ));
    let rescind = GuestOp::Rescind(gfn(7), RmpSize::Size4K);
    let obeyed = one.run(&rescind, Vmm::OBEDIENT);
    assert_eq!(obeyed, GuestReply::Validated(Validation::Unchanged));
    assert_eq!(one.vm.host_read(gfn(7)), Some(Found::Value(Value::Zero)));
}

/// No page-state change before validating: 2 MiB never come about (project-oak/oak, PR 4972).
#[test]
fn without_a_change_first_only_pages_of_4k_can_be_validated() {
    let mut one = One::huge();
    let validate = GuestOp::Validate(gfn(512), RmpSize::Size2M);
    let implicit = one.run(&validate, Vmm::OBEDIENT);
    assert!(matches!(implicit, GuestReply::Refused(error) if error.code() == Some(6)));
    // Asked for first, it works.
    let mut one = One::huge();
    let entry = PscEntry::new(gfn(512), PscOperation::Private, RmpSize::Size2M);
    assert_eq!(
        one.careful(&GuestOp::Psc(vec![entry])),
        GuestReply::Psc(PscResult::Success)
    );
    let explicit = one.careful(&validate);
    assert_eq!(explicit, GuestReply::Validated(Validation::Changed));
    one.assert_clean();
}

/// A page is made private and not validated (project-oak/oak, PR 3652).
#[test]
fn a_page_that_is_unshared_and_not_validated_cannot_be_used() {
    let mut one = One::upstream();
    one.own(7, 1);
    let _ = one.vm.share(&mut one.vcpu, range(7, 1), Vmm::CAREFUL);
    let entry = PscEntry::new(gfn(7), PscOperation::Private, RmpSize::Size4K);
    let _ = one.careful(&GuestOp::Psc(vec![entry]));
    assert_eq!(one.write(7, PRIVATE, 2), NOT_VALIDATED);
}

/// The size is chosen by alignment, although the pages are mapped small (coconut-svsm/svsm, PR 512).
#[test]
fn alignment_does_not_make_a_huge_page() {
    let mut one = One::huge();
    one.vm.set_attributes(range(512, 511), Direction::ToPrivate);
    let aligned = GuestOp::Validate(gfn(512), RmpSize::Size2M);
    let refused = one.careful(&aligned);
    assert!(matches!(refused, GuestReply::Refused(error) if error.code() == Some(6)));
    assert_eq!(
        one.validate(512),
        GuestReply::Validated(Validation::Changed)
    );
}

/// Validating where no memory is (coconut-svsm, `protocols/core.rs`).
#[test]
fn validating_mmio_never_ends() {
    let mut one = One::upstream();
    let beyond = GuestOp::Validate(gfn(4096), RmpSize::Size4K);
    for _ in 0..3 {
        let reply = one.run(&beyond, Vmm::OBEDIENT);
        assert!(matches!(
            reply,
            GuestReply::Exit(SnpExit::MemoryFault {
                access: PRIVATE,
                ..
            })
        ));
    }
}

/// `KVM_CAP_EXIT_HYPERCALL` is not enabled (public bring-up notes of Cloud Hypervisor; kata-containers, PR 13095).
#[test]
fn without_exits_every_change_fails() {
    use crate::psc::{Psc, PscQuirks, PscStep, Scratch};
    let settings = PscSettings {
        exits_enabled: false,
        ..PscSettings::new(PscQuirks::kvm())
    };
    let buffer = SharedBuffer::new(&[PscEntry::new(
        gfn(7),
        PscOperation::Private,
        RmpSize::Size4K,
    )]);
    let scratch = Scratch::in_ghcb(slat_memslot::Gpa::new(0), slat_memslot::Gpa::new(0x800));
    let step = Psc::new(settings).begin(&buffer, scratch.unwrap());
    assert_eq!(step, PscStep::Resume(PscResult::Generic));
}

/// The implicit way does not punch, the explicit one does (Cloud Hypervisor, `hypervisor/src/kvm/mod.rs`): memory twice, and old
/// contents.
#[test]
fn an_implicit_change_without_a_hole_keeps_memory_and_contents() {
    let vmm = Vmm {
        implicit: Some(Hole::Kept),
        ..Vmm::OBEDIENT
    };
    let mut one = One::upstream();
    one.own(7, 1);
    let write = GuestOp::Write(gfn(7), SHARED, Value::Tag(2));
    assert_eq!(one.run(&write, vmm), GuestReply::Done);
    let file = crate::sync::lock(&one.vm.file).frames().count();
    let shared = crate::sync::lock(&one.vm.shared).len();
    assert_eq!((file, shared), (1, 1));
    assert_eq!(one.run(&GuestOp::Read(gfn(7), PRIVATE), vmm), tag(1));
    one.assert_clean();
}

/// Pages of the file are never released (cloud-hypervisor, PR 8167).
#[test]
fn pages_that_are_never_released_make_memory_twice_as_large() {
    let used = |hole| {
        let mut one = One::upstream();
        for at in 0..64 {
            one.own(at, at);
            one.vm.convert(range(at, 1), Direction::ToShared, hole);
            assert_eq!(one.write(at, SHARED, at), GuestReply::Done);
        }
        let file = crate::sync::lock(&one.vm.file).frames().count();
        file + crate::sync::lock(&one.vm.shared).len()
    };
    assert_eq!((used(Hole::Punched), used(Hole::Kept)), (64, 128));
}

/// The old contents come back: the guest rescinded, the host kept the page, the guest validates again.
#[test]
fn stale_contents_come_back_without_a_hole_and_not_with_one() {
    for (hole, expected) in [
        (Hole::Kept, Found::Value(Value::Tag(1))),
        (Hole::Punched, Found::Scrambled),
    ] {
        let vmm = Vmm {
            explicit: hole,
            ..Vmm::CAREFUL
        };
        let mut one = One::upstream();
        one.own(7, 1);
        let _ = one.vm.share(&mut one.vcpu, range(7, 1), vmm);
        assert_eq!(one.write(7, SHARED, 2), GuestReply::Done);
        let _ = one.vm.unshare(&mut one.vcpu, range(7, 1), vmm);
        assert_eq!(one.read(7, PRIVATE), GuestReply::Read(expected));
        one.assert_clean();
    }
}

/// RAM is taken for aligned to 2 MiB (microsoft/openvmm, PR 4417).
#[test]
fn a_slot_that_ends_amid_2m_has_small_pages_there() {
    let settings = SnpSettings {
        folio: RmpSize::Size2M,
        ..SnpSettings::new(asid(), 700)
    };
    let vm = SnpVm::new(settings, Arc::new(Rmp::new(0x4000)), Pfn::new(0x1000)).unwrap();
    let vcpu = vm.create_vcpu().unwrap();
    let mut one = One { vm, vcpu };
    one.vm.set_attributes(range(0, 700), Direction::ToPrivate);
    let huge = |at| GuestOp::Validate(gfn(at), RmpSize::Size2M);
    assert_eq!(
        one.careful(&huge(0)),
        GuestReply::Validated(Validation::Changed)
    );
    assert!(matches!(one.careful(&huge(512)), GuestReply::Refused(_)));
    one.assert_clean();
}

/// A page of special use is treated as RAM (microsoft/openvmm, PR 334): a VMSA that is converted stops its vCPU.
#[test]
fn a_vmsa_that_is_converted_is_no_vmsa_any_more() {
    let mut one = One::upstream();
    one.own(7, 1);
    let pfn = one.pfn(7);
    let adjustment = Adjustment {
        target: Vmpl::Vmpl1,
        permissions: Permissions::READ,
        vmsa: true,
    };
    let adjust = GuestOp::Adjust(gfn(7), RmpSize::Size4K, adjustment);
    assert_eq!(one.careful(&adjust), GuestReply::Done);
    one.vm.rmp().vmrun(asid(), pfn).unwrap();
    // While the vCPU runs, the entry cannot be taken: the page is leaked rather than freed.
    let done = one.vm.punch_hole(range(7, 1));
    assert_eq!(done.leaked, 1);
    one.vm.rmp().vmexit(pfn).unwrap();
    let freed = gmem_invalidate(one.vm.rmp(), pfn, Pfn::new(pfn.raw() + 1));
    assert_eq!(freed.small, 1);
    assert!(one.vm.rmp().vmrun(asid(), pfn).is_err());
}

/// A frame beside the reverse map's own end looks free (AMDESE/AMDSEV, issue 245).
#[test]
fn a_frame_beside_what_firmware_keeps_is_refused() {
    let rmp = Rmp::new(0x1000);
    // Firmware keeps the 2 MiB in which its own memory ends.
    for pfn in 0x200..0x400 {
        rmp.fix_to_hypervisor(Pfn::new(pfn)).unwrap();
    }
    let state = RmpState::private(asid(), gfn(0), RmpSize::Size4K);
    let refused = rmp.rmpupdate(Pfn::new(0x3ff), &state);
    assert_eq!(
        refused,
        Err(RmpupdateError::Permission(NotPermitted::HvFixed))
    );
}

/// A buffer that firmware has not given back (AMDESE/AMDSEV, issue 220).
#[test]
fn a_buffer_that_firmware_keeps_faults_the_host() {
    let rmp = Rmp::new(0x1000);
    let pfn = Pfn::new(0x300);
    rmp.rmpupdate(pfn, &RmpState::firmware()).unwrap();
    // The request fails; the buffer is not reclaimed; the kernel writes it.
    let kernel = Accessor::Host { user: false };
    assert!(
        rmp.check_access(kernel, Touch::Write, &Reached::by_host(pfn))
            .is_err()
    );
    rmp.page_reclaim(pfn).unwrap();
    rmp.rmpupdate(pfn, &RmpState::shared(RmpSize::Size4K))
        .unwrap();
    assert!(
        rmp.check_access(kernel, Touch::Write, &Reached::by_host(pfn))
            .is_ok()
    );
}

/// The initial image: a page that is in the file already, or assigned, cannot be launched (`snp_launch_update`: `EEXIST`).
#[test]
fn a_page_is_launched_once() {
    let rmp = Rmp::new(0x1000);
    let pfn = Pfn::new(0x300);
    let launch = |rmp: &Rmp| {
        rmp.rmpupdate(pfn, &RmpState::pre_guest(asid(), gfn(7)))
            .is_ok()
            && rmp
                .launch_update(asid(), gfn(7), pfn, LaunchPage::Normal)
                .is_ok()
    };
    assert!(launch(&rmp));
    assert_eq!(rmp.entry(pfn).state(), PageState::GuestValid);
    // A second time it would be invalidated under the guest: KVM looks first.
    assert!(rmp.entry(pfn).assigned);
}

/// A retry loop around every overlap hangs (AMDESE/AMDSEV, issue 143): which of them go away is told.
#[test]
fn only_some_overlaps_go_away() {
    let rmp = Rmp::new(0x1000);
    let huge = RmpState::private(asid(), gfn(0), RmpSize::Size2M);
    let held = rmp.occupy(Pfn::new(0x201)).unwrap();
    assert!(
        rmp.rmpupdate(Pfn::new(0x200), &huge)
            .unwrap_err()
            .is_transient()
    );
    drop(held);
    let one = RmpState::private(asid(), gfn(1), RmpSize::Size4K);
    rmp.rmpupdate(Pfn::new(0x201), &one).unwrap();
    assert!(
        !rmp.rmpupdate(Pfn::new(0x200), &huge)
            .unwrap_err()
            .is_transient()
    );
}
