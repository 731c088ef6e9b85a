//! Memory for page tables, the same for every side: 2 MiB pages where the kernel gives them.
#![expect(
    unsafe_code,
    reason = "an allocator, and frames that other projects reach by address"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

const HUGE: usize = 2 << 20;

/// Bytes that are allocated now.
static LIVE: AtomicU64 = AtomicU64::new(0);

/// Bytes that are allocated now, in all.
pub(crate) fn live() -> u64 {
    LIVE.load(Ordering::Relaxed)
}

/// The system's allocator, except that whatever is as large as a chunk of tables lies on 2 MiB pages.
pub(crate) struct HugePages;

/// The layout's place among whole 2 MiB pages, if it is large enough for one.
fn huge(layout: Layout) -> Option<usize> {
    let size = layout.size().checked_next_multiple_of(HUGE)?;
    (layout.size() >= HUGE && layout.align() <= HUGE).then_some(size)
}

// SAFETY: memory comes from the system's allocator or from mappings of its own, made and removed by the same rule on the
// layout; both are at least as large and as aligned as asked for.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as u64, Ordering::Relaxed);
        match huge(layout) {
            Some(size) => map(size),
            // SAFETY: the caller's promises are the same ones.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as u64, Ordering::Relaxed);
        match huge(layout) {
            // Fresh mappings are zero.
            Some(size) => map(size),
            // SAFETY: the caller's promises are the same ones.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        match huge(layout) {
            Some(size) => {
                // SAFETY: `alloc` made this mapping, of this size.
                let _done = unsafe { libc::munmap(pointer.cast(), size) };
            }
            // SAFETY: the caller's promises are the same ones.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }
}

/// A mapping of `size` bytes at a multiple of 2 MiB, or null.
fn map(size: usize) -> *mut u8 {
    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a new mapping; nothing is replaced.
    let start = unsafe { libc::mmap(ptr::null_mut(), size + HUGE, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    let before = start.cast::<u8>().align_offset(HUGE);
    // SAFETY: the mapping is one huge page longer than `size`, so all of these lie in it.
    unsafe {
        let aligned = start.byte_add(before);
        if before > 0 {
            let _done = libc::munmap(start, before);
        }
        let _done = libc::munmap(aligned.byte_add(size), HUGE - before);
        // Where the kernel has no huge pages for us, small ones do.
        let _advised = libc::madvise(aligned, size, libc::MADV_HUGEPAGE);
        aligned.cast()
    }
}

/// Entries of one table.
pub(crate) type Entries = [u64; 512];

#[derive(Clone)]
#[repr(align(4096))]
struct Frame(#[expect(dead_code, reason = "reached by address only")] Entries);

/// Frames for the tables of other projects, touched before they are used. A frame's physical address is its address here.
pub(crate) struct Frames {
    base: usize,
    count: usize,
    next: usize,
    free: Vec<u64>,
}

impl Frames {
    /// As many frames as `pages` pages need when they lie one after the other.
    pub(crate) fn new(pages: u64) -> Self {
        let count: u64 = (1..=4).map(|level| (pages >> (9 * level)) + 1).sum();
        let count = usize::try_from(count).expect("fewer frames than addresses");
        // Not zero, so that every frame is written now.
        let memory = Box::into_raw(vec![Frame([!0; 512]); count].into_boxed_slice());
        Self {
            base: memory.cast::<Frame>().expose_provenance(),
            count,
            next: 0,
            free: Vec::new(),
        }
    }

    /// The address of a frame with arbitrary contents.
    pub(crate) fn take(&mut self) -> Option<u64> {
        if let Some(address) = self.free.pop() {
            return Some(address);
        }
        let address = (self.next < self.count).then_some(self.base + self.next * 4096)?;
        self.next += 1;
        Some(address as u64)
    }

    /// Takes a frame back.
    pub(crate) fn give_back(&mut self, address: u64) {
        self.free.push(address);
    }

    /// Takes all frames back.
    pub(crate) fn reset(&mut self) {
        self.next = 0;
        self.free.clear();
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        let first = ptr::with_exposed_provenance_mut::<Frame>(self.base);
        let frames = ptr::slice_from_raw_parts_mut(first, self.count);
        // SAFETY: `new` made the slice of a box, and frames live no longer than what they were taken from.
        drop(unsafe { Box::from_raw(frames) });
    }
}

/// What lies at the address of a frame.
pub(crate) fn at<T>(address: u64) -> *mut T {
    ptr::with_exposed_provenance_mut(usize::try_from(address).expect("an address"))
}

/// Zeroes a frame.
pub(crate) fn zero(address: u64) {
    // SAFETY: frames are given out by `Frames::take` only, and no reference to their entries is held.
    unsafe { at::<Entries>(address).write([0; 512]) }
}
