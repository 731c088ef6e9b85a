//! What is mapped, in ordered maps: a statement of the rules without bits, entries or links.

use std::collections::{BTreeMap, BTreeSet};

use slat_memslot::{Gfn, PageSize};

use super::ops::{Ask, Size, Want};
use super::*;
use crate::host::{AdBits, Layout, MmioCaching, SecondStage};
use crate::role::RoleFlag;
use crate::roots::RootId;

/// Frames below one entry of a level.
pub(super) const fn frames(level: u8) -> u64 {
    1 << (9 * (level - 1))
}

/// The first frame of the entry of a level that a frame is below.
pub(super) const fn base(gfn: u64, level: u8) -> u64 {
    gfn & !(frames(level) - 1)
}

/// A page that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) level: u8,
    pub(super) pfn: u64,
    pub(super) execute: bool,
    pub(super) write: bool,
    pub(super) mmu_writable: bool,
    pub(super) host_writable: bool,
    /// All permissions were taken, to see the next access; this one among them would come back.
    pub(super) tracked: Option<bool>,
    pub(super) accessed: bool,
    pub(super) dirty: bool,
}

/// The rules that hosts differ in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) software_ad: bool,
    pub(super) caches_mmio: bool,
    pub(super) user_execute: bool,
    pub(super) pml: bool,
    pub(super) end: u64,
    last_pfn: u64,
}

impl Rules {
    pub(super) fn of(host: &Host) -> Self {
        Self {
            software_ad: host.ad_bits == AdBits::Software,
            caches_mmio: host.mmio_caching == MmioCaching::On,
            user_execute: host.layout == Layout::P3 && host.second_stage == SecondStage::Ept,
            pml: host.pml(),
            end: 1 << (host.maxphyaddr - 12),
            last_pfn: (1 << (host.phys_bits - 12)) - 1,
        }
    }

    /// What an MMIO entry remembers of a frame: no more than the host's own addresses have bits.
    pub(super) const fn mmio_gfn(&self, gfn: u64) -> u64 {
        gfn & self.last_pfn
    }
}

/// What one root maps.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) id: RootId,
    pub(super) level: u8,
    pub(super) space: AsId,
    /// Hardware does not keep accessed and dirty bits.
    pub(super) no_ad: bool,
    pub(super) valid: bool,
    /// The TDP MMU itself still holds it.
    pub(super) own: bool,
    pub(super) held: u32,
    pub(super) role: PageRole,
    pub(super) pages: BTreeMap<u64, Page>,
    /// MMIO, by frame: the generation.
    pub(super) mmio: BTreeMap<u64, u64>,
    /// Where there is something finer than an entry of a level: the level above the finer one, and its first frame.
    pub(super) finer: BTreeSet<(u8, u64)>,
}

/// What may be lost or freed by a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) pages: u64,
    pub(super) tables: u64,
    pub(super) accessed: u64,
    pub(super) dirty: u64,
}

impl Root {
    pub(super) fn new(id: RootId, role: PageRole) -> Self {
        Self {
            id,
            level: role.level() as u8,
            space: role.as_id(),
            no_ad: role.has(RoleFlag::AdDisabled),
            valid: true,
            own: true,
            held: 1,
            role,
            pages: BTreeMap::new(),
            mmio: BTreeMap::new(),
            finer: BTreeSet::new(),
        }
    }

    /// The page that a frame is in.
    pub(super) fn page(&self, gfn: u64) -> Option<(u64, Page)> {
        let (start, page) = self.pages.range(..=gfn).next_back()?;
        (gfn - start < frames(page.level)).then_some((*start, *page))
    }

    /// How far down a walk for this frame comes.
    pub(super) fn depth(&self, gfn: u64) -> u8 {
        let mut level = self.level;
        while level > 1 && self.finer.contains(&(level, base(gfn, level))) {
            level -= 1;
        }
        level
    }

