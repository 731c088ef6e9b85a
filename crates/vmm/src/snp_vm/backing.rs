//! Pages behind a guest: those of its files, assigned before they are mapped; those of its host memory.

use slat_coco::rmp::{RmpSize, RmpState};
use slat_coco::snp::{
    Act, gmem_invalidate, gmem_prepare, prepared_size, private_max_mapping_level, rmpupdate,
};
use slat_memslot::{Gfn, GmemId, PAGE_SHIFT, PageSize, Slot};
use slat_mmu::fault::{Backing, FilePage as Got, HostPage};
use slat_mmu::spte::{Format, Pfn};

use super::{FilePage, Snp};
use crate::tdp_vm::{HostMemory, Supplied, TdpVm};

/// Which page of which file is behind a frame.
pub(super) fn place(slot: &Slot, gfn: Gfn) -> Option<(GmemId, u64)> {
    let binding = slot.binding()?;
    let page = binding.first_page + (gfn - slot.range().start()).raw();
    Some((binding.file?, page))
}

/// The host's memory, with what SNP adds to it if the VM is of that type.
#[derive(Debug)]
pub(crate) struct Behind<'a> {
    pub(crate) host: &'a mut HostMemory,
    pub(crate) snp: Option<&'a mut Snp>,
}

impl Backing for Behind<'_> {
    fn host_page(&mut self, slot: &Slot, gfn: Gfn, write: bool) -> HostPage {
        if let Some(snp) = &mut self.snp {
            snp.find_host_page(self.host, slot, gfn);
        }
        self.host.host_page(slot, gfn, write)
    }

    fn file_page(&mut self, slot: &Slot, gfn: Gfn) -> Got {
        match &mut self.snp {
            Some(snp) => snp.file_page(slot, gfn),
            None => self.host.file_page(slot, gfn),
        }
    }
}

impl Snp {
    /// Makes the page of a slot's host memory known, so that its contents are those of one of the host's frames.
    pub(super) fn find_host_page(
        &mut self,
        host: &mut HostMemory,
        slot: &Slot,
        gfn: Gfn,
    ) -> Option<Pfn> {
        let hva = slot.hva_of(gfn)?;
        if let Some((pfn, ..)) = host.page_at(hva) {
            return Some(Pfn::new(pfn));
        }
        let pfn = self.frames.allocate(&self.rmp, RmpSize::Size4K)?;
        let page = Supplied {
            gfn,
            pfn: pfn.raw(),
            size: Some(PageSize::Size4K),
        };
        host.know_page(hva.raw(), page);
        Some(pfn)
    }

    /// A page of a file, prepared (`kvm_gmem_get_pfn`).
    pub(super) fn file_page(&mut self, slot: &Slot, gfn: Gfn) -> Got {
        match self.prepared_page(slot, gfn) {
            Some(page) => Got::Page {
                pfn: page.pfn,
                size: page
                    .folio
                    .page_size()
                    .min(private_max_mapping_level(&self.rmp, page.pfn)),
            },
            None => Got::Bad,
        }
    }

    fn prepared_page(&mut self, slot: &Slot, gfn: Gfn) -> Option<FilePage> {
        let at = place(slot, gfn)?;
        if !self.files.contains_key(&at) {
            self.make_folio(slot, gfn)?;
        }
        let page = *self.files.get(&at)?;
        if page.prepared {
            return Some(page);
        }
        let size = prepared_size(&self.rmp, page.pfn, page.folio);
        self.frames.adjust_direct_map(page.pfn, size);
        // For the frame that the page is behind now, whatever it was made for.
        gmem_prepare(&self.rmp, self.asid, gfn, page.pfn, page.folio).ok()?;
        let pages = size.pages();
        let (first, inside) = (at.1 & !(pages - 1), at.1 & (pages - 1));
        for index in 0..pages {
            if let Some(part) = self.files.get_mut(&(at.0, first + index)) {
                part.prepared = true;
                part.gfn = Gfn::new(gfn.raw() - inside + index);
            }
        }
        self.files.get(&at).copied()
    }

