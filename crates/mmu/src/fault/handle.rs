//! Handling a fault.

use slat_memslot::{Gfn, Memory, PageSize, Slot, SlotKey};

use super::backing::Backing;
use super::fault_in::{FaultedIn, Page, SlowFault};
use super::invalidation::Invalidation;
use super::mmio::MmioCache;
use super::page_track::{NotTracked, PageTrack};
use super::request::{Fault, Kind, Present};
use crate::role::RoleFlag;
use crate::roots::RootId;
use crate::spte::{
    Fill, Format, GuestPat, HostWrite, LeafRequest, NxHugePages, Pfn, Spte, Tracking,
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
    /// Whether hardware takes accesses to the APIC access page.
    pub apicv: Apicv,
}

/// Whether hardware virtualises the local APIC for this VM at the moment (`x86.c:kvm_apicv_activated`). It matters to VMs
/// that have an APIC access page only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Apicv {
    /// It does: the APIC access page is mapped, so that hardware finds it.
    #[default]
    Active,
    /// Something the VM uses forbids it: accesses are emulated.
    Inhibited,
}

/// What a fault depends on outside the tables.
#[derive(Debug)]
pub struct Env<'e, B, S = NotTracked> {
    /// What userspace has set up, as it is while the fault lasts: who changes slots waits for this borrow to end, as KVM
    /// waits for readers of its slots (SRCU).
    pub memory: &'e Memory,
    /// The pages behind it.
    pub backing: &'e mut B,
    /// Invalidations under way.
    pub invalidation: &'e Invalidation,
    /// The VM's settings.
    pub settings: Settings,
    /// The vCPU's memory of MMIO.
    pub mmio: &'e mut MmioCache,
    /// Who watches the guest's writes: [`ShadowBeside`](crate::shadow::ShadowBeside) where shadow pages follow tables of L1's.
    pub shadow: S,
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

