//! Memory attributes of a VM: which guest frames are private.
//!
//! KVM keeps one word per frame and updates them one by one, so that a call costs as much as its range has frames
//! (`kvm_main.c:kvm_vm_set_mem_attributes`). Here equal neighbours share one entry: setting a range costs as much
//! as there are borders in it, also for 1 TiB. KVM has no call that reads attributes back; a VMM can ask this map.
//!
//! Invariants: no stored run is empty or has no attribute; runs do not overlap; runs that touch differ.

use std::collections::BTreeMap;
use std::iter::FusedIterator;

use crate::{Attributes, Gfn, GfnRange, PageSize, Pages};

/// The attributes of all guest frames of a VM; frames that were never set have none, that is, they are shared.
///
/// ```
/// use slat_memslot::{AttributeMap, Attributes, Gfn, GfnRange, Pages};
/// let range = |start, pages| GfnRange::new(Gfn::new(start), Pages::new(pages)).unwrap();
/// let mut map = AttributeMap::new();
/// assert!(map.set(range(0x100, 1 << 28), Attributes::PRIVATE));
/// assert!(map.set(range(0x200, 0x10), Attributes::empty()));
/// assert_eq!(map.get(Gfn::new(0x1ff)), Attributes::PRIVATE);
/// assert_eq!(map.uniform(range(0x200, 0x11)), None);
/// assert_eq!(map.iter().count(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttributeMap {
    /// Runs with attributes, by first frame.
    runs: BTreeMap<Gfn, Run>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    end: Gfn,
    attributes: Attributes,
}

/// The frame behind all frames.
const END: Gfn = Gfn::new(u64::MAX);

impl AttributeMap {
    /// No frame has an attribute.
    pub const fn new() -> Self {
        Self {
            runs: BTreeMap::new(),
        }
    }

    /// Whether no frame has an attribute.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The attributes of one frame (`kvm_get_memory_attributes`).
    pub fn get(&self, gfn: Gfn) -> Attributes {
        self.run_at(gfn).attributes
    }

    /// Gives every frame of `range` these attributes and no others; whether that changed any.
    pub fn set(&mut self, range: GfnRange, attributes: Attributes) -> bool {
        if self.has(range, attributes) {
            return false;
        }
        self.split(range.start());
        self.split(range.end());
        self.remove_runs(range);
        if !attributes.is_empty() {
            self.insert(range, attributes);
        }
        true
    }

    /// The attributes of all frames of `range`, when they are the same.
    pub fn uniform(&self, range: GfnRange) -> Option<Attributes> {
        // Neighbours that touch differ, so the first run decides.
        let run = self.run_at(range.start());
        (run.end >= range.end()).then_some(run.attributes)
    }

    /// Whether every frame of `range` has exactly these attributes (`kvm_range_has_memory_attributes`).
    pub fn has(&self, range: GfnRange, attributes: Attributes) -> bool {
        self.uniform(range) == Some(attributes)
    }

