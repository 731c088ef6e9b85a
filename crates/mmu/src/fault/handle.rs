//! Handling a fault.

use slat_memslot::{AsId, Gfn, Memory, PageSize, Slot, SlotKey};

use super::backing::{Backing, FilePage, HostPage};
use super::invalidation::{Invalidation, Sequence};
use super::mmio::MmioCache;
use super::request::{Fault, Kind, Present};
use crate::roots::RootId;
use crate::spte::{
    Fill, Format, GuestPat, HostWrite, LeafRequest, NxHugePages, Pfn, PfnKind, Spte, Tracking,
};
use crate::table::{TableId, span};
use crate::tdp::{
    AccessCheck, External, Fast, Locked, MapError, MapRequest, NxFault, Observer, Resolution,
    Retry, Shared, SlotLog, Target,
};

/// What of a VM's settings faults depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    /// The mitigation of iTLB multihit.
    pub nx_huge_pages: NxHugePages,
    /// Whether the guest's PAT counts in EPT leaves.
    pub guest_pat: GuestPat,
}

/// What a fault depends on outside the tables.
#[derive(Debug)]
pub struct Env<'e, B> {
    /// What userspace has set up.
    pub memory: &'e Memory,
    /// The pages behind it.
    pub backing: &'e mut B,
    /// Invalidations under way.
    pub invalidation: &'e Invalidation,
    /// The VM's settings.
    pub settings: Settings,
    /// The vCPU's memory of MMIO.
    pub mmio: &'e mut MmioCache,
}

/// What a fault came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The guest has to try again.
    Retry,
    /// The access has to be emulated: no slot is there, or a read-only one.
    Emulate,
    /// The write has to be emulated, since writes to the page are tracked.
    WriteProtected,
    /// The page is mapped.
    Fixed,
    /// It was mapped already.
    Spurious,
    /// Userspace is asked to make the page private or shared, or to mend the file (`KVM_EXIT_MEMORY_FAULT`).
    MemoryFault,
    /// The host has no such page for KVM (`-EFAULT`).
    BadPage,
    /// A signal is pending (`-EINTR`).
    Interrupted,
    /// No table can be had (`-ENOMEM`).
    OutOfTables,
}

/// What a fault did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "the page may have to be marked dirty"]
pub struct Handled {
    /// What became of it.
    pub outcome: Outcome,
    /// The page to mark dirty in its slot's log.
    pub mark_dirty: Option<(SlotKey, Gfn)>,
    /// The size that was mapped.
    pub size: PageSize,
}

impl From<Outcome> for Handled {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            mark_dirty: None,
            size: PageSize::Size4K,
        }
    }
}

/// A page that may be mapped.
#[derive(Clone, Copy, Debug)]
struct Page {
    pfn: Pfn,
    /// The largest leaf that the backing allows.
    size: PageSize,
    writable: bool,
    kind: PfnKind,
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Shared<'_, F, X, C>, O> {
    /// Handles a fault of a vCPU that runs on `root`, of which it holds a reference
    /// (`mmu.c:kvm_tdp_mmu_page_fault`).
    pub fn page_fault<B: Backing>(
        &mut self,
        root: RootId,
        fault: &Fault,
        env: &mut Env<'_, B>,
    ) -> Handled {
        let Some(table) = self.root_table(root) else {
            return Outcome::Retry.into();
        };
        // Of a root that is held the role changes with the lock held for writing only.
        let role = self.tables().role_of(table);
        let memory = env.memory;
        let slot = memory.space(role.as_id()).by_gfn(fault.gfn);
        if let Some(fast) = self.try_fast(table, fault, slot, env) {
            return fast;
        }
        let sequence = env.invalidation.sequence();
        let page = match self.fault_in(role.as_id(), fault, (slot, sequence), env) {
            Ok(page) => page,
            Err(outcome) => return outcome.into(),
        };
        let stale = slot.is_some() && env.invalidation.must_retry(sequence, fault.gfn);
        if role.is_invalid() || stale {
            return Outcome::Retry.into();
        }
        match (page, slot) {
            (Some(page), Some(slot)) => self.map_page(table, fault, slot, page, env),
            _ => self.map_nothing(table, role.as_id(), fault, env),
        }
    }

    /// Tries the fast way, if the fault is of the kind (`mmu.c:page_fault_can_be_fast`).
    fn try_fast<B>(
        &mut self,
        table: TableId,
        fault: &Fault,
        slot: Option<&Slot>,
        env: &Env<'_, B>,
    ) -> Option<Handled> {
        let memory = env.memory;
        let private = memory.vm_type().has_private_memory();
        if private && fault.private != memory.is_private(fault.gfn) {
            return None;
        }
        let can_be = match fault.present {
            Present::No => !self.tables().codec().host().ad_enabled(),
            Present::Yes => fault.kind == Kind::Write,
            Present::Reserved => false,
        };
        if !can_be {
            return None;
        }
        let log = if slot.is_some_and(Slot::is_logged) {
            SlotLog::On
        } else {
            SlotLog::Off
        };
        let (outcome, dirty) = match self.fast_fault(table, fault.gfn, fault.kind.access(), log) {
            Fast::NotFast => return None,
            Fast::Spurious => (Outcome::Spurious, false),
            Fast::Fixed { mark_dirty } => (Outcome::Fixed, mark_dirty),
        };
        let mark_dirty = slot
            .filter(|slot| dirty && slot.is_logged())
            .map(|slot| (slot.key(), fault.gfn));
        Some(Handled {
            mark_dirty,
            ..outcome.into()
        })
    }

