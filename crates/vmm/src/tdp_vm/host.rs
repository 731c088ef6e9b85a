//! The host's memory: which page is behind which address, how large the host maps it, and whether writable.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use slat_memslot::{Gfn, GmemId, Hva, PAGE_SHIFT, PageSize, Slot};
use slat_mmu::fault::{Backing, FilePage, HostPage};
use slat_mmu::shadow::ResidentPages;
use slat_mmu::spte::{Pfn, PfnKind};

/// Host addresses.
pub type HvaRange = Range<u64>;

/// Pages that the host maps by one entry of its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    pfn: u64,
    size: PageSize,
    writable: bool,
}

/// A page that will be found behind a guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supplied {
    /// The guest's frame.
    pub gfn: Gfn,
    /// The host's.
    pub pfn: u64,
    /// How large the host maps it, if it is known; else as it was ever seen ([`HostMemory::know_huge`]).
    pub size: Option<PageSize>,
}

impl From<(Gfn, u64)> for Supplied {
    fn from((gfn, pfn): (Gfn, u64)) -> Self {
        let size = None;
        Self { gfn, pfn, size }
    }
}

/// The simulated memory of the process that owns a VM.
///
/// All of it is private anonymous memory that was written to, unless it is said to be otherwise. Which page is where, is
/// told before it is asked for: [`HostMemory::tell`], or [`HostMemory::supply`] where only guest frames are known. Pages
/// that nobody has told about are made up, small and one behind the other.
#[derive(Clone, Debug, Default)]
pub struct HostMemory {
    /// By the first host frame.
    mappings: BTreeMap<u64, Mapping>,
    /// Pages of files, by page of the file.
    files: BTreeMap<(GmemId, u64), u64>,
    /// Never written to.
    untouched: Vec<HvaRange>,
    /// Shared with a child until somebody writes.
    shared: Vec<HvaRange>,
    /// Protected against writing.
    protected: Vec<HvaRange>,
    /// The pages that will be found, where none is known.
    supply: Vec<Supplied>,
    /// The same of pages of files.
    file_supply: Vec<(Gfn, u64)>,
    /// Huge pages: by size and first guest frame, the first frames that they were seen to have.
    huge: Vec<(PageSize, Gfn, u64)>,
    /// Ranges that will be unmapped when somebody writes there.
    copies: VecDeque<HvaRange>,
    /// Those that must be unmapped now.
    moved: VecDeque<HvaRange>,
    /// Frames that are no memory.
    devices: Vec<Range<u64>>,
    /// Nothing is mapped there.
    absent: Vec<HvaRange>,
    /// No zero page ever stands for what was never written to.
    filled: Vec<HvaRange>,
    /// How many pages were made up, since nobody had told which they are.
    made_up: u64,
}

/// The first page that is made up: behind the hole for devices below 4 GiB.
const MADE_UP: u64 = 1 << 20;

impl HostMemory {
    /// Frames that are devices.
    pub fn set_devices(&mut self, devices: Vec<Range<u64>>) {
        self.devices = devices;
    }

    /// A page that is mapped huge wherever it is found.
    pub fn know_huge(&mut self, size: PageSize, gfn: Gfn, pfn: u64) {
        let part = gfn.raw() & (size.pages().raw() - 1);
        if pfn & (size.pages().raw() - 1) == part {
            let first = Gfn::new(gfn.raw() - part);
            self.huge.push((size, first, pfn - part));
        }
    }

    /// The pages that will be found, by guest frame, where none is known; in place of those that were told before.
    pub fn supply<P: Into<Supplied>>(&mut self, pages: impl IntoIterator<Item = P>) {
        self.supply = pages.into_iter().map(Into::into).collect();
    }

    /// The pages of files that will be found; where none is told for a frame, it is the one of [`HostMemory::supply`].
    pub fn supply_files(&mut self, pages: impl IntoIterator<Item = (Gfn, u64)>) {
        self.file_supply = pages.into_iter().collect();
    }

    /// Invalidations that copies on write will cause; in place of those that were told before.
    pub fn expect_copies(&mut self, ranges: impl IntoIterator<Item = HvaRange>) {
        self.copies = ranges.into_iter().collect();
    }

