//! Replacing a huge leaf by a table of smaller ones (`tdp_mmu.c:tdp_mmu_split_huge_page`), where a fault needs it and
//! ahead of time.

use slat_memslot::{AsId, Gfn, GfnRange, Level, PageSize};

use super::cursor::Cursor;
use super::events::{Event, Observer, SplitResult};
use super::leaves::Leaves;
use super::lock::Locked;
use super::resched::{Progress, Resched};
use super::root::OutOfTables;
use super::rootwalk::RootWalk;
use super::store::{NotStored, Store};
use crate::roots::RootSelect;
use crate::spte::{NxHugePages, Spte, TableRole};
use crate::sync::Ordering;
use crate::table::{ENTRIES, TableId};

/// The size of the leaves of a level, or of a level that has none: what the huge leaf above it is.
const fn child_size(level: Level) -> Option<PageSize> {
    match level {
        Level::L2 => Some(PageSize::Size4K),
        Level::L3 => Some(PageSize::Size2M),
        Level::L1 | Level::L4 | Level::L5 => None,
    }
}

impl<S: Store, O: Observer<S::Format>> Locked<S, O> {
    /// Fills a table with the parts of the huge leaf at the cursor, and puts the link in its place. No TLB has to be
    /// flushed, since the translation stays the same.
    pub(super) fn split_into(
        &mut self,
        cursor: &mut Cursor<S::Format>,
        child: TableId,
        nx_huge_pages: NxHugePages,
    ) -> Result<(), NotStored> {
        let (huge, level) = (cursor.old, cursor.level());
        let result = match self.fill_split(huge, level, child, nx_huge_pages) {
            Some(()) => {
                let link = self.tables().link_to(child);
                S::replace(self, cursor, link)
            }
            // The entry is no huge leaf any more.
            None => Err(NotStored::Lost),
        };
        if result.is_ok() {
            self.counts().add_tables(1);
            if let Some(below) = level.child() {
                self.counts().add_leaves(below, ENTRIES as i64);
            }
        }
        self.report_split(
            Gfn::new(cursor.gfn()),
            huge,
            level,
            match result {
                Ok(()) => SplitResult::Done,
                Err(NotStored::Lost | NotStored::Busy) => SplitResult::Lost,
            },
        );
        result
    }

    /// Writes the parts into a table that nobody sees yet.
    fn fill_split(
        &self,
        huge: Spte<S::Format>,
        level: Level,
        child: TableId,
        nx_huge_pages: NxHugePages,
    ) -> Option<()> {
        let tables = self.tables();
        let role = tables.page(child).role();
        let child_role = TableRole {
            size: child_size(level)?,
            access: role.access(),
            ad: tables.codec.ad_type_of_table(role),
        };
        for (index, entry) in (0_u16..).zip(tables.arena.table(child)) {
            let small = tables
                .codec
                .make_small(huge, &child_role, index, nx_huge_pages)?;
            entry.store(small.raw(), Ordering::Relaxed);
        }
        tables.learn_of_new(child, Leaves::All);
        Some(())
    }

    fn report_split(&mut self, gfn: Gfn, spte: Spte<S::Format>, level: Level, result: SplitResult) {
        if O::EVENTS {
            self.observer.event(Event::HugePageSplit {
                gfn,
                spte,
                level,
                result,
            });
        }
    }
}

/// Splits the huge leaves of a range down to a size (`tdp_mmu.c:kvm_tdp_mmu_try_split_huge_pages`), in all valid roots of an
/// address space.
#[derive(Debug)]
#[must_use = "it does nothing until it is run"]
pub struct SplitHugePages {
    walk: RootWalk,
    target: PageSize,
    nx_huge_pages: NxHugePages,
}

impl SplitHugePages {
    /// Leaves larger than `target` that overlap the range are to be split.
    pub fn new(as_id: AsId, range: GfnRange, target: PageSize, nx_huge_pages: NxHugePages) -> Self {
        Self {
            walk: RootWalk::new(RootSelect::Valid, Some(as_id), range),
            target,
            nx_huge_pages,
        }
    }

    /// Splits until it is over or `resched` wants to give way.
    ///
    /// # Errors
    /// A table is needed and there is none. Leaves before are split.
    pub fn run<S: Store, O: Observer<S::Format>, R: Resched>(
        &mut self,
        locked: &mut Locked<S, O>,
        resched: &mut R,
    ) -> Result<Progress, OutOfTables> {
        let min_level = match self.target {
            PageSize::Size4K => Level::L2,
            PageSize::Size2M | PageSize::Size1G => Level::L3,
        };
        if self.target == PageSize::Size1G {
            return Ok(Progress::Done);
        }
        while let Some((root, from)) = self.walk.current(locked) {
            let mut cursor = Cursor::start(locked.tables(), root, min_level, from);
            while cursor.is_before(self.walk.end()) {
                if self.walk.gives_way(&cursor, resched) {
                    return Ok(Progress::Paused);
                }
                let retry = self.visit(locked, &mut cursor);
                match retry {
                    Err(error) => {
                        self.walk.stop(locked);
                        return Err(error);
                    }
                    Ok(true) => {}
                    Ok(false) => cursor.advance(locked.tables()),
                }
            }
            self.walk.next_root();
        }
        Ok(Progress::Done)
    }

    /// Splits the entry at the cursor if it has to be. Says whether to look at it again, since another thread was
    /// faster.
    fn visit<S: Store, O: Observer<S::Format>>(
        &self,
        locked: &mut Locked<S, O>,
        cursor: &mut Cursor<S::Format>,
    ) -> Result<bool, OutOfTables> {
        if !cursor.old.is_present() || !cursor.old.is_large() {
            return Ok(false);
        }
        let Some(child) = locked.allocate_child(cursor) else {
            locked.report_split(
                Gfn::new(cursor.gfn()),
                cursor.old,
                cursor.level(),
                SplitResult::OutOfTables,
            );
            return Err(OutOfTables);
        };
        let split = locked.split_into(cursor, child, self.nx_huge_pages);
        if split.is_err() {
            locked.tables().arena.recycle(child);
        }
        Ok(split == Err(NotStored::Lost))
    }
}
