use proptest::prelude::*;

use super::*;
use crate::Pages;

/// The dense arrays that KVM allocates, filled in its order.
struct Dense {
    base: u64,
    words: [Vec<u32>; 2],
}

impl Dense {
    fn new(base: u64, pages: u64, hva: u64) -> Self {
        let words = [9, 18].map(|shift| {
            let count = ((base + pages - 1) >> shift) - (base >> shift) + 1;
            let mut words = vec![0u32; usize::try_from(count).unwrap()];
            let low_bits = (1u64 << shift) - 1;
            if base & low_bits != 0 {
                words[0] = 1;
            }
            if (base + pages) & low_bits != 0 {
                *words.last_mut().unwrap() = 1;
            }
            if (base ^ (hva >> 12)) & low_bits != 0 {
                words.fill(1);
            }
            words
        });
        Self { base, words }
    }

    fn word(&mut self, at: usize, gfn: u64) -> &mut u32 {
        let shift = [9, 18][at];
        &mut self.words[at][usize::try_from((gfn >> shift) - (self.base >> shift)).unwrap()]
    }
}

fn lpage(base: u64, pages: u64, hva: u64) -> LpageInfo {
    let range = GfnRange::new(Gfn::new(base), Pages::new(pages)).unwrap();
    LpageInfo::new(range, Hva::new(hva))
}

#[test]
fn head_and_tail_in_one_entry_count_once() {
    let slot = lpage(0x201, 0x10, 0x20_1000);
    assert_eq!(slot.entries(PageSize::Size2M), 1);
    assert_eq!(slot.disallow(PageSize::Size2M, Gfn::new(0x205)), 1);
    assert_eq!(slot.disallow(PageSize::Size1G, Gfn::new(0x205)), 1);
    assert_eq!(slot.disallow(PageSize::Size4K, Gfn::new(0x205)), 0);
    assert_eq!(slot.entries(PageSize::Size4K), 0x10);
}

#[test]
fn hva_congruence_counts_per_size() {
    // Two whole GiB; the host address is aligned to 2 MiB only.
    let slot = lpage(0x40000, 0x80000, 0x20_0000);
    assert_eq!(slot.largest(Gfn::new(0x40000)), Some(PageSize::Size2M));
    let slot = lpage(0x40000, 0x80000, 0x8000_0000);
    assert_eq!(slot.largest(Gfn::new(0xbffff)), Some(PageSize::Size1G));
    let slot = lpage(0x40000, 0x80000, 0x8000_1000);
    assert_eq!(slot.largest(Gfn::new(0x40000)), Some(PageSize::Size4K));
    assert_eq!(slot.largest(Gfn::new(0xc0000)), None);
}

#[test]
fn tracking_counts_and_leaves_no_trace() {
    let mut slot = lpage(0, 0x40000, 0);
    let gfn = Gfn::new(0x1234);
    assert!(slot.track(gfn) && slot.track(Gfn::new(0x1235)));
    assert!(slot.set_mixed(PageSize::Size2M, gfn, true));
    assert_eq!(slot.disallow(PageSize::Size2M, gfn), LpageInfo::MIXED | 2);
    assert_eq!(slot.disallow(PageSize::Size1G, Gfn::new(0)), 2);
    assert!(slot.untrack(gfn) && slot.untrack(gfn) && !slot.untrack(gfn));
    assert_eq!(slot.disallow(PageSize::Size2M, gfn), LpageInfo::MIXED);
    assert!(slot.set_mixed(PageSize::Size2M, gfn, false));
    assert!(
        slot.overrides
            .iter()
            .flat_map(|both| &**both)
            .all(BTreeMap::is_empty)
    );
    assert!(!slot.track(Gfn::new(0x40000)) && !slot.set_mixed(PageSize::Size4K, gfn, true));
}

proptest! {
    #[test]
    fn agrees_with_dense_arrays(
        base in prop_oneof![0u64..0x8_0000, (0u64..4).prop_map(|g| g << 18), (0u64..64).prop_map(|m| m << 9)],
        pages in prop_oneof![1u64..0x600, 1u64..0x10_0000, (1u64..4).prop_map(|g| g << 18)],
        hva_pages in prop_oneof![Just(None), (0u64..0x10_0000).prop_map(Some)],
        ops in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 0..60),
    ) {
        let hva = hva_pages.unwrap_or(base) << 12;
        let mut slot = lpage(base, pages, hva);
        let mut dense = Dense::new(base, pages, hva);
        let mut tracked = Vec::new();
        for (kind, index) in ops {
            let gfn = base + index.index(usize::try_from(pages).unwrap()) as u64;
            match kind {
                0 => {
                    prop_assert!(slot.track(Gfn::new(gfn)));
                    (0..2).for_each(|at| *dense.word(at, gfn) += 1);
                    tracked.push(gfn);
                }
                1 => {
                    let Some(gfn) = tracked.pop() else { continue };
                    prop_assert!(slot.untrack(Gfn::new(gfn)));
                    (0..2).for_each(|at| *dense.word(at, gfn) -= 1);
                }
                _ => {
                    let at = index.index(2);
                    let word = dense.word(at, gfn);
                    *word = *word & !LpageInfo::MIXED | if kind == 2 { LpageInfo::MIXED } else { 0 };
                    prop_assert!(slot.set_mixed(PageSize::HUGE[at], Gfn::new(gfn), kind == 2));
                }
            }
        }
        for (at, size) in PageSize::HUGE.into_iter().enumerate() {
            prop_assert_eq!(slot.entries(size), dense.words[at].len() as u64);
            let first = base >> size.level().gfn_shift();
            for (frame, word) in (first..).zip(&dense.words[at]) {
                let gfn = Gfn::new(frame << size.level().gfn_shift());
                prop_assert_eq!(slot.disallow(size, gfn), *word);
            }
            let behind = (first + slot.entries(size)) << size.level().gfn_shift();
            prop_assert_eq!(slot.disallow(size, Gfn::new(behind)), 1);
        }
    }
}
