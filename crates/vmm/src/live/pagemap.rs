//! Which pages the host has behind addresses of this process (`/proc/self/pagemap`, `/proc/kpageflags`).
#![expect(unsafe_code, reason = "an ioctl takes pointers")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use slat_memslot::{Hva, Level, PAGE_SHIFT, PAGE_SIZE};

/// A page, and how the host maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// The frame.
    pub(super) pfn: u64,
    /// The level of the entry that maps it.
    pub(super) level: Level,
}

/// The pages of this process.
#[derive(Debug)]
pub(super) struct Pagemap {
    file: File,
    flags: File,
}

/// The bits of an entry.
const PRESENT: u64 = 1 << 63;
const PFN: u64 = (1 << 55) - 1;
/// `PM_MMAP_EXCLUSIVE`.
const EXCLUSIVE: u64 = 1 << 56;
/// `KPF_COMPOUND_HEAD`, `KPF_COMPOUND_TAIL`.
const HEAD: u64 = 1 << 15;
const TAIL: u64 = 1 << 16;

fn word(file: &File, index: u64) -> io::Result<u64> {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, index * 8)?;
    Ok(u64::from_le_bytes(word))
}

impl Pagemap {
    /// Needs the right to see frames: without it they all read as 0.
    pub(super) fn open() -> io::Result<Self> {
        let file = File::open("/proc/self/pagemap")?;
        let flags = File::open("/proc/kpageflags")?;
        Ok(Self { file, flags })
    }

    /// The page at an address, if there is one.
    pub(super) fn page(&self, hva: Hva) -> io::Result<Option<Page>> {
        let entry = word(&self.file, hva.raw() >> PAGE_SHIFT)?;
        if entry & PRESENT == 0 {
            return Ok(None);
        }
        let level = if self.is_huge(hva)? {
            Level::L2
        } else {
            Level::L1
        };
        Ok(Some(Page {
            pfn: entry & PFN,
            level,
        }))
    }

    /// The page at an address if it can be told whether it alone is used: it belongs to nobody else, and is no part of a
    /// larger page unless it is the one that stands for it.
    pub(super) fn page_alone(&self, hva: Hva) -> io::Result<Option<Page>> {
        let entry = word(&self.file, hva.raw() >> PAGE_SHIFT)?;
        let Some(page) = self.page(hva)?.filter(|_| entry & EXCLUSIVE != 0) else {
            return Ok(None);
        };
        let flags = word(&self.flags, page.pfn)?;
        let is_head = flags & HEAD != 0 && page.level == Level::L2;
        let is_small = flags & (HEAD | TAIL) == 0;
        Ok(Some(page).filter(|_| is_head || is_small))
    }

    /// Whether the address is mapped by an entry of level 2 (`PAGEMAP_SCAN`, since Linux 6.7).
    fn is_huge(&self, hva: Hva) -> io::Result<bool> {
        let start = hva.raw() & !(PAGE_SIZE - 1);
        let mut found = Region::default();
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start,
            end: start + PAGE_SIZE,
            vec: &raw mut found as u64,
            vec_len: 1,
            category_mask: HUGE,
            return_mask: HUGE,
            ..Scan::default()
        };
        // SAFETY: the kernel reads and writes the struct, whose size is part of the request, and writes at most one
        // region to `vec`.
        let regions = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
        if regions < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(regions > 0)
    }
}

/// `PAGE_IS_HUGE`.
const HUGE: u64 = 1 << 6;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<Scan>() == 0x60);
