//! What a dirty log, ageing and write tracking do, and the mending of faults in place.

use slat_memslot::Gfn;

use super::model::{Gone, Page, Root, Rules, base};
use super::ops::{Op, Size, Want};
use super::world::{Budget, World, access, address_space, frames_of, nx_huge_pages, same};
use super::*;
use crate::role::RoleFlag;
use crate::spte::Access;

impl Root {
    /// Whether dirty bits show writes in it.
    fn logs_by_dirty_bit(&self, rules: &Rules) -> bool {
        !(self.no_ad || self.role.has(RoleFlag::GuestMode) && rules.pml)
    }

    /// Takes the dirty bit or the right to write from a page; `None` if that changes nothing.
    fn weaker(&self, rules: &Rules, page: &Page, dirty: bool) -> Option<Page> {
        let weaker = match dirty && self.logs_by_dirty_bit(rules) {
            true => Page {
                dirty: false,
                ..*page
            },
            false => Page {
                write: false,
                ..*page
            },
        };
        (weaker != *page).then_some(weaker)
    }

    /// Puts a page in the place of another and notes what the host learns.
    fn change(&mut self, rules: &Rules, gfn: u64, (old, new): (&Page, Page), gone: &mut Gone) {
        self.harvest(rules, old, Some(&new), gone);
        self.pages.insert(gfn, new);
    }

    /// A page whose next use shows.
    fn aged(&self, page: &Page) -> Page {
        match (self.no_ad, page.tracked) {
            (false, _) => Page {
                accessed: false,
                ..*page
            },
            (true, Some(_)) => *page,
            (true, None) => Page {
                tracked: Some(page.execute),
                execute: false,
                write: false,
                accessed: false,
                ..*page
            },
        }
    }

    /// The page as a fault mends it in place.
    fn mended(&self, rules: &Rules, page: &Page, want: Want, logged: bool) -> Option<Page> {
        let mut new = *page;
        if let (true, Some(execute)) = (self.no_ad, page.tracked) {
            new = Page {
                tracked: None,
                execute,
                accessed: page.accessed || rules.software_ad,
                ..new
            };
        }
        if want == Want::Write && page.mmu_writable {
            new.write = true;
            if page.level > 1 && logged {
                return None;
            }
        }
        (new != *page && Self::suffices(&new, want)).then_some(new)
    }
}

impl<F: Format, const EVENTS: bool, const HARVEST: bool> World<F, EVENTS, HARVEST> {
    pub(super) fn apply_log(&mut self, op: &Op) -> Result<(), String> {
        match *op {
            Op::Weaken {
                space,
                start,
                end,
                dirty,
                smallest,
                exclusive,
                every,
            } => self.weaken(space, (start, end), (dirty, smallest), exclusive, every),
            Op::ClearMasked {
                space,
                gfn,
                mask,
                dirty,
            } => self.clear_masked(space, gfn, mask, dirty),
            Op::Age {
                space,
                start,
                end,
                take,
            } => self.age(space, (start, end), take),
            Op::WriteTrack { space, gfn, size } => self.write_track(space, gfn, size),
            Op::FastFault {
                root,
                gfn,
                want,
                logged,
            } => self.fast_fault(root, gfn, want, logged),
            Op::CollapseTables {
                space,
                start,
                end,
                size,
                recover,
                every,
            } => self.collapse_tables(space, (start, end), (size, recover), every),
            _ => Err(format!("{op:?} is for others")),
        }
    }

    fn weaken(
        &mut self,
        space: u8,
        range: (u64, u64),
        (dirty, smallest): (bool, Size),
        exclusive: bool,
        every: u32,
    ) -> Result<(), String> {
        let (mut gone, mut changed) = (Gone::default(), false);
        let smallest_level = if dirty { 1 } else { smallest.level() };
        for at in self.selected(Some(space), true) {
            let (start, end) = self.seen_by(at, range);
            let root = &mut self.roots[at];
            for (gfn, page) in root.pages_of(start, end.max(start)) {
                if page.level < smallest_level || start >= end {
                    continue;
                }
                if let Some(new) = root.weaker(&self.rules, &page, dirty) {
                    changed = true;
                    root.change(&self.rules, gfn, (&page, new), &mut gone);
                }
            }
        }
        self.settle(gone, true);
        let (space, range) = (address_space(space), frames_of(range));
        let mut weaken = match dirty {
            true => Weaken::clear_dirty(space, range),
            false => Weaken::write_protect(space, range, smallest.page_size()),
        };
        let mut budget = Budget::new(every);
        loop {
            let progress = match (exclusive, every) {
                (true, 0) => weaken.run(&mut self.exclusive(), &mut Uninterrupted),
                (true, _) => weaken.run(&mut self.exclusive(), &mut budget),
                (false, 0) => weaken.run(&mut self.shared(), &mut Uninterrupted),
                (false, _) => weaken.run(&mut self.shared(), &mut budget),
            };
            if progress == Progress::Done {
                break;
            }
        }
        same("weakened", weaken.has_changed(), changed)
    }

