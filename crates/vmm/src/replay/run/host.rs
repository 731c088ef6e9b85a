//! What the host does with a VM's memory, and what the recorded program found out about it.

use slat_memslot::{Gfn, PAGE_SHIFT, PageSize, Pages, Slot};

use super::{Run, returned};
use crate::paged_vm::PagedVm;
use crate::replay::addresses::unmapped;
use crate::replay::{Planted, inputs};
use crate::tdp_vm::{HostMemory, HvaRange, Supplied};
use crate::traces::{HostWork, Item, Note, Op, Predicted, Ret, Traced, What};

/// What becomes of pages that the host unmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageChange {
    /// Nothing that is not known otherwise.
    None,
    /// They are copied when somebody writes.
    Shared,
    /// The same, and they are other ones.
    Merged,
    /// They are other ones, with the same bytes and rights.
    Moved,
    /// They are others, which belong to nobody else.
    Replaced,
}

/// What an operation does to the pages that are unmapped in it.
fn change_of(op: &Op<'_>) -> PageChange {
    match op {
        Op::Fork => PageChange::Shared,
        Op::HostWork(HostWork::Merge | HostWork::Unmerge) => PageChange::Merged,
        Op::HostWork(_) => PageChange::Moved,
        Op::Madvise {
            advice: "SOFT_OFFLINE" | "COLLAPSE",
            ..
        } => PageChange::Moved,
        _ => PageChange::None,
    }
}

/// Whether it is the host alone that knows whether an operation succeeds.
fn is_of_host(op: &Op<'_>) -> bool {
    match op {
        Op::HostWork(_) => true,
        Op::Madvise { advice, .. } => ["SOFT_OFFLINE", "COLLAPSE"].contains(advice),
        _ => false,
    }
}

fn apply(host: &mut HostMemory, range: &HvaRange, change: PageChange) {
    match change {
        PageChange::None => {}
        PageChange::Shared => host.share(range.clone()),
        PageChange::Merged => {
            host.forget_pages(range.clone());
            host.share(range.clone());
        }
        PageChange::Moved => host.forget_pages(range.clone()),
        PageChange::Replaced => host.replace(range.clone()),
    }
}