    /// Those that did not happen.
    pub fn take_copies(&mut self) -> Vec<HvaRange> {
        self.copies.drain(..).collect()
    }

    /// Tells the true page at an address: its frame, and the size in which the process maps it, as `pagemap` and
    /// `kpageflags` say. A huge page is told once for all of it. Anything that was known there is replaced.
    ///
    /// The page counts as writable, as after a write of the process. An address and a frame that cannot lie in one huge
    /// page of this size are mapped small.
    pub fn tell(&mut self, hva: Hva, pfn: u64, size: PageSize) {
        let (frame, inside) = (hva.raw() >> PAGE_SHIFT, size.pages().raw() - 1);
        let (size, part) = if frame & inside == pfn & inside {
            (size, frame & inside)
        } else {
            (PageSize::Size4K, 0)
        };
        let first = (frame - part) << PAGE_SHIFT;
        self.replace(first..first + size.pages().bytes());
        let mapping = Mapping {
            pfn: pfn - part,
            size,
            writable: true,
        };
        self.mappings.insert(frame - part, mapping);
    }

    /// Tells the true page of a guest_memfd, at an offset in bytes.
    pub fn tell_file(&mut self, file: GmemId, offset: u64, pfn: u64) {
        self.files.insert((file, offset >> PAGE_SHIFT), pfn);
    }

    /// The pages that an address has, if any is known: its frame, the size that it is mapped in, and whether writable.
    pub fn page_at(&self, hva: Hva) -> Option<(u64, PageSize, bool)> {
        let frame = hva.raw() >> PAGE_SHIFT;
        let (first, at) = self.find(frame)?;
        Some((at.pfn + (frame - first), at.size, at.writable))
    }

    /// Nothing is mapped there, or nothing that could be accessed (`munmap`, `PROT_NONE`).
    pub fn set_absent(&mut self, range: HvaRange) {
        self.forget(range.clone());
        self.absent.push(range);
    }

    /// The page at an address is known.
    pub fn know_page(&mut self, hva: u64, page: impl Into<Supplied>) {
        let (frame, page) = (hva >> PAGE_SHIFT, page.into());
        if self.find(frame).map(|(first, at)| at.pfn + (frame - first)) == Some(page.pfn) {
            return self.resize(hva, page);
        }
        self.forget(hva..hva + 1);
        let writable = !Self::is_in(&self.protected, hva) && !Self::is_in(&self.shared, hva);
        self.insert(frame, page, writable);
    }

    /// Memory that nobody has written to yet.
    pub fn set_untouched(&mut self, range: HvaRange) {
        self.forget(range.clone());
        self.untouched.push(range);
    }

    /// Memory is given back (`MADV_DONTNEED`).
    pub fn discard(&mut self, range: HvaRange) {
        // Memory that is given back again and again is noted once.
        subtract(&mut self.untouched, &range);
        subtract(&mut self.shared, &range);
        self.set_untouched(range);
    }

    /// The memory has pages before anybody reads them: files, or what a program fills (`userfaultfd`).
    pub fn set_filled(&mut self, range: HvaRange) {
        self.filled.push(range);
    }

    /// Which pages are in a range is not known any more: they may have moved. Who shares them, and who may write to them, is
    /// as before.
    pub fn forget_pages(&mut self, range: HvaRange) {
        self.forget(range);
    }

    /// The page that is known at an address is mapped in this size now.
    pub fn resize(&mut self, hva: u64, page: impl Into<Supplied>) {
        let (frame, page) = (hva >> PAGE_SHIFT, page.into());
        let Some((first, at)) = self.find(frame) else {
            return;
        };
        if at.pfn + (frame - first) != page.pfn || page.size.is_none_or(|size| size == at.size) {
            return;
        }
        self.make_small(first, at);
        if page.size > Some(PageSize::Size4K) {
            self.insert(frame, page, at.writable);
        }
    }

    /// Other pages take the place of those that were there.
    pub fn replace(&mut self, range: HvaRange) {
        subtract(&mut self.untouched, &range);
        subtract(&mut self.shared, &range);
        self.forget(range);
    }

    /// `mprotect` without the right to write. What has none already stays as it is mapped.
    pub fn protect(&mut self, range: HvaRange) {
        let mut changed = vec![range];
        for protected in &self.protected {
            subtract(&mut changed, protected);
        }
        for part in changed {
            self.cut(&part);
            self.mark(&part, false);
            self.protected.push(part);
        }
    }

