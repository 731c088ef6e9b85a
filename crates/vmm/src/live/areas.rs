//! Host memory at known addresses, so that a program can name them before it runs.
#![expect(unsafe_code, reason = "memory is mapped and accessed through pointers")]

use std::io;

use slat_memslot::{AsId, Gfn, Hva, PAGE_SIZE, Pages};

use crate::traces::SetRegion;

/// What the host's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Anonymous pages of 4 KiB.
    Small,
    /// Anonymous memory, of which the host may make pages of 2 MiB (`MADV_HUGEPAGE`).
    Transparent,
    /// Pages of 2 MiB out of a pool, as of a file (`MAP_HUGETLB`).
    Hugetlb,
    /// The same of 1 GiB.
    Gigantic,
}

impl Kind {
    /// Whether it is as a file: pages are there before anybody writes, and no fork shares them.
    pub const fn is_file(self) -> bool {
        matches!(self, Self::Hugetlb | Self::Gigantic)
    }

    /// How many frames at a time can be given back or protected.
    pub const fn unit(self) -> u64 {
        match self {
            Self::Small | Self::Transparent => 1,
            Self::Hugetlb => 0x200,
            Self::Gigantic => 0x4_0000,
        }
    }
}

/// A range of host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Area {
    /// Where it begins: a multiple of 1 GiB.
    pub start: Hva,
    /// Its size.
    pub pages: Pages,
    /// What it is made of.
    pub kind: Kind,
}

/// Where areas begin: far from anything that a process has by itself.
const FIRST: u64 = 0x2000_0000_0000;
/// Areas are so far apart that none of them shares a table of page tables with another.
const APART: u64 = 1 << 30;
/// In memory of 1 GiB, so many frames of each 2 MiB are used.
pub(super) const USED: u64 = 0x20;

impl Area {
    /// A slot over all of it, from frame 0: where the guest's instructions are.
    pub(crate) const fn slot_of_code(self, as_id: AsId) -> SetRegion {
        SetRegion {
            slot: 0,
            as_id,
            flags: 0,
            gfn: Gfn::new(0),
            pages: self.pages,
            gmem_offset: None,
            hva: Some(self.start),
        }
    }

    /// The place of one of several areas.
    pub const fn at(number: u64, pages: Pages, kind: Kind) -> Self {
        Self {
            start: Hva::new(FIRST + number * APART),
            pages,
            kind,
        }
    }

    const fn bytes(&self) -> u64 {
        self.pages.raw() * PAGE_SIZE
    }

    /// Whether guests reach a frame: not all of a huge number of them.
    pub const fn is_used(&self, frame: u64) -> bool {
        !matches!(self.kind, Kind::Gigantic) || frame % 0x200 < USED
    }

    /// Whether a range lies inside.
    pub const fn holds(&self, hva: Hva, bytes: u64) -> bool {
        let offset = hva.raw().wrapping_sub(self.start.raw());
        offset <= self.bytes() && bytes <= self.bytes() - offset
    }
}

/// Areas that are mapped; unmapped on drop.
#[derive(Debug)]
pub struct Areas {
    areas: Vec<Area>,
}

impl Areas {
    /// Maps areas and writes to every page, so that the host has it. Pages begin with an instruction that halts.
    ///
    /// # Errors
    /// The kernel refuses one: its place is taken, or there are not enough huge pages.
    pub fn map(areas: &[Area]) -> io::Result<Self> {
        let mut mapped = Self { areas: Vec::new() };
        for area in areas {
            map(area)?;
            mapped.areas.push(*area);
            for page in (0..area.pages.raw()).filter(|page| area.is_used(*page)) {
                mapped.write(Hva::new(area.start.raw() + page * PAGE_SIZE), &[HALT]);
            }
        }
        Ok(mapped)
    }

    /// Keeps the host from looking whether pages are in use, and from swapping them, where it lets itself be asked.
    pub(super) fn keep(&self) {
        for area in &self.areas {
            let len = usize::try_from(area.bytes()).unwrap_or(0);
            // SAFETY: the range is mapped; what is in it stays.
            let _ = unsafe { libc::mlock(area.start.raw() as *const libc::c_void, len) };
        }
    }

    /// What is mapped.
    pub fn list(&self) -> &[Area] {
        &self.areas
    }

    /// The area that holds a range, if one does.
    pub(super) fn holding(&self, hva: Hva, bytes: u64) -> Option<&Area> {
        self.areas.iter().find(|area| area.holds(hva, bytes))
    }

