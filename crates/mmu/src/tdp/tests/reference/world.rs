//! One operation after the other, on the tables and on the reference, and the comparison.

use core::fmt::Debug;
use core::num::NonZeroU32;

use slat_memslot::{AsId, Generation, Gfn, GfnRange, Level, Pages};

use super::model::{Answer, Gone, Page, Root, Rules, Wish, base, frames};
use super::ops::{Ask, Op, Size, Want};
use super::*;
use crate::roots::RootId;
use crate::spte::{Access, Fill, HostWrite, LeafRequest, Marks, NxHugePages, Tracking};

/// Fails the sequence when two values differ.
pub(super) fn same<T: PartialEq + Debug>(
    what: &str,
    tables: T,
    reference: T,
) -> Result<(), String> {
    if tables == reference {
        return Ok(());
    }
    Err(format!(
        "{what}: the tables say {tables:?}, the reference {reference:?}"
    ))
}

/// An observer that wants events, or harvested marks, or neither: operations take different ways.
#[derive(Debug, Default)]
pub(super) struct Watch<const EVENTS: bool, const HARVEST: bool> {
    pub(super) accessed: u64,
    pub(super) dirty: u64,
    yield_flushes: u64,
    table_flushes: u64,
    changes: u64,
}

impl<F: Format, const EVENTS: bool, const HARVEST: bool> Observer<F> for Watch<EVENTS, HARVEST> {
    const EVENTS: bool = EVENTS;
    const HARVEST: Harvesting = if HARVEST {
        Harvesting::EveryPage
    } else {
        Harvesting::Nothing
    };

    fn event(&mut self, event: Event<F>) {
        match event {
            Event::Flushed {
                reason: FlushReason::Yield,
                ..
            } => self.yield_flushes += 1,
            Event::Flushed {
                reason: FlushReason::TableReplaced,
                ..
            } => self.table_flushes += 1,
            Event::SpteChanged { .. } => self.changes += 1,
            _ => {}
        }
    }

    fn harvest(&mut self, _: Pfn, _: Level, marks: Marks) {
        self.accessed += u64::from(marks.accessed);
        self.dirty += u64::from(marks.dirty);
    }
}

/// When to give way.
pub(super) struct Budget(Option<Every>);

impl Budget {
    pub(super) fn new(every: u32) -> Self {
        Self(NonZeroU32::new(every).map(Every::new))
    }
}

impl Resched for Budget {
    fn is_needed(&mut self) -> bool {
        self.0.as_mut().is_some_and(Resched::is_needed)
    }
}

/// The tables of one host and the reference, side by side.
pub(super) struct World<F: Format, const EVENTS: bool, const HARVEST: bool> {
    pub(super) tables: Tables<F>,
    pub(super) reader: Reader,
    pub(super) watch: Watch<EVENTS, HARVEST>,
    pub(super) rules: Rules,
    pub(super) roles: Vec<PageRole>,
    pub(super) roots: Vec<Root>,
    pub(super) places: Vec<u64>,
    /// What the host has learned from pages that are gone.
    pub(super) harvest: (u64, u64),
    /// Removed tables that somebody could still be walking through.
    pub(super) retired: u64,
    /// Tables that were taken away.
    pub(super) starved: u64,
}

const LIMIT: u64 = 512;

impl<F: Format, const EVENTS: bool, const HARVEST: bool> World<F, EVENTS, HARVEST> {
    pub(super) fn new(host: &Host, places: &[u64]) -> Self {
        let tables = Tables::with_limits(
            host,
            Limits {
                tables: 1,
                readers: 1,
            },
        );
        let tdp = host.tdp().unwrap();
        Self {
            reader: tables.reader().unwrap(),
            tables,
            watch: Watch::default(),
            rules: Rules::of(host),
            roles: reachable_tdp_roots(tdp).collect(),
            roots: Vec::new(),
            places: places.to_vec(),
            harvest: (0, 0),
            retired: 0,
            starved: 0,
        }
    }

    /// Does an operation on both sides and compares what it gives and all that is mapped.
    pub(super) fn step(&mut self, op: &Op) -> Result<(), String> {
        self.apply(op)?;
        self.compare()
    }