    /// `mprotect` with all rights. What has them already stays as it is mapped.
    pub fn unprotect(&mut self, range: &HvaRange) {
        let inside = |part: &HvaRange| part.start.max(range.start)..part.end.min(range.end);
        let changed: Vec<HvaRange> = self.protected.iter().map(inside).collect();
        subtract(&mut self.protected, range);
        for part in changed.into_iter().filter(|part| !part.is_empty()) {
            self.cut(&part);
            self.restore(&part);
        }
    }

    /// Pages of a range may be written to again, but for those that are somebody else's as well.
    fn restore(&mut self, range: &HvaRange) {
        let frames = range.start >> PAGE_SHIFT..range.end.div_ceil(1 << PAGE_SHIFT);
        let mut pages: Vec<_> = self.mappings.range(frames).map(|at| *at.0).collect();
        pages.retain(|first| self.may_write(first << PAGE_SHIFT));
        for first in pages {
            self.mappings
                .entry(first)
                .and_modify(|at| at.writable = true);
        }
    }

    /// `fork`: the memory is copied when somebody writes.
    pub fn share(&mut self, range: HvaRange) {
        self.mark(&range, false);
        self.shared.push(range);
    }

    /// Pages of a file are gone.
    pub fn drop_file_pages(&mut self, file: GmemId, offset: u64, len: u64) {
        let (first, end) = (
            offset >> PAGE_SHIFT,
            offset.saturating_add(len) >> PAGE_SHIFT,
        );
        while let Some((page, _)) = self.files.range((file, first)..(file, end)).next() {
            let page = *page;
            self.files.remove(&page);
        }
    }

    /// How large the host maps what is behind a frame (`mmu.c:host_pfn_mapping_level`).
    pub fn mapping_size(&self, slot: &Slot, gfn: Gfn) -> PageSize {
        let frame = slot.hva_of(gfn).map(|hva| hva.raw() >> PAGE_SHIFT);
        let found = frame.and_then(|frame| self.find(frame));
        found.map_or(PageSize::Size4K, |(_, mapping)| mapping.size)
    }

    /// The next range that a fault has split or replaced, if it has.
    pub(crate) fn take_moved(&mut self) -> Option<HvaRange> {
        let moved = self.moved.pop_front()?;
        if self.moved.iter().any(|next| covers(&moved, next)) {
            self.split(&moved);
        } else {
            self.replace(moved.clone());
        }
        Some(moved)
    }

    /// What is huge in a range is mapped small from now on.
    fn split(&mut self, range: &HvaRange) {
        let frames = range.start >> PAGE_SHIFT..range.end >> PAGE_SHIFT;
        let huge = |(_, at): &(&u64, &Mapping)| at.size > PageSize::Size4K;
        let huge = self.mappings.range(frames).filter(huge);
        let huge: Vec<_> = huge.map(|(first, at)| (*first, *at)).collect();
        for (first, mapping) in huge {
            self.make_small(first, mapping);
        }
    }

    /// Whether a page that nobody has written to since it was made, shared or protected may be written to. Where nothing is
    /// yet, a fork has shared nothing.
    fn may_write(&self, hva: u64) -> bool {
        if Self::is_in(&self.protected, hva) {
            false
        } else if Self::is_in(&self.untouched, hva) {
            Self::is_in(&self.filled, hva)
        } else {
            !Self::is_in(&self.shared, hva)
        }
    }

    /// Somebody has written to a page: it is nobody else's.
    fn written(&mut self, frame: u64) {
        let Some((first, at)) = self.find(frame) else {
            return;
        };
        let end = first + at.size.pages().raw();
        let range = first << PAGE_SHIFT..end << PAGE_SHIFT;
        subtract(&mut self.untouched, &range);
        subtract(&mut self.shared, &range);
    }

    fn mark(&mut self, range: &HvaRange, writable: bool) {
        for (first, mapping) in &mut self.mappings {
            if range.contains(&(first << PAGE_SHIFT)) {
                mapping.writable = writable;
            }
        }
    }

    fn find(&self, frame: u64) -> Option<(u64, Mapping)> {
        let (first, mapping) = self.mappings.range(..=frame).next_back()?;
        (frame - first < mapping.size.pages().raw()).then_some((*first, *mapping))
    }