/// What a fault came to before the lock was given up for the slow way.
#[derive(Clone, Copy, Debug)]
#[must_use = "the fault may not be done"]
pub enum Begun<'e> {
    /// It is done.
    Done(Handled),
    /// A page has to be found.
    Slow(SlowFault<'e>),
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Shared<'_, F, X, C>, O> {
    /// Handles a fault of a vCPU that runs on `root`, of which it holds a reference
    /// (`mmu.c:kvm_tdp_mmu_page_fault`).
    ///
    /// The lock is held throughout. Where the page may take long to come by, do as KVM does: [`Locked::begin_fault`], then
    /// [`SlowFault::fault_in`] without the lock, then [`Locked::finish_fault`].
    pub fn page_fault<B: Backing, S: PageTrack>(
        &mut self,
        root: RootId,
        fault: &Fault,
        env: &mut Env<'_, B, S>,
    ) -> Handled {
        let slow = match self.begin_fault(root, fault, env) {
            Begun::Done(handled) => return handled,
            Begun::Slow(slow) => slow,
        };
        match slow.fault_in(env) {
            Ok(found) => self.finish_in(slow.table, &found, env),
            Err(outcome) => outcome.into(),
        }
    }

    /// The first part of a fault: it may need nothing but a bit of an entry that is there.
    ///
    /// KVM holds no lock here; slat's tables are read by whoever holds it for reading.
    #[inline]
    pub fn begin_fault<'e, B, S: PageTrack>(
        &mut self,
        root: RootId,
        fault: &Fault,
        env: &Env<'e, B, S>,
    ) -> Begun<'e> {
        let Some(table) = self.root_table(root) else {
            return Begun::Done(Outcome::Retry.into());
        };
        // Of a root that is held nothing in the role changes but its validity.
        let role = self.tables().role_of(table);
        let memory = env.memory;
        let slot = memory.space(role.as_id()).by_gfn(fault.gfn);
        let writes = fault.present == Present::Yes && fault.kind == Kind::Write;
        if writes && env.shadow.is_write_tracked(fault.gfn) {
            return Begun::Done(Outcome::WriteProtected.into());
        }
        if let Some(fast) = self.try_fast(table, fault, slot, env) {
            return Begun::Done(fast);
        }
        let tables = self.tables();
        Begun::Slow(SlowFault {
            fault: *fault,
            root,
            table,
            as_id: role.as_id(),
            in_guest_mode: role.has(RoleFlag::GuestMode),
            slot,
            mmio_end: if tables.codec().caches_mmio() {
                tables.end_gfn()
            } else {
                Gfn::new(0)
            },
        })
    }

    /// The last part of a fault: maps what was found, if it still holds.
    ///
    /// The root is looked at again, and the invalidations since the page was asked for
    /// (`mmu.c:is_page_fault_stale`).
    pub fn finish_fault<B, S: PageTrack>(
        &mut self,
        found: &FaultedIn<'_>,
        env: &Env<'_, B, S>,
    ) -> Handled {
        match self.root_table(found.root) {
            Some(table) => self.finish_in(table, found, env),
            None => Outcome::Retry.into(),
        }
    }

    #[inline]
    fn finish_in<B, S: PageTrack>(
        &mut self,
        table: TableId,
        found: &FaultedIn<'_>,
        env: &Env<'_, B, S>,
    ) -> Handled {
        if self.is_stale(table, found, env.invalidation) {
            return Outcome::Retry.into();
        }
        match found.page {
            Some((slot, page)) => self.map_page(table, &found.fault, slot, page, env),
            None => self.map_nothing(table, found, env),
        }
    }

    /// Whether what a fault was told does not hold any more (`mmu.c:is_page_fault_stale`).
    #[inline]
    fn is_stale(&self, table: TableId, found: &FaultedIn<'_>, invalidation: &Invalidation) -> bool {
        let root_gone = self.tables().role_of(table).is_invalid();
        let page_gone =
            found.page.is_some() && invalidation.must_retry(found.sequence, found.fault.gfn);
        (root_gone && !cfg!(slat_mutant = "stale_root"))
            || (page_gone && !cfg!(slat_mutant = "stale_page"))
    }

    /// Tries the fast way, if the fault is of the kind (`mmu.c:page_fault_can_be_fast`).
    fn try_fast<B, S>(
        &mut self,
        table: TableId,
        fault: &Fault,
        slot: Option<&Slot>,
        env: &Env<'_, B, S>,
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

    /// Leaves an MMIO entry.
    fn map_nothing<B, S>(
        &mut self,
        table: TableId,
        found: &FaultedIn<'_>,
        env: &Env<'_, B, S>,
    ) -> Handled {
        let fault = &found.fault;
        let generation = env.memory.space(found.as_id).generation();
        let request = MapRequest::mmio(fault.gfn, generation);
        let mapped = self.map_nx(table, &request, nx_fault(fault, env.settings, None));
        match mapped {
            Ok(mapped) => outcome_of(mapped.resolution).into(),
            Err(error) => outcome_of_error(&error).into(),
        }
    }

    /// Maps a page, as large as everybody allows (`mmu.c:kvm_mmu_hugepage_adjust`).
    fn map_page<B, S: PageTrack>(
        &mut self,
        table: TableId,
        fault: &Fault,
        slot: &Slot,
        page: Page,
        env: &Env<'_, B, S>,
    ) -> Handled {
        let settings = env.settings;
        let wanted = self.largest(env, slot, fault, page.size);
        let nx = nx_fault(fault, settings, wanted);
        let size = match (nx, wanted) {
            (NxFault::Disallowed(_), _) | (_, None) => PageSize::Size4K,
            (_, Some(size)) => size,
        };
        let first = page.pfn.raw() & !(span(size.level()) - 1);
        let mut request = MapRequest {
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
        match self.map_own(table, &mut request, nx, &env.shadow) {
            Ok(mapped) => Handled {
                outcome: outcome_of(mapped.resolution),
                mark_dirty: mapped.mark_dirty.then(|| (slot.key(), fault.gfn)),
                size: mapped.size,
            },
            Err(error) => outcome_of_error(&error).into(),
        }
    }

    /// The largest leaf for a fault; `None` if it was not even asked for, since the slot is logged or the page is small.
    fn largest<B, S: PageTrack>(
        &self,
        env: &Env<'_, B, S>,
        slot: &Slot,
        fault: &Fault,
        backing: PageSize,
    ) -> Option<PageSize> {
        if slot.is_logged() || (fault.private && backing == PageSize::Size4K) {
            return None;
        }
        let most = backing.min(self.tables().codec().host().largest_page);
        let (key, gfn) = (slot.key(), fault.gfn);
        let mut size = env.memory.largest_page(key, gfn, most);
        while !env.shadow.allows_huge(key.as_id, size, gfn) {
            let Some(smaller) = smaller(size) else {
                break;
            };
            size = env.memory.largest_page(key, gfn, smaller);
        }
        Some(size)
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

/// The next smaller size of leaves.
const fn smaller(size: PageSize) -> Option<PageSize> {
    match size {
        PageSize::Size4K => None,
        PageSize::Size2M => Some(PageSize::Size4K),
        PageSize::Size1G => Some(PageSize::Size2M),
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
