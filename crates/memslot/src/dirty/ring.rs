//! The dirty ring of one vCPU: written by KVM, harvested by userspace, freed by KVM.
//!
//! An entry goes round in three states: empty, published by KVM with its page, harvested by userspace. Two free
//! counters, never reduced, say how far KVM has published and how far it has freed; their difference is the fill.
//! The entries are memory shared with userspace, which may write anything into them
//! (`dirty_ring.c`, `KVM_RESET_DIRTY_RINGS`).

use std::sync::OnceLock;

use crate::DirtyWindow;

/// `struct kvm_dirty_gfn`: one entry, as it lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RingEntry {
    /// 0, [`DIRTY`](Self::DIRTY) or [`RESET`](Self::RESET).
    pub flags: u32,
    /// The slot as in the ioctls: address space in the upper 16 bits, id in the lower.
    pub slot: u32,
    /// The page, relative to the slot.
    pub offset: u64,
}

impl RingEntry {
    /// `KVM_DIRTY_GFN_F_DIRTY`: published by KVM.
    pub const DIRTY: u32 = 1 << 0;
    /// `KVM_DIRTY_GFN_F_RESET`: harvested by userspace.
    pub const RESET: u32 = 1 << 1;
}

/// How full the ring is after a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFill {
    /// Below the soft limit.
    Room,
    /// At the soft limit or above: the vCPU does not enter the guest until userspace has reset the ring.
    SoftFull,
    /// No entry was free, and the oldest was overwritten. KVM warns; the reserve is there to keep this from happening.
    Overrun,
}

/// Pages of one slot, to be armed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rearm {
    /// The slot as userspace left it in the entry; may name a slot that is gone or never was.
    pub slot: u32,
    /// The pages; may lie behind the slot's end, see [`DirtyWindow::last`].
    pub window: DirtyWindow,
}

/// What a reset did.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[must_use]
pub struct RingReset {
    /// The entries freed, counted whether or not their slot exists.
    pub count: u32,
    /// The pages to be armed again, in the order of the entries, merged within 64 pages.
    pub rearm: Vec<Rearm>,
}

/// The ring of one vCPU.
///
/// ```
/// use slat_memslot::{DirtyRing, RingFill};
/// let mut ring = DirtyRing::new(256, 64).unwrap();
/// assert_eq!(ring.push(7, 3), RingFill::Room);
/// assert_eq!(ring.push(7, 5), RingFill::Room);
/// assert_eq!(ring.reset().count, 0); // userspace has not seen them yet
/// assert_eq!(ring.harvest().len(), 2);
/// let reset = ring.reset();
/// assert_eq!((reset.count, reset.rearm[0].window.mask), (2, 0b101));
/// assert_eq!(ring.used(), 0);
/// ```
#[derive(Clone, Debug)]
pub struct DirtyRing {
    /// How many entries there are, a power of two.
    length: u32,
    /// The entries, from the moment that someone looks at them or writes one.
    entries: OnceLock<Vec<RingEntry>>,
    soft_limit: u32,
    /// Where KVM publishes next.
    dirty_index: u32,
    /// Where KVM frees next.
    reset_index: u32,
    /// Where userspace looks next.
    fetch_index: u32,
    /// `KVM_REQ_DIRTY_RING_SOFT_FULL` is pending.
    requested: bool,
}

impl DirtyRing {
    /// An empty ring whose last `reserved` entries are kept for what one run of the guest can still push.
    ///
    /// `None` unless `entries` is a power of two and not below `reserved`.
    pub fn new(entries: u32, reserved: u32) -> Option<Self> {
        let soft_limit = entries.checked_sub(reserved)?;
        entries.is_power_of_two().then(|| Self {
            length: entries,
            entries: OnceLock::new(),
            soft_limit,
            dirty_index: 0,
            reset_index: 0,
            fetch_index: 0,
            requested: false,
        })
    }

    /// The entries, as userspace sees them.
    pub fn entries(&self) -> &[RingEntry] {
        self.entries.get_or_init(|| empty(self.length))
    }

    /// The entries, as userspace may write them; KVM believes its flags only.
    pub fn entries_mut(&mut self) -> &mut [RingEntry] {
        if self.entries.get().is_none() {
            self.entries = OnceLock::from(empty(self.length));
        }
        self.entries.get_mut().map_or(&mut [], Vec::as_mut_slice)
    }

    /// How full the ring may get before the vCPU stops.
    pub const fn soft_limit(&self) -> u32 {
        self.soft_limit
    }

    /// The entries that KVM has published and not freed yet.
    pub const fn used(&self) -> u32 {
        self.dirty_index.wrapping_sub(self.reset_index)
    }

    /// Whether the fill has reached the soft limit.
    pub const fn soft_full(&self) -> bool {
        self.used() >= self.soft_limit
    }