    /// Nothing is known of a range any more. What is left of a huge page is mapped small.
    fn forget(&mut self, range: HvaRange) {
        let frames = range.start >> PAGE_SHIFT..range.end.div_ceil(1 << PAGE_SHIFT);
        let touched = |(first, mapping): (&u64, &Mapping)| {
            let end = first + mapping.size.pages().raw();
            (*first < frames.end && end > frames.start).then_some((*first, *mapping))
        };
        let largest = PageSize::Size1G.pages().raw();
        let near = frames.start.saturating_sub(largest)..frames.end;
        let near = self.mappings.range(near);
        let touched: Vec<_> = near.filter_map(touched).collect();
        for (first, mapping) in touched {
            self.make_small(first, mapping);
        }
        let gone: Vec<u64> = self
            .mappings
            .range(frames)
            .map(|(first, _)| *first)
            .collect();
        for first in gone {
            self.mappings.remove(&first);
        }
    }

    /// A huge page at whose inside a range begins or ends is mapped small from now on.
    pub fn cut(&mut self, range: &HvaRange) {
        for frame in [range.start >> PAGE_SHIFT, range.end >> PAGE_SHIFT] {
            if let Some((first, mapping)) = self.find(frame).filter(|(first, _)| *first != frame) {
                self.make_small(first, mapping);
            }
        }
    }

    fn make_small(&mut self, first: u64, mapping: Mapping) {
        self.mappings.remove(&first);
        for part in 0..mapping.size.pages().raw() {
            let small = Mapping {
                pfn: mapping.pfn + part,
                size: PageSize::Size4K,
                ..mapping
            };
            self.mappings.insert(first + part, small);
        }
    }

    /// A page is found at a host frame, which is behind a guest frame.
    fn insert(&mut self, frame: u64, page: Supplied, writable: bool) -> Mapping {
        let size = page
            .size
            .unwrap_or_else(|| self.size_of(page.gfn, page.pfn));
        let part = frame & (size.pages().raw() - 1);
        let mapping = Mapping {
            pfn: page.pfn.wrapping_sub(part),
            size,
            writable,
        };
        self.mappings.insert(frame - part, mapping);
        mapping
    }

    /// The largest size that the page was ever seen in.
    fn size_of(&self, gfn: Gfn, pfn: u64) -> PageSize {
        let fits = |(size, first, base): &&(PageSize, Gfn, u64)| {
            let part = gfn.raw().wrapping_sub(first.raw());
            part < size.pages().raw() && base + part == pfn
        };
        let sizes = self.huge.iter().filter(fits).map(|(size, ..)| *size);
        sizes.max().unwrap_or(PageSize::Size4K)
    }

    fn is_in(ranges: &[HvaRange], hva: u64) -> bool {
        ranges.iter().any(|range| range.contains(&hva))
    }

    /// The mapping behind a host address, as `get_user_pages` makes or finds it.
    fn fault_in(&mut self, hva: u64, gfn: Gfn, write: bool) -> Result<Mapping, HostPage> {
        let frame = hva >> PAGE_SHIFT;
        if Self::is_in(&self.absent, hva) || (write && Self::is_in(&self.protected, hva)) {
            return Err(HostPage::Bad);
        }
        let known = self.find(frame);
        let shared = Self::is_in(&self.shared, hva);
        let read_only = known.map_or(shared, |(_, mapping)| !mapping.writable);
        if write && read_only {
            self.copy(hva);
            if !self.moved.is_empty() {
                return Err(HostPage::Moved);
            }
        }
        if let Some((first, mapping)) = known {
            if write && read_only {
                // Nobody else has the page any more.
                self.written(frame);
                self.mappings
                    .entry(first)
                    .and_modify(|at| at.writable = true);
            }
            return Ok(Mapping {
                pfn: mapping.pfn + (frame - first),
                writable: mapping.writable || write,
                ..mapping
            });
        }
        let page = self.supplied(gfn);
        if let Some(size) = page.size.filter(|size| *size > PageSize::Size4K) {
            // The host had a huge page to give, and no zero page of that size.
            let first = frame & !(size.pages().raw() - 1);
            let end = (first + size.pages().raw()) << PAGE_SHIFT;
            subtract(&mut self.untouched, &(first << PAGE_SHIFT..end));
        }
        // A page that was never written to reads as the zero page.
        let writable = write || self.may_write(hva);
        let mapping = self.insert(frame, page, writable);
        if writable {
            self.written(frame);
        }
        Ok(Mapping {
            pfn: page.pfn,
            ..mapping
        })
    }