    /// Finds the page (`mmu.c:kvm_faultin_pfn`); `None` where there is no slot and an MMIO entry is wanted.
    fn fault_in<B: Backing>(
        &self,
        as_id: AsId,
        fault: &Fault,
        (slot, since): (Option<&Slot>, Sequence),
        env: &mut Env<'_, B>,
    ) -> Result<Option<Page>, Outcome> {
        let memory = env.memory;
        if fault.private != memory.is_private(fault.gfn) {
            return Err(Outcome::MemoryFault);
        }
        let Some(slot) = slot else {
            return self.no_slot(as_id, fault, env).map(|()| None);
        };
        if env.invalidation.must_retry(since, fault.gfn) {
            return Err(Outcome::Retry);
        }
        if fault.private {
            return private_page(slot, fault, env.backing).map(Some);
        }
        host_page(slot, fault, env.backing).map(Some)
    }

    /// No slot is there (`mmu.c:kvm_handle_noslot_fault`).
    fn no_slot<B>(&self, as_id: AsId, fault: &Fault, env: &mut Env<'_, B>) -> Result<(), Outcome> {
        if fault.private {
            return Err(Outcome::MemoryFault);
        }
        let generation = env.memory.space(as_id).generation();
        env.mmio.remember(fault.gfn, generation);
        let tables = self.tables();
        if !tables.codec().caches_mmio() || fault.gfn >= tables.end_gfn() {
            return Err(Outcome::Emulate);
        }
        Ok(())
    }

    /// Leaves an MMIO entry.
    fn map_nothing<B>(
        &mut self,
        table: TableId,
        as_id: AsId,
        fault: &Fault,
        env: &Env<'_, B>,
    ) -> Handled {
        let generation = env.memory.space(as_id).generation();
        let request = MapRequest::mmio(fault.gfn, generation);
        let mapped = self.map_nx(table, &request, nx_fault(fault, env.settings, None));
        match mapped {
            Ok(mapped) => outcome_of(mapped.resolution).into(),
            Err(error) => outcome_of_error(&error).into(),
        }
    }

    /// Maps a page, as large as everybody allows (`mmu.c:kvm_mmu_hugepage_adjust`).
    fn map_page<B>(
        &mut self,
        table: TableId,
        fault: &Fault,
        slot: &Slot,
        page: Page,
        env: &Env<'_, B>,
    ) -> Handled {
        let settings = env.settings;
        let wanted = self.largest(env.memory, slot, fault, page.size);
        let nx = nx_fault(fault, settings, wanted);
        let size = match (nx, wanted) {
            (NxFault::Disallowed(_), _) | (_, None) => PageSize::Size4K,
            (_, Some(size)) => size,
        };
        let first = page.pfn.raw() & !(span(size.level()) - 1);
        let request = MapRequest {
            gfn: fault.gfn,
            size,
            access: fault.kind.access(),
            target: Target::Page(LeafRequest {
                pfn_kind: page.kind,
                fill: if fault.prefetch {
                    Fill::Prefetch
                } else {
                    Fill::Fault
                },
                host_write: if page.writable {
                    HostWrite::Allowed
                } else {
                    HostWrite::Refused
                },
                tracking: Tracking::None,
                guest_pat: settings.guest_pat,
                nx_huge_pages: settings.nx_huge_pages,
                dirty_log: slot.is_logged(),
                ..LeafRequest::new(Spte::from_raw(0), size, Pfn::new(first))
            }),
        };
        match self.map_nx(table, &request, nx) {
            Ok(mapped) => Handled {
                outcome: outcome_of(mapped.resolution),
                mark_dirty: mapped.mark_dirty.then(|| (slot.key(), fault.gfn)),
                size: mapped.size,
            },
            Err(error) => outcome_of_error(&error).into(),
        }
    }

    /// The largest leaf for a fault; `None` if it was not even asked for, since the slot is logged or the page is small.
    fn largest(
        &self,
        memory: &Memory,
        slot: &Slot,
        fault: &Fault,
        backing: PageSize,
    ) -> Option<PageSize> {
        if slot.is_logged() || (fault.private && backing == PageSize::Size4K) {
            return None;
        }
        let most = backing.min(self.tables().codec().host().largest_page);
        Some(memory.largest_page(slot.key(), fault.gfn, most))
    }
}

/// What the mitigation of iTLB multihit says to a fault that could have had a leaf of `wanted`.
fn nx_fault(fault: &Fault, settings: Settings, wanted: Option<PageSize>) -> NxFault {
    match (settings.nx_huge_pages, fault.kind) {
        (NxHugePages::Off, _) => NxFault::Off,
        (NxHugePages::On, Kind::Execute) => NxFault::Disallowed(wanted.unwrap_or(PageSize::Size4K)),
        (NxHugePages::On, Kind::Read | Kind::Write) => NxFault::On,
    }
}

/// The page of a slot's host memory (`kvm_main.c:__gfn_to_pfn_memslot`).
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

fn outcome_of(resolution: Resolution) -> Outcome {
    match resolution {
        Resolution::Retry(Retry::Frozen | Retry::Lost | Retry::Busy) => Outcome::Retry,
        Resolution::Emulate => Outcome::Emulate,
        Resolution::WriteProtected => Outcome::WriteProtected,
        Resolution::Fixed => Outcome::Fixed,
        Resolution::Spurious => Outcome::Spurious,
    }
}

/// A page that was changed without a zap is the backing's fault; the rest cannot be reached from a slot.
fn outcome_of_error(error: &MapError) -> Outcome {
    match error {
        MapError::OutOfTables => Outcome::OutOfTables,
        MapError::BeyondLastGfn { .. } | MapError::NoMmioEntries | MapError::NoPage => {
            Outcome::Emulate
        }
        MapError::Unaligned { .. }
        | MapError::BeyondLastPfn { .. }
        | MapError::PfnChanged { .. } => Outcome::BadPage,
    }
}
