//! Random set-region calls.

use slat_memslot::{
    AsId, FileRef, Memory, OtherFile, PAGE_SIZE, Region, RegionVersion, Slot, SlotFlags, SlotKey,
};

use super::{Generator, live_slot};

const LOG: u32 = SlotFlags::LOG_DIRTY_PAGES.bits();
const READONLY: u32 = SlotFlags::READONLY.bits();
const GMEM: u32 = SlotFlags::GUEST_MEMFD.bits();

/// Slot numbers at and beyond the limits.
const ODD_SLOTS: [u32; 9] = [
    32763,
    32764,
    32765,
    32766,
    32767,
    0xffff,
    0x1_0000,
    0x2_0003,
    0xffff_ffff,
];
/// Guest-physical addresses at limits of the MMU and of 64 bits.
const ODD_GPAS: [u64; 10] = [
    0xffff_f000,
    1 << 32,
    (1 << 40) - PAGE_SIZE,
    1 << 46,
    (1 << 52) - PAGE_SIZE,
    1 << 52,
    1 << 63,
    0xffff_ffff_ffff_e000,
    0xffff_ffff_ffff_f000,
    0xfee0_0000,
];
const ODD_SIZES: [u64; 9] = [
    0,
    1,
    0x800,
    0x1001,
    0x7ff_ffff_f000,
    0x800_0000_0000,
    1 << 63,
    0xffff_ffff_ffff_f000,
    0x7fff_ffff_f000,
];
const ODD_HVAS: [u64; 11] = [
    0,
    1,
    0x7fff_ffff_e000,
    0x7fff_ffff_f000,
    0x8000_0000_0000,
    0xff_ffff_ffff_f000,
    0x2000_0000_0000_1000,
    0x7fff_ffff_ffff_e000,
    1 << 63,
    0xffff_8000_0000_0000,
    0xffff_ffff_ffff_f000,
];
const ODD_FLAGS: [u32; 9] = [4, 5, 6, 7, 8, 0x10, 0x1_0000, 0x2_0000, 0x8000_0000];
const ODD_OFFSETS: [u64; 6] = [
    0x123,
    0x800,
    1 << 63,
    0x7fff_ffff_ffff_f000,
    0xffff_ffff_ffff_f000,
    0xffff_ffff_ffff_e000,
];

impl Generator {
    /// A set-region call: a new slot, a change of a live one, or something wild.
    pub(super) fn region(&mut self, memory: &Memory) -> Region {
        let live = live_slot(&mut self.dice, memory);
        let crowded = memory.space(AsId::NORMAL).len() > 24;
        match (self.dice.below(100), live) {
            (0..=4, _) => self.wild_region(memory),
            (5..=44, Some(slot)) => self.change_of(slot, memory),
            (45..=64, Some(slot)) => self.delete_of(slot.key()),
            (65.., Some(slot)) if crowded => self.delete_of(slot.key()),
            (_, live) => self.new_region(live, memory),
        }
    }

    /// A new slot, usually good, often beside a live one.
    fn new_region(&mut self, neighbour: Option<&Slot>, memory: &Memory) -> Region {
        let slot = if self.dice.percent(95) {
            self.dice.small(32)
        } else {
            u64::from(self.dice.pick(&ODD_SLOTS))
        };
        let smm = memory.address_space_count() == 2 && self.dice.percent(20);
        let slot = slot | u64::from(smm) << 16;
        let pages = self.pages();
        let gpa = self.place(neighbour, pages);
        let mut region = Region {
            slot: u32::try_from(slot).unwrap_or(u32::MAX),
            gpa: self.dice.near(gpa),
            size: self.dice.near(pages * PAGE_SIZE),
            hva: self.host_address(),
            ..Region::default()
        };
        self.push_to_an_end(&mut region);
        self.choose_version(&mut region);
        region.flags = self.flags();
        self.choose_file(&mut region, memory);
        region
    }

    /// Rarely lets a range end where user space or guest-physical memory ends, or a page beside that.
    fn push_to_an_end(&mut self, region: &mut Region) {
        let (user, guest) = self.ends;
        match self.dice.below(60) {
            0 => region.hva = self.dice.near(user.wrapping_sub(region.size)),
            1 => region.gpa = self.dice.near(guest.wrapping_sub(region.size)),
            _ => {}
        }
    }

    fn pages(&mut self) -> u64 {
        match self.dice.below(40) {
            0 => 512,
            1 => 1 + self.dice.below(4096),
            2 => 63 + self.dice.below(3),
            _ => 1 + self.dice.below(32),
        }
    }

    /// A guest-physical address: anywhere in the low 16 MiB, or touching a live slot from below, above or inside.
    fn place(&mut self, neighbour: Option<&Slot>, pages: u64) -> u64 {
        let anywhere = self.dice.below(4096);
        let page = match (neighbour, self.dice.below(6)) {
            (Some(slot), 0) => slot.range().end().raw(),
            (Some(slot), 1) => slot.range().start().raw().saturating_sub(pages),
            (Some(slot), 2) => slot.range().last().raw(),
            _ => anywhere,
        };
        match self.dice.below(30) {
            0 => self.dice.pick(&ODD_GPAS),
            _ => page.wrapping_mul(PAGE_SIZE),
        }
    }