    /// The first page that a range touches.
    pub(super) fn next_page(&self, start: u64, end: u64) -> Option<(u64, Page)> {
        let next = self.pages.range(start..end.max(start)).next();
        let inside = self.page(start).filter(|_| start < end);
        inside.or(next.map(|(gfn, page)| (*gfn, *page)))
    }

    /// The pages of a range that goes on to `end`, by their first frames; one may begin before.
    pub(super) fn pages_of(&self, start: u64, end: u64) -> Vec<(u64, Page)> {
        let first = self.page(start).map_or(start, |(first, _)| first);
        let pages = self.pages.range(first..end);
        pages.map(|(gfn, page)| (*gfn, *page)).collect()
    }

    pub(super) fn is_accessed(&self, rules: &Rules, page: &Page) -> bool {
        match self.no_ad && !rules.software_ad {
            true => page.tracked.is_none(),
            false => page.accessed,
        }
    }

    fn is_dirty(&self, rules: &Rules, page: &Page) -> bool {
        match self.no_ad && !rules.software_ad {
            true => page.write,
            false => page.dirty,
        }
    }

    /// Notes what the host learns when a page goes, or changes.
    pub(super) fn harvest(&self, rules: &Rules, old: &Page, new: Option<&Page>, gone: &mut Gone) {
        let kept =
            |of: fn(&Self, &Rules, &Page) -> bool| new.is_some_and(|new| of(self, rules, new));
        let accessed = self.is_accessed(rules, old) && !kept(Self::is_accessed);
        let dirty = self.is_dirty(rules, old) && !kept(Self::is_dirty);
        gone.accessed += u64::from(accessed);
        gone.dirty += u64::from(dirty);
    }

    pub(super) fn remove_page(&mut self, rules: &Rules, gfn: u64, gone: &mut Gone) {
        if let Some(old) = self.pages.remove(&gfn) {
            gone.pages += 1;
            self.harvest(rules, &old, None, gone);
        }
    }

    /// Removes what is finer than the entry of a level.
    pub(super) fn remove_below(&mut self, rules: &Rules, level: u8, gfn: u64, gone: &mut Gone) {
        let (start, end) = (base(gfn, level), base(gfn, level) + frames(level));
        for (gfn, _) in self.pages_of(start, end) {
            self.remove_page(rules, gfn, gone);
        }
        self.mmio.retain(|gfn, _| !(start..end).contains(gfn));
        let before = self.finer.len();
        self.finer
            .retain(|(at, gfn)| *at > level || !(start..end).contains(gfn));
        gone.tables += (before - self.finer.len()) as u64;
    }

    pub(super) fn remove_all(&mut self, rules: &Rules, gone: &mut Gone) {
        for gfn in self.pages.keys().copied().collect::<Vec<_>>() {
            self.remove_page(rules, gfn, gone);
        }
        gone.tables += self.finer.len() as u64;
        self.finer.clear();
        self.mmio.clear();
    }

    /// Replaces a huge page by its parts. Nothing is flushed, but the host learns what was noted about the page.
    pub(super) fn split(&mut self, rules: &Rules, gfn: u64, nx: bool, gone: &mut Gone) {
        let Some(huge) = self.pages.remove(&gfn) else {
            return;
        };
        self.harvest(rules, &huge, None, gone);
        self.finer.insert((huge.level, gfn));
        let level = huge.level - 1;
        let mut part = Page { level, ..huge };
        if level == 1 && nx {
            match &mut part.tracked {
                Some(execute) => *execute = true,
                None => part.execute = true,
            }
        }
        for index in 0..512 {
            let offset = index * frames(level);
            let pfn = huge.pfn + offset;
            self.pages.insert(gfn + offset, Page { pfn, ..part });
        }
    }