    /// Publishes a page (`dirty_ring.c:kvm_dirty_ring_push`).
    pub fn push(&mut self, slot: u32, offset: u64) -> RingFill {
        let overrun = self.used() >= self.length;
        let at = self.index(self.dirty_index);
        self.entries_mut()[at] = RingEntry {
            flags: RingEntry::DIRTY,
            slot,
            offset,
        };
        self.dirty_index = self.dirty_index.wrapping_add(1);
        let soft_full = self.soft_full();
        self.requested |= soft_full;
        match (overrun, soft_full) {
            (true, _) => RingFill::Overrun,
            (false, true) => RingFill::SoftFull,
            (false, false) => RingFill::Room,
        }
    }

    /// Whether the vCPU must leave with `KVM_EXIT_DIRTY_RING_FULL` instead of entering the guest
    /// (`dirty_ring.c:kvm_dirty_ring_check_request`): a push has filled the ring, and no reset has made room since.
    pub fn blocks_entry(&mut self) -> bool {
        self.requested = self.requested && self.soft_full();
        self.requested
    }

    /// Takes all entries that KVM has published, in order, as userspace should: marks each as harvested.
    pub fn harvest(&mut self) -> Vec<RingEntry> {
        core::iter::from_fn(|| self.harvest_one()).collect()
    }

    /// Takes the next published entry, if there is one.
    fn harvest_one(&mut self) -> Option<RingEntry> {
        let at = self.index(self.fetch_index);
        let entry = self.entries.get_mut()?.get_mut(at)?;
        (entry.flags == RingEntry::DIRTY).then(|| {
            let taken = *entry;
            entry.flags = RingEntry::RESET;
            self.fetch_index = self.fetch_index.wrapping_add(1);
            taken
        })
    }

    /// Frees the harvested entries in order, up to the first that is not harvested
    /// (`dirty_ring.c:kvm_dirty_ring_reset`).
    pub fn reset(&mut self) -> RingReset {
        self.reset_up_to(u32::MAX)
    }

    /// Frees at most `limit` entries: from Linux 6.16 on one call stops at `INT_MAX` of all vCPUs together.
    pub fn reset_up_to(&mut self, limit: u32) -> RingReset {
        let mut reset = RingReset::default();
        while reset.count < limit {
            let at = self.index(self.reset_index);
            let entries = self.entries.get_mut();
            let Some(entry) = entries.and_then(|entries| entries.get_mut(at)) else {
                break;
            };
            if entry.flags & RingEntry::RESET == 0 {
                break;
            }
            entry.flags = 0;
            let merged = reset.rearm.last_mut().is_some_and(|last| last.merge(entry));
            if !merged {
                reset.rearm.push(Rearm::from(&*entry));
            }
            self.reset_index = self.reset_index.wrapping_add(1);
            reset.count += 1;
        }
        reset
    }

    /// The place of a counter's entry.
    fn index(&self, counter: u32) -> usize {
        usize::try_from(counter & (self.length - 1)).unwrap_or(0)
    }
}

fn empty(length: u32) -> Vec<RingEntry> {
    vec![RingEntry::default(); usize::try_from(length).unwrap_or(usize::MAX)]
}

impl From<&RingEntry> for Rearm {
    fn from(entry: &RingEntry) -> Self {
        let window = DirtyWindow {
            offset: entry.offset,
            mask: 1,
        };
        Self {
            slot: entry.slot,
            window,
        }
    }
}

