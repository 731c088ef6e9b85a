//! The initial image, and vCPUs that the guest starts.

use super::*;
use crate::psc::Direction;
use crate::rmp::{LaunchPage, PageState};

fn launch(one: &One, pages: GfnRange, refused: u64) -> Launched {
    let contents = |gfn: Gfn| Value::Tag(gfn.raw());
    let firmware = |gfn: Gfn| gfn.raw() != refused;
    one.vm
        .launch_update(pages, LaunchPage::Normal, contents, firmware)
}

#[test]
fn launched_pages_are_the_guests() {
    let mut one = One::upstream();
    one.vm.set_attributes(range(0, 16), Direction::ToPrivate);
    let done = launch(&one, range(4, 4), u64::MAX);
    assert_eq!((done.pages, done.stopped), (Pages::new(4), None));
    for at in 4..8 {
        assert_eq!(
            one.vm.rmp().entry(one.pfn(at)).state(),
            PageState::GuestValid
        );
        assert_eq!(one.read(at, PRIVATE), tag(at));
        assert_eq!(one.vm.host_peek_private(gfn(at)), Some(Found::Scrambled));
    }
    one.assert_clean();
}

#[test]
fn a_launch_stops_where_it_fails_and_leaves_that_page_alone() {
    let one = One::upstream();
    one.vm.set_attributes(range(0, 8), Direction::ToPrivate);
    let refused = launch(&one, range(0, 8), 3);
    let expected = Launched {
        pages: Pages::new(3),
        stopped: Some(LaunchError::Firmware(gfn(3))),
    };
    assert_eq!(refused, expected);
    assert_eq!(one.vm.rmp().assigned().count(), 3);
    one.assert_clean();

    let again = launch(&one, range(2, 1), u64::MAX);
    assert_eq!(again.stopped, Some(LaunchError::Exists(gfn(2))));
    let beyond = launch(&one, range(7, 2), u64::MAX);
    assert_eq!(beyond.pages, Pages::new(1));
    assert_eq!(beyond.stopped, Some(LaunchError::NotPrivate(gfn(8))));
    one.assert_clean();
}

#[test]
fn a_launched_vmsa_can_be_run() {
    let mut one = One::upstream();
    one.vm.set_attributes(range(7, 1), Direction::ToPrivate);
    let done = one
        .vm
        .launch_update(range(7, 1), LaunchPage::Vmsa, |_| Value::Zero, |_| true);
    assert_eq!(done.stopped, None);
    let pfn = one.pfn(7);
    assert_eq!(one.vm.rmp().vmrun(asid(), pfn), Ok(()));
    assert!(one.vm.rmp().vmrun(asid(), pfn).is_err());
    one.assert_clean();
    let _ = one.rescind(7);
    assert_eq!(one.vm.rmp().entry(pfn).state(), PageState::GuestInvalid);
}

#[test]
fn a_vcpu_is_started_by_kvms_rules() {
    let check = |request: u64, gpa: u64, features: u64| {
        let creation = ApCreation {
            exit_info_1: 3 << 32 | request,
            exit_info_2: gpa,
            sev_features: features,
        };
        creation.check(|apic_id| apic_id == 3, 1, 48)
    };
    let page = slat_memslot::Gpa::new(0x5000);
    assert_eq!(check(0, 0x5000, 1), Ok(ApRequest::CreateOnInit(page)));
    assert_eq!(check(1, 0x5000, 1), Ok(ApRequest::Create(page)));
    // A vCPU that is to stop has no features and no page.
    assert_eq!(check(2, 0x5001, 1 << 3), Ok(ApRequest::Destroy));
    assert_eq!(check(3, 0x5000, 1), Err(ApError::Request(3)));
    for mode in [1 << 3, 1 << 4] {
        let wanted = 1 | mode;
        assert_eq!(
            check(1, 0x5000, wanted),
            Err(ApError::InjectionMode { wanted, has: 1 })
        );
    }
    for bad in [0x5001, 1 << 48] {
        assert_eq!(
            check(1, bad, 1),
            Err(ApError::Address(slat_memslot::Gpa::new(bad)))
        );
    }
    let other = ApCreation {
        exit_info_1: 1,
        exit_info_2: 0x5000,
        sev_features: 1,
    };
    assert_eq!(
        other.check(|apic_id| apic_id == 3, 1, 48),
        Err(ApError::ApicId(0))
    );
}