impl<V: PagedVm> Run<'_, V> {
    /// The host addresses of frames, where a slot holds them.
    fn addresses_of(&self, gfn: Gfn, pages: Pages) -> Option<HvaRange> {
        let space = self.vm.as_ref()?.memory().space(slat_memslot::AsId::NORMAL);
        let start = space.by_gfn(gfn)?.hva_of(gfn)?.raw();
        Some(start..start.saturating_add(pages.raw() << 12))
    }

    /// A call on the host's memory, with the notifications before it returns. What the host itself answers to some is its
    /// own affair.
    pub(super) fn host_call(&mut self, op: &Op<'_>, chunk: &[Item<'_>]) {
        let is_ret = |item: &Item<'_>| matches!(item.what, What::Ret(_));
        let ret = chunk.iter().position(is_ret).unwrap_or(chunk.len());
        let (before, after) = chunk.split_at(ret);
        self.change_memory(op);
        for range in unmapped(before) {
            self.unmap(&range, change_of(op));
        }
        match returned(chunk) {
            Some(Ret::Failed(errno)) if is_of_host(op) => self.outcome(Err(errno)),
            _ => self.outcome(Ok(Some(0))),
        }
        // A program that forks writes to its own pages again.
        let change = match op {
            Op::Fork => PageChange::Replaced,
            _ => change_of(op),
        };
        for range in unmapped(after) {
            self.unmap(&range, change);
        }
    }

    fn change_memory(&mut self, op: &Op<'_>) {
        let range = match op {
            Op::Madvise { gfn, pages, .. } | Op::Userfault { gfn, pages } => {
                self.addresses_of(*gfn, *pages)
            }
            Op::Mprotect { range, .. } => {
                self.protected = range.or(self.protected);
                self.protected
                    .and_then(|(gfn, pages)| self.addresses_of(gfn, pages))
            }
            _ => None,
        };
        let (Some(vm), Some(range)) = (&mut self.vm, range) else {
            return;
        };
        let host = vm.host_mut();
        match op {
            Op::Madvise { advice, .. } => match *advice {
                "DONTNEED" | "REMOVE" => host.discard(range),
                "FREE" => host.cut(&range),
                "COLLAPSE" if !self.addresses.are_said() => host.replace(range),
                _ => {}
            },
            Op::Mprotect { writable: true, .. } => host.unprotect(&range),
            Op::Mprotect { .. } => host.protect(range),
            Op::Userfault { .. } if self.planted != Some(Planted::FilledReadsZero) => {
                host.set_filled(range);
            }
            _ => {}
        }
    }

    fn unmap(&mut self, range: &HvaRange, change: PageChange) {
        let ranges = self.addresses.to_model(range);
        let Some(vm) = &mut self.vm else { return };
        for range in ranges {
            let host = vm.host_mut();
            match (self.planted, change) {
                (Some(Planted::ForkedIsWritable), PageChange::Shared)
                | (Some(Planted::MovedStays), PageChange::Moved) => {}
                (Some(Planted::MergedIsWritable), PageChange::Merged) => {
                    host.forget_pages(range.clone());
                }
                (_, change) => apply(host, &range, change),
            }
            if self.planted != Some(Planted::UnmapsNothing) {
                vm.unmap_hva(range);
            }
        }
    }

    pub(super) fn unmap_all(&mut self, items: &[Item<'_>]) {
        for range in unmapped(items) {
            self.unmap(&range, PageChange::None);
        }
    }

    /// Pages are marked as idle, or looked at.
    pub(super) fn age(&mut self, op: &Op<'_>, chunk: &[Item<'_>]) {
        match op {
            Op::MarkFramesIdle { pages, .. } => {
                self.age_hvas(chunk);
                return self.outcome(Ok(Some(8 * i64::try_from(pages.raw()).unwrap_or(0))));
            }
            Op::ReadFramesIdle { gfn, .. } => return self.read_idle(*gfn, chunk),
            _ => {}
        }
        let young = self.age_hvas(chunk);
        match op {
            Op::MarkIdle { .. } => {
                self.idle = true;
                self.answer(8);
            }
            Op::ReadIdle => {
                self.idle &= !young;
                self.answer(8);
                if let Some(vm) = &mut self.vm {
                    vm.tell(Predicted::Idle(self.idle));
                }
            }
            _ => {}
        }
    }

    fn age_hvas(&mut self, items: &[Item<'_>]) -> bool {
        let aged = self.age_each(items);
        aged.iter().any(|(_, young)| *young)
    }

    /// What KVM was asked about, and what it said.
    fn age_each(&mut self, items: &[Item<'_>]) -> Vec<(HvaRange, bool)> {
        let mut aged = Vec::new();
        for item in items {
            let What::Event(Traced::AgeHva { start, end }) = item.what else {
                continue;
            };
            for range in self.addresses.to_model(&(start..end)) {
                let forgets = self.planted == Some(Planted::AgeingForgets);
                let vm = self.vm.as_mut().filter(|_| !forgets);
                let young = vm.is_some_and(|vm| vm.age_hva(range.clone()));
                aged.push((range, young));
            }
        }
        aged
    }

    /// One page after the other is looked at, and each time also those that have their bit in the same word. Where the host
    /// does not ask KVM about a page, it knows by itself.
    fn read_idle(&mut self, first: Gfn, chunk: &[Item<'_>]) {
        let is_answer = |item: &Item<'_>| matches!(item.what, What::Note(Note::Idle(_)));
        let pages = chunk.split_inclusive(is_answer);
        for (gfn, page) in (first.raw()..).zip(pages) {
            let aged = self.age_each(page);
            let Some(What::Note(Note::Idle(recorded))) = page.last().map(|item| &item.what) else {
                continue;
            };
            let hva = self.addresses_of(Gfn::new(gfn), Pages::new(1));
            let of_page =
                |range: &HvaRange| hva.as_ref().is_some_and(|at| range.contains(&at.start));
            let asked = aged.iter().filter(|(range, _)| of_page(range));
            let idle = asked.map(|(_, young)| !young).reduce(|a, b| a && b);
            if let Some(vm) = &mut self.vm {
                vm.tell(Predicted::Idle(idle.unwrap_or(*recorded)));
            }
        }
    }

    /// What the recorded program found out about its memory.
    pub(super) fn notes(&mut self, chunk: &[Item<'_>]) {
        for item in chunk {
            match &item.what {
                What::Note(Note::BackingOf(as_id)) => self.notes_of = *as_id,
                What::Note(Note::Backing { gfn, pfn, level }) => {
                    let size = level.and_then(inputs::size_of);
                    self.backing(Supplied {
                        gfn: *gfn,
                        pfn: *pfn,
                        size,
                    });
                }
                What::Note(Note::Leaves(_)) => self.leaves(),
                What::Note(Note::Filled { hva, pages }) => {
                    let end = hva.raw().saturating_add(pages.raw() << PAGE_SHIFT);
                    let wrong = self.planted == Some(Planted::FilledReadsZero);
                    if let Some(vm) = self.vm.as_mut().filter(|_| !wrong) {
                        vm.host_mut().set_filled(hva.raw()..end);
                    }
                }
                What::Note(Note::Collapsed { hva, pfn }) => {
                    if let Some(vm) = &mut self.vm {
                        vm.host_mut().tell(*hva, *pfn, PageSize::Size2M);
                    }
                }
                What::Note(Note::Remark("backing never touched by the host")) => self.untouched(),
                _ => {}
            }
        }
    }

    /// The VM's statistics were read.
    fn leaves(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let leaves = vm.leaves();
        vm.tell(Predicted::Leaves(leaves));
    }

    fn backing(&mut self, page: Supplied) {
        let Some(vm) = &mut self.vm else { return };
        let slot = vm.memory().space(self.notes_of).by_gfn(page.gfn);
        let hva = slot.and_then(|slot| slot.hva_of(page.gfn));
        if let Some(hva) = hva {
            vm.host_mut().know_page(hva.raw(), page);
        }
    }

    /// The sizes in which pages are mapped that are known already: the host may have split one since, or made one of many.
    pub(super) fn sizes(&mut self, chunk: &[Item<'_>]) {
        let Some(vm) = &mut self.vm else { return };
        let mut as_id = self.notes_of;
        for item in chunk {
            match item.what {
                What::Note(Note::BackingOf(space)) => as_id = space,
                What::Note(Note::Backing { gfn, pfn, level }) => {
                    let size = level.and_then(inputs::size_of);
                    let slot = vm.memory().space(as_id).by_gfn(gfn);
                    if let Some(hva) = slot.and_then(|slot| slot.hva_of(gfn)) {
                        vm.host_mut().resize(hva.raw(), Supplied { gfn, pfn, size });
                    }
                }
                _ => {}
            }
        }
    }

    /// The memory of the last slot was never written to.
    fn untouched(&mut self) {
        let (Some(vm), Some(key)) = (&mut self.vm, self.last_slot) else {
            return;
        };
        let bytes = |slot: &Slot| slot.pages().raw() << 12;
        let slot = vm.memory().space(key.as_id).by_id(key.id);
        if let Some((start, bytes)) = slot.map(|slot| (slot.hva().raw(), bytes(slot))) {
            vm.host_mut().set_untouched(start..start + bytes);
        }
    }
}
