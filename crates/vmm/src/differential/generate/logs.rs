//! Random dirty-log and dirty-ring calls, and guest writes.

use slat_memslot::{
    Buffer, Call, ClearBits, GuestAccess, Memory, PAGE_SIZE, Region, SlotFlags, SlotKey, cap,
};

use super::{Generator, live_slot};

impl Generator {
    fn log_slot(&mut self, memory: &Memory) -> u32 {
        let wild = u64::from(
            self.dice
                .pick(&[7, 31, 32763, 32764, 0x1_0000, 40000, u32::MAX]),
        );
        match live_slot(&mut self.dice, memory).filter(|_| self.dice.percent(90)) {
            Some(slot) => slot.key().raw(),
            None => u32::try_from(wild).unwrap_or(0),
        }
    }

    /// A logged slot in memory that the guest can write.
    fn logged_region(&mut self) -> Call {
        let slot = SlotKey::normal(u16::try_from(self.dice.below(12)).unwrap_or(0));
        let page = self.dice.below(4096);
        let pages = self.dice.pick(&[1, 16, 63, 64, 65, 100, 128, 200]);
        let hva = self.host.writable.raw() + self.dice.below(1 << 14) * PAGE_SIZE;
        let region = Region::new(slot, page * PAGE_SIZE, pages * PAGE_SIZE, hva);
        Call::SetRegion(region.with_flags(SlotFlags::LOG_DIRTY_PAGES))
    }

    pub(super) fn dirty_log_call(&mut self, memory: &Memory) -> Call {
        match self.dice.below(20) {
            0..=3 => self.logged_region(),
            4..=9 if memory.vcpus() == 0 => Call::CreateVcpu,
            4..=9 => self.guest_write(memory),
            10..=14 => {
                let buffer = if self.dice.percent(4) {
                    Buffer::Null
                } else {
                    Buffer::Good
                };
                Call::GetDirtyLog {
                    slot: self.log_slot(memory),
                    buffer,
                }
            }
            15..=18 => self.clear_dirty_log(memory),
            _ => {
                let mode = self.dice.mostly(1, &[0, 3, 3, 2, 4, 8]);
                let flags = u32::from(self.dice.percent(4));
                Call::EnableCap {
                    cap: cap::MANUAL_DIRTY_LOG_PROTECT2,
                    flags,
                    args: [mode, 0, 0, 0],
                }
            }
        }
    }

    fn clear_dirty_log(&mut self, memory: &Memory) -> Call {
        let slot = self.log_slot(memory);
        let live = memory.slot(slot);
        let pages = live.map_or(64, |s| s.pages().raw());
        let words = pages / 64 + 1;
        let first = 64 * self.dice.below(words);
        let first_page = self.dice.mostly(
            first,
            &[
                1,
                63,
                64,
                pages,
                pages.next_multiple_of(64),
                1 << 40,
                u64::MAX - 63,
            ],
        );
        let rest = pages.saturating_sub(first_page);
        let count = self
            .dice
            .mostly(rest, &[0, 1, 63, 64, 128, rest + 1, u64::from(u32::MAX)]);
        let bits = match self.dice.below(12) {
            0 => ClearBits::Null,
            1..=5 => ClearBits::All,
            _ => ClearBits::Words(
                (0..count.div_ceil(64).min(8))
                    .map(|_| self.dice.bits())
                    .collect(),
            ),
        };
        Call::ClearDirtyLog {
            slot,
            first_page,
            num_pages: u32::try_from(count).unwrap_or(u32::MAX),
            bits,
        }
    }

    /// A write to a live slot, or rarely to a hole.
    fn guest_write(&mut self, memory: &Memory) -> Call {
        let slot = live_slot(&mut self.dice, memory);
        let page = match slot {
            Some(slot) if self.dice.percent(95) => {
                slot.range().start().raw() + self.dice.below(slot.pages().raw())
            }
            _ => self.dice.below(1 << 20),
        };
        let gpa = page
            .wrapping_mul(PAGE_SIZE)
            .wrapping_add(8 * self.dice.below(500));
        let access = match self.dice.below(12) {
            0 => GuestAccess::read(gpa),
            1 => GuestAccess::execute(gpa),
            _ => GuestAccess::write(gpa),
        };
        let vcpus = u64::from(memory.vcpus().max(1));
        let vcpu = u32::try_from(self.dice.below(vcpus)).unwrap_or(0);
        Call::Guest(access.by_vcpu(vcpu))
    }

    pub(super) fn dirty_ring_call(&mut self, memory: &Memory) -> Call {
        match (memory.has_rings(), self.dice.below(20)) {
            (true, 0..=2) => self.logged_region(),
            (true, 3..=11) if memory.vcpus() > 0 => self.guest_write(memory),
            (true, 12..=14) => Call::HarvestDirtyRing {
                vcpu: u32::try_from(self.dice.below(2)).unwrap_or(0),
            },
            (_, 15..=16) => Call::ResetDirtyRings,
            (true, 17) if memory.vcpus() == 0 => Call::CreateVcpu,
            _ => {
                let size = self.dice.mostly(
                    4096,
                    &[0, 100, 512, 2048, 8192, 65536, 1 << 20, 1 << 21, 1 << 40],
                );
                let caps = [
                    cap::DIRTY_LOG_RING,
                    cap::DIRTY_LOG_RING_ACQ_REL,
                    cap::DIRTY_LOG_RING_WITH_BITMAP,
                ];
                // Rings end a VM's bitmaps, so they come rarely.
                let cap = if self.dice.percent(30) {
                    self.dice.pick(&caps)
                } else {
                    cap::DIRTY_LOG_RING_WITH_BITMAP
                };
                Call::EnableCap {
                    cap,
                    flags: u32::from(self.dice.percent(4)),
                    args: [size, 0, 0, 0],
                }
            }
        }
    }
}
