//! Host memory at known addresses, so that a program can name them before it runs.
#![expect(unsafe_code, reason = "memory is mapped and accessed through pointers")]

use std::io;

use slat_memslot::{Hva, PAGE_SIZE, Pages};

/// What the host's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Anonymous pages of 4 KiB.
    Small,
    /// Anonymous memory, of which the host may make pages of 2 MiB (`MADV_HUGEPAGE`).
    Transparent,
    /// Pages of 2 MiB out of a pool (`MAP_HUGETLB`).
    Hugetlb,
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

impl Area {
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
            keep(area);
            for page in 0..area.pages.raw() {
                let first = area.start.raw() + page * PAGE_SIZE;
                mapped.write(Hva::new(first), &[HALT]);
            }
        }
        Ok(mapped)
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
    let huge = match area.kind {
        Kind::Hugetlb => libc::MAP_HUGETLB,
        Kind::Small | Kind::Transparent => 0,
    };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | huge;
    let place = area.start.raw() as *mut libc::c_void;
    // SAFETY: a mapping that is in the way makes the call fail.
    let address = unsafe { libc::mmap(place, len, READ_WRITE, flags, -1, 0) };
    if address != place {
        return Err(io::Error::last_os_error());
    }
    let advice = match area.kind {
        Kind::Small => libc::MADV_NOHUGEPAGE,
        Kind::Transparent => libc::MADV_HUGEPAGE,
        Kind::Hugetlb => return Ok(()),
    };
    // SAFETY: the range was mapped just now.
    done(unsafe { libc::madvise(place, len, advice) })
}

/// Keeps the host from looking whether pages are in use, and from swapping them, where it lets itself be asked.
fn keep(area: &Area) {
    let len = usize::try_from(area.bytes()).unwrap_or(0);
    // SAFETY: the range was mapped just now; nothing but its pages' fate depends on it.
    let _ = unsafe { libc::mlock(area.start.raw() as *const libc::c_void, len) };
}

fn done(value: i32) -> io::Result<()> {
    if value == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
