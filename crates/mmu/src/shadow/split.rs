//! Splitting huge leaves of nested guests ahead of time (`mmu.c:kvm_shadow_mmu_try_split_huge_pages`).
//!
//! It is done where the TDP MMU is on and a log is switched on or cleared, so that an L2's writes need not split.

use slat_memslot::{AsId, Gfn, GfnRange, Level, PageSize};

use super::beside::TdpBeside;
use super::get::Follows;
use super::held::ShadowLocked;
use super::page::{ENTRIES, PageId, SpteRef};
use super::rmap::LEAF_LEVELS;
use super::size_at;
use crate::spte::{Format, NxHugePages, Spte, TableRole};
use crate::tdp::{Event, Observer, Progress, Resched, SplitResult};

/// Memory that splits take from (`split_page_header_cache`, `split_desc_cache`), so that none has to be asked for with the lock
/// held. It is filled whenever too little is left.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SplitCaches {
    /// Pages with their headers.
    pages: u64,
    /// Blocks of lists.
    blocks: u64,
}

impl SplitCaches {
    /// A split takes one page, and at worst a block for each entry and one for the link.
    const LEAST: Self = Self {
        pages: 1,
        blocks: ENTRIES as u64 + 1,
    };
    /// What a cache is filled to (`KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE`), beyond what a split takes of blocks.
    const MORE: u64 = 40;

    /// Fills what is too low; says whether anything was.
    fn top_up(&mut self) -> bool {
        let (pages, blocks) = (
            self.pages < Self::LEAST.pages,
            self.blocks < Self::LEAST.blocks,
        );
        if pages {
            self.pages = Self::MORE;
        }
        if blocks {
            self.blocks = Self::LEAST.blocks + Self::MORE;
        }
        pages || blocks
    }
}

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
    /// Splits the huge leaves of a range down to a size, the largest first. Without free pages, what is left is split by
    /// writes. A run that was paused is begun again: it finds what is still huge.
    pub fn split_huge(
        &mut self,
        (as_id, range): (AsId, GfnRange),
        target: PageSize,
        nx: NxHugePages,
        resched: &mut impl Resched,
    ) -> Progress {
        for level in LEAF_LEVELS.into_iter().rev() {
            if level <= target.level() {
                break;
            }
            for gfn in self.frames_with_leafs(as_id, level, range) {
                if resched.is_needed() {
                    return Progress::Paused;
                }
                self.split_over(as_id, (level, gfn), nx);
            }
        }
        Progress::Done
    }

    /// Splits the huge leaves over one frame, the first again and again, since each split changes the list
    /// (`mmu.c:shadow_mmu_try_split_huge_pages`).
    fn split_over(&mut self, as_id: AsId, (level, gfn): (Level, Gfn), nx: NxHugePages) {
        while let Some(leaf) = self.first_to_split(as_id, level, gfn) {
            match self.try_split(leaf, nx) {
                SplitResult::Done | SplitResult::Again => {}
                SplitResult::Lost | SplitResult::OutOfTables | SplitResult::NoRoom => return,
            }
        }
    }

    fn first_to_split(&self, as_id: AsId, level: Level, gfn: Gfn) -> Option<SpteRef> {
        let head = self.mmu.frames.leafs(as_id, level, gfn);
        let splits = |leaf: &SpteRef| {
            let role = self.mmu.pages.get(leaf.page).role;
            role.is_guest_mode() && !role.is_invalid()
        };
        self.mmu.lists.iter(head).find(splits)
    }

    /// One leaf (`mmu.c:shadow_mmu_try_split_huge_page`).
    fn try_split(&mut self, leaf: SpteRef, nx: NxHugePages) -> SplitResult {
        let (spte, level) = (self.entry(leaf), self.level_of(leaf));
        let gfn = self.mmu.pages.get(leaf.page).gfn_of(leaf.index);
        let free = self.mmu.limit.available(self.mmu.used_pages()).raw();
        let result = if free <= self.mmu.rules.least_free {
            SplitResult::NoRoom
        } else if self.mmu.split_caches.top_up() {
            SplitResult::Again
        } else {
            self.split_leaf(leaf, nx)
        };
        self.tell(Event::HugePageSplit {
            gfn,
            spte,
            level,
            result,
        });
        result
    }

    /// Fills a direct page with the parts of a huge leaf, and links it in its place (`mmu.c:shadow_mmu_split_huge_page`).
    fn split_leaf(&mut self, leaf: SpteRef, nx: NxHugePages) -> SplitResult {
        let huge = self.entry(leaf);
        let page = self.mmu.pages.get(leaf.page);
        let (gfn, access) = (page.gfn_of(leaf.index), page.access_of(leaf.index));
        let (taken, used) = (self.mmu.lists.taken(), self.mmu.pages.used);
        let role = self.child_role(leaf, Follows::Line, access);
        let child = self.get_page(gfn, role, &super::guest::NoTables);
        for index in 0..ENTRIES {
            let at = SpteRef { page: child, index };
            // Another huge leaf of the same frame and rights may have filled a part of it.
            if !self.entry(at).is_present() {
                let Some(small) = self.part_of(huge, child, index, nx) else {
                    return SplitResult::Lost;
                };
                let part = self.mmu.pages.get(child).gfn_of(index);
                self.store(at, small);
                self.add_leaf(at, part, access);
            }
        }
        self.link_instead(leaf, child, false);
        let caches = &mut self.mmu.split_caches;
        caches.pages -= self.mmu.pages.used - used;
        let taken = self.mmu.lists.taken() - taken;
        caches.blocks = caches.blocks.saturating_sub(taken);
        SplitResult::Done
    }

    /// A part of a huge leaf; none if it is no huge leaf.
    fn part_of(
        &self,
        huge: Spte<F>,
        child: PageId,
        index: u16,
        nx: NxHugePages,
    ) -> Option<Spte<F>> {
        let (codec, role) = (&self.mmu.codec, self.mmu.pages.get(child).role);
        let table = TableRole {
            size: size_at(role.level()),
            access: role.access(),
            ad: codec.ad_type_of_table(role),
        };
        codec.make_small(huge, &table, index, nx)
    }
}
