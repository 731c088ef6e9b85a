//! The page behind a faulting frame, found before the lock is taken (`mmu.c:kvm_faultin_pfn`).

use slat_memslot::{AsId, Gfn, PageSize, Slot};

use super::ShadowMmu;
use super::set::Mapped;
use crate::fault::{Backing, Env, HostPage, Kind, Outcome, Sequence};
use crate::spte::{Format, HostWrite, Pfn, PfnKind};

/// Pages that are there without waiting, for the neighbours of a fault.
pub trait ResidentPages: Backing {
    /// The page behind a frame of a slot's host memory, if the host maps it writable now
    /// (`gup.c:get_user_pages_fast_only`).
    fn resident_page(&mut self, slot: &Slot, gfn: Gfn) -> Option<(Pfn, PfnKind)>;
}

/// A fault whose page was found, or that wants an MMIO entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct FaultedIn<'s> {
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
    pub(super) kind: Kind,
}

impl<F: Format> ShadowMmu<F> {
    /// The first frame that cannot have an MMIO entry (`mmu.h:kvm_mmu_max_gfn`).
    pub(super) fn mmio_end(&self) -> Gfn {
        let bits = match self.has_tdp() {
            true => u32::from(self.codec.host().maxphyaddr),
            false => 52,
        };
        match self.codec.caches_mmio() {
            true => Gfn::new(1 << (bits - 12)),
            false => Gfn::new(0),
        }
    }

    /// Finds the page.
    ///
    /// # Errors
    /// What the fault comes to without anything being mapped.
    pub(super) fn fault_in<'s, B: Backing>(
        &self,
        wanted: Wanted,
        slot: Option<&'s Slot>,
        env: &mut Env<'_, B>,
    ) -> Result<FaultedIn<'s>, Outcome> {
        let sequence = env.invalidation.sequence();
        let Some(slot) = slot else {
            let generation = env.memory.space(wanted.as_id).generation();
            env.mmio.remember(wanted.place, generation);
            if wanted.gfn >= self.mmio_end() {
                return Err(Outcome::Emulate);
            }
            return Ok(FaultedIn {
                slot: None,
                page: None,
                sequence,
            });
        };
        if env.invalidation.must_retry(sequence, wanted.gfn) {
            return Err(Outcome::Retry);
        }
        let page = host_page(slot, wanted, env.backing)?;
        Ok(FaultedIn {
            slot: Some(slot),
            page: Some(page),
            sequence,
        })
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
