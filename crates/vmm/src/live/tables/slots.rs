//! Slots, their logs, and the limit of shadow pages.

use slat_memslot::{AsId, Gfn, Hva, PAGE_SHIFT, Pages, SlotFlags};

use super::entries::{FIRST_TABLE, TABLES};
use super::{AREAS, HUGE, Writer};
use crate::traces::{Op, SetRegion};

/// Frames that other slots lie in.
pub(super) const FIRST_FRAME: u64 = 0x400;
pub(super) const END_FRAME: u64 = 0xe00;

impl Writer {
    /// Whether the guest's tables are in a slot.
    pub(super) fn has_table_slot(&self) -> bool {
        self.slots.iter().any(|slot| slot.slot == 1)
    }

    pub(super) fn create_table_slot(&mut self) {
        let region = slot(1, FIRST_TABLE, TABLES, AREAS[1].start);
        self.remember(region);
        self.push(Op::SetRegion(region));
    }

    fn remember(&mut self, region: SetRegion) {
        if !self.slots.iter().any(|slot| slot.slot == region.slot) {
            self.slots.push(region);
        }
    }

    pub(super) fn create_slot(&mut self) {
        if !self.has_table_slot() {
            return self.create_table_slot();
        }
        let huge = self.dice.percent(50);
        let area = if huge { AREAS[3] } else { AREAS[2] };
        let pages = if huge {
            self.dice.pick(&[HUGE, 2 * HUGE, HUGE + 0x80])
        } else {
            1 + self.dice.below(area.pages.raw())
        };
        let room = area.pages.raw() - pages;
        let (mut offset, mut gfn) = (
            self.dice.below(room + 1),
            FIRST_FRAME + self.dice.below((END_FRAME - FIRST_FRAME - pages) / 0x10) * 0x10,
        );
        if huge && self.dice.percent(80) {
            (offset, gfn) = (offset & !(HUGE - 1), gfn & !(HUGE - 1));
        }
        let mut flags = SlotFlags::empty();
        flags.set(SlotFlags::LOG_DIRTY_PAGES, self.dice.percent(20));
        flags.set(SlotFlags::READONLY, self.dice.percent(10));
        let id = 2 + u16::try_from(self.dice.below(4)).unwrap_or(0);
        let hva = Hva::new(area.start.raw() + (offset << PAGE_SHIFT));
        let region = SetRegion {
            flags: flags.bits(),
            ..slot(id, gfn, pages, hva)
        };
        self.remember(region);
        self.push(Op::SetRegion(region));
    }

    fn some_slot(&mut self) -> Option<usize> {
        let count = self.slots.len() as u64;
        (count > 0).then(|| usize::try_from(self.dice.below(count)).unwrap_or(0))
    }

    pub(super) fn delete_slot(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let region = self.slots.remove(at);
        self.push(Op::SetRegion(SetRegion {
            pages: Pages::new(0),
            ..region
        }));
    }

    pub(super) fn move_slot(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let region = &mut self.slots[at];
        if region.slot == 1 {
            return;
        }
        let step = self.dice.pick(&[0x10, HUGE]);
        region.gfn = Gfn::new(region.gfn.raw() + step);
        let region = *region;
        self.push(Op::SetRegion(region));
    }

    pub(super) fn switch_log(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let region = &mut self.slots[at];
        region.flags ^= SlotFlags::LOG_DIRTY_PAGES.bits();
        let region = *region;
        self.push(Op::SetRegion(region));
    }

    pub(super) fn read_log(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let slot = self.slots[at].slot;
        self.push(Op::GetDirtyLog { slot });
    }

    pub(super) fn clear_log(&mut self) {
        let Some(at) = self.some_slot() else { return };
        let region = self.slots[at];
        let first = self.dice.below(region.pages.raw().div_ceil(64)) * 64;
        self.push(Op::ClearDirtyLog {
            slot: region.slot,
            first,
            pages: Pages::new(region.pages.raw() - first),
        });
    }

    pub(super) fn limit(&mut self) {
        let pages = 63 + self.dice.below(60);
        self.push(Op::SetMmuPages { pages });
    }
}

pub(super) fn slot(id: u16, gfn: u64, pages: u64, hva: Hva) -> SetRegion {
    SetRegion {
        slot: id,
        as_id: AsId::NORMAL,
        flags: 0,
        gfn: Gfn::new(gfn),
        pages: Pages::new(pages),
        gmem_offset: None,
        hva: Some(hva),
    }
}
