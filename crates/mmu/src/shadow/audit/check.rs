//! The checks.

use std::collections::{BTreeMap, BTreeSet};

use slat_memslot::{AsId, Gfn, Level};

use super::{ShadowCode, ShadowPlace, ShadowViolation};
use crate::role::PageRole;
use crate::shadow::ShadowMmu;
use crate::shadow::page::{ENTRIES, NxDisallowed, Page, PageId, SpteRef};
use crate::shadow::rmap::LEAF_LEVELS;
use crate::spte::Format;

/// An audit under way.
pub(super) struct Audit<'a, F: Format> {
    mmu: &'a ShadowMmu<F>,
    pub(super) violations: Vec<ShadowViolation>,
    leafs: BTreeMap<Level, u64>,
}

const SPACES: [AsId; 2] = [AsId::NORMAL, AsId::SMM];

impl<'a, F: Format> Audit<'a, F> {
    pub(super) fn new(mmu: &'a ShadowMmu<F>) -> Self {
        Self {
            mmu,
            violations: Vec::new(),
            leafs: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, code: ShadowCode, place: ShadowPlace) {
        self.violations.push(ShadowViolation { code, place });
    }

    fn expect(&mut self, holds: bool, code: ShadowCode, place: ShadowPlace) {
        if !holds {
            self.add(code, place);
        }
    }

    pub(super) fn everything(&mut self) {
        let mmu = self.mmu;
        for (id, page) in mmu.pages.iter() {
            self.page(id, page);
            for index in 0..ENTRIES {
                self.entry(SpteRef { page: id, index }, page);
            }
        }
        self.lists();
        self.followed_tables();
        self.active();
        self.counts();
        self.nx();
    }

    fn page(&mut self, id: PageId, page: &Page<F>) {
        let place = ShadowPlace::Page(id);
        let mmu = self.mmu;
        for parent in mmu.lists.iter(page.parents) {
            let entry = mmu
                .pages
                .try_get(parent.page)
                .map(|above| (above.entry(parent.index), above.level()));
            let leads_here = entry.is_some_and(|(spte, level)| {
                spte.is_link(level) && mmu.codec.pfn(spte).raw() == u64::from(id.raw())
            });
            self.expect(leads_here, ShadowCode::StaleParent, place);
        }
        let may_be_unsync = page.level() == Level::L1 && page.has_gptes();
        self.expect(!page.unsync || may_be_unsync, ShadowCode::UnsyncPage, place);
        if page.role.is_invalid() {
            let held = mmu.root_count(id) > 0;
            let empty = (0..ENTRIES).all(|index| !page.entry(index).is_present());
            let alone = page.parents.is_empty();
            self.expect(held && empty && alone, ShadowCode::WaitingPage, place);
        }
    }

    fn entry(&mut self, at: SpteRef, page: &Page<F>) {
        let (mmu, spte) = (self.mmu, page.entry(at.index));
        let level = page.level();
        if spte.is_leaf(level) {
            self.leaf(at, page);
        } else if spte.is_present() {
            self.link(at, page);
        } else {
            let known = mmu.codec.is_nonpresent(spte) || mmu.codec.is_mmio(spte);
            self.expect(known, ShadowCode::NonpresentValue, ShadowPlace::Entry(at));
        }
        let marked = page.unsync_children.has(at.index);
        let below = self.is_unsync_below(at, page);
        // A mark may outlive its reason, but not the other way round.
        self.expect(
            marked || !below,
            ShadowCode::UnsyncMarks,
            ShadowPlace::Entry(at),
        );
        if at.index == 0 {
            let bits: u32 = page
                .unsync_children
                .bits
                .iter()
                .map(|word| word.count_ones())
                .sum();
            let counted = bits == page.unsync_children.count;
            self.expect(counted, ShadowCode::UnsyncMarks, ShadowPlace::Page(at.page));
        }
    }

    fn is_unsync_below(&self, at: SpteRef, page: &Page<F>) -> bool {
        let spte = page.entry(at.index);
        let child = spte.is_link(page.level()).then(|| self.child(spte));
        let child = child.and_then(|id| self.mmu.pages.try_get(id));
        child.is_some_and(|child| child.unsync || child.unsync_children.count > 0)
    }

    fn child(&self, spte: crate::spte::Spte<F>) -> PageId {
        PageId::new(u32::try_from(self.mmu.codec.pfn(spte).raw()).unwrap_or(u32::MAX))
    }

    fn leaf(&mut self, at: SpteRef, page: &Page<F>) {
        let (level, gfn) = (page.level(), page.gfn_of(at.index));
        *self.leafs.entry(level).or_default() += 1;
        let head = self.mmu.frames.leafs(page.role.as_id(), level, gfn);
        let times = self.mmu.lists.iter(head).filter(|one| *one == at).count();
        self.expect(
            times == 1,
            ShadowCode::LeafNotListed,
            ShadowPlace::Entry(at),
        );
    }

    fn link(&mut self, at: SpteRef, page: &Page<F>) {
        let place = ShadowPlace::Entry(at);
        let child = self.child(page.entry(at.index));
        let Some(below) = self.mmu.pages.try_get(child) else {
            return self.add(ShadowCode::DanglingLink, place);
        };
        let fits = page.level().child() == Some(below.level());
        self.expect(
            fits && !below.role.is_invalid(),
            ShadowCode::DanglingLink,
            place,
        );
        let parents = self.mmu.lists.iter(below.parents);
        let times = parents.filter(|parent| *parent == at).count();
        self.expect(times == 1, ShadowCode::ParentNotListed, place);
        if page.role.is_direct() && below.role.is_direct() {
            let linear = page.gfn_of(at.index) == below.gfn;
            self.expect(linear, ShadowCode::LinearGfn, place);
        }
    }

    /// What is in the lists is a leaf of the list's frame.
    fn lists(&mut self) {
        let mmu = self.mmu;
        for (as_id, level) in SPACES
            .into_iter()
            .flat_map(|id| LEAF_LEVELS.map(|at| (id, at)))
        {
            for (gfn, head) in mmu.frames.all_leafs(as_id, level) {
                for at in mmu.lists.iter(head) {
                    let page = mmu.pages.try_get(at.page);
                    let fits = page.is_some_and(|page| {
                        let frame = page.gfn_of(at.index).round_down(level);
                        let here = page.level() == level && page.role.as_id() == as_id;
                        here && page.entry(at.index).is_leaf(level) && frame == gfn
                    });
                    let place = ShadowPlace::Frame(as_id, level, gfn);
                    self.expect(fits, ShadowCode::StaleListEntry, place);
                }
            }
        }
    }

    /// Frames of tables that are followed: tracked, small, and not writable.
    fn followed_tables(&mut self) {
        let mmu = self.mmu;
        let mut tracked: BTreeMap<(AsId, Gfn), u16> = BTreeMap::new();
        let mut small: BTreeMap<(AsId, Level, Gfn), u32> = BTreeMap::new();
        let mut in_step: BTreeSet<(AsId, Gfn)> = BTreeSet::new();
        let follows = |page: &Page<F>| page.has_gptes() && !page.role.is_invalid();
        for (id, page) in mmu.pages.iter().filter(|(_, page)| follows(page)) {
            let (as_id, gfn) = (page.role.as_id(), page.gfn);
            if page.level() > Level::L1 {
                *tracked.entry((as_id, gfn)).or_default() += 1;
            }
            for level in [Level::L2, Level::L3] {
                *small
                    .entry((as_id, level, gfn.round_down(level)))
                    .or_default() += 1;
            }
            // Nobody asks an obsolete page of the last level whether its table may be written to.
            let asked = page.level() > Level::L1 || !mmu.is_obsolete(id);
            if asked && !page.unsync {
                in_step.insert((as_id, gfn));
            }
        }
        for as_id in SPACES {
            let found: BTreeMap<_, _> = mmu.frames.all_tracked(as_id).collect();
            let wanted = tracked.iter().filter(|((space, _), _)| *space == as_id);
            let wanted: BTreeMap<_, _> = wanted.map(|((_, gfn), n)| (*gfn, *n)).collect();
            self.compare(ShadowCode::TrackCount, (as_id, Level::L1), &wanted, &found);
            for level in [Level::L2, Level::L3] {
                let found: BTreeMap<_, _> = mmu.frames.all_small(as_id, level).collect();
                let wanted = small
                    .iter()
                    .filter(|((space, at, _), _)| (*space, *at) == (as_id, level));
                let wanted: BTreeMap<_, _> = wanted.map(|((_, _, gfn), n)| (*gfn, *n)).collect();
                self.compare(ShadowCode::HugeCount, (as_id, level), &wanted, &found);
            }
        }
        for (as_id, gfn) in in_step {
            self.is_protected(as_id, gfn);
        }
    }

    fn compare<T: PartialEq + Copy>(
        &mut self,
        code: ShadowCode,
        (as_id, level): (AsId, Level),
        wanted: &BTreeMap<Gfn, T>,
        found: &BTreeMap<Gfn, T>,
    ) {
        let frames: BTreeSet<Gfn> = wanted.keys().chain(found.keys()).copied().collect();
        for gfn in frames {
            let same = wanted.get(&gfn) == found.get(&gfn);
            self.expect(same, code, ShadowPlace::Frame(as_id, level, gfn));
        }
    }

    fn is_protected(&mut self, as_id: AsId, gfn: Gfn) {
        let mmu = self.mmu;
        for level in LEAF_LEVELS {
            for at in mmu.lists.iter(mmu.frames.leafs(as_id, level, gfn)) {
                let page = mmu.pages.try_get(at.page);
                let writable = page.is_some_and(|page| {
                    let spte = page.entry(at.index);
                    spte.is_writable() || mmu.codec.is_mmu_writable(spte)
                });
                self.expect(!writable, ShadowCode::WritableTable, ShadowPlace::Entry(at));
            }
        }
    }

    fn active(&mut self) {
        let mmu = self.mmu;
        let active: Vec<PageId> = mmu.pages.newest_first().collect();
        let mut back: Vec<PageId> = mmu.pages.oldest_first().collect();
        back.reverse();
        let as_set: BTreeSet<PageId> = active.iter().copied().collect();
        let valid = mmu.pages.iter().filter(|(_, page)| !page.role.is_invalid());
        let valid: BTreeSet<PageId> = valid.map(|(id, _)| id).collect();
        let once = active.len() == as_set.len();
        let same = once && active == back && as_set == valid;
        self.expect(same, ShadowCode::ActivePages, ShadowPlace::Everything);
        let mut seen: BTreeSet<(Gfn, PageRole)> = BTreeSet::new();
        for id in valid.into_iter().filter(|id| !mmu.is_obsolete(*id)) {
            let page = mmu.pages.get(id);
            let new = seen.insert((page.gfn, page.role));
            self.expect(new, ShadowCode::SamePageTwice, ShadowPlace::Page(id));
        }
    }

    fn nx(&mut self) {
        let mmu = self.mmu;
        let recoverable = |page: &Page<F>| page.nx == NxDisallowed::Recoverable;
        for (id, page) in mmu.pages.iter().filter(|(_, page)| recoverable(page)) {
            let listed = mmu.possible_nx.iter().filter(|other| **other == id).count();
            let sound = listed == 1 && page.role.is_direct();
            self.expect(sound, ShadowCode::NxPages, ShadowPlace::Page(id));
        }
        let all = mmu.possible_nx.iter();
        let stale = all
            .filter(|id| !mmu.pages.try_get(**id).is_some_and(recoverable))
            .count();
        let counted = mmu.stats.nx_lpage_splits == mmu.possible_nx.len() as u64;
        self.expect(
            stale == 0 && counted,
            ShadowCode::NxPages,
            ShadowPlace::Everything,
        );
    }

    fn counts(&mut self) {
        let mmu = self.mmu;
        let count = |wanted: &dyn Fn(&Page<F>) -> bool| {
            mmu.pages.iter().filter(|(_, page)| wanted(page)).count() as u64
        };
        let everything = ShadowPlace::Everything;
        let all = count(&|_| true);
        self.expect(all == mmu.pages.used, ShadowCode::UsedCount, everything);
        for level in LEAF_LEVELS {
            let found = self.leafs.get(&level).copied().unwrap_or(0);
            let told = mmu.stats.leafs(crate::shadow::size_at(level));
            self.expect(found == told, ShadowCode::LeafCount, everything);
        }
        let following = count(&|page| page.has_gptes() && !page.role.is_invalid());
        self.expect(
            following == mmu.indirect,
            ShadowCode::IndirectCount,
            everything,
        );
        let unsync = count(&|page| page.unsync);
        self.expect(
            unsync == mmu.stats.mmu_unsync,
            ShadowCode::UnsyncCount,
            everything,
        );
    }
}
