//! Random guest_memfd calls.

use slat_memslot::{Call, FileCall, GmemId, MapCall, MapId, Memory, PAGE_SIZE};

use super::Generator;

const ODD_SIZES: [u64; 8] = [
    0,
    0x800,
    0x1001,
    1 << 44,
    1 << 63,
    0x7fff_ffff_ffff_f000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_f000,
];
const ODD_FLAGS: [u64; 4] = [4, 8, 1 << 63, 7];
const ODD_RANGE: [u64; 8] = [
    0,
    1,
    0x800,
    0x1001,
    1 << 63,
    0x7fff_ffff_ffff_f000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_f000,
];
const MODES: [u32; 12] = [0, 1, 2, 3, 8, 9, 0x10, 0x11, 0x20, 0x21, 0x40, 0x1000];
const ADVICES: [u32; 8] = [0, 3, 4, 9, 14, 15, 99, 1000];

impl Generator {
    pub(super) fn files(&mut self, memory: &Memory) -> Vec<GmemId> {
        (0..).map(GmemId::new).take(memory.gmem_files()).collect()
    }

    pub(super) fn gmem_call(&mut self, memory: &Memory) -> Call {
        let files = self.files(memory);
        let few = files.len() < 2;
        match self.dice.below(100) {
            0..=24 => self.create_gmem(),
            25..=59 if few => self.create_gmem(),
            25..=59 => Call::SetRegion(self.bind(memory)),
            _ if files.is_empty() => self.create_gmem(),
            60..=84 => self.file_call(&files, memory),
            _ if memory.gmem_maps() == 0 => self.file_call(&files, memory),
            _ => self.map_call(memory),
        }
    }

    fn create_gmem(&mut self) -> Call {
        let pages = 1 + self.dice.below(64);
        let size = self.dice.mostly(pages * PAGE_SIZE, &ODD_SIZES);
        let flags = self.dice.mostly(0, &[1, 2, 3]);
        let flags = self.dice.mostly(flags, &ODD_FLAGS);
        Call::CreateGmem {
            size,
            flags,
            reserved: u64::from(self.dice.percent(3)),
        }
    }

    /// A slot bound to a file, usually to a good range.
    fn bind(&mut self, memory: &Memory) -> slat_memslot::Region {
        let mut region = self.region(memory);
        let files = self.files(memory);
        let (slot, page) = (self.dice.small(32), self.dice.below(4096));
        region.slot = u32::try_from(slot).unwrap_or(0);
        region.gpa = page * PAGE_SIZE;
        region.size = (1 + self.dice.below(16)) * PAGE_SIZE;
        region.hva = self.host_address();
        region = region.with_gmem(self.dice.pick(&files), self.dice.small(48) * PAGE_SIZE);
        region.flags = self.dice.mostly(4, &[5, 6, 7, 12]).try_into().unwrap_or(4);
        region
    }

    fn file_call(&mut self, files: &[GmemId], memory: &Memory) -> Call {
        let file = self.dice.pick(files);
        let size = memory
            .gmem_file(file)
            .map_or(0, slat_memslot::GmemFile::size);
        let call = match self.dice.below(24) {
            0 => FileCall::Close,
            1 => self.dice.pick(&[
                FileCall::Read,
                FileCall::Write,
                FileCall::Pread,
                FileCall::Pwrite,
            ]),
            2 => self.dice.pick(&[FileCall::Lseek, FileCall::Chmod]),
            3 => FileCall::Truncate {
                len: self.dice.mostly(size, &ODD_SIZES),
            },
            4 => FileCall::Size,
            5 => FileCall::Blocks,
            6..=15 => self.fallocate(size),
            _ => self.mmap(size),
        };
        Call::File(file, call)
    }

    fn fallocate(&mut self, size: u64) -> FileCall {
        let mode = if self.dice.percent(70) {
            self.dice.pick(&[1, 3])
        } else {
            self.dice.pick(&MODES)
        };
        let offset = self.dice.small(64) * PAGE_SIZE;
        let len = (1 + self.dice.small(16)) * PAGE_SIZE;
        let offset = self.dice.mostly(offset, &ODD_RANGE);
        let end = size.wrapping_sub(offset);
        let len = self.dice.mostly(len, &[end, size]);
        FileCall::Fallocate {
            mode,
            offset,
            len: self.dice.mostly(len, &ODD_RANGE),
        }
    }

    fn mmap(&mut self, size: u64) -> FileCall {
        let len = self.dice.mostly(
            size.min(1 << 20),
            &[0, 1, 0x1800, 1 << 47, 1 << 63, 2 * PAGE_SIZE],
        );
        let (prot, flags) = (
            self.dice.mostly(3, &[0, 1, 7, 5]),
            self.dice.mostly(1, &[0, 2, 3]),
        );
        let offset = self
            .dice
            .mostly(0, &[PAGE_SIZE, 1, 0x7fff_ffff_ffff_f000, 1 << 63, size]);
        FileCall::Mmap {
            len,
            prot: u32::try_from(prot).unwrap_or(3),
            flags: u32::try_from(flags).unwrap_or(1),
            offset,
        }
    }

    fn map_call(&mut self, memory: &Memory) -> Call {
        let map = self.dice.below(memory.gmem_maps() as u64);
        let map = MapId::new(u32::try_from(map).unwrap_or(0));
        let offset = self.dice.small(64) * PAGE_SIZE;
        let call = match self.dice.below(12) {
            0 => MapCall::Madvise {
                advice: self.dice.pick(&ADVICES),
            },
            1 => MapCall::Mprotect {
                prot: self.dice.pick(&[0, 1, 3, 5, 7, 0x10]),
            },
            2 => MapCall::Unmap,
            _ => MapCall::Touch {
                offset: self.dice.near(offset),
            },
        };
        Call::Map(map, call)
    }
}
