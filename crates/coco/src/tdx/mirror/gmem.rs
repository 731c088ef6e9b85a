//! guest_memfds: whose page is behind which frame.

use core::ops::Range;
use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use slat_memslot::{Gfn, GfnRange, Pages};
use slat_mmu::spte::Pfn;

use super::vm::{Kvm, Slot, TdxMmu};
use crate::sync::lock;

/// A guest_memfd, by a number that whoever makes it chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// Files that slots get by themselves ([`TdxMmu::add_slot`]) have numbers from here on.
const OWN: u32 = 1 << 31;

/// The pages of all files.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// By file and page of it.
    pages: FxHashMap<(FileId, u64), Pfn>,
    /// How many pages each file has.
    counts: BTreeMap<FileId, u64>,
    /// Files that were made for slots.
    made: u32,
}

impl Files {
    pub(super) fn get(&self, file: FileId, index: u64) -> Option<Pfn> {
        self.pages.get(&(file, index)).copied()
    }

    pub(super) fn insert(&mut self, file: FileId, index: u64, page: Pfn) {
        if self.pages.insert((file, index), page).is_none() {
            *self.counts.entry(file).or_default() += 1;
        }
    }

    fn remove(&mut self, file: FileId, index: u64) -> Option<Pfn> {
        let page = self.pages.remove(&(file, index))?;
        if let Some(count) = self.counts.get_mut(&file) {
            *count -= 1;
        }
        Some(page)
    }

    fn any(&self, file: FileId, mut range: Range<u64>) -> bool {
        self.counts.get(&file).is_some_and(|count| *count > 0)
            && range.any(|index| self.pages.contains_key(&(file, index)))
    }

    /// How many pages there are.
    pub(super) fn len(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Takes the pages of a range of a file out, whichever is shorter to go through: the range or the pages.
    fn take(&mut self, file: FileId, range: Range<u64>) -> Vec<Pfn> {
        let few = range.end.saturating_sub(range.start) <= self.pages.len() as u64;
        let indices: Vec<u64> = if few {
            range.collect()
        } else {
            let inside = |(of, index): &&(FileId, u64)| *of == file && range.contains(index);
            let mut found: Vec<u64> = self.pages.keys().filter(inside).map(|key| key.1).collect();
            found.sort_unstable();
            found
        };
        let pages = indices
            .into_iter()
            .filter_map(|index| self.remove(file, index));
        pages.collect()
    }
}

impl Slot {
    /// Where a frame of the slot lies in its file.
    pub(super) fn place(&self, gfn: Gfn) -> Option<(FileId, u64)> {
        let (file, first) = self.file?;
        Some((file, first + (gfn - self.range.start()).raw()))
    }
}

impl Kvm {
    /// The page behind a frame, if the frame is in a slot that has one.
    pub(super) fn page_behind(&self, gfn: Gfn) -> Option<Pfn> {
        let (file, index) = self.slot_at(gfn)?.place(gfn)?;
        self.files.get(file, index)
    }

    /// The parts of files behind the frames of a range.
    fn behind(&self, range: GfnRange) -> impl Iterator<Item = (FileId, Range<u64>)> + '_ {
        self.slots.values().filter_map(move |slot| {
            let part = slot.range.intersection(range)?;
            let (file, first) = slot.place(part.start())?;
            Some((file, first..first + part.pages().raw()))
        })
    }
}

impl TdxMmu {
    /// Adds a slot with a guest_memfd of its own, which goes when the slot is deleted. A slot of this number and range that
    /// is there keeps its file.
    pub fn add_slot(&self, id: u16, range: GfnRange) {
        let mut kvm = lock(&self.kvm);
        let before = kvm.slots.get(&id).filter(|slot| slot.range == range);
        let file = before.and_then(|slot| slot.file).unwrap_or_else(|| {
            kvm.files.made += 1;
            (FileId(OWN | kvm.files.made), 0)
        });
        let slot = Slot {
            range,
            file: Some(file),
            deleting: false,
        };
        kvm.slots.insert(id, slot);
    }

    /// Adds a slot with pages `first` and following of a file, or without a private side. The file outlives the slot.
    pub fn bind_slot(&self, id: u16, range: GfnRange, file: Option<(FileId, u64)>) {
        let slot = Slot {
            range,
            file,
            deleting: false,
        };
        lock(&self.kvm).slots.insert(id, slot);
    }

    /// Takes the file away from all slots, since its last descriptor was closed: mappings go, then pages
    /// (`guest_memfd.c:kvm_gmem_release`).
    pub fn release_file(&self, file: FileId) {
        let of_file = |slot: &&Slot| slot.file.is_some_and(|(of, _)| of == file);
        let ranges: Vec<_> = {
            let kvm = lock(&self.kvm);
            let slots = kvm.slots.values().filter(of_file);
            slots.map(|slot| slot.range).collect()
        };
        for range in ranges {
            self.zap_private(range);
        }
        for slot in lock(&self.kvm).slots.values_mut() {
            slot.file = slot.file.filter(|(of, _)| *of != file);
        }
        self.give_back(file, 0..u64::MAX);
    }

    /// Gives pages of a file back to the host (`FALLOC_FL_PUNCH_HOLE`), after taking their mappings away
    /// (`guest_memfd.c:kvm_gmem_punch_hole`).
    pub fn punch_file(&self, file: FileId, first: u64, pages: Pages) {
        let end = first.saturating_add(pages.raw());
        let frames = |slot: &Slot| {
            let (of, begin) = slot.file?;
            let behind = begin + slot.range.pages().raw();
            let (from, to) = (first.max(begin), end.min(behind));
            let start = slot.range.start().raw();
            let range =
                (of == file && from < to).then_some((start + from - begin, start + to - begin));
            let (from, to) = range?;
            GfnRange::between(Gfn::new(from), Gfn::new(to))
        };
        let ranges: Vec<_> = {
            let kvm = lock(&self.kvm);
            kvm.slots.values().filter_map(frames).collect()
        };
        for range in ranges {
            self.zap_private(range);
        }
        self.give_back(file, first..end);
    }

    /// How many pages of a file there are.
    pub fn file_pages(&self, file: FileId) -> Pages {
        let kvm = lock(&self.kvm);
        Pages::new(kvm.files.counts.get(&file).copied().unwrap_or(0))
    }

    /// Whether there is a page of guest_memfd behind a frame.
    pub fn has_private_page(&self, gfn: Gfn) -> bool {
        lock(&self.kvm).page_behind(gfn).is_some()
    }

    /// Whether there is one behind any frame of a range.
    pub fn has_private_page_in(&self, range: GfnRange) -> bool {
        let kvm = lock(&self.kvm);
        kvm.behind(range)
            .any(|(file, pages)| kvm.files.any(file, pages))
    }

    /// How many pages all files have.
    pub fn private_pages(&self) -> u64 {
        lock(&self.kvm).files.len()
    }

    /// Pages behind frames go back to the host. Their mappings are gone.
    pub(super) fn release_gmem(&self, range: GfnRange) {
        let parts: Vec<_> = lock(&self.kvm).behind(range).collect();
        for (file, pages) in parts {
            self.give_back(file, pages);
        }
    }

    fn give_back(&self, file: FileId, range: Range<u64>) {
        let pages = lock(&self.kvm).files.take(file, range);
        let mut state = self.backend.state();
        for page in pages {
            state.pages.give_back(page);
        }
    }
}

impl FileId {
    /// Whether it was made for one slot, with which it goes.
    pub(super) const fn is_of_slot(self) -> bool {
        self.0 & OWN != 0
    }
}
