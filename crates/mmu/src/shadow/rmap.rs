//! Which leaves map a frame (`struct kvm_rmap_head`), and which frames must not be written to or be part of a huge page.

use slat_memslot::{AsId, Gfn, Level};

use super::pte_list::ListHead;
use super::sparse::Sparse;

/// Address spaces.
const SPACES: usize = 2;

/// The levels that leaves can have.
pub(super) const LEAF_LEVELS: [Level; 3] = [Level::L1, Level::L2, Level::L3];

/// What is known of the frames of one address space.
#[derive(Clone, Debug, Default)]
struct Space {
    /// By level: the leaves that begin at a frame.
    leafs: [Sparse<ListHead>; LEAF_LEVELS.len()],
    /// How many pages, or users outside, want to see every write to a frame (`gfn_write_track`).
    tracked: Sparse<u16>,
    /// By huge level: reasons against a huge page, beside those that the slot itself has (`disallow_lpage`).
    small: [Sparse<u32>; 2],
}

/// The same for a VM. KVM keeps it in slots; a frame belongs to one slot at a time, and a slot that goes leaves nothing behind.
#[derive(Clone, Debug, Default)]
pub(super) struct Frames {
    spaces: [Space; SPACES],
}

/// The huge levels.
const HUGE: [Level; 2] = [Level::L2, Level::L3];

fn of_level(level: Level) -> usize {
    level as usize - 1
}

impl Frames {
    fn space(&self, as_id: AsId) -> &Space {
        &self.spaces[as_id.index() % SPACES]
    }

    fn space_mut(&mut self, as_id: AsId) -> &mut Space {
        &mut self.spaces[as_id.index() % SPACES]
    }

    /// The leaves of a level over a frame.
    pub(super) fn leafs(&self, as_id: AsId, level: Level, gfn: Gfn) -> ListHead {
        let at = gfn.raw() >> level.gfn_shift();
        self.space(as_id).leafs[of_level(level)].get(at)
    }

    pub(super) fn set_leafs(&mut self, as_id: AsId, level: Level, gfn: Gfn, head: ListHead) {
        let at = gfn.raw() >> level.gfn_shift();
        self.space_mut(as_id).leafs[of_level(level)].set(at, head);
    }

    /// The next frame from one on, up to and without the end, over which there are leaves of a level.
    pub(super) fn next_leafs(
        &self,
        as_id: AsId,
        level: Level,
        from: Gfn,
        end: Gfn,
    ) -> Option<(Gfn, ListHead)> {
        let shift = level.gfn_shift();
        let last = end.raw().checked_sub(1)? >> shift;
        let found = self.space(as_id).leafs[of_level(level)].next(from.raw() >> shift..last + 1);
        found.map(|(at, head)| (Gfn::new(at << shift), head))
    }

    /// All lists of an address space and level.
    pub(super) fn all_leafs(
        &self,
        as_id: AsId,
        level: Level,
    ) -> impl Iterator<Item = (Gfn, ListHead)> + '_ {
        let all = self.space(as_id).leafs[of_level(level)].iter();
        all.map(move |(at, head)| (Gfn::new(at << level.gfn_shift()), head))
    }

    /// How many want to see every write to a frame.
    pub(super) fn tracked(&self, as_id: AsId, gfn: Gfn) -> u16 {
        self.space(as_id).tracked.get(gfn.raw())
    }

    pub(super) fn all_tracked(&self, as_id: AsId) -> impl Iterator<Item = (Gfn, u16)> + '_ {
        let all = self.space(as_id).tracked.iter();
        all.map(|(at, count)| (Gfn::new(at), count))
    }

    /// One more (`page_track.c:__kvm_write_track_add_gfn`). A counter that is full stays.
    pub(super) fn track(&mut self, as_id: AsId, gfn: Gfn) {
        let count = self.tracked(as_id, gfn).saturating_add(1);
        self.space_mut(as_id).tracked.set(gfn.raw(), count);
    }

    /// One less.
    pub(super) fn untrack(&mut self, as_id: AsId, gfn: Gfn) {
        let count = self.tracked(as_id, gfn).saturating_sub(1);
        self.space_mut(as_id).tracked.set(gfn.raw(), count);
    }

    /// The reasons that shadow pages give against a huge page around a frame.
    pub(super) fn small(&self, as_id: AsId, level: Level, gfn: Gfn) -> u32 {
        let at = HUGE.iter().position(|huge| *huge == level);
        let words = at.map(|at| &self.space(as_id).small[at]);
        words.map_or(0, |words| words.get(gfn.raw() >> level.gfn_shift()))
    }

    pub(super) fn all_small(
        &self,
        as_id: AsId,
        level: Level,
    ) -> impl Iterator<Item = (Gfn, u32)> + '_ {
        let at = HUGE.iter().position(|huge| *huge == level);
        let words = at.map(|at| self.space(as_id).small[at].iter());
        let words = words.into_iter().flatten();
        words.map(move |(at, count)| (Gfn::new(at << level.gfn_shift()), count))
    }

    /// Counts a reason against huge pages around a frame, at both levels (`mmu.c:kvm_mmu_gfn_disallow_lpage`).
    pub(super) fn disallow_huge(&mut self, as_id: AsId, gfn: Gfn) {
        self.change_small(as_id, gfn, |count| count.saturating_add(1));
    }

    /// Takes one back (`mmu.c:kvm_mmu_gfn_allow_lpage`).
    pub(super) fn allow_huge(&mut self, as_id: AsId, gfn: Gfn) {
        self.change_small(as_id, gfn, |count| count.saturating_sub(1));
    }

    fn change_small(&mut self, as_id: AsId, gfn: Gfn, change: impl Fn(u32) -> u32) {
        let space = self.space_mut(as_id);
        for (level, words) in HUGE.into_iter().zip(&mut space.small) {
            let at = gfn.raw() >> level.gfn_shift();
            words.set(at, change(words.get(at)));
        }
    }
}
