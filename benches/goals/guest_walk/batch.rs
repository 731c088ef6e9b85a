//! Target 11: many translations at a time over a large, sparse guest.

use slat::memslot::Gva;
use slat::mmu::tdp::Unobserved;
use slat::mmu::walk::ErrorCode;
use slat::mmu::walk::second::TdpStage;

use super::world::Own;
use super::{FLAGS, Flat, random};
use crate::paired::{Bound, Side};
use crate::race::{Beside, Part, Race};

/// Pages of the guest, and the frames that they are spread over: 16 GiB.
const SPARSE: usize = 1 << 16;
const SPREAD: u64 = 1 << 22;

/// Where a page of the guest is.
fn frame(page: u64) -> u64 {
    SPREAD + random(page) % SPREAD
}

pub(crate) fn batch() {
    let mut flat = Flat::new(FLAGS);
    let pages: Vec<u64> = (0..SPARSE as u64).map(|i| random(i) % SPREAD).collect();
    for page in &pages {
        flat.map(*page, frame(*page));
    }
    let frames = || pages.iter().map(|page| frame(*page));
    let addresses: Vec<Gva> = pages.iter().map(|page| Gva::new(page << 12)).collect();
    let (mut one, mut many) = (Own::new(&flat, frames()), Own::new(&flat, frames()));
    let singly = addresses.clone();
    let mut singly = move || {
        let translated = singly.iter().map(|address| one.walk(address.raw()));
        translated.fold(0_u64, u64::wrapping_add)
    };
    let mut together = move || {
        let mut locked = many.tables.shared(&mut many.reader, Unobserved);
        let mut stage = TdpStage::new(&mut locked, many.root);
        let mut sum = 0_u64;
        many.paging.walk_batch(
            many.memory.as_slice(),
            &mut stage,
            addresses.iter().copied(),
            ErrorCode::READ,
            |_, found| sum = sum.wrapping_add(found.map_or(0, |found| found.address.raw())),
        );
        sum
    };
    assert_eq!(singly(), together());
    Race::new("11 batch 2-D, 65536 pages of 16 GiB", SPARSE as u64)
        .with_slat(Side::new("slat, one batch", move || {
            std::hint::black_box(together());
        }))
        .with(
            Part::Peer,
            Side::new("slat, one by one", move || {
                std::hint::black_box(singly());
            }),
        )
        .goal("one by one", Beside::BestPeer, Bound::AtLeast(2.0))
        .report();
}