    pub(super) fn host_address(&mut self) -> u64 {
        let offset = self.dice.below(1 << 14) * PAGE_SIZE;
        let odd = self.dice.pick(&ODD_HVAS);
        let other = self
            .dice
            .pick(&[self.host.unreachable, self.host.readonly])
            .raw();
        match self.dice.below(40) {
            0 => odd,
            1 => other,
            2 => self.host.writable.raw() + offset + 0x800,
            _ => self.host.writable.raw() + offset,
        }
    }

    fn flags(&mut self) -> u32 {
        let log = if self.logged_mode { 60 } else { 20 };
        match self.dice.below(100) {
            0..=3 => self.dice.pick(&ODD_FLAGS),
            4..=11 => READONLY,
            12..=13 => READONLY | LOG,
            14..=30 => GMEM,
            _ if self.dice.percent(log) => LOG,
            _ => 0,
        }
    }

    /// The older struct for plain slots half of the time; the newer one where a guest_memfd is asked for, mostly.
    fn choose_version(&mut self, region: &mut Region) {
        region.version = if self.dice.percent(50) {
            RegionVersion::V1
        } else {
            RegionVersion::V2
        };
    }

    fn choose_file(&mut self, region: &mut Region, memory: &Memory) {
        if region.flags & GMEM != 0 && self.dice.percent(90) {
            region.version = RegionVersion::V2;
        }
        if region.version == RegionVersion::V1 {
            return;
        }
        let files = self.files(memory);
        region.gmem = match self.dice.below(20) {
            0 => FileRef::NotOpen(-1),
            1 => FileRef::NotOpen(999),
            2 => FileRef::Foreign,
            3 => FileRef::Other(self.dice.pick(&[
                OtherFile::Null,
                OtherFile::Memfd,
                OtherFile::Vm,
                OtherFile::Kvm,
            ])),
            _ if files.is_empty() => FileRef::NotOpen(-1),
            _ => FileRef::Gmem(self.dice.pick(&files)),
        };
        let page = self.dice.small(32) * PAGE_SIZE;
        region.gmem_offset = match self.dice.below(12) {
            0 => self.dice.pick(&ODD_OFFSETS),
            1 => self.file_end(region.gmem, memory).wrapping_sub(region.size),
            2 => self.file_end(region.gmem, memory),
            _ => page,
        };
        region.padding = if self.dice.percent(3) { 1 } else { 0 };
    }

    fn file_end(&self, file: FileRef, memory: &Memory) -> u64 {
        match file {
            FileRef::Gmem(id) => memory.gmem_file(id).map_or(0, slat_memslot::GmemFile::size),
            _ => 0,
        }
    }

    /// A request for a live slot with one field changed, or none.
    fn change_of(&mut self, slot: &Slot, memory: &Memory) -> Region {
        let mut region = Region::new(
            slot.key(),
            slot.range().start().gpa().raw(),
            slot.pages().bytes(),
            slot.hva().raw(),
        )
        .with_flags(slot.flags());
        self.choose_version(&mut region);
        match self.dice.below(12) {
            0 => {}
            1..=3 => region.flags ^= LOG,
            4..=6 => region.gpa = self.place(Some(slot), slot.pages().raw()),
            7 => region.gpa = self.dice.near(region.gpa),
            8 => region.size = self.dice.near(region.size),
            9 => region.hva = self.dice.near(region.hva),
            10 => region.flags ^= READONLY,
            _ => {
                region.flags |= GMEM;
                self.choose_file(&mut region, memory);
            }
        }
        if self.dice.percent(15) {
            region.flags ^= LOG;
        }
        region
    }

    /// A delete, usually plain, sometimes with arguments that are checked all the same.
    fn delete_of(&mut self, key: SlotKey) -> Region {
        let mut region = Region::delete(key);
        self.choose_version(&mut region);
        if self.dice.percent(20) {
            region.gpa = self.dice.pick(&[0, PAGE_SIZE, 1, 0xffff_ffff_ffff_f000]);
            region.hva = self.host_address();
            region.flags = self.dice.pick(&[0, LOG, READONLY, GMEM, 8]);
            region.gmem_offset = self.dice.pick(&[0, 1, PAGE_SIZE, 0xffff_ffff_ffff_f000]);
        }
        if self.dice.percent(8) {
            region.slot = u32::try_from(self.dice.below(40)).unwrap_or(0);
        }
        region
    }

    /// Every field from its odd values.
    fn wild_region(&mut self, memory: &Memory) -> Region {
        let mut region = Region {
            slot: u32::try_from(self.dice.mostly(3, &ODD_SLOTS.map(u64::from))).unwrap_or(0),
            gpa: self.dice.mostly(0x10_0000, &ODD_GPAS),
            size: self.dice.pick(&ODD_SIZES),
            hva: self.host_address(),
            flags: self.flags(),
            ..Region::default()
        };
        self.choose_version(&mut region);
        self.choose_file(&mut region, memory);
        region
    }
}