    /// The page that a fault makes where `old_writable` says what is there, and whether it is kept from writing.
    fn make(
        &self,
        rules: &Rules,
        level: u8,
        pfn: u64,
        ask: &Ask,
        old_writable: bool,
    ) -> (Page, bool) {
        let prefetch = ask.want == Want::Prefetch;
        let protected = ask.host_writable && ask.tracked && !old_writable;
        let writable = ask.host_writable && !protected;
        let execute = !(ask.nx && level > 1);
        let hidden = prefetch && self.no_ad;
        let clean = !rules.software_ad && (self.no_ad || old_writable);
        let page = Page {
            level,
            pfn,
            execute: execute && !hidden,
            write: writable && !hidden,
            mmu_writable: writable,
            host_writable: ask.host_writable,
            tracked: hidden.then_some(execute),
            accessed: !prefetch && (rules.software_ad || !self.no_ad),
            dirty: writable && !clean,
        };
        (page, protected)
    }

    /// Whether the page that is there is good enough, so that a later kernel leaves it alone.
    pub(super) fn suffices(page: &Page, want: Want) -> bool {
        match want {
            Want::Prefetch => true,
            Want::Read => page.tracked.is_none(),
            Want::Write => page.write,
            Want::Execute => page.execute,
        }
    }
}

/// What a request asks for: a page, or to remember that there is none.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wish {
    Page { pfn: u64, ask: Ask },
    Mmio { generation: u64 },
}

/// What mapping gives: the resolution and whether to mark the page dirty.
pub(super) type Answer = Result<(Resolution, bool), MapError>;

impl Root {
    /// Maps one page. `left` is how many tables can still be had.
    pub(super) fn map(
        &mut self,
        rules: &Rules,
        (gfn, size): (u64, Size),
        wish: Wish,
        left: u64,
        gone: &mut Gone,
    ) -> Answer {
        self.check(rules, (gfn, size), wish)?;
        self.descend(rules, gfn, size.level(), wish, left, gone)?;
        match wish {
            Wish::Mmio { generation } => {
                self.remove_page(rules, gfn, gone);
                self.mmio.insert(gfn, generation);
                Ok((Resolution::Emulate, false))
            }
            Wish::Page { pfn, ask } => {
                self.install(rules, base(gfn, size.level()), (size, pfn), &ask, gone)
            }
        }
    }

    fn descend(
        &mut self,
        rules: &Rules,
        gfn: u64,
        goal: u8,
        wish: Wish,
        mut left: u64,
        gone: &mut Gone,
    ) -> Result<(), MapError> {
        for level in (goal + 1..=self.level).rev() {
            let at = base(gfn, level);
            if self.finer.contains(&(level, at)) {
                continue;
            }
            left = left.checked_sub(1).ok_or(MapError::OutOfTables)?;
            if self.pages.contains_key(&at) {
                let nx = matches!(wish, Wish::Page { ask, .. } if ask.nx);
                self.split(rules, at, nx, gone);
            } else {
                self.finer.insert((level, at));
            }
        }
        Ok(())
    }

    fn install(
        &mut self,
        rules: &Rules,
        at: u64,
        (size, pfn): (Size, u64),
        ask: &Ask,
        gone: &mut Gone,
    ) -> Answer {
        let level = size.level();
        let old = self
            .pages
            .get(&at)
            .copied()
            .filter(|old| old.level == level);
        if let Some(old) = old {
            if old.pfn != pfn {
                return Err(MapError::PfnChanged {
                    gfn: Gfn::new(at),
                    old: Pfn::new(old.pfn),
                    new: Pfn::new(pfn),
                });
            }
            if rules.software_ad && Self::suffices(&old, ask.want) {
                return Ok((Resolution::Spurious, false));
            }
        }
        // An MMIO entry happens to look writable.
        let mmio = self.mmio.contains_key(&at) && level == 1;
        let old_writable = mmio || old.is_some_and(|old| old.write);
        let (page, protected) = self.make(rules, level, pfn, ask, old_writable);
        let dirty = page.write && ask.logged;
        let mut resolution = Resolution::Fixed;
        match old {
            Some(old) if old == page => resolution = Resolution::Spurious,
            Some(old) => self.harvest(rules, &old, Some(&page), gone),
            None => {
                self.mmio.remove(&at);
                self.remove_below(rules, level, at, gone);
            }
        }
        self.pages.insert(at, page);
        if protected && ask.want == Want::Write {
            resolution = Resolution::WriteProtected;
        }
        Ok((resolution, dirty))
    }