    /// Somebody writes to a page that is copied then: a huge page is split first, and the page copied, in one go.
    fn copy(&mut self, hva: u64) {
        let mut within = 0..u64::MAX;
        let is_next = |range: &HvaRange, within: &HvaRange| {
            range.contains(&hva) && range != within && covers(within, range)
        };
        while let Some(next) = self.copies.iter().position(|range| is_next(range, &within)) {
            within = self.copies.remove(next).unwrap_or_default();
            self.moved.push_back(within.clone());
        }
    }

    /// The page behind an address, if the host maps it writable now, without waiting for anything.
    fn resident(&mut self, hva: u64, gfn: Gfn) -> Option<u64> {
        let frame = hva >> PAGE_SHIFT;
        if let Some((first, mapping)) = self.find(frame) {
            return mapping.writable.then_some(mapping.pfn + (frame - first));
        }
        let kept = [&self.untouched, &self.shared, &self.protected];
        if kept.iter().any(|ranges| Self::is_in(ranges, hva)) {
            return None;
        }
        let page = self.supplied(gfn);
        self.insert(frame, page, true);
        Some(page.pfn)
    }

    fn kind_of(&self, pfn: u64) -> PfnKind {
        match self.devices.iter().any(|range| range.contains(&pfn)) {
            true => PfnKind::HostMmio,
            false => PfnKind::Memory,
        }
    }

    fn supplied(&mut self, gfn: Gfn) -> Supplied {
        let found = self.supply.iter().find(|page| page.gfn == gfn);
        found.copied().unwrap_or_else(|| {
            self.made_up += 1;
            (gfn, MADE_UP + self.made_up - 1).into()
        })
    }
}

/// Takes a range away from others.
fn covers(outer: &HvaRange, inner: &HvaRange) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn subtract(ranges: &mut Vec<HvaRange>, gone: &HvaRange) {
    let left = ranges.drain(..).flat_map(|range| {
        let below = range.start..range.end.min(gone.start);
        let above = range.start.max(gone.end)..range.end;
        [below, above]
    });
    *ranges = left.filter(|range| !range.is_empty()).collect();
}

impl ResidentPages for HostMemory {
    fn resident_page(&mut self, slot: &Slot, gfn: Gfn) -> Option<(Pfn, PfnKind)> {
        let pfn = self.resident(slot.hva_of(gfn)?.raw(), gfn)?;
        Some((Pfn::new(pfn), self.kind_of(pfn)))
    }
}

impl Backing for HostMemory {
    fn host_page(&mut self, slot: &Slot, gfn: Gfn, write: bool) -> HostPage {
        let Some(hva) = slot.hva_of(gfn) else {
            return HostPage::Bad;
        };
        let mapping = match self.fault_in(hva.raw(), gfn, write) {
            Ok(mapping) => mapping,
            Err(page) => return page,
        };
        HostPage::Page {
            pfn: Pfn::new(mapping.pfn),
            size: mapping.size,
            writable: mapping.writable,
            kind: self.kind_of(mapping.pfn),
        }
    }

    fn file_page(&mut self, slot: &Slot, gfn: Gfn) -> FilePage {
        let binding = slot.binding();
        let Some((file, first)) = binding.and_then(|at| Some((at.file?, at.first_page))) else {
            return FilePage::Bad;
        };
        let page = first + (gfn - slot.range().start()).raw();
        let pfn = match self.files.get(&(file, page)) {
            Some(pfn) => *pfn,
            None => {
                let told = self.file_supply.iter().find(|(of, _)| *of == gfn);
                told.map(|(_, pfn)| *pfn)
                    .unwrap_or_else(|| self.supplied(gfn).pfn)
            }
        };
        self.files.insert((file, page), pfn);
        FilePage::Page {
            pfn: Pfn::new(pfn),
            size: PageSize::Size4K,
        }
    }
}
