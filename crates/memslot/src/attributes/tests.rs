use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn range(start: u64, pages: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), Pages::new(pages)).unwrap()
}

/// Ranges whose borders like to fall on or beside the borders of huge pages, within 3 GiB.
fn any_range() -> impl Strategy<Value = GfnRange> {
    let border = prop_oneof![
        0u64..0xc_0000,
        (0u64..0x600, 0u64..3).prop_map(|(huge, off)| (huge * 0x200 + off).saturating_sub(1)),
        (0u64..4).prop_map(|huge| huge << 18),
    ];
    (border.clone(), border).prop_map(|(a, b)| range(a.min(b), a.abs_diff(b).max(1)))
}

fn any_attributes() -> impl Strategy<Value = Attributes> {
    prop_oneof![
        3 => Just(Attributes::PRIVATE),
        3 => Just(Attributes::empty()),
        1 => Just(Attributes::from_bits_retain(1)),
    ]
}

fn check_invariants(map: &AttributeMap) {
    let runs: Vec<_> = map.iter().collect();
    assert_eq!(runs.len(), map.runs.len());
    assert!(runs.iter().all(|(_, attributes)| !attributes.is_empty()));
    for pair in runs.windows(2) {
        let ((left, a), (right, b)) = (pair[0], pair[1]);
        assert!(left.end() < right.start() || left.end() == right.start() && a != b);
    }
}

/// KVM's own way: a stored mark per huge page, kept up by looking only at what a change touched.
struct Incremental {
    slot: GfnRange,
    marks: [BTreeSet<u64>; 2],
}

impl Incremental {
    /// The marks of a new slot: the smaller size first, since the larger one looks at its marks.
    fn new(map: &AttributeMap, slot: GfnRange) -> Self {
        let mut this = Self {
            slot,
            marks: [BTreeSet::new(), BTreeSet::new()],
        };
        for (at, size) in PageSize::HUGE.into_iter().enumerate() {
            let step = size.pages().raw();
            let mut gfn = slot.start().raw().next_multiple_of(step);
            while gfn + step <= slot.end().raw() {
                let first = map.get(Gfn::new(gfn));
                this.mark(at, gfn, !this.has(map, at, gfn, first));
                gfn += step;
            }
        }
        this
    }

    fn mark(&mut self, at: usize, gfn: u64, mixed: bool) {
        if mixed {
            self.marks[at].insert(gfn);
        } else {
            self.marks[at].remove(&gfn);
        }
    }

    fn has(&self, map: &AttributeMap, at: usize, gfn: u64, attributes: Attributes) -> bool {
        if at == 0 {
            return map.has(range(gfn, 0x200), attributes);
        }
        (gfn..gfn + 0x4_0000)
            .step_by(0x200)
            .all(|gfn| !self.marks[0].contains(&gfn) && map.get(Gfn::new(gfn)) == attributes)
    }

    fn inside(&self, gfn: u64, step: u64) -> bool {
        self.slot.covers(range(gfn, step))
    }

    /// What follows a change of `changed` to `attributes`, which the map holds by now.
    fn update(&mut self, map: &AttributeMap, changed: GfnRange, attributes: Attributes) {
        let Some(changed) = changed.intersection(self.slot) else {
            return;
        };
        let (start, end) = (changed.start().raw(), changed.end().raw());
        for (at, size) in PageSize::HUGE.into_iter().enumerate() {
            let step = size.pages().raw();
            let mut gfn = start / step * step;
            if gfn != start || gfn + step > end {
                if self.inside(gfn, step) {
                    self.mark(at, gfn, !self.has(map, at, gfn, attributes));
                }
                gfn += step;
            }
            while gfn + step <= end {
                self.mark(at, gfn, false);
                gfn += step;
            }
            if gfn < end && self.inside(gfn, step) {
                self.mark(at, gfn, !self.has(map, at, gfn, attributes));
            }
        }
    }
}

