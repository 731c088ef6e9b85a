//! The host's memory: what userspace has behind the shared side of frames, and what it does to it.

use std::collections::{BTreeMap, BTreeSet};

use slat_coco::tdx::mirror::SlotZap;
use slat_coco::tdx::{BusyPlan, Operand};
use slat_memslot::{
    Call, FileCall, Gfn, GfnRange, GmemFile, GmemId, Gpa, Outcome, PAGE_SIZE, Pages, TdxHost,
    TdxSlotZap,
};
use slat_mmu::spte::Pfn;
use slat_mmu::tdp::RootTypes;

use super::TdxVm;
use crate::{CallError, CallResult};

/// Host pages begin here, above all that a module could own.
const FIRST_PAGE: u64 = 1 << 30;

/// What is known of the host's pages.
#[derive(Debug, Default)]
pub(super) struct HostPages {
    /// What pages hold, by address in userspace. A page that was never written holds 0.
    values: BTreeMap<u64, u64>,
    /// Which page of the host is behind an address.
    pages: BTreeMap<u64, Pfn>,
    /// How many pages were ever given out.
    given: u64,
    /// Frames whose shared side has a page.
    used: BTreeSet<Gfn>,
    /// Frames that devices reach.
    dma: BTreeSet<Gfn>,
}

impl HostPages {
    /// What the page at an address of userspace holds.
    pub(super) fn value(&self, hva: u64) -> u64 {
        self.values.get(&page_of(hva)).copied().unwrap_or(0)
    }

    pub(super) fn set_value(&mut self, hva: u64, value: u64) {
        self.values.insert(page_of(hva), value);
    }

    /// The page behind a frame, which is in use from now on.
    pub(super) fn page(&mut self, gfn: Gfn, hva: u64) -> Pfn {
        self.used.insert(gfn);
        let next = Pfn::new(FIRST_PAGE + self.given);
        self.given += 1;
        *self.pages.entry(page_of(hva)).or_insert(next)
    }

    /// Frames that no slot holds any more.
    pub(super) fn forget(&mut self, range: GfnRange) {
        self.used.retain(|gfn| !range.contains(*gfn));
        self.dma.retain(|gfn| !range.contains(*gfn));
    }

    /// Frames with a page of the host's: touched, or pinned for devices.
    pub(super) fn backed(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.used.union(&self.dma).copied()
    }

    /// The same in a range.
    pub(super) fn backed_in(&self, range: GfnRange) -> bool {
        any_in(&self.used, range) || any_in(&self.dma, range)
    }

    /// Whether devices reach a frame of a range.
    pub(super) fn dma_in(&self, range: GfnRange) -> bool {
        any_in(&self.dma, range)
    }
}

fn any_in(frames: &BTreeSet<Gfn>, range: GfnRange) -> bool {
    frames.range(range.start()..range.end()).next().is_some()
}

const fn page_of(hva: u64) -> u64 {
    hva & !(PAGE_SIZE - 1)
}

/// The frames of a range of bytes.
fn frames(address: u64, size: u64) -> Result<GfnRange, CallError> {
    let range = GfnRange::new(Gpa::new(address).gfn(), Pages::in_bytes(size));
    range.ok_or(CallError::NotTried {
        why: "the range is empty or wraps around",
    })
}

impl TdxVm {
    pub(super) fn host_call(&mut self, host: TdxHost) -> CallResult {
        match host {
            TdxHost::Write { hva, value } => self.host.set_value(hva, value),
            TdxHost::Discard { address, size } => self.discard(frames(address, size)?),
            TdxHost::DmaMap { address, size } => self.pin(frames(address, size)?),
            TdxHost::DmaUnmap { address, size } => {
                let range = frames(address, size)?;
                self.host.dma.retain(|gfn| !range.contains(*gfn));
            }
            TdxHost::SlotZap(how) => {
                self.slot_zap = match how {
                    TdxSlotZap::Leafs => SlotZap::Leafs,
                    TdxSlotZap::SharedRoots => SlotZap::SharedRootsAndLeafs,
                    TdxSlotZap::AllRoots => SlotZap::AllRoots,
                };
            }
            TdxHost::Busy { skip } => {
                if let Some(td) = &self.td {
                    let plan = BusyPlan::any(skip, Operand::SeptTree);
                    td.module().plan_busy(plan);
                }
            }
            TdxHost::Teardown => return self.teardown(),
        }
        Ok(Outcome::Done)
    }

    /// Host pages go, and what they hold; what maps them is zapped by the notifier. Pages that devices reach are pinned: they
    /// stay.
    fn discard(&mut self, range: GfnRange) {
        let slots = self.memory.space(Default::default()).in_range(range);
        let pages: Vec<(Gfn, u64)> = slots
            .filter_map(|slot| Some((slot, slot.range().intersection(range)?)))
            .flat_map(|(slot, part)| {
                let frames = (part.start().raw()..part.end().raw()).map(Gfn::new);
                frames.filter_map(|gfn| Some((gfn, slot.hva_of(gfn)?.raw())))
            })
            .filter(|(gfn, _)| !self.host.dma.contains(gfn))
            .collect();
        for (gfn, hva) in pages {
            self.host.values.remove(&page_of(hva));
            let mapped = self.host.pages.remove(&page_of(hva)).is_some();
            let used = self.host.used.remove(&gfn);
            if let (true, Some(td), Some(page)) =
                (mapped || used, &self.td, GfnRange::new(gfn, Pages::new(1)))
            {
                td.zap_leafs(page, RootTypes::Direct);
            }
        }
    }

    /// Devices reach what slots hold of a range.
    fn pin(&mut self, range: GfnRange) {
        let slots = self.memory.space(Default::default()).in_range(range);
        let parts: Vec<_> = slots
            .filter_map(|slot| slot.range().intersection(range))
            .collect();
        for part in parts {
            let frames = (part.start().raw()..part.end().raw()).map(Gfn::new);
            self.host.dma.extend(frames);
        }
    }

    /// The last descriptors are closed. Gives the number of pages that are still out.
    fn teardown(&mut self) -> CallResult {
        let count = u32::try_from(self.memory.gmem_files()).unwrap_or(u32::MAX);
        for file in (0..count).map(GmemId::new) {
            if self.memory.gmem_file(file).is_some_and(GmemFile::is_open) {
                self.call(&Call::File(file, FileCall::Close))?;
            }
        }
        let Some(td) = self.td.take() else {
            return Ok(Outcome::Value(0));
        };
        self.memory.set_gate(slat_memslot::Gate::Dead);
        td.destroy().map_err(super::TdxError::Module)?;
        Ok(Outcome::Value(td.pages_in_use()))
    }
}
