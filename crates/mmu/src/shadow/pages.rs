//! All shadow pages of a VM: by number, by frame and role, and by age.

use core::marker::PhantomData;

use slat_memslot::{Gfn, Level};

use super::page::{
    ENTRIES, NxDisallowed, Page, PageId, PageInfo, Shadowed, UnsyncChildren, ValidGeneration,
};
use super::pte_list::ListHead;
use crate::role::PageRole;
use crate::spte::Spte;
use crate::sync::{AtomicU32, PlainAtomicU64};

/// log2 of the buckets of the hash (`KVM_MMU_HASH_SHIFT`).
const HASH_BITS: u32 = 12;

/// The kernel's multiplier for hashes of 64 bits: 2^64 divided by the golden ratio.
const GOLDEN_RATIO: u64 = 0x61c8_8646_80b5_83eb;

/// The bucket of a frame (`hash_64`).
fn bucket_of(gfn: Gfn) -> usize {
    let hash = gfn.raw().wrapping_mul(GOLDEN_RATIO) >> (u64::BITS - HASH_BITS);
    usize::try_from(hash).unwrap_or(0)
}

/// The pages.
#[derive(Debug)]
pub(super) struct Pages<F> {
    all: Vec<Option<Box<Page<F>>>>,
    free: Vec<PageId>,
    buckets: Vec<Option<PageId>>,
    /// The ends of the list of active pages, which is in order of age (`active_mmu_pages`).
    newest: Option<PageId>,
    oldest: Option<PageId>,
    /// Pages that count against the limit (`n_used_mmu_pages`).
    pub(super) used: u64,
}

impl<F> Pages<F> {
    pub(super) fn new() -> Self {
        Self {
            all: Vec::new(),
            free: Vec::new(),
            buckets: vec![None; 1 << HASH_BITS],
            newest: None,
            oldest: None,
            used: 0,
        }
    }

    /// A page that is there.
    ///
    /// # Panics
    /// It is not: an entry or a list holds the number of a page that is gone.
    #[inline]
    pub(super) fn get(&self, page: PageId) -> &Page<F> {
        let found = self.try_get(page);
        found.expect("a number that is held is a page's")
    }

    #[inline]
    pub(super) fn get_mut(&mut self, page: PageId) -> &mut Page<F> {
        let found = self.all.get_mut(page.raw() as usize);
        let page = found.and_then(Option::as_deref_mut);
        page.expect("a number that is held is a page's")
    }

    #[inline]
    pub(super) fn try_get(&self, page: PageId) -> Option<&Page<F>> {
        self.all.get(page.raw() as usize)?.as_deref()
    }

    /// All pages, those that wait for their last vCPU among them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PageId, &Page<F>)> {
        let numbered = (0..).map(PageId::new).zip(&self.all);
        numbered.filter_map(|(id, page)| Some((id, page.as_deref()?)))
    }

    /// Makes an empty page and puts it into the hash and the list (`mmu.c:kvm_mmu_alloc_shadow_page`).
    pub(super) fn add(
        &mut self,
        gfn: Gfn,
        role: PageRole,
        generation: ValidGeneration,
        empty: Spte<F>,
    ) -> PageId {
        let follows = !role.is_direct() && role.level() <= Level::L3;
        let shadowed = follows.then(|| Box::new([Shadowed::default(); ENTRIES as usize]));
        let bucket = bucket_of(gfn);
        let page = Box::new(Page {
            gfn,
            role,
            generation,
            entries: (0..ENTRIES)
                .map(|_| PlainAtomicU64::new(empty.raw()))
                .collect(),
            shadowed,
            parents: ListHead::EMPTY,
            root: None,
            unsync: false,
            unsync_children: UnsyncChildren::default(),
            write_flooding: AtomicU32::new(0),
            nx: NxDisallowed::No,
            newer: None,
            older: self.newest,
            next_in_bucket: self.buckets[bucket],
            format: PhantomData,
        });
        let id = self.place(page);
        self.buckets[bucket] = Some(id);
        match self.newest.replace(id) {
            Some(before) => self.get_mut(before).newer = Some(id),
            None => self.oldest = Some(id),
        }
        self.used += 1;
        id
    }

    fn place(&mut self, page: Box<Page<F>>) -> PageId {
        if let Some(id) = self.free.pop() {
            self.all[id.raw() as usize] = Some(page);
            return id;
        }
        self.all.push(Some(page));
        PageId::new(u32::try_from(self.all.len() - 1).expect("fewer pages than 2^32"))
    }

    /// Takes a page off the list of active pages.
    pub(super) fn retire(&mut self, id: PageId) {
        let page = self.get_mut(id);
        let (newer, older) = (page.newer.take(), page.older.take());
        match newer {
            Some(newer) => self.get_mut(newer).older = older,
            None => self.newest = older,
        }
        match older {
            Some(older) => self.get_mut(older).newer = newer,
            None => self.oldest = newer,
        }
    }

    /// Frees a page that nothing holds any more (`mmu.c:kvm_mmu_free_shadow_page`).
    pub(super) fn remove(&mut self, id: PageId) {
        let page = self.get(id);
        let (bucket, next) = (bucket_of(page.gfn), page.next_in_bucket);
        if self.buckets[bucket] == Some(id) {
            self.buckets[bucket] = next;
        } else {
            let mut at = self.buckets[bucket];
            while let Some(other) = at {
                at = self.get(other).next_in_bucket;
                if at == Some(id) {
                    self.get_mut(other).next_in_bucket = next;
                    break;
                }
            }
        }
        self.all[id.raw() as usize] = None;
        self.free.push(id);
    }

    pub(super) fn newest(&self) -> Option<PageId> {
        self.newest
    }

    pub(super) fn oldest(&self) -> Option<PageId> {
        self.oldest
    }

    /// Active pages, the newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = PageId> + '_ {
        self.follow(self.newest, |page| page.older)
    }

    /// Active pages, the oldest first.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = PageId> + '_ {
        self.follow(self.oldest, |page| page.newer)
    }

    /// A list of pages. One that is corrupt ends at a page that is gone, or is longer than there are pages, for the audit
    /// to say so.
    fn follow(
        &self,
        first: Option<PageId>,
        next: impl Fn(&Page<F>) -> Option<PageId>,
    ) -> impl Iterator<Item = PageId> {
        let next = move |id: &PageId| next(self.try_get(*id)?);
        core::iter::successors(first, next).take(self.all.len() + 1)
    }

    /// The newest page in the bucket of a frame.
    pub(super) fn first_in_bucket(&self, gfn: Gfn) -> Option<PageId> {
        self.buckets[bucket_of(gfn)]
    }

    /// The pages in the bucket of a frame, the newest first; other frames may share it.
    pub(super) fn in_bucket(&self, gfn: Gfn) -> impl Iterator<Item = PageId> + '_ {
        let next = |id: &PageId| self.get(*id).next_in_bucket;
        core::iter::successors(self.buckets[bucket_of(gfn)], next)
    }

    /// What the tracepoints print of a page.
    pub(super) fn info(&self, id: PageId, root_count: u32) -> PageInfo {
        let page = self.get(id);
        PageInfo {
            page: id,
            generation: page.generation,
            gfn: page.gfn,
            role: page.role,
            root_count,
            unsync: page.unsync,
        }
    }
}