    /// Makes the folio around a page: a huge one if file, frames and slot allow it and none of it is there yet.
    fn make_folio(&mut self, slot: &Slot, gfn: Gfn) -> Option<()> {
        let (file, page) = place(slot, gfn)?;
        let pages = self.folio.pages();
        let (first, inside) = (page & !(pages - 1), page & (pages - 1));
        let start = gfn.raw().checked_sub(inside);
        let fits = start.is_some_and(|start| {
            let range = slot.range();
            start % pages == 0 && start >= range.start().raw() && start + pages <= range.end().raw()
        });
        let free = (first..first + pages).all(|page| !self.files.contains_key(&(file, page)));
        let (first, start, folio) = match start {
            Some(start) if fits && free => (first, start, self.folio),
            _ => (page, gfn.raw(), RmpSize::Size4K),
        };
        let pfn = self.frames.allocate(&self.rmp, folio)?;
        for index in 0..folio.pages() {
            let part = FilePage {
                pfn: Pfn::new(pfn.raw() + index),
                gfn: Gfn::new(start + index),
                folio,
                prepared: false,
            };
            self.insert_page((file, first + index), part);
        }
        Some(())
    }

    pub(super) fn insert_page(&mut self, at: (GmemId, u64), page: FilePage) {
        self.owned.insert(page.pfn, at);
        self.files.insert(at, page);
    }

    /// Pages of a file are freed, each first in the reverse map (`sev_gmem_invalidate`).
    fn free_pages(&mut self, file: GmemId, pages: core::ops::Range<u64>) {
        let gone: Vec<(u64, FilePage)> = self
            .files
            .range((file, pages.start)..(file, pages.end))
            .map(|((_, page), found)| (*page, *found))
            .collect();
        let mut at = 0;
        while let Some((page, found)) = gone.get(at).copied() {
            let whole = self.whole_folio(file, page, &found, &pages);
            let count = if whole { found.folio.pages() } else { 1 };
            self.give_back(found.pfn, found.gfn, count);
            for index in 0..count {
                self.files.remove(&(file, page + index));
                self.owned.remove(&Pfn::new(found.pfn.raw() + index));
            }
            if !whole && found.folio == RmpSize::Size2M {
                self.split_folio(file, page);
            }
            at += usize::try_from(count).unwrap_or(usize::MAX);
        }
    }

    /// Whether a page begins a huge folio that goes as a whole.
    fn whole_folio(
        &self,
        file: GmemId,
        page: u64,
        found: &FilePage,
        pages: &core::ops::Range<u64>,
    ) -> bool {
        let count = found.folio.pages();
        let last = self.files.get(&(file, page + count - 1));
        count > 1
            && page % count == 0
            && page + count <= pages.end
            && last.is_some_and(|last| last.folio == found.folio)
    }

    /// What is left of a folio goes on as small ones.
    pub(super) fn split_folio(&mut self, file: GmemId, page: u64) {
        let count = RmpSize::Size2M.pages();
        let first = page & !(count - 1);
        let rest = self.files.range_mut((file, first)..(file, first + count));
        rest.for_each(|(_, part)| part.folio = RmpSize::Size4K);
    }

    fn give_back(&mut self, pfn: Pfn, gfn: Gfn, count: u64) {
        self.order
            .act(&self.rmp, Act::GivenBack { pfn, pages: count });
        if count == 1 || self.rmp.entry(pfn).size == RmpSize::Size4K {
            self.frames.adjust_direct_map(pfn, RmpSize::Size4K);
        }
        let end = Pfn::new(pfn.raw() + count);
        let done = gmem_invalidate(&self.rmp, pfn, end);
        if done.immutable > 0 {
            self.frames.note_immutable(pfn);
        }
        for index in 0..count {
            let frame = Pfn::new(pfn.raw() + index);
            // A page that stays assigned would take the host down when it is used again.
            match self.rmp.entry(frame).assigned {
                true => drop(self.leaked.insert(frame, Gfn::new(gfn.raw() + index))),
                false => self.frames.free(frame),
            }
        }
    }

    /// A page of KVM's own goes back.
    pub(super) fn free_own(&mut self, pfn: Pfn) {
        if rmpupdate(&self.rmp, pfn, &RmpState::shared(RmpSize::Size4K)).is_ok() {
            self.frames.free(pfn);
        }
    }

    /// Whether a frame is a page of a file.
    pub(super) fn is_private_frame(&self, pfn: Pfn) -> bool {
        self.owned.contains_key(&pfn)
    }
}

impl<F: Format> TdpVm<F> {
    /// The pages of a range of a file are freed; no leaf maps them any more.
    pub(crate) fn free_private(&mut self, file: GmemId, offset: u64, len: u64) {
        self.hear();
        if let Some(snp) = &mut self.snp {
            let end = offset.saturating_add(len).div_ceil(1 << PAGE_SHIFT);
            snp.free_pages(file, offset >> PAGE_SHIFT..end);
        }
    }
}
