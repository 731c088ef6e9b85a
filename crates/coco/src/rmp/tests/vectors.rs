//! Vectors R1 to R11 (what KVM makes of a fault, R12 to R16, is with the fault handler).

use super::*;

#[test]
fn r1_a_huge_entry_is_seen_through_its_head() {
    let rmp = with_huge();
    let lookup = rmp.lookup(Pfn::new(0x2ff)).unwrap();
    assert!(!lookup.assigned);
    assert_eq!(lookup.size, RmpSize::Size2M);
    assert!(rmp.entry(Pfn::new(0x2ff)).assigned);
}

#[test]
fn r2_a_page_inside_a_huge_entry_overlaps() {
    let rmp = with_huge();
    for state in [
        private(0x10, RmpSize::Size4K),
        RmpState::shared(RmpSize::Size4K),
    ] {
        let error = rmp.rmpupdate(Pfn::new(0x210), &state).unwrap_err();
        assert_eq!(error, RmpupdateError::Overlap(Overlap::Structural));
        assert_eq!(error.code(), 4);
        assert!(!error.is_transient());
    }
}

#[test]
fn r3_psmash_keeps_what_the_guest_said() {
    for validated in [false, true] {
        let rmp = with_huge();
        if validated {
            let huge = page(0, PageSize::Size2M);
            let done = rmp.pvalidate(guest(), huge, RmpSize::Size2M, true);
            assert_eq!(done, Ok(Validation::Changed));
        }
        rmp.psmash(Pfn::new(PFN)).unwrap();
        assert_eq!(rmp.assigned().count(), 512);
        for index in 0..512 {
            let entry = rmp.own_entry(Pfn::new(PFN + index));
            let expected = RmpEntry {
                validated,
                ..RmpEntry::guest(asid(5), Gfn::new(GFN + index), RmpSize::Size4K)
            };
            assert_eq!(entry, expected);
        }
    }
}

#[test]
fn r4_a_huge_entry_over_an_assigned_page_overlaps() {
    let rmp = Rmp::new(0x1000);
    let one = private(1, RmpSize::Size4K);
    rmp.rmpupdate(Pfn::new(0x201), &one).unwrap();
    let error = rmp
        .rmpupdate(Pfn::new(0x200), &private(0, RmpSize::Size2M))
        .unwrap_err();
    assert_eq!(error, RmpupdateError::Overlap(Overlap::Structural));
}

#[test]
fn r5_firmware_gives_its_page_back_by_reclaim() {
    let rmp = Rmp::new(0x1000);
    let pfn = Pfn::new(0x300);
    let shared = RmpState::shared(RmpSize::Size4K);
    rmp.rmpupdate(pfn, &RmpState::firmware()).unwrap();
    assert_eq!(rmp.entry(pfn).state(), PageState::Firmware);
    let error = rmp.rmpupdate(pfn, &shared).unwrap_err();
    assert_eq!(error, RmpupdateError::Permission(NotPermitted::Immutable));
    assert_eq!(error.code(), 2);
    rmp.page_reclaim(pfn).unwrap();
    assert_eq!(rmp.entry(pfn).state(), PageState::Reclaim);
    rmp.rmpupdate(pfn, &shared).unwrap();
    assert_eq!(rmp.entry(pfn), RmpEntry::HYPERVISOR);
}

#[test]
fn r6_validating_a_page_of_a_huge_entry_faults_until_it_is_smashed() {
    let rmp = with_huge();
    let huge = page(0, PageSize::Size2M);
    let _ = rmp.pvalidate(guest(), huge, RmpSize::Size2M, true);
    let third = page(3, PageSize::Size2M);
    let error = rmp
        .pvalidate(guest(), third, RmpSize::Size4K, true)
        .unwrap_err();
    let GuestError::Fault(Fault::Nested(code)) = error else {
        panic!("{error:?}");
    };
    let upper = ErrorCode::RMP | ErrorCode::ENCRYPTED | ErrorCode::SIZE;
    assert_eq!(code.bits() & !0xffff & !(1 << 32), upper.bits());
    rmp.psmash(Pfn::new(PFN)).unwrap();
    let again = rmp.pvalidate(guest(), page(3, PageSize::Size4K), RmpSize::Size4K, true);
    assert_eq!(again, Ok(Validation::Unchanged));
}

#[test]
fn r7_pages_are_validated_one_by_one_after_a_mismatch() {
    let rmp = with_huge();
    rmp.psmash(Pfn::new(PFN)).unwrap();
    let huge = page(0, PageSize::Size4K);
    let error = rmp.pvalidate(guest(), huge, RmpSize::Size2M, true);
    assert_eq!(error.unwrap_err().code(), Some(6));
    for index in 0..512 {
        let one = page(index, PageSize::Size4K);
        let done = rmp.pvalidate(guest(), one, RmpSize::Size4K, true);
        assert_eq!(done, Ok(Validation::Changed));
    }
}

/// A page of 4 KiB, validated.
fn with_valid_page() -> (Rmp, GuestPage) {
    let rmp = Rmp::new(0x1000);
    let (state, page) = (private(1, RmpSize::Size4K), page(1, PageSize::Size4K));
    rmp.rmpupdate(page.pfn, &state).unwrap();
    let done = rmp.pvalidate(guest(), page, RmpSize::Size4K, true);
    assert_eq!(done, Ok(Validation::Changed));
    (rmp, page)
}