impl Rearm {
    /// Adds the next entry's page if it fits the 64 pages; forwards any bit is free, backwards the window moves, as
    /// long as no page drops out of its upper end.
    fn merge(&mut self, entry: &RingEntry) -> bool {
        let DirtyWindow { offset, mask } = self.window;
        let forwards = entry.offset.checked_sub(offset).filter(|by| *by < 64);
        let backwards = offset.checked_sub(entry.offset).filter(|by| *by < 64);
        let merged = match (forwards, backwards) {
            (Some(by), _) => DirtyWindow {
                offset,
                mask: mask | 1 << by,
            },
            (None, Some(by)) if mask.leading_zeros() >= u32::try_from(by).unwrap_or(64) => {
                DirtyWindow {
                    offset: entry.offset,
                    mask: mask << by | 1,
                }
            }
            _ => return false,
        };
        let same = self.slot == entry.slot;
        if same {
            self.window = merged;
        }
        same
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn filled(pages: &[(u32, u64)]) -> DirtyRing {
        let mut ring = DirtyRing::new(1024, 64).unwrap();
        for (slot, offset) in pages {
            assert_eq!(ring.push(*slot, *offset), RingFill::Room);
        }
        assert_eq!(ring.harvest().len(), pages.len());
        ring
    }

    fn windows(pages: &[(u32, u64)]) -> Vec<(u32, u64, u64)> {
        let reset = filled(pages).reset();
        assert_eq!(reset.count as usize, pages.len());
        let windows = reset.rearm.into_iter();
        windows
            .map(|r| (r.slot, r.window.offset, r.window.mask))
            .collect()
    }

    #[test]
    fn neighbours_merge_in_both_directions() {
        assert_eq!(windows(&[(0, 10), (0, 73)]), [(0, 10, 1 << 63 | 1)]);
        assert_eq!(windows(&[(0, 10), (0, 74)]), [(0, 10, 1), (0, 74, 1)]);
        assert_eq!(windows(&[(0, 73), (0, 10)]), [(0, 10, 1 << 63 | 1)]);
        assert_eq!(windows(&[(0, 74), (0, 10)]), [(0, 74, 1), (0, 10, 1)]);
        assert_eq!(windows(&[(0, 5), (1, 6)]), [(0, 5, 1), (1, 6, 1)]);
        // Bit 63 would drop out of the upper end.
        assert_eq!(
            windows(&[(0, 10), (0, 73), (0, 9)]),
            [(0, 10, 1 << 63 | 1), (0, 9, 1)]
        );
        assert_eq!(windows(&[(0, 4), (0, 4)]), [(0, 4, 1)]);
    }

    #[test]
    fn a_full_ring_blocks_until_it_is_reset() {
        let mut ring = DirtyRing::new(256, 64).unwrap();
        for page in 0..191 {
            assert_eq!(ring.push(0, page), RingFill::Room);
        }
        assert!(!ring.blocks_entry());
        assert_eq!(ring.push(0, 191), RingFill::SoftFull);
        assert!(ring.blocks_entry() && ring.blocks_entry());
        assert_eq!(ring.harvest().len(), 192);
        assert!(ring.blocks_entry());
        assert_eq!(ring.reset_up_to(1).count, 1);
        assert!(!ring.blocks_entry());
        assert_eq!(ring.reset().count, 191);
    }

    #[test]
    fn an_overrun_overwrites_the_oldest() {
        let mut ring = DirtyRing::new(4, 1).unwrap();
        let fills: Vec<_> = (0..5).map(|page| ring.push(0, page)).collect();
        assert_eq!(
            fills[2..],
            [RingFill::SoftFull, RingFill::SoftFull, RingFill::Overrun]
        );
        assert_eq!((ring.entries()[0].offset, ring.used()), (4, 5));
    }

    #[test]
    fn userspace_may_write_anything() {
        let mut ring = filled(&[(0, 1)]);
        ring.entries_mut().fill(RingEntry {
            flags: u32::MAX,
            slot: u32::MAX,
            offset: u64::MAX,
        });
        let reset = ring.reset();
        assert_eq!(reset.count, 1024);
        assert_eq!(reset.rearm.len(), 1);
        assert!(reset.rearm[0].window.iter().eq([u64::MAX]));
        assert!(ring.soft_full());
        assert_eq!(ring.push(0, 0), RingFill::Overrun);
    }

    #[test]
    fn sizes_must_be_powers_of_two() {
        assert!(DirtyRing::new(0, 0).is_none() && DirtyRing::new(3, 1).is_none());
        assert!(DirtyRing::new(64, 65).is_none() && DirtyRing::new(64, 64).is_some());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Push(u32, u64),
        Harvest,
        Reset(u32),
    }

    fn operation() -> impl Strategy<Value = Op> {
        prop_oneof![
            8 => (0u32..2, 0u64..300).prop_map(|(slot, page)| Op::Push(slot, page)),
            1 => Just(Op::Harvest),
            1 => (0u32..40).prop_map(Op::Reset),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_two_queues(ops in prop::collection::vec(operation(), 0..400)) {
            let mut ring = DirtyRing::new(32, 8).unwrap();
            let (mut published, mut harvested) = (VecDeque::new(), VecDeque::new());
            for op in ops {
                match op {
                    Op::Push(..) if ring.soft_full() => prop_assert!(ring.blocks_entry()),
                    Op::Push(slot, page) => {
                        let fill = ring.push(slot, page);
                        published.push_back((slot, page));
                        let full = published.len() + harvested.len() >= 24;
                        prop_assert_eq!(fill, if full { RingFill::SoftFull } else { RingFill::Room });
                    }
                    Op::Harvest => {
                        let taken: Vec<_> = ring.harvest().iter().map(|e| (e.slot, e.offset)).collect();
                        prop_assert!(taken.iter().eq(&published));
                        harvested.extend(published.drain(..));
                    }
                    Op::Reset(limit) => {
                        let reset = ring.reset_up_to(limit);
                        let count = harvested.len().min(limit as usize);
                        prop_assert_eq!(reset.count as usize, count);
                        let mut freed: Vec<(u32, u64)> = harvested.drain(..count).collect();
                        freed.sort_unstable();
                        freed.dedup();
                        let mut pages: Vec<(u32, u64)> = reset.rearm.iter()
                            .flat_map(|r| r.window.iter().map(|page| (r.slot, page)))
                            .collect();
                        pages.sort_unstable();
                        pages.dedup();
                        prop_assert_eq!(pages, freed);
                    }
                }
                prop_assert_eq!(ring.used() as usize, published.len() + harvested.len());
            }
        }
    }
}