    fn clear_masked(
        &mut self,
        space: u8,
        first: u64,
        mask: u64,
        dirty: bool,
    ) -> Result<(), String> {
        let mut gone = Gone::default();
        for at in self.selected(Some(space), true) {
            let root = &mut self.roots[at];
            let end = root.end(&self.rules);
            for gfn in (0..64)
                .filter(|bit| mask >> bit & 1 != 0)
                .map(|bit| first + bit)
            {
                let page = root.pages.get(&gfn).copied();
                let Some(page) = page.filter(|page| page.level == 1 && gfn < end) else {
                    continue;
                };
                if let Some(new) = root.weaker(&self.rules, &page, dirty) {
                    // Whatever it has lost.
                    gone.dirty += 1;
                    root.pages.insert(gfn, new);
                }
            }
        }
        self.settle(gone, false);
        let by = match dirty {
            true => ByWhat::DirtyBit,
            false => ByWhat::WriteProtection,
        };
        self.exclusive()
            .clear_dirty(address_space(space), by)
            .word(Gfn::new(first), mask);
        Ok(())
    }

    fn age(&mut self, space: u8, range: (u64, u64), take: bool) -> Result<(), String> {
        let (mut gone, mut young) = (Gone::default(), false);
        for at in self.selected(Some(space), false) {
            let (start, end) = self.seen_by(at, range);
            let root = &mut self.roots[at];
            for (gfn, page) in root.pages_of(start, end.max(start)) {
                if start >= end || !root.is_accessed(&self.rules, &page) {
                    continue;
                }
                young = true;
                if take {
                    gone.dirty += u64::from(root.no_ad && page.write);
                    let aged = root.aged(&page);
                    root.pages.insert(gfn, aged);
                }
            }
        }
        self.settle(gone, false);
        let age = if take { Age::Take } else { Age::Test };
        let got = self
            .exclusive()
            .age(address_space(space), frames_of(range), age);
        same("young", got, young)
    }

    fn write_track(&mut self, space: u8, gfn: u64, size: Size) -> Result<(), String> {
        let (mut gone, mut changed) = (Gone::default(), false);
        for at in self.selected(Some(space), true) {
            let root = &mut self.roots[at];
            let page = root.page(gfn);
            let Some((start, page)) = page.filter(|(_, page)| page.level >= size.level()) else {
                continue;
            };
            let new = Page {
                write: false,
                mmu_writable: false,
                ..page
            };
            if new != page {
                changed = true;
                root.change(&self.rules, start, (&page, new), &mut gone);
            }
        }
        self.settle(gone, false);
        let (space, gfn) = (address_space(space), Gfn::new(gfn));
        let got = self.exclusive().write_track(space, gfn, size.page_size());
        same("write-tracked", got, changed)
    }

    fn fast_fault(&mut self, n: u8, gfn: u64, want: Want, logged: bool) -> Result<(), String> {
        let Some((at, table)) = self.usable(n) else {
            return Ok(());
        };
        let want = match want {
            Want::Prefetch => Want::Read,
            other => other,
        };
        let log = match logged {
            true => SlotLog::On,
            false => SlotLog::Off,
        };
        let wanted = access(want, Access::empty());
        let got = self.shared().fast_fault(table, Gfn::new(gfn), wanted, log);
        let root = &mut self.roots[at];
        let expected = match root.page(gfn) {
            None => Fast::NotFast,
            Some((_, page)) if Root::suffices(&page, want) => Fast::Spurious,
            Some((start, page)) => match root.mended(&self.rules, &page, want, logged) {
                None => Fast::NotFast,
                Some(new) => {
                    root.pages.insert(start, new);
                    Fast::Fixed {
                        mark_dirty: new.write && !page.write,
                    }
                }
            },
        };
        same("mended in place", got, expected)
    }

    fn collapse_tables(
        &mut self,
        space: u8,
        range: (u64, u64),
        (largest, recover): (Size, Option<bool>),
        every: u32,
    ) -> Result<(), String> {
        let (mut gone, mut collapsed) = (Gone::default(), 0);
        for at in self.selected(Some(space), true) {
            let (start, end) = self.seen_by(at, range);
            let root = &mut self.roots[at];
            let mut finer: Vec<(u8, u64)> = root.finer.iter().copied().collect();
            finer.sort_by_key(|(level, gfn)| (*gfn, core::cmp::Reverse(*level)));
            finer.retain(|(level, gfn)| {
                (2..=largest.level()).contains(level) && (start..end).contains(gfn)
            });
            for (level, gfn) in finer {
                if !root.finer.contains(&(level, gfn)) {
                    continue;
                }
                let huge = recover.map(|nx| root.recovered(level, gfn, nx));
                if huge == Some(None) {
                    continue;
                }
                root.remove_below(&self.rules, level, gfn, &mut gone);
                root.pages
                    .extend(huge.flatten().map(|huge| (base(gfn, level), huge)));
                collapsed += 1;
            }
        }
        self.settle(gone, true);
        let how = match recover {
            None => Collapse::Zap,
            Some(nx) => Collapse::Recover(nx_huge_pages(nx)),
        };
        let mut collapse = CollapseTables::new(address_space(space), frames_of(range), how);
        let (largest, mut budget) = (largest.page_size(), Budget::new(every));
        let allows = |_: Gfn, size| size <= largest;
        loop {
            let progress = match every {
                0 => collapse.run(&mut self.shared(), &mut Uninterrupted, allows),
                _ => collapse.run(&mut self.shared(), &mut budget, allows),
            };
            if progress == Progress::Done {
                return same("collapsed", collapse.collapsed(), collapsed);
            }
        }
    }
}