    pub(super) fn in_use(&self) -> u64 {
        let linked = self.roots.iter().map(|root| 1 + root.finer.len() as u64);
        self.starved + self.retired + linked.sum::<u64>()
    }

    fn left(&self) -> u64 {
        LIMIT - self.in_use()
    }

    /// The n-th root that can be used, with its table.
    pub(super) fn usable(&self, n: u8) -> Option<(usize, TableId)> {
        let usable = |(_, root): &(usize, &Root)| root.valid && root.held > 0;
        let all: Vec<_> = self.roots.iter().enumerate().filter(usable).collect();
        let (at, root) = *all.get(usize::from(n) % all.len().max(1))?;
        Some((at, self.tables.roots().payload(root.id)?))
    }

    /// A frame within what a root of few levels can tell apart.
    pub(super) fn inside(&self, at: usize, gfn: u64) -> u64 {
        let end = frames(self.roots[at].level + 1);
        if self.rules.end > end { gfn % end } else { gfn }
    }

    pub(super) fn shared(
        &mut self,
    ) -> Locked<Shared<'_, F, NoExternal, NoCheck>, &mut Watch<EVENTS, HARVEST>> {
        self.tables.shared(&mut self.reader, &mut self.watch)
    }

    pub(super) fn exclusive(
        &mut self,
    ) -> Locked<Exclusive<'_, F, NoExternal, NoCheck>, &mut Watch<EVENTS, HARVEST>> {
        self.retired = 0;
        self.tables.exclusive(&mut self.watch)
    }

    /// Accounts for what the reference has lost.
    pub(super) fn settle(&mut self, gone: Gone, shared: bool) {
        self.harvest.0 += gone.accessed;
        self.harvest.1 += gone.dirty;
        if shared {
            self.retired += gone.tables;
        }
    }

    fn apply(&mut self, op: &Op) -> Result<(), String> {
        match *op {
            Op::Acquire { role } => self.acquire(role),
            Op::Put { root } => self.put(root),
            Op::Map {
                root,
                gfn,
                size,
                pfn,
                ask,
                exclusive,
            } => self.map(root, (gfn, size), Wish::Page { pfn, ask }, exclusive),
            Op::Mmio {
                root,
                gfn,
                generation,
            } => self.map(root, (gfn, Size::K4), Wish::Mmio { generation }, false),
            Op::MapRange {
                root,
                gfn,
                size,
                pfn,
                pages,
                ask,
            } => self.map_range(root, (gfn, size), (pfn, pages), ask),
            Op::Split {
                space,
                start,
                end,
                target,
                nx,
                exclusive,
                every,
            } => self.split(space, (start, end), target, (nx, exclusive), every),
            Op::CollapseZap { root, gfn, size } => self.collapse(root, gfn, size, Collapse::Zap),
            Op::CollapseRecover {
                root,
                gfn,
                size,
                nx,
            } => self.collapse(root, gfn, size, Collapse::Recover(nx_huge_pages(nx))),
            Op::ZapValid { start, end, every } => self.zap_leafs(None, (start, end), every),
            Op::ZapSpace {
                space,
                start,
                end,
                every,
            } => self.zap_leafs(Some(space), (start, end), every),
            Op::ZapTable { root, gfn } => self.zap_table(root, gfn),
            Op::Invalidate => {
                self.exclusive().invalidate_roots();
                self.roots.iter_mut().for_each(|root| root.valid = false);
                Ok(())
            }
            Op::ZapInvalidated { passes, every } => self.zap_invalidated(passes, every),
            Op::Discard => self.discard(),
            Op::ZapAll { passes, every } => self.zap_all(passes, every),
            Op::Reclaim => {
                self.tables.reclaim();
                self.retired = 0;
                Ok(())
            }
            Op::Starve { left } => {
                while self.left() > u64::from(left) {
                    self.tables.arena.allocate().ok_or("a table is missing")?;
                    self.starved += 1;
                }
                Ok(())
            }
            Op::Translate { root, gfn, want } => self.translate(root, gfn, want),
            Op::Weaken { .. }
            | Op::ClearMasked { .. }
            | Op::Age { .. }
            | Op::WriteTrack { .. }
            | Op::FastFault { .. }
            | Op::CollapseTables { .. } => self.apply_log(op),
        }
    }

    fn acquire(&mut self, role: u8) -> Result<(), String> {
        let role = self.roles[usize::from(role) % self.roles.len()];
        let left = self.left();
        let acquired = self.shared().acquire_root(role);
        let there = self
            .roots
            .iter()
            .any(|root| root.valid && root.role == role);
        if left == 0 && !there {
            return same("acquired", acquired, Err(OutOfTables));
        }
        let acquired = acquired.map_err(|error| format!("{error}"))?;
        let known = self
            .roots
            .iter_mut()
            .find(|root| root.valid && root.role == role);
        match known {
            Some(root) => {
                root.held += 1;
                same("shared root", acquired, Acquired::Shared(root.id))
            }
            None => {
                self.roots.push(Root::new(acquired.root(), role));
                same("new root", acquired, Acquired::Created(acquired.root()))
            }
        }
    }

    /// Lets go any root that is held, invalid or not.
    fn put(&mut self, root: u8) -> Result<(), String> {
        let held: Vec<RootId> = self
            .roots
            .iter()
            .filter(|root| root.held > 0)
            .map(|root| root.id)
            .collect();
        let Some(id) = held.get(usize::from(root) % held.len().max(1)).copied() else {
            return Ok(());
        };
        self.shared().put_root(id);
        for root in self.roots.iter_mut().filter(|root| root.id == id) {
            root.held -= 1;
        }
        self.drop_free_roots(true);
        Ok(())
    }

    /// Forgets roots that nobody holds.
    fn drop_free_roots(&mut self, shared: bool) {
        let before = self.roots.len();
        self.roots.retain(|root| root.own || root.held > 0);
        if shared {
            self.retired += (before - self.roots.len()) as u64;
        }
    }

    fn map(
        &mut self,
        n: u8,
        (gfn, size): (u64, Size),
        wish: Wish,
        exclusive: bool,
    ) -> Result<(), String> {
        let Some((at, table)) = self.usable(n) else {
            return Ok(());
        };
        let request = request::<F>((gfn, size), wish);
        let got = match exclusive {
            true => self.exclusive().map(table, &request),
            false => self.shared().map(table, &request),
        };
        let answer = self.map_reference(at, (gfn, size), wish, !exclusive);
        same(
            "mapped",
            got.map(|got| (got.resolution, got.mark_dirty)),
            answer,
        )
    }

    fn map_reference(&mut self, at: usize, place: (u64, Size), wish: Wish, shared: bool) -> Answer {
        let (mut gone, left) = (Gone::default(), self.left());
        let answer = self.roots[at].map(&self.rules, place, wish, left, &mut gone);
        self.settle(gone, shared);
        answer
    }

    fn map_range(
        &mut self,
        n: u8,
        (gfn, size): (u64, Size),
        (pfn, pages): (u64, u64),
        ask: Ask,
    ) -> Result<(), String> {
        let Some((at, table)) = self.usable(n) else {
            return Ok(());
        };
        let request = request::<F>((gfn, size), Wish::Page { pfn, ask });
        let got = self
            .exclusive()
            .map_range(table, &request, Pages::new(pages));
        let left = self.left();
        let refused = self.roots[at].check_range(&self.rules, (gfn, size), pfn, pages, left);
        if let Err(error) = refused {
            return same("range refused", got, Err(error));
        }
        let mut dirty = 0;
        for offset in (0..pages).step_by(usize::try_from(frames(size.level())).unwrap_or(1)) {
            let wish = Wish::Page {
                pfn: pfn + offset,
                ask,
            };
            let (_, logged) = self
                .map_reference(at, (gfn + offset, size), wish, false)
                .map_err(|error| format!("the reference cannot map the range: {error}"))?;
            dirty += u64::from(logged) * frames(size.level());
        }
        same("range mapped", got, Ok(Pages::new(dirty)))
    }

    /// The roots that an operation on an address space goes through, newest first.
    pub(super) fn selected(&self, space: Option<u8>, valid_only: bool) -> Vec<usize> {
        let wanted = |root: &Root| {
            (root.valid || !valid_only)
                && space.is_none_or(|space| root.space == address_space(space))
        };
        let all = 0..self.roots.len();
        all.rev().filter(|at| wanted(&self.roots[*at])).collect()
    }

    /// The part of a range that a root can map.
    pub(super) fn seen_by(&self, at: usize, (start, end): (u64, u64)) -> (u64, u64) {
        let all = frames(self.roots[at].level + 1).min(self.rules.end);
        (start.min(all), end.min(all))
    }

    fn split(
        &mut self,
        space: u8,
        range: (u64, u64),
        target: Size,
        (nx, exclusive): (bool, bool),
        every: u32,
    ) -> Result<(), String> {
        let mut split = SplitHugePages::new(
            address_space(space),
            frames_of(range),
            target.page_size(),
            nx_huge_pages(nx),
        );
        let mut budget = Budget::new(every);
        if exclusive {
            self.retired = 0;
        }
        let (mut left, mut gone, mut expected) = (self.left(), Gone::default(), Ok(()));
        'roots: for at in self.selected(Some(space), true) {
            let (start, end) = self.seen_by(at, range);
            let mut at_gfn = start;
            while let Some((gfn, page)) = self.roots[at].next_page(at_gfn, end) {
                if page.level <= target.level() || target == Size::G1 {
                    at_gfn = gfn + frames(page.level);
                    continue;
                }
                if left == 0 {
                    expected = Err(OutOfTables);
                    break 'roots;
                }
                left -= 1;
                self.roots[at].split(&self.rules, gfn, nx, &mut gone);
            }
        }
        self.settle(gone, true);
        let got = loop {
            let progress = match exclusive {
                true => split.run(&mut self.tables.exclusive(&mut self.watch), &mut budget),
                false => split.run(&mut self.shared(), &mut budget),
            };
            match progress {
                Ok(Progress::Paused) => {}
                Ok(Progress::Done) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        same("split", got, expected)
    }

    fn collapse(&mut self, n: u8, gfn: u64, size: Size, how: Collapse) -> Result<(), String> {
        let Some((at, table)) = self.usable(n) else {
            return Ok(());
        };
        let gfn = self.inside(at, gfn.min(self.rules.end - 1));
        let got = self
            .shared()
            .collapse(table, Gfn::new(gfn), size.page_size(), how);
        let (level, mut gone) = (size.level(), Gone::default());
        let (root, first) = (&mut self.roots[at], base(gfn, level));
        let finer = root.finer.contains(&(level, first));
        let huge = match how {
            Collapse::Zap => None,
            Collapse::Recover(nx) => root.recovered(level, gfn, nx == NxHugePages::On),
        };
        let expected = match (finer, how, huge) {
            (false, _, _) => Collapsed::NoTable,
            (true, Collapse::Recover(_), None) => Collapsed::NoLeaf,
            _ => Collapsed::Done,
        };
        if expected == Collapsed::Done {
            root.remove_below(&self.rules, level, gfn, &mut gone);
            root.pages.extend(huge.map(|huge| (first, huge)));
        }
        self.settle(gone, true);
        same("collapsed", got, expected)
    }

    fn zap_leafs(
        &mut self,
        space: Option<u8>,
        range: (u64, u64),
        every: u32,
    ) -> Result<(), String> {
        let mut zap = match space {
            None => ZapLeafs::of_valid_roots(frames_of(range)),
            Some(space) => ZapLeafs::of_address_space(address_space(space), frames_of(range)),
        };
        let (mut gone, mut zapped_in_valid) = (Gone::default(), false);
        for at in self.selected(space, space.is_none()) {
            let (start, end) = self.seen_by(at, range);
            if start >= end {
                continue;
            }
            let (root, before) = (&mut self.roots[at], gone.pages);
            for (gfn, _) in root.pages_of(start, end) {
                root.remove_page(&self.rules, gfn, &mut gone);
            }
            zapped_in_valid |= root.valid && gone.pages != before;
        }
        let (mut flushed, flushes, mut budget) =
            (false, self.watch.yield_flushes, Budget::new(every));
        self.retired = 0;
        loop {
            let mut locked = self.tables.exclusive(&mut self.watch);
            let progress = match every {
                0 => zap.run(&mut locked, &mut Uninterrupted),
                _ => zap.run(&mut locked, &mut budget),
            };
            if progress == Progress::Done {
                break;
            }
            same(
                "a flush is left to do after it gave way",
                zap.needs_flush(),
                false,
            )?;
        }
        flushed |= zap.needs_flush();
        if EVENTS {
            flushed |= self.watch.yield_flushes != flushes;
            same("flushed", flushed, zapped_in_valid)?;
        } else if every == 0 {
            same("needs a flush", flushed, zapped_in_valid)?;
        }
        self.settle(gone, false);
        same("nobody is busy", zap.busy(), None)?;
        same("zapped", zap.zapped(), gone.pages)
    }

    fn zap_table(&mut self, n: u8, gfn: u64) -> Result<(), String> {
        let Some((at, table)) = self.usable(n) else {
            return Ok(());
        };
        let gfn = self.inside(at, gfn.min(self.rules.end - 1));
        let mut locked = self.exclusive();
        let found = locked.find(table, Gfn::new(gfn));
        let got = locked.zap_page(found.place.table);
        let again = locked.zap_page(found.place.table);
        let (root, mut gone) = (&mut self.roots[at], Gone::default());
        let depth = root.depth(gfn);
        let expected = depth < root.level;
        if expected {
            root.remove_below(&self.rules, depth + 1, gfn, &mut gone);
        }
        self.settle(gone, false);
        same("zapped a table", got, expected)?;
        same("zapped a table twice", again, false)
    }

    fn zap_invalidated(&mut self, passes: Passes, every: u32) -> Result<(), String> {
        let mut gone = Gone::default();
        for root in self.roots.iter_mut().filter(|root| !root.valid && root.own) {
            root.remove_all(&self.rules, &mut gone);
            root.own = false;
        }
        self.settle(gone, true);
        self.drop_free_roots(true);
        let (mut zap, mut budget) = (ZapInvalidated::new(passes), Budget::new(every));
        let mut pauses = 0;
        loop {
            let progress = match every {
                0 => zap.run(&mut self.shared(), &mut Uninterrupted),
                _ => zap.run(&mut self.shared(), &mut budget),
            };
            if progress == Progress::Done {
                break;
            }
            pauses += 1;
            if pauses == 3 {
                self.zap_meanwhile();
            }
        }
        if pauses >= 3 {
            self.tables.reclaim();
            self.retired = 0;
        }
        Ok(())
    }

    /// Zaps leaves of all roots of a space, while another operation is under way in the invalid ones.
    fn zap_meanwhile(&mut self) {
        let (range, mut gone) = ((0, 0x601), Gone::default());
        for at in self.selected(Some(0), true) {
            for (gfn, _) in self.roots[at].pages_of(range.0, range.1) {
                self.roots[at].remove_page(&self.rules, gfn, &mut gone);
            }
        }
        self.settle(gone, false);
        let mut zap = ZapLeafs::of_address_space(address_space(0), frames_of(range));
        let progress = zap.run(&mut self.exclusive(), &mut Uninterrupted);
        assert_eq!(progress, Progress::Done);
    }

    fn discard(&mut self) -> Result<(), String> {
        let got = self.exclusive().discard_invalidated();
        let mut gone = Gone::default();
        for root in self.roots.iter_mut().filter(|root| !root.valid && root.own) {
            root.remove_all(&self.rules, &mut gone);
            root.own = false;
        }
        self.drop_free_roots(false);
        same("discarded", got, gone.tables)
    }

    fn zap_all(&mut self, passes: Passes, every: u32) -> Result<(), String> {
        let mut gone = Gone::default();
        for root in &mut self.roots {
            root.remove_all(&self.rules, &mut gone);
        }
        self.settle(gone, false);
        self.retired = 0;
        let (mut zap, mut budget) = (ZapAll::new(passes), Budget::new(every));
        loop {
            let mut locked = self.tables.exclusive(&mut self.watch);
            let progress = match every {
                0 => zap.run(&mut locked, &mut Uninterrupted),
                _ => zap.run(&mut locked, &mut budget),
            };
            if progress == Progress::Done {
                return Ok(());
            }
        }
    }

    fn translate(&mut self, n: u8, gfn: u64, want: Want) -> Result<(), String> {
        let Some((at, table)) = self.usable(n) else {
            return Ok(());
        };
        let gfn = self.inside(at, gfn.min(self.rules.end - 1));
        let access = access(want, self.read());
        let got = self.shared().translate(table, Gfn::new(gfn), access);
        let root = &self.roots[at];
        match (got, root.page(gfn), root.mmio.get(&gfn)) {
            (Ok(got), Some((start, page)), _) => {
                same("allowed", missing(&page, want), false)?;
                same(
                    "translated",
                    (got.pfn.raw(), got.level as u8),
                    (page.pfn + gfn - start, page.level),
                )
            }
            (
                Err(Violation::Permission {
                    missing: lacks,
                    level,
                }),
                Some((_, page)),
                _,
            ) => {
                same("not allowed", (missing(&page, want), lacks), (true, access))?;
                same("level", level as u8, page.level)
            }
            (Err(Violation::Mmio { mmio }), None, Some(generation)) => same(
                "mmio",
                (mmio.gfn.raw(), mmio.generation.raw()),
                (self.rules.mmio_gfn(gfn), *generation),
            ),
            (Err(Violation::Absent { level }), None, None) => {
                same("absent at", level as u8, root.depth(gfn))
            }
            (got, page, mmio) => Err(format!(
                "{gfn:#x}: the tables say {got:?}, the reference {page:?} {mmio:?}"
            )),
        }
    }
}

