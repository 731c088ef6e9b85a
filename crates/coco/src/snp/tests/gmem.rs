//! The hooks of guest_memfd by themselves.

use super::*;
use crate::rmp::{PageState, RmpState, RmpupdateError};

#[test]
fn a_page_is_prepared_in_the_size_that_its_folio_and_its_neighbours_allow() {
    let rmp = Rmp::new(0x1000);
    let prepare = |at: u64, folio| gmem_prepare(&rmp, asid(), gfn(at), Pfn::new(at + 0x200), folio);
    assert_eq!(
        prepare(3, RmpSize::Size2M),
        Ok(Prepared::Assigned(RmpSize::Size2M))
    );
    assert_eq!(rmp.entry(Pfn::new(0x3ff)).gfn, gfn(0x1ff));
    // Whoever asks for a neighbour finds it assigned.
    assert_eq!(prepare(4, RmpSize::Size2M), Ok(Prepared::Already));
    let one = Prepared::Assigned(RmpSize::Size4K);
    assert_eq!(prepare(0x200, RmpSize::Size4K), Ok(one));
    assert_eq!(prepare(0x201, RmpSize::Size2M), Ok(one));
    let outside = gmem_prepare(&rmp, asid(), gfn(0), Pfn::new(0x1000), RmpSize::Size4K);
    assert_eq!(outside, Err(PrepareError::NoEntry(Pfn::new(0x1000))));
}

#[test]
fn a_page_that_firmware_keeps_is_not_prepared() {
    let rmp = Rmp::new(0x1000);
    rmp.fix_to_hypervisor(Pfn::new(0x205)).unwrap();
    let fixed = gmem_prepare(&rmp, asid(), gfn(5), Pfn::new(0x205), RmpSize::Size4K);
    assert!(matches!(
        fixed,
        Err(PrepareError::Update(_, RmpupdateError::Permission(_)))
    ));
}

#[test]
fn frames_are_given_back_whole_or_in_parts() {
    let given_back = |start: u64, end: u64| {
        let rmp = Rmp::new(0x1000);
        let _ = gmem_prepare(&rmp, asid(), gfn(0), Pfn::new(0x200), RmpSize::Size2M);
        let done = gmem_invalidate(&rmp, Pfn::new(start), Pfn::new(end));
        let left = (0x200..0x400).filter(|pfn| rmp.entry(Pfn::new(*pfn)).assigned);
        (
            (done.smashed, done.huge, done.small, done.leaked),
            left.count(),
        )
    };
    assert_eq!(given_back(0x200, 0x400), ((0, 1, 0, 0), 0));
    assert_eq!(given_back(0x1f0, 0x410), ((0, 1, 0, 0), 0));
    assert_eq!(given_back(0x200, 0x3ff), ((1, 0, 511, 0), 1));
    assert_eq!(given_back(0x300, 0x301), ((1, 0, 1, 0), 511));
    assert_eq!(given_back(0x400, 0x600), ((0, 0, 0, 0), 512));
}

#[test]
fn a_page_that_cannot_be_given_back_is_leaked() {
    let rmp = Rmp::new(0x1000);
    let pfn = Pfn::new(0x205);
    let state = RmpState::pre_guest(asid(), gfn(5));
    rmp.rmpupdate(pfn, &state).unwrap();
    let done = gmem_invalidate(&rmp, pfn, Pfn::new(0x206));
    assert_eq!((done.small, done.leaked), (0, 1));
    assert_eq!(rmp.entry(pfn).state(), PageState::PreGuest);
}

#[test]
fn no_leaf_is_larger_than_its_entry() {
    use slat_memslot::PageSize;
    let rmp = Rmp::new(0x1000);
    let level = |pfn| private_max_mapping_level(&rmp, Pfn::new(pfn));
    assert_eq!(level(0x203), PageSize::Size4K);
    let _ = gmem_prepare(&rmp, asid(), gfn(0), Pfn::new(0x200), RmpSize::Size2M);
    assert_eq!(level(0x203), PageSize::Size2M);
    rmp.psmash(Pfn::new(0x200)).unwrap();
    assert_eq!(level(0x203), PageSize::Size4K);
}
