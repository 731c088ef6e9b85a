//! The host's memory, and private memory.

use slat_memslot::{AsId, Gfn, PAGE_SHIFT, PAGE_SIZE, Pages};

use super::{FIRST_FRAME, HUGE, PRIVATE, Writer};
use crate::live::areas::Kind;
use crate::traces::{HostWork, Op, SetRegion};

impl Writer {
    /// Some frames of a slot of the normal address space, in such units as the memory has, and what kind it is of.
    fn host_range(&mut self) -> Option<(Gfn, Pages, Kind)> {
        let slots = self.slots.iter().map(|slot| slot.region);
        let normal: Vec<SetRegion> = slots.filter(|at| at.as_id == AsId::NORMAL).collect();
        if normal.is_empty() {
            return None;
        }
        let region = self.dice.pick(&normal);
        let hva = region.hva?;
        let area = self.areas.iter().find(|area| area.holds(hva, PAGE_SIZE))?;
        let (kind, unit) = (area.kind, area.kind.unit());
        let first = self.dice.below(region.pages.raw());
        let pages = 1 + self.dice.small(region.pages.raw() - first);
        // The host counts units from the begin of the area.
        let inside = (hva.raw() - area.start.raw()) >> PAGE_SHIFT;
        let begin = (inside + first).next_multiple_of(unit);
        let end = (inside + first + pages).next_multiple_of(unit);
        let end = end.min((inside + region.pages.raw()) / unit * unit);
        let pages = end.checked_sub(begin).filter(|pages| *pages > 0)?;
        let gfn = Gfn::new(region.gfn.raw() + (begin - inside));
        Some((gfn, Pages::new(pages), kind))
    }

    pub(super) fn host_memory(&mut self) {
        let Some((gfn, pages, kind)) = self.host_range() else {
            return;
        };
        let advise = |advice| Op::Madvise { advice, gfn, pages };
        let op = match self.dice.below(100) {
            0..35 if self.discards => advise("DONTNEED"),
            35..42 if !kind.is_file() => advise("FREE"),
            42..52 if kind == Kind::Transparent => advise("COLLAPSE"),
            52..62 if self.may_move(kind) => Op::Madvise {
                advice: "SOFT_OFFLINE",
                gfn,
                pages: Pages::new(1),
            },
            62..68 if self.abilities.host.userfault && self.discards && !kind.is_file() => {
                Op::Userfault { gfn, pages }
            }
            _ => Op::Mprotect {
                writable: self.dice.percent(60),
                range: Some((gfn, pages)),
            },
        };
        self.push(op);
    }

    /// Whether a page can be made to move: what was given back would be made new first, and of an unknown kind.
    fn may_move(&self, kind: Kind) -> bool {
        self.abilities.host.offlining
            && match kind {
                Kind::Small => true,
                Kind::Transparent => !self.discards,
                Kind::Hugetlb | Kind::Gigantic => false,
            }
    }

    /// What the host does to pages by itself, or learns of them.
    pub(super) fn host_work(&mut self) {
        let host = self.abilities.host;
        match self.dice.below(100) {
            0..40 if host.ageing => self.age(),
            40..58 if self.forks => self.fork(),
            58..72 => self.push(Op::HostWork(HostWork::Collapse)),
            72..84 if host.merging => self.push(Op::HostWork(HostWork::Merge)),
            84..90 if host.merging => self.push(Op::HostWork(HostWork::Unmerge)),
            90..95 if host.compaction => self.push(Op::HostWork(HostWork::Compact)),
            _ => self.host_memory(),
        }
    }

    fn fork(&mut self) {
        let op = if self.has_child {
            Op::ChildEnds
        } else {
            Op::Fork
        };
        self.has_child = !self.has_child;
        self.push(op);
    }

    /// Pages are marked as idle; the guest may use some; and they are looked at.
    fn age(&mut self) {
        let gfn = self.frame();
        let pages = Pages::new(1 + self.dice.small(8));
        self.push(Op::MarkFramesIdle { gfn, pages });
        for _ in 0..self.dice.below(3) {
            self.guest();
        }
        self.push(Op::ReadFramesIdle { gfn, pages });
    }

    pub(super) fn private_memory(&mut self) {
        let gfn = self.frame();
        if self.dice.percent(25) {
            let offset = gfn.raw().saturating_sub(FIRST_FRAME) << PAGE_SHIFT;
            let len = (1 + self.dice.small(HUGE)) << PAGE_SHIFT;
            return self.push(Op::PunchHole { offset, len });
        }
        let pages = match self.dice.below(3) {
            0 => 1 + self.dice.small(8),
            1 => HUGE,
            _ => 1 + self.dice.below(2 * HUGE),
        };
        let attributes = if self.dice.percent(60) { PRIVATE } else { 0 };
        let pages = Pages::new(pages);
        self.push(Op::SetAttributes {
            gfn,
            pages,
            attributes,
        });
        if self.dice.percent(40) {
            self.drop_other_half(gfn, pages, attributes);
        }
    }

    /// What a conversion leaves behind goes, as VMMs do: the private pages of what is shared now, or the shared ones.
    fn drop_other_half(&mut self, gfn: Gfn, pages: Pages, attributes: u64) {
        if attributes == 0 {
            let offset = gfn.raw().saturating_sub(FIRST_FRAME) << PAGE_SHIFT;
            let len = pages.raw() << PAGE_SHIFT;
            self.push(Op::PunchHole { offset, len });
        } else if self.discards {
            let advice = "DONTNEED";
            self.push(Op::Madvise { advice, gfn, pages });
        }
    }
}