    /// Writes bytes; `false` where no area holds them, or they may not be written to.
    pub(super) fn write(&mut self, at: Hva, bytes: &[u8]) -> bool {
        if self.holding(at, bytes.len() as u64).is_none() {
            return false;
        }
        for (address, byte) in (at.raw()..).zip(bytes) {
            // SAFETY: the address lies in a mapping of this value, which nobody borrows; no guest runs meanwhile, since
            // only one thread drives them.
            unsafe { std::ptr::write_volatile(address as *mut u8, *byte) };
        }
        true
    }

    /// `madvise` on a range of one area.
    ///
    /// # Errors
    /// What the kernel says, or that no area holds the range.
    pub(super) fn advise(&mut self, hva: Hva, bytes: u64, advice: i32) -> io::Result<()> {
        let len = self.part(hva, bytes)?;
        // SAFETY: the range lies in a mapping of this value, which nobody borrows; what it holds may change.
        done(unsafe { libc::madvise(hva.raw() as *mut libc::c_void, len, advice) })
    }

    /// `madvise` on all areas of a kind but the first.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn advise_kind(&mut self, kind: Kind, advice: i32) -> io::Result<()> {
        let areas: Vec<Area> = self.areas.iter().skip(1).copied().collect();
        let mut areas = areas.into_iter().filter(|area| area.kind == kind);
        areas.try_for_each(|area| self.advise(area.start, area.bytes(), advice))
    }

    /// Writes what is there to every page of the first area.
    pub(super) fn touch_first(&mut self) {
        let first = self.areas.first().copied();
        for page in 0..first.map_or(0, |area| area.pages.raw()) {
            let start = first.map_or(0, |area| area.start.raw());
            let address = (start + page * PAGE_SIZE) as *mut u8;
            // SAFETY: as in `write`.
            unsafe { std::ptr::write_volatile(address, std::ptr::read_volatile(address)) };
        }
    }

    /// `mprotect` on a range of one area.
    ///
    /// # Errors
    /// As [`Areas::advise`].
    pub(super) fn protect(&mut self, hva: Hva, bytes: u64, writable: bool) -> io::Result<()> {
        let len = self.part(hva, bytes)?;
        let protection = if writable {
            READ_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: as above; writes go through `write`, which the program makes before it protects.
        done(unsafe { libc::mprotect(hva.raw() as *mut libc::c_void, len, protection) })
    }

    fn part(&self, hva: Hva, bytes: u64) -> io::Result<usize> {
        let inside = self.holding(hva, bytes).is_some();
        let len = usize::try_from(bytes).ok().filter(|_| inside);
        len.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

impl Drop for Areas {
    fn drop(&mut self) {
        for area in &self.areas {
            let len = usize::try_from(area.bytes()).unwrap_or(0);
            // SAFETY: the range was mapped by `map`, and nothing else unmaps it.
            unsafe { libc::munmap(area.start.raw() as *mut libc::c_void, len) };
        }
    }
}

/// Where traps begin in a page.
pub(super) const TRAPS: u64 = PAGE_SIZE - 16;
/// `hlt`.
pub(super) const HALT: u8 = 0xf4;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn map(area: &Area) -> io::Result<()> {
    let len = usize::try_from(area.bytes()).map_err(io::Error::other)?;
    let pages = match area.kind {
        Kind::Small | Kind::Transparent => libc::MAP_PRIVATE,
        Kind::Hugetlb => libc::MAP_SHARED | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
        Kind::Gigantic => libc::MAP_SHARED | libc::MAP_HUGETLB | libc::MAP_HUGE_1GB,
    };
    let flags = pages | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let place = area.start.raw() as *mut libc::c_void;
    // SAFETY: a mapping that is in the way makes the call fail.
    let address = unsafe { libc::mmap(place, len, READ_WRITE, flags, -1, 0) };
    if address != place {
        return Err(io::Error::last_os_error());
    }
    let advice = match area.kind {
        Kind::Small => libc::MADV_NOHUGEPAGE,
        Kind::Transparent => libc::MADV_HUGEPAGE,
        Kind::Hugetlb | Kind::Gigantic => return Ok(()),
    };
    // SAFETY: the range was mapped just now.
    done(unsafe { libc::madvise(place, len, advice) })
}

fn done(value: i32) -> io::Result<()> {
    if value == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
