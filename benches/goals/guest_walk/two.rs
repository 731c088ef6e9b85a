//! Target 10: single translations in two dimensions.

use slat::mmu::walk::tlb::TlbAccess;

use super::caches::{PlainCaches, PlainTlb};
use super::world::{Floor, InOneBuffer, Own};
use super::{HOT, PAGES, chain, hot, random, small, turns};
use crate::paired::Bound;
use crate::race::{Beside, Part, Race};

/// Translations that a cache keeps, slat's and the floors'.
const KEPT: u64 = 4096;

pub(crate) fn two_dimensions() {
    walk();
    hit();
    miss();
}

fn pages() -> impl Iterator<Item = u64> {
    (0..PAGES).map(|page| PAGES + page)
}

fn walk() {
    let flat = small();
    let mut own = Own::new(&flat, pages());
    let mut floor = Floor::new(&flat, pages());
    let one_buffer = InOneBuffer::new(&flat, pages());
    for address in hot() {
        let expected = one_buffer.load(address);
        assert_eq!(own.walk(address), expected, "{address:#x}");
        assert_eq!(floor.load(address), expected, "{address:#x}");
    }
    let by_number = "24 loads by number, lock";
    Race::calls("10 2-D walk")
        .with_slat(chain("slat", hot(), move |address| own.walk(address)))
        .with(
            Part::Floor,
            chain(by_number, hot(), move |address| floor.load(address)),
        )
        .with(
            Part::Floor,
            chain("24 loads from one buffer, no lock", hot(), move |address| {
                one_buffer.load(address)
            }),
        )
        .goal("floor", Beside::Named(by_number), Bound::AtMost(1.3))
        .report();
}

/// Addresses that all have a place of their own among the translations.
fn kept() -> Vec<u64> {
    let step = KEPT / HOT as u64;
    let page = |i: u64| i * step + KEPT * (random(i) % (PAGES / KEPT));
    (0..HOT as u64).map(|i| page(i) << 12 | 0x18).collect()
}

fn hit() {
    let flat = small();
    let filled = || {
        let mut own = Own::new(&flat, pages());
        for address in kept() {
            assert!(matches!(own.access(address), Some(TlbAccess::Walked(_))));
            assert!(matches!(own.access(address), Some(TlbAccess::Hit(_))));
        }
        own
    };
    let buffer = InOneBuffer::new(&flat, pages());
    let (looked_up, mut accessed) = (filled(), filled());
    let mut plain = PlainTlb::new();
    let mut caches = PlainCaches::new(&flat, pages());
    for address in kept() {
        plain.insert(address, buffer.load(address));
        caches.access(address);
        assert_eq!(plain.find(address), looked_up.lookup(address));
    }
    Race::calls("10 2-D, TLB hit")
        .with_slat(chain("slat, lookup", kept(), move |address| {
            looked_up.lookup(address).unwrap_or(0)
        }))
        .with(
            Part::Floor,
            chain("a packed table of 4096", kept(), move |address| {
                plain.find(address).unwrap_or(0)
            }),
        )
        .goal("floor", Beside::Floor, Bound::AtMost(1.3))
        .report();
    Race::calls("10 2-D, TLB hit under the lock")
        .with_slat(chain("slat, access", kept(), move |address| {
            accessed
                .access(address)
                .map_or(0, |found| found.hpa().raw())
        }))
        .with(
            Part::Floor,
            chain("the packed table, lock", kept(), move |address| {
                caches.access(address)
            }),
        )
        .goal("floor", Beside::Floor, Bound::AtMost(1.3))
        .report();
}

/// Four addresses for each place among the translations, one place after the other: each access finds the one before it.
fn replaced() -> Vec<u64> {
    let places = HOT as u64 / (PAGES / KEPT);
    let page = |i: u64| i % places * (KEPT / places) + KEPT * (i / places);
    (0..HOT as u64).map(|i| page(i) << 12 | 0x18).collect()
}

fn miss() {
    let flat = small();
    let mut own = Own::new(&flat, pages());
    let mut floor = PlainCaches::new(&flat, pages());
    let buffer = InOneBuffer::new(&flat, pages());
    for _ in 0..2 {
        for address in replaced() {
            let expected = buffer.load(address);
            let found = own.access(address);
            assert!(
                matches!(found, Some(TlbAccess::Walked(hpa)) if hpa.raw() == expected),
                "{address:#x}: {found:?}"
            );
            assert_eq!(floor.access(address), expected, "{address:#x}");
        }
    }
    Race::calls("10 2-D, miss with structure caches")
        .with_slat(turns("slat", replaced(), move |address| {
            own.access(address).map_or(0, |found| found.hpa().raw())
        }))
        .with(
            Part::Floor,
            turns(
                "packed caches, four loads, lock",
                replaced(),
                move |address| floor.access(address),
            ),
        )
        .goal("floor", Beside::Floor, Bound::AtMost(1.5))
        .report();
}