    /// What a huge page in place of finer ones would be: the first of them decides.
    pub(super) fn recovered(&self, level: u8, gfn: u64, nx: bool) -> Option<Page> {
        let (start, end) = (base(gfn, level), base(gfn, level) + frames(level));
        let (_, first) = *self.pages_of(start, end).first()?;
        let mut huge = Page {
            level,
            pfn: base(first.pfn, level),
            ..first
        };
        if nx {
            huge.execute = false;
            huge.tracked = huge.tracked.map(|_| false);
        }
        Some(huge)
    }
}

fn check_pfn(rules: &Rules, pfn: u64) -> Result<(), MapError> {
    let last = Pfn::new(rules.last_pfn);
    let pfn = Pfn::new(pfn);
    (pfn <= last)
        .then_some(())
        .ok_or(MapError::BeyondLastPfn { pfn, last })
}

impl Root {
    /// The first frame that it cannot map.
    pub(super) fn end(&self, rules: &Rules) -> u64 {
        rules.end.min(frames(self.level + 1))
    }

    /// What is refused whatever is mapped.
    fn check(&self, rules: &Rules, (gfn, size): (u64, Size), wish: Wish) -> Result<(), MapError> {
        if gfn >= self.end(rules) {
            return Err(MapError::BeyondLastGfn {
                gfn: Gfn::new(gfn),
                last: Gfn::new(self.end(rules) - 1),
            });
        }
        match wish {
            Wish::Mmio { .. } if rules.caches_mmio => Ok(()),
            Wish::Mmio { .. } => Err(MapError::NoMmioEntries),
            Wish::Page { pfn, .. } if pfn != base(pfn, size.level()) => Err(MapError::Unaligned {
                gfn: Gfn::new(gfn),
                pfn: Pfn::new(pfn),
                size: size.page_size(),
            }),
            Wish::Page { pfn, .. } => check_pfn(rules, pfn + frames(size.level()) - 1),
        }
    }

    /// What is refused for a range, before anything of it is mapped.
    pub(super) fn check_range(
        &self,
        rules: &Rules,
        (gfn, size): (u64, Size),
        pfn: u64,
        pages: u64,
        left: u64,
    ) -> Result<(), MapError> {
        if gfn + pages > self.end(rules) {
            return Err(MapError::BeyondLastGfn {
                gfn: Gfn::new(gfn),
                last: Gfn::new(self.end(rules) - 1),
            });
        }
        if (gfn | pfn | pages) % frames(size.level()) != 0 {
            return Err(MapError::Unaligned {
                gfn: Gfn::new(gfn),
                pfn: Pfn::new(pfn),
                size: size.page_size(),
            });
        }
        if pages == 0 {
            return Ok(());
        }
        check_pfn(rules, pfn + pages - 1)?;
        let there = self.pages_of(gfn, gfn + pages).into_iter();
        for (start, page) in there.filter(|(_, page)| page.level >= size.level()) {
            let inside = start.max(gfn);
            let (old, new) = (page.pfn + inside - start, pfn + inside - gfn);
            if old != new {
                return Err(MapError::PfnChanged {
                    gfn: Gfn::new(inside),
                    old: Pfn::new(old),
                    new: Pfn::new(new),
                });
            }
        }
        let mut needed = BTreeSet::new();
        for level in size.level() + 1..=self.level {
            let above = (gfn..gfn + pages).step_by(512).chain([gfn + pages - 1]);
            needed.extend(above.map(|gfn| (level, base(gfn, level))));
        }
        match needed.difference(&self.finer).count() as u64 > left {
            true => Err(MapError::OutOfTables),
            false => Ok(()),
        }
    }
}

pub(super) const fn page_size(level: u8) -> PageSize {
    match level {
        1 => PageSize::Size4K,
        2 => PageSize::Size2M,
        _ => PageSize::Size1G,
    }
}
