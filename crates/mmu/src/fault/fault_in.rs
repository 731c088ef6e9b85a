//! Finding the page for a fault, which needs no lock (`mmu.c:kvm_mmu_faultin_pfn`).

use slat_memslot::{AsId, Gfn, PageSize, Slot, SlotId};

use super::backing::{Backing, FilePage, HostPage};
use super::handle::{Apicv, Env, Outcome};
use super::invalidation::Sequence;
use super::request::{Fault, Kind};
use crate::roots::RootId;
use crate::spte::{Pfn, PfnKind};
use crate::table::TableId;

/// A page that may be mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub(super) pfn: Pfn,
    /// The largest leaf that the backing allows.
    pub(super) size: PageSize,
    pub(super) writable: bool,
    pub(super) kind: PfnKind,
}

/// A fault whose page has to be found.
#[derive(Clone, Copy, Debug)]
#[must_use = "the fault is not done"]
pub struct SlowFault<'e> {
    pub(super) fault: Fault,
    pub(super) root: RootId,
    pub(super) table: TableId,
    pub(super) as_id: AsId,
    /// The root is L2's.
    pub(super) in_guest_mode: bool,
    pub(super) slot: Option<&'e Slot>,
    /// The first frame that cannot have an MMIO entry.
    pub(super) mmio_end: Gfn,
}

/// A fault whose page was found, or that wants an MMIO entry.
#[derive(Clone, Copy, Debug)]
#[must_use = "nothing is mapped yet"]
pub struct FaultedIn<'e> {
    pub(super) fault: Fault,
    pub(super) root: RootId,
    pub(super) as_id: AsId,
    /// How many invalidations had ended before the page was asked for.
    pub(super) sequence: Sequence,
    /// The page and its slot; `None` where an MMIO entry is wanted.
    pub(super) page: Option<(&'e Slot, Page)>,
}

impl<'e> SlowFault<'e> {
    /// Finds the page, without the lock: the backing may take its time, and an invalidation may come in between, which
    /// [`Locked::finish_fault`](crate::tdp::Locked::finish_fault) notices.
    ///
    /// # Errors
    /// What the fault comes to without anything being mapped.
    #[inline]
    pub fn fault_in<B: Backing, S>(
        &self,
        env: &mut Env<'_, B, S>,
    ) -> Result<FaultedIn<'e>, Outcome> {
        let fault = &self.fault;
        let early = env.invalidation.sequence();
        if fault.private != env.memory.is_private(fault.gfn) {
            return Err(Outcome::MemoryFault);
        }
        let page = match self.slot_to_ask(env.settings.apicv)? {
            None => {
                self.no_slot(env)?;
                None
            }
            Some(_) if env.invalidation.must_retry(early, fault.gfn) => return Err(Outcome::Retry),
            Some(slot) => Some((slot, page_of(slot, fault, env.backing)?)),
        };
        let sequence = if cfg!(slat_mutant = "late_sequence") {
            env.invalidation.sequence()
        } else {
            early
        };
        Ok(FaultedIn {
            fault: self.fault,
            root: self.root,
            as_id: self.as_id,
            sequence,
            page,
        })
    }

    /// The slot whose page is wanted, or `None` where nothing counts as being there.
    fn slot_to_ask(&self, apicv: Apicv) -> Result<Option<&'e Slot>, Outcome> {
        let Some(slot) = self.slot else {
            return Ok(None);
        };
        if slot.is_invalid() {
            return Err(Outcome::Retry);
        }
        if slot.key().id != SlotId::APIC_ACCESS {
            return Ok(Some(slot));
        }
        match (self.in_guest_mode, apicv) {
            // L1's APIC is not for the hardware to take L2's accesses to.
            (true, _) => Ok(None),
            // Nothing is remembered of it: APICv may be back at any time.
            (false, Apicv::Inhibited) => Err(Outcome::Emulate),
            (false, Apicv::Active) => Ok(Some(slot)),
        }
    }

    /// No slot is there (`mmu.c:kvm_handle_noslot_fault`).
    fn no_slot<B, S>(&self, env: &mut Env<'_, B, S>) -> Result<(), Outcome> {
        if self.fault.private {
            return Err(Outcome::MemoryFault);
        }
        let gfn = self.fault.gfn;
        let generation = env.memory.space(self.as_id).generation();
        env.mmio.remember(gfn, generation);
        if gfn < self.mmio_end {
            Ok(())
        } else {
            Err(Outcome::Emulate)
        }
    }
}

#[inline]
fn page_of(slot: &Slot, fault: &Fault, backing: &mut impl Backing) -> Result<Page, Outcome> {
    if fault.private {
        private_page(slot, fault, backing)
    } else {
        host_page(slot, fault, backing)
    }
}

/// The page of a slot's host memory (`kvm_main.c:__gfn_to_pfn_memslot`).
#[inline]
fn host_page(slot: &Slot, fault: &Fault, backing: &mut impl Backing) -> Result<Page, Outcome> {
    let write = fault.kind == Kind::Write;
    if write && slot.is_readonly() {
        return Err(Outcome::Emulate);
    }
    match backing.host_page(slot, fault.gfn, write) {
        HostPage::Page {
            pfn,
            size,
            writable,
            kind,
        } => Ok(Page {
            pfn,
            size,
            writable: writable && !slot.is_readonly(),
            kind,
        }),
        HostPage::Bad => Err(Outcome::BadPage),
        HostPage::Moved | HostPage::Poisoned => Err(Outcome::Retry),
        HostPage::Interrupted => Err(Outcome::Interrupted),
    }
}

/// The page of a slot's guest_memfd (`mmu.c:kvm_faultin_pfn_private`).
fn private_page(slot: &Slot, fault: &Fault, backing: &mut impl Backing) -> Result<Page, Outcome> {
    if slot.binding().is_none() {
        return Err(Outcome::MemoryFault);
    }
    match backing.file_page(slot, fault.gfn) {
        FilePage::Page { pfn, size } => Ok(Page {
            pfn,
            size,
            writable: !slot.is_readonly(),
            kind: PfnKind::Memory,
        }),
        FilePage::Bad => Err(Outcome::MemoryFault),
    }
}
