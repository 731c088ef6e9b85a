//! Mapping many pages at once, with the tables to oneself: what is known about a range before the guest asks for it.

use core::ops::Range;

use slat_memslot::{Gfn, Level, PageSize, Pages};

use super::cursor::Cursor;
use super::events::Observer;
use super::hooks::{AccessCheck, External};
use super::leaves::Leaves;
use super::lock::{Exclusive, Locked};
use super::map::{MapError, MapRequest, NxFault, Target};
use super::page::Parent;
use crate::role::PageRole;
use crate::spte::{Format, LeafRequest, Pfn, Spte, TableRole};
use crate::sync::{AtomicU64, Ordering, set_value, value};
use crate::table::{ENTRIES, TableId, index, span};

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Exclusive<'_, F, X, C>, O> {
    /// Maps pages that follow each other in the guest and on the host, as if the guest had faulted on one after the other:
    /// `request` describes the first. Gives how many pages there are to log as dirty.
    ///
    /// # Errors
    /// See [`MapError`]; nothing has changed then.
    pub fn map_range(
        &mut self,
        root: TableId,
        request: &MapRequest<F>,
        pages: Pages,
    ) -> Result<Pages, MapError> {
        let Target::Page(page) = request.target else {
            return Err(MapError::NoPage);
        };
        self.check_range(root, request, page.pfn, pages)?;
        let (step, mut dirty) = (span(request.size.level()), 0);
        let mut done = 0;
        while done < pages.raw() {
            let at = Gfn::new(request.gfn.raw() + done);
            let pfn = Pfn::new(page.pfn.raw() + done);
            let one = MapRequest {
                gfn: at,
                target: Target::Page(LeafRequest { pfn, ..page }),
                ..*request
            };
            let filled = self.fill_table(root, &one, pages.raw() - done);
            if filled > 0 {
                done += filled;
                continue;
            }
            dirty += u64::from(self.map(root, &one)?.mark_dirty) * step;
            done += step;
        }
        self.audit_after_step();
        Ok(Pages::new(dirty))
    }

    /// Fills as much of one table of level 1 as the range covers, if nothing is there, and gives how many pages that was.
    ///
    /// What is reported entry by entry, told to somebody, or logged goes the long way, and so does a table with
    /// anything in it.
    fn fill_table(&mut self, root: TableId, request: &MapRequest<F>, left: u64) -> u64 {
        let Target::Page(page) = request.target else {
            return 0;
        };
        let plain = !O::EVENTS && !page.dirty_log && !self.is_mirror(root);
        if !plain || request.size != PageSize::Size4K {
            return 0;
        }
        let gfn = request.gfn.raw();
        let start = index(gfn, Level::L1);
        let end = usize::try_from(left).map_or(ENTRIES, |left| ENTRIES.min(start + left));
        self.make_tables_above(root, request);
        let found = self.tables().find(root, gfn);
        let empty = self.tables().codec.is_nonpresent(found.spte);
        match found.level {
            Level::L1 if empty => self.fill_old(found.place.table, start..end, &page),
            Level::L2 if empty && end - start == ENTRIES => {
                self.fill_new(found.place, request.gfn, &page)
            }
            _ => 0,
        }
    }

    /// Fills a part of a table that is linked, if there is nothing in that part.
    fn fill_old(&mut self, table: TableId, run: Range<usize>, page: &LeafRequest<F>) -> u64 {
        let template = self.template(self.tables().page(table).role(), page);
        let tables = &mut *self.side.tables;
        let empty = tables.codec.nonpresent().raw();
        let entries = &mut tables.arena.table_mut(table)[run];
        if entries.iter_mut().any(|entry| value(entry) != empty) {
            return 0;
        }
        fill(entries, template);
        let filled = entries.len();
        let leaves = if filled == ENTRIES {
            Leaves::All
        } else {
            Leaves::Unknown
        };
        tables.learn(table, leaves);
        self.counts().add_leaves(Level::L1, filled as i64);
        filled as u64
    }

    /// Fills a whole new table and links it.
    fn fill_new(&mut self, parent: Parent, gfn: Gfn, page: &LeafRequest<F>) -> u64 {
        let role = self.tables().page(parent.table).role();
        let role = role.with_level(Level::L1);
        let template = self.template(role, page);
        let tables = &mut *self.side.tables;
        let Some(table) = tables.arena.allocate_unfilled() else {
            return 0;
        };
        fill(tables.arena.table_mut(table), template);
        tables.describe(table, role, gfn, Some(parent));
        tables.learn(table, Leaves::All);
        let link = tables.link_to(table).raw();
        let entry = &mut tables.arena.table_mut(parent.table)[parent.index];
        set_value(entry, link);
        self.counts().add_tables(1);
        self.counts().add_leaves(Level::L1, ENTRIES as i64);
        ENTRIES as u64
    }

    /// Makes the tables down to level 2 where there are none.
    fn make_tables_above(&mut self, root: TableId, request: &MapRequest<F>) {
        let mut cursor = Cursor::start(self.tables(), root, Level::L2, request.gfn.raw());
        while cursor.level() > Level::L2 {
            let missing = self.tables().codec.is_nonpresent(cursor.old);
            if missing
                && self
                    .link_or_split(&mut cursor, request, NxFault::Off)
                    .is_err()
            {
                return;
            }
            if !cursor.old.is_link(cursor.level()) && !missing {
                return;
            }
            cursor.advance(self.tables());
        }
    }

    /// The leaf for the first page of a table of this role.
    fn template(&self, role: PageRole, page: &LeafRequest<F>) -> Spte<F> {
        let codec = &self.tables().codec;
        let made = codec.make_leaf(&LeafRequest {
            old: codec.nonpresent(),
            table: TableRole {
                size: PageSize::Size4K,
                access: role.access(),
                ad: codec.ad_type_of_table(role),
            },
            ..*page
        });
        made.spte
    }

    /// Whether the whole range can be mapped.
    fn check_range(
        &self,
        root: TableId,
        request: &MapRequest<F>,
        pfn: Pfn,
        pages: Pages,
    ) -> Result<(), MapError> {
        let (gfn, size) = (request.gfn, request.size);
        let last = Gfn::new(self.tables().end_of(root).raw() - 1);
        let end = gfn
            .checked_add(pages)
            .filter(|end| *end <= last + Pages::new(1));
        let Some(end) = end else {
            return Err(MapError::BeyondLastGfn { gfn, last });
        };
        let inside = span(size.level()) - 1;
        if (gfn.raw() | pfn.raw() | pages.raw()) & inside != 0 {
            return Err(MapError::Unaligned { gfn, pfn, size });
        }
        if pages == Pages::new(0) {
            return Ok(());
        }
        let last_pfn = pfn.raw().saturating_add(pages.raw().saturating_sub(1));
        self.check_pfn(Pfn::new(last_pfn))?;
        let there = self.check_pages(root, request, pfn, end)?;
        let root_level = self.tables().page(root).role().level();
        if tables_for(gfn, end, size, root_level) - there > self.tables().arena.left() as u64 {
            return Err(MapError::OutOfTables);
        }
        Ok(())
    }

    /// Checks that every leaf in the range that is there maps the page that it is to map. Gives how many tables there are
    /// for the range, that of the root not counted.
    fn check_pages(
        &self,
        root: TableId,
        request: &MapRequest<F>,
        pfn: Pfn,
        end: Gfn,
    ) -> Result<u64, MapError> {
        let (tables, start) = (self.tables(), request.gfn.raw());
        let (mut cursor, mut links) = (Cursor::start(tables, root, request.size.level(), start), 0);
        while cursor.is_before(end.raw()) {
            if cursor.level() == Level::L1 {
                let run = cursor.run(end.raw());
                let entries = &tables.arena.table(cursor.table())[run.clone()];
                for (entry, at) in entries.iter().zip(cursor.gfn()..) {
                    let old = Spte::<F>::from_raw(entry.load(Ordering::Relaxed));
                    if old.is_leaf(Level::L1) {
                        self.check_page(old, at, start, pfn)?;
                    }
                }
                cursor.finish(&run);
            } else if cursor.is_at_leaf() {
                self.check_page(cursor.old, cursor.gfn(), start, pfn)?;
            } else if cursor.old.is_present() && cursor.level() > request.size.level() {
                links += 1;
            }
            cursor.advance(tables);
        }
        Ok(links)
    }

    /// Checks one leaf that is there. A huge one may begin before the range does.
    fn check_page(&self, old: Spte<F>, at: u64, start: u64, pfn: Pfn) -> Result<(), MapError> {
        let inside = start.max(at);
        let mapped = self.tables().codec.pfn(old).raw() + (inside - at);
        let wanted = pfn.raw() + (inside - start);
        if mapped == wanted {
            return Ok(());
        }
        Err(MapError::PfnChanged {
            gfn: Gfn::new(inside),
            old: Pfn::new(mapped),
            new: Pfn::new(wanted),
        })
    }
}

/// How many tables a range takes below its root: at each level those that its first and last page are in, and all between.
fn tables_for(start: Gfn, end: Gfn, size: PageSize, root: Level) -> u64 {
    let above = Level::ALL
        .into_iter()
        .filter(|level| *level > size.level() && *level <= root);
    above
        .map(|level| (end.raw() - 1) / span(level) - start.raw() / span(level) + 1)
        .sum()
}

/// Writes leaves that follow each other, `first` being the first one.
#[inline]
fn fill<F>(entries: &mut [AtomicU64], first: Spte<F>) {
    let mut raw = first.raw();
    for entry in entries {
        set_value(entry, raw);
        raw += Pfn::new(1).address();
    }
}