#[test]
fn r8_validating_twice_tells() {
    let (rmp, page) = with_valid_page();
    let again = rmp.pvalidate(guest(), page, RmpSize::Size4K, true);
    assert_eq!(again, Ok(Validation::Unchanged));
}

#[test]
fn r9_any_update_invalidates() {
    let (rmp, page) = with_valid_page();
    let same = private(1, RmpSize::Size4K);
    rmp.rmpupdate(page.pfn, &same).unwrap();
    assert!(!rmp.entry(page.pfn).validated);

    let rules = Rules {
        same_update: SameUpdate::Keeps,
        ..Rules::default()
    };
    let rmp = Rmp::with_rules(0x1000, rules);
    rmp.rmpupdate(page.pfn, &same).unwrap();
    let _ = rmp.pvalidate(guest(), page, RmpSize::Size4K, true);
    rmp.rmpupdate(page.pfn, &same).unwrap();
    assert!(rmp.entry(page.pfn).validated);
}

#[test]
fn r10_the_host_must_not_write_an_assigned_page() {
    let (rmp, page) = with_valid_page();
    let host = Accessor::Host { user: false };
    let write = Fault::Host(ErrorCode::PRESENT | ErrorCode::WRITE | ErrorCode::RMP);
    let own = Reached::by_host(page.pfn);
    assert_eq!(rmp.check_access(host, Touch::Write, &own), Err(write));
    for size in [PageSize::Size2M, PageSize::Size1G] {
        let neighbour = Reached {
            size,
            ..Reached::by_host(Pfn::new(0x2f0))
        };
        assert_eq!(rmp.check_access(host, Touch::Write, &neighbour), Err(write));
    }
    let neighbour = Reached::by_host(Pfn::new(0x2f0));
    assert_eq!(rmp.check_access(host, Touch::Write, &neighbour), Ok(()));
    assert_eq!(rmp.check_access(host, Touch::Read, &own), Ok(()));
}

#[test]
fn r11_a_page_that_is_not_validated_raises_vc() {
    let rmp = Rmp::new(0x1000);
    let state = private(1, RmpSize::Size4K);
    rmp.rmpupdate(Pfn::new(PFN + 1), &state).unwrap();
    let by = Accessor::Snp(guest(), Visibility::Private);
    let page = Reached {
        gfn: Gfn::new(GFN + 1),
        pfn: Pfn::new(PFN + 1),
        size: PageSize::Size4K,
    };
    let fault = rmp.check_access(by, Touch::Read, &page).unwrap_err();
    assert_eq!(fault, Fault::Vc(0x404));
    assert_eq!(fault.nested(), None);
}

#[test]
fn somebody_else_at_an_entry_is_transient_and_an_entry_of_the_other_size_is_not() {
    let rmp = Rmp::new(0x1000);
    let head = Pfn::new(0x200);
    let huge = private(0, RmpSize::Size2M);
    let held = rmp.occupy(head).unwrap();
    assert_eq!(rmp.rmpupdate(head, &huge), Err(RmpupdateError::InUse));
    let beside = rmp.rmpupdate(Pfn::new(0x201), &private(1, RmpSize::Size4K));
    let transient = Err(RmpupdateError::Overlap(Overlap::Transient));
    assert_eq!(beside, transient);
    // Who only reads is not kept waiting.
    assert_eq!(rmp.entry(head), RmpEntry::HYPERVISOR);
    drop(held);
    let held = rmp.occupy(Pfn::new(0x3ff)).unwrap();
    assert_eq!(rmp.rmpupdate(head, &huge), transient);
    drop(held);
    assert_eq!(rmp.rmpupdate(head, &huge), Ok(()));
    let held = rmp.occupy(Pfn::new(0x3ff)).unwrap();
    assert_eq!(rmp.psmash(head), Err(PsmashError::InUse));
    let third = page(3, PageSize::Size2M);
    drop(held);
    let held = rmp.occupy(head).unwrap();
    let busy = rmp.pvalidate(guest(), third, RmpSize::Size4K, true);
    assert_eq!(busy, Err(GuestError::Busy));
    drop(held);
    assert_eq!(rmp.psmash(head), Ok(()));
}

#[test]
fn a_terabyte_costs_what_is_used() {
    let rmp = Rmp::new(1 << 28);
    let empty = rmp.bytes();
    // Guests of 2 MiB pages over all of it.
    let regions = (1u64 << 28) / 512;
    for region in 0..regions {
        let gfn = Gfn::new(region * 512);
        let state = RmpState::private(asid(1), gfn, RmpSize::Size2M);
        rmp.rmpupdate(Pfn::new(region * 512), &state).unwrap();
    }
    let huge = rmp.bytes();
    // Guests of 4 KiB pages over 1 GiB of it.
    for region in 0..512 {
        rmp.psmash(Pfn::new(region * 512)).unwrap();
    }
    let mixed = rmp.bytes();
    println!("empty {empty} bytes, in 2M entries {huge}, 1 GiB of it in 4K entries {mixed}");
    assert!(empty <= 64 << 10);
    assert!(huge <= 48 * regions as usize);
    assert!(mixed - huge <= 16 << 18);
}