#[test]
fn a_tebibyte_is_one_run() {
    let mut map = AttributeMap::new();
    let tebibyte = range(0, 1 << 28);
    assert!(map.set(tebibyte, Attributes::PRIVATE) && !map.set(tebibyte, Attributes::PRIVATE));
    assert_eq!(map.runs.len(), 1);
    assert!(map.set(range(5, 1), Attributes::empty()));
    assert_eq!(map.private_pages(tebibyte), Pages::new((1 << 28) - 1));
    assert_eq!(map.mixed(tebibyte, PageSize::Size1G).count(), 1);
    assert!(map.set(range(5, 1), Attributes::PRIVATE));
    assert_eq!(map.uniform(tebibyte), Some(Attributes::PRIVATE));
    assert!(map.set(tebibyte, Attributes::empty()) && map.is_empty());
}

#[test]
fn the_highest_frames_count_too() {
    let mut map = AttributeMap::new();
    let last = range((1 << 52) - 1, 1);
    assert!(map.set(last, Attributes::PRIVATE));
    assert_eq!(map.ranges(range(0, 1 << 52)).count(), 2);
    assert!(map.is_mixed(range(0, 1 << 52), PageSize::Size1G, last.start()));
    assert!(!map.is_mixed(range(0, 1 << 52), PageSize::Size4K, last.start()));
    assert!(!map.is_mixed(last, PageSize::Size2M, Gfn::new(u64::MAX)));
}

proptest! {
    #[test]
    fn agrees_with_one_word_per_frame(
        sets in prop::collection::vec((0u64..300, 1u64..80, any_attributes()), 0..60),
        probes in prop::collection::vec((0u64..400, 1u64..100, any_attributes()), 1..20),
    ) {
        let (mut map, mut dense) = (AttributeMap::new(), vec![Attributes::empty(); 500]);
        for (start, pages, attributes) in sets {
            let frames = &mut dense[usize::try_from(start).unwrap()..][..usize::try_from(pages).unwrap()];
            let changes = frames.iter().any(|a| *a != attributes);
            frames.fill(attributes);
            prop_assert_eq!(map.set(range(start, pages), attributes), changes);
            check_invariants(&map);
        }
        for (gfn, attributes) in (0..).zip(&dense) {
            prop_assert_eq!(map.get(Gfn::new(gfn)), *attributes);
        }
        for (start, pages, attributes) in probes {
            let frames = &dense[usize::try_from(start).unwrap()..][..usize::try_from(pages).unwrap()];
            let probe = range(start, pages);
            let uniform = frames.iter().all(|a| *a == frames[0]).then_some(frames[0]);
            prop_assert_eq!(map.uniform(probe), uniform);
            prop_assert_eq!(map.has(probe, attributes), frames.iter().all(|a| *a == attributes));
            let spread = map.ranges(probe).flat_map(|(part, a)| {
                (part.start().raw()..part.end().raw()).map(move |gfn| (gfn, a))
            });
            prop_assert!(spread.eq((start..).zip(frames.iter().copied())));
            let private = frames.iter().filter(|a| a.contains(Attributes::PRIVATE)).count();
            prop_assert_eq!(map.private_pages(probe), Pages::new(private as u64));
        }
    }

    /// The pure question gives what KVM's stepwise upkeep leaves behind, whenever the slot was made.
    #[test]
    fn mixed_agrees_with_the_stepwise_upkeep(
        slot in any_range(),
        before in prop::collection::vec((any_range(), any_attributes()), 0..4),
        after in prop::collection::vec((any_range(), any_attributes()), 0..10),
    ) {
        let mut map = AttributeMap::new();
        for (changed, attributes) in before {
            map.set(changed, attributes);
        }
        let mut stepwise = Incremental::new(&map, slot);
        for at in 0..=after.len() {
            for (marks, size) in stepwise.marks.iter().zip(PageSize::HUGE) {
                let mixed: BTreeSet<u64> = map.mixed(slot, size).map(Gfn::raw).collect();
                prop_assert_eq!(&mixed, marks, "{} in {:?}", size, slot);
                let step = size.pages().raw();
                for gfn in (0..0xc_0000).step_by(usize::try_from(step).unwrap()) {
                    let pure = map.is_mixed(slot, size, Gfn::new(gfn + step - 1));
                    prop_assert_eq!(pure, marks.contains(&gfn));
                }
            }
            // KVM leaves before any upkeep when nothing changes.
            if let Some((changed, attributes)) = after.get(at) {
                if map.set(*changed, *attributes) {
                    stepwise.update(&map, *changed, *attributes);
                }
            }
        }
    }
}
