//! Slots and their dirty logs.

use slat_memslot::{AsId, Gfn, Hva, PAGE_SHIFT, Pages, SlotFlags};

use super::{AREAS, END_FRAME, FIRST_FRAME, FIRST_GIB, GIB, GIGANTIC, HUGE, HUGETLB, Slot, Writer};
use crate::traces::{Op, SetRegion};

impl Writer {
    pub(super) fn create_slot(&mut self) {
        let as_id = AsId::new(u8::from(self.smm && self.dice.percent(25)));
        let huge = self.dice.percent(50);
        let aligned = self.dice.percent(70);
        let area = match huge {
            true if self.areas.contains(&HUGETLB) && self.dice.percent(50) => HUGETLB,
            true => AREAS[2],
            false => AREAS[1],
        };
        let pages = if huge {
            self.dice.pick(&[HUGE, 2 * HUGE, 3 * HUGE, HUGE + 0x80])
        } else {
            1 + self.dice.below(HUGE)
        };
        let room = (area.pages.raw() - pages) / 0x10;
        let (mut offset, mut gfn) = (
            self.dice.below(room + 1) * 0x10,
            FIRST_FRAME + self.dice.below((END_FRAME - FIRST_FRAME - pages) / 0x10) * 0x10,
        );
        if aligned {
            (offset, gfn) = (offset & !(HUGE - 1), gfn & !(HUGE - 1));
        } else if self.dice.percent(50) {
            // Not at the begin of a huge page, but as far behind it as in the host.
            gfn = gfn & !(HUGE - 1) | offset & (HUGE - 1);
        }
        let file = self.private && self.dice.percent(60);
        let mut flags = SlotFlags::empty();
        flags.set(SlotFlags::LOG_DIRTY_PAGES, self.dice.percent(15));
        flags.set(SlotFlags::READONLY, self.dice.percent(8));
        flags.set(SlotFlags::GUEST_MEMFD, file);
        let region = SetRegion {
            slot: 1 + u16::try_from(self.dice.below(4)).unwrap_or(0),
            as_id: as_id.unwrap_or(AsId::NORMAL),
            flags: flags.bits(),
            gfn: Gfn::new(gfn),
            pages: Pages::new(pages),
            gmem_offset: file.then(|| (gfn - FIRST_FRAME) << PAGE_SHIFT),
            hva: Some(Hva::new(area.start.raw() + (offset << PAGE_SHIFT))),
        };
        self.remember(region);
        self.push(Op::SetRegion(region));
    }

    fn remember(&mut self, region: SetRegion) {
        let same =
            |slot: &Slot| (slot.region.as_id, slot.region.slot) == (region.as_id, region.slot);
        if !self.slots.iter().any(same) {
            self.slots.push(Slot { region });
        }
    }

    /// A slot over pages of 1 GiB, which not always begins where such a page does.
    pub(super) fn create_gigantic_slot(&mut self) {
        let (inside, pages) = (
            self.dice.pick(&[0, 0, HUGE]),
            self.dice.pick(&[GIB, GIB / 2]),
        );
        let region = SetRegion {
            slot: 5,
            as_id: AsId::NORMAL,
            flags: 0,
            gfn: Gfn::new(FIRST_GIB + inside),
            pages: Pages::new(pages),
            gmem_offset: None,
            hva: Some(GIGANTIC.start),
        };
        self.remember(region);
        self.push(Op::SetRegion(region));
    }

    pub(super) fn some_slot(&mut self) -> Option<usize> {
        let count = self.slots.len() as u64;
        (count > 0).then(|| usize::try_from(self.dice.below(count)).unwrap_or(0))
    }

    fn roots_may_go(&mut self) {
        self.obsolete = (0..self.vcpus).collect();
    }

    pub(super) fn delete_slot(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let slot = self.slots.remove(at);
        self.roots_may_go();
        self.push(Op::SetRegion(SetRegion {
            pages: Pages::new(0),
            ..slot.region
        }));
    }

    pub(super) fn move_slot(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let mut region = self.slots[at].region;
        let small = if region.pages.raw() > END_FRAME {
            HUGE
        } else {
            0x10
        };
        let step = self.dice.pick(&[small, HUGE, 2 * HUGE]);
        region.gfn = Gfn::new(region.gfn.raw() + step);
        self.roots_may_go();
        // Where it may have been refused, its accesses go to MMIO or another slot.
        self.slots[at].region = region;
        self.push(Op::SetRegion(region));
    }

    pub(super) fn switch_log(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let slot = &mut self.slots[at];
        slot.region.flags ^= SlotFlags::LOG_DIRTY_PAGES.bits();
        let region = slot.region;
        self.push(Op::SetRegion(region));
    }

    pub(super) fn read_log(&mut self) {
        let Some(at) = self.some_slot() else { return };
        if self.rings && self.dice.percent(90) {
            let vcpu = self.vcpu();
            return self.push(Op::HarvestRing { vcpu });
        }
        let slot = self.slots[at].region.slot;
        self.push(Op::GetDirtyLog { slot });
    }

    pub(super) fn clear_log(&mut self) {
        let Some(at) = self.some_slot() else { return };
        if self.rings && self.dice.percent(90) {
            let vcpu = self.vcpu();
            self.push(Op::HarvestRing { vcpu });
            return self.push(Op::ResetRings);
        }
        let region = self.slots[at].region;
        let words = region.pages.raw().div_ceil(64);
        let first = self.dice.below(words) * 64;
        let rest = region.pages.raw() - first;
        let pages = if self.dice.percent(50) {
            rest
        } else {
            rest.min(64 * (1 + self.dice.small(4)))
        };
        self.push(Op::ClearDirtyLog {
            slot: region.slot,
            first,
            pages: Pages::new(pages),
        });
    }
}
