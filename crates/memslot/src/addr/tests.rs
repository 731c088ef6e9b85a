use std::collections::BTreeSet;

use super::*;
use crate::Level;

/// Every range of a few frames, with the set of its frames.
fn ranges() -> impl Iterator<Item = (GfnRange, BTreeSet<u64>)> {
    (0..6).flat_map(|start| {
        (start + 1..=6).map(move |end| {
            let range = GfnRange::between(Gfn::new(start), Gfn::new(end)).unwrap();
            (range, (start..end).collect())
        })
    })
}

#[test]
fn ranges_are_the_sets_of_their_frames() {
    for (a, in_a) in ranges() {
        assert_eq!(GfnRange::new(a.start(), a.pages()), Some(a));
        assert_eq!(a.pages(), Pages::new(in_a.iter().map(|_| 1).sum()));
        let ends = [a.start(), a.last()].map(Gfn::raw);
        assert_eq!(ends, [*in_a.first().unwrap(), *in_a.last().unwrap()]);
        assert_eq!(a.end(), a.last() + Pages::new(1));
        for gfn in 0..8 {
            assert_eq!(a.contains(Gfn::new(gfn)), in_a.contains(&gfn), "{a} {gfn}");
        }
        for (b, in_b) in ranges() {
            assert_eq!(a.covers(b), in_a.is_superset(&in_b), "{a} {b}");
            assert_eq!(a.overlaps(b), !in_a.is_disjoint(&in_b), "{a} {b}");
            let both = a.intersection(b);
            let in_both = both.map_or(0..0, |r| r.start().raw()..r.end().raw());
            assert!(in_both.eq(in_a.intersection(&in_b).copied()), "{a} {b}");
        }
    }
}

#[test]
fn empty_ranges_and_ends_beyond_64_bits_do_not_exist() {
    let gfn = Gfn::new(7);
    assert_eq!(GfnRange::between(gfn, gfn), None);
    assert_eq!(GfnRange::between(gfn, Gfn::new(6)), None);
    assert_eq!(GfnRange::new(gfn, Pages::new(0)), None);
    assert_eq!(GfnRange::new(gfn, Pages::new(u64::MAX - 6)), None);
    assert!(GfnRange::new(gfn, Pages::new(u64::MAX - 7)).is_some());
}

#[test]
fn addresses_frames_and_bytes_are_4096_apart() {
    assert_eq!(PAGE_SIZE, 4096);
    assert_eq!(Gpa::new(0x1234_5678).gfn(), Gfn::new(0x1_2345));
    assert_eq!(Gfn::new(0x1_2345).gpa(), Gpa::new(0x1234_5000));
    assert_eq!(Pages::new(3).bytes(), 3 * 4096);
    assert_eq!(Pages::in_bytes(4 * 4096 - 1), Pages::new(3));
    for (address, aligned) in [(0, true), (0x1000, true), (0x1800, false), (0xfff, false)] {
        assert_eq!(Gpa::new(address).is_page_aligned(), aligned, "{address:#x}");
        assert_eq!(Hva::new(address).is_page_aligned(), aligned, "{address:#x}");
    }
    assert_eq!(
        Hpa::new(5).checked_add_bytes(u64::MAX - 5),
        Some(Hpa::new(u64::MAX))
    );
    assert_eq!(Hpa::new(5).checked_add_bytes(u64::MAX - 4), None);
}

#[test]
fn counts_add_and_subtract() {
    let (seven, three) = (Pages::new(7), Pages::new(3));
    assert_eq!(
        (seven + three, seven - three),
        (Pages::new(10), Pages::new(4))
    );
    let mut count = seven;
    count += three;
    assert_eq!(count, Pages::new(10));
    count -= seven;
    assert_eq!(count, three);
    assert_eq!(Gfn::new(9) - Gfn::new(2), seven);
}

#[test]
fn frames_round_down_to_their_huge_page() {
    let gfn = Gfn::new(0x1234_5678_9abc);
    for (level, pages) in Level::ALL.into_iter().zip([0u32, 9, 18, 27, 36]) {
        let start = gfn.round_down(level);
        assert_eq!(start.raw() % (1 << pages), 0);
        assert!(gfn - start < Pages::new(1 << pages), "{level:?}");
    }
}

#[test]
fn units_print_in_hexadecimal() {
    assert_eq!(Gpa::new(0x1f000).to_string(), "0x1f000");
    assert_eq!(format!("{:x}", Hva::new(0x1f000)), "1f000");
    let range = GfnRange::between(Gfn::new(0x10), Gfn::new(0x1f)).unwrap();
    assert_eq!(range.to_string(), "[0x10, 0x1f)");
}