pub(super) fn address_space(space: u8) -> AsId {
    AsId::new(space % 2).unwrap()
}

pub(super) fn frames_of((start, end): (u64, u64)) -> GfnRange {
    GfnRange::between(Gfn::new(start), Gfn::new(end)).unwrap()
}

pub(super) const fn nx_huge_pages(on: bool) -> NxHugePages {
    if on {
        NxHugePages::On
    } else {
        NxHugePages::Off
    }
}

pub(super) const fn access(want: Want, read: Access) -> Access {
    match want {
        Want::Read => read,
        Want::Write => Access::WRITE,
        Want::Execute => Access::EXECUTE,
        Want::Prefetch => Access::empty(),
    }
}

/// Whether a page lacks what is wanted.
fn missing(page: &Page, want: Want) -> bool {
    match want {
        Want::Read => page.tracked.is_some(),
        Want::Write => !page.write,
        Want::Execute => !page.execute,
        Want::Prefetch => false,
    }
}

fn request<F: Format>((gfn, size): (u64, Size), wish: Wish) -> MapRequest<F> {
    let (pfn, ask) = match wish {
        Wish::Mmio { generation } => {
            return MapRequest::mmio(Gfn::new(gfn), Generation::new(generation));
        }
        Wish::Page { pfn, ask } => (pfn, ask),
    };
    let page = LeafRequest {
        fill: if ask.want == Want::Prefetch {
            Fill::Prefetch
        } else {
            Fill::Fault
        },
        host_write: if ask.host_writable {
            HostWrite::Allowed
        } else {
            HostWrite::Refused
        },
        tracking: if ask.tracked {
            Tracking::EveryWrite
        } else {
            Tracking::None
        },
        nx_huge_pages: nx_huge_pages(ask.nx),
        dirty_log: ask.logged,
        ..LeafRequest::new(Spte::from_raw(0), size.page_size(), Pfn::new(pfn))
    };
    MapRequest {
        gfn: Gfn::new(gfn),
        size: size.page_size(),
        access: access(ask.want, Access::USER),
        target: Target::Page(page),
    }
}