    /// `range` cut where attributes change, ascending; parts without attributes are included.
    pub fn ranges(&self, range: GfnRange) -> AttributeRanges<'_> {
        AttributeRanges {
            map: self,
            rest: Some(range),
        }
    }

    /// The ranges that have attributes, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (GfnRange, Attributes)> + '_ {
        self.runs.iter().filter_map(|(start, run)| {
            GfnRange::between(*start, run.end).map(|range| (range, run.attributes))
        })
    }

    /// The private parts of `range`, ascending.
    pub fn private(&self, range: GfnRange) -> impl Iterator<Item = GfnRange> + '_ {
        self.ranges(range)
            .filter(|(_, attributes)| attributes.contains(Attributes::PRIVATE))
            .map(|(range, _)| range)
    }

    /// How many frames of `range` are private.
    pub fn private_pages(&self, range: GfnRange) -> Pages {
        self.private(range)
            .map(GfnRange::pages)
            .fold(Pages::new(0), |sum, pages| sum + pages)
    }

    /// Whether KVM has the huge page around `gfn` marked as mixed in a slot over `slot`.
    ///
    /// KVM keeps that mark up to date step by step, at the slot's creation and after each change
    /// (`mmu.c:kvm_mmu_init_memslot_memory_attributes`, `mmu.c:kvm_arch_post_set_memory_attributes`). Both come to
    /// this: the huge page lies inside the slot as a whole, and its frames differ. Huge pages that stick out are
    /// never marked, as alignment forbids them already.
    ///
    /// ```
    /// use slat_memslot::{AttributeMap, Attributes, Gfn, GfnRange, PageSize, Pages};
    /// let range = |start, pages| GfnRange::new(Gfn::new(start), Pages::new(pages)).unwrap();
    /// let mut map = AttributeMap::new();
    /// map.set(range(0x210, 1), Attributes::PRIVATE);
    /// assert!(map.is_mixed(range(0x200, 0x400), PageSize::Size2M, Gfn::new(0x3ff)));
    /// assert!(!map.is_mixed(range(0x200, 0x400), PageSize::Size2M, Gfn::new(0x400)));
    /// assert!(!map.is_mixed(range(0x201, 0x400), PageSize::Size2M, Gfn::new(0x210)));
    /// ```
    pub fn is_mixed(&self, slot: GfnRange, size: PageSize, gfn: Gfn) -> bool {
        GfnRange::new(gfn.round_down(size.level()), size.pages())
            .is_some_and(|huge| slot.covers(huge) && self.uniform(huge).is_none())
    }

    /// The first frames of all huge pages of a slot that are mixed, ascending, without looking at the others.
    pub fn mixed(&self, slot: GfnRange, size: PageSize) -> impl Iterator<Item = Gfn> + '_ {
        let mut previous = None;
        // A mixed huge page is one with a border inside, and each border is the start of a part.
        self.ranges(slot)
            .map(move |(part, _)| part.start())
            .filter(move |border| *border != border.round_down(size.level()))
            .map(move |border| border.round_down(size.level()))
            .filter(move |huge| previous.replace(*huge) != Some(*huge))
            .filter(move |huge| self.is_mixed(slot, size, *huge))
    }

    /// The run that holds `gfn`, also one without attributes; its end is where attributes change next.
    fn run_at(&self, gfn: Gfn) -> Run {
        let before = self.runs.range(..=gfn).next_back();
        if let Some((_, run)) = before.filter(|(_, run)| gfn < run.end) {
            return *run;
        }
        let next = self.runs.range(gfn..).next();
        Run {
            end: next.map_or(END, |(start, _)| *start),
            attributes: Attributes::empty(),
        }
    }

    /// Cuts the run that has `at` inside in two, for the moment of a change.
    fn split(&mut self, at: Gfn) {
        let Some((_, run)) = self.runs.range_mut(..at).next_back() else {
            return;
        };
        if run.end > at {
            let upper = *run;
            run.end = at;
            self.runs.insert(at, upper);
        }
    }

    /// Drops all runs inside `range`, whose borders have been cut before.
    fn remove_runs(&mut self, range: GfnRange) {
        let next = |runs: &BTreeMap<Gfn, Run>| {
            let (start, _) = runs.range(range.start()..range.end()).next()?;
            Some(*start)
        };
        while let Some(start) = next(&self.runs) {
            self.runs.remove(&start);
        }
    }

    /// Adds a run where there is none, joined with equal neighbours.
    fn insert(&mut self, range: GfnRange, attributes: Attributes) {
        let mut end = range.end();
        let right = self.runs.get(&end).copied();
        if let Some(right) = right.filter(|right| right.attributes == attributes) {
            self.runs.remove(&end);
            end = right.end;
        }
        let left = self.runs.range_mut(..range.start()).next_back();
        match left {
            Some((_, left)) if left.end == range.start() && left.attributes == attributes => {
                left.end = end;
            }
            _ => {
                self.runs.insert(range.start(), Run { end, attributes });
            }
        }
    }
}

/// The parts of a range with equal attributes; made by [`AttributeMap::ranges`].
#[derive(Clone, Debug)]
pub struct AttributeRanges<'a> {
    map: &'a AttributeMap,
    rest: Option<GfnRange>,
}

impl Iterator for AttributeRanges<'_> {
    type Item = (GfnRange, Attributes);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest?;
        let run = self.map.run_at(rest.start());
        let end = run.end.min(rest.end());
        self.rest = GfnRange::between(end, rest.end());
        Some((GfnRange::between(rest.start(), end)?, run.attributes))
    }
}

impl FusedIterator for AttributeRanges<'_> {}

#[cfg(test)]
mod tests;
