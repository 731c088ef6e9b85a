//! The page behind a faulting frame, found before the lock is taken (`mmu.c:kvm_faultin_pfn`).

use slat_memslot::{AsId, Gfn, PageSize, Slot, SlotId};

use super::ShadowMmu;
use super::set::Mapped;
use crate::access::Access;
use crate::fault::{Apicv, Backing, Env, Handled, HostPage, Kind, MmioAccess, Outcome, Sequence};
use crate::role::PageRole;
use crate::spte::{Format, HostWrite, Pfn, PfnKind};

/// Pages that are there without waiting, for the neighbours of a fault.
pub trait ResidentPages: Backing {
    /// The page behind a frame of a slot's host memory, if the host maps it writable now
    /// (`gup.c:get_user_pages_fast_only`).
    fn resident_page(&mut self, slot: &Slot, gfn: Gfn) -> Option<(Pfn, PfnKind)>;
}

/// A fault whose page was found, or that wants an MMIO entry.
#[derive(Clone, Copy, Debug)]
#[must_use = "nothing is mapped yet"]
pub struct ShadowFaultedIn<'s> {
    pub(super) slot: Option<&'s Slot>,
    /// The page, and the largest leaf that the host's mapping of it allows.
    pub(super) page: Option<(Mapped, PageSize)>,
    pub(super) sequence: Sequence,
}

/// The frame of a fault, and where the guest's own address is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) as_id: AsId,
    pub(super) gfn: Gfn,
    /// The frame of the address that faulted, by which a vCPU remembers MMIO.
    pub(super) place: Gfn,
    /// What the guest's tables allow.
    pub(super) access: Access,
    pub(super) kind: Kind,
}

impl Wanted {
    fn mmio(&self) -> MmioAccess {
        MmioAccess {
            place: self.place,
            gfn: self.gfn,
            access: self.access & (Access::WRITE | Access::USER),
        }
    }
}

/// A fault whose page has to be found, which needs no lock.
#[derive(Clone, Copy, Debug)]
#[must_use = "the fault is not done"]
pub struct SlowShadowFault<'s> {
    wanted: Wanted,
    slot: Option<&'s Slot>,
    /// The first frame that cannot have an MMIO entry.
    mmio_end: Gfn,
    /// The root is L2's.
    in_guest_mode: bool,
}

/// What a fault came to before the lock was given up for the slow way.
#[derive(Clone, Copy, Debug)]
#[must_use = "the fault may not be done"]
pub enum ShadowBegun<'s> {
    /// It is done.
    Done(Handled),
    /// A page has to be found.
    Slow(SlowShadowFault<'s>),
}

impl<F: Format> ShadowMmu<F> {
    /// The first frame that cannot have an MMIO entry (`mmu.h:kvm_mmu_max_gfn`).
    fn mmio_end(&self) -> Gfn {
        let bits = match self.has_tdp() {
            true => u32::from(self.codec.host().maxphyaddr),
            false => 52,
        };
        match self.codec.caches_mmio() {
            true => Gfn::new(1 << (bits - 12)),
            false => Gfn::new(0),
        }
    }

    pub(super) fn slow_fault<'s>(
        &self,
        wanted: Wanted,
        slot: Option<&'s Slot>,
        role: PageRole,
    ) -> SlowShadowFault<'s> {
        SlowShadowFault {
            wanted,
            slot,
            mmio_end: self.mmio_end(),
            in_guest_mode: role.is_guest_mode(),
        }
    }
}

impl<'s> SlowShadowFault<'s> {
    /// Finds the page.
    ///
    /// # Errors
    /// What the fault comes to without anything being mapped.
    pub fn fault_in<B: Backing, S>(
        &self,
        env: &mut Env<'_, B, S>,
    ) -> Result<ShadowFaultedIn<'s>, Outcome> {
        let (wanted, early) = (self.wanted, env.invalidation.sequence());
        let Some(slot) = self.slot_to_ask(env.settings.apicv)? else {
            let generation = env.memory.space(wanted.as_id).generation();
            env.mmio.remember_at(wanted.mmio(), generation);
            if wanted.gfn >= self.mmio_end {
                return Err(Outcome::Emulate);
            }
            return Ok(ShadowFaultedIn {
                slot: None,
                page: None,
                sequence: early,
            });
        };
        if env.invalidation.must_retry(early, wanted.gfn) {
            return Err(Outcome::Retry);
        }
        let page = host_page(slot, wanted, env.backing)?;
        let sequence = match cfg!(slat_mutant = "shadow_late_sequence") {
            true => env.invalidation.sequence(),
            false => early,
        };
        Ok(ShadowFaultedIn {
            slot: Some(slot),
            page: Some(page),
            sequence,
        })
    }

    /// The slot whose page is wanted, or `None` where nothing counts as being there.
    fn slot_to_ask(&self, apicv: Apicv) -> Result<Option<&'s Slot>, Outcome> {
        let Some(slot) = self.slot else {
            return Ok(None);
        };
        if slot.is_invalid() {
            return Err(Outcome::Retry);
        }
        let apic = slot.key().id == SlotId::APIC_ACCESS;
        match (apic, self.in_guest_mode, apicv) {
            (true, true, _) => Ok(None),
            (true, false, Apicv::Inhibited) => Err(Outcome::Emulate),
            _ => Ok(Some(slot)),
        }
    }
}

/// The page of a slot's host memory (`kvm_main.c:__gfn_to_pfn_memslot`).
fn host_page(
    slot: &Slot,
    wanted: Wanted,
    backing: &mut impl Backing,
) -> Result<(Mapped, PageSize), Outcome> {
    let write = wanted.kind == Kind::Write;
    if write && slot.is_readonly() {
        return Err(Outcome::Emulate);
    }
    match backing.host_page(slot, wanted.gfn, write) {
        HostPage::Page {
            pfn,
            size,
            writable,
            kind,
        } => {
            let host_write = match writable && !slot.is_readonly() {
                true => HostWrite::Allowed,
                false => HostWrite::Refused,
            };
            let page = Mapped {
                pfn,
                kind,
                host_write,
            };
            Ok((page, size))
        }
        HostPage::Bad => Err(Outcome::BadPage),
        HostPage::Moved | HostPage::Poisoned => Err(Outcome::Retry),
        HostPage::Interrupted => Err(Outcome::Interrupted),
    }
}
