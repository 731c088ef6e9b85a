//! Mapping pages before the guest asks for them (`KVM_PRE_FAULT_MEMORY`, `mmu.c:kvm_arch_vcpu_pre_fault_memory`).

use slat_memslot::{Gfn, Pages};
use thiserror::Error;

use super::backing::Backing;
use super::handle::{Env, Handled, Outcome};
use super::request::{Fault, Kind, Present};
use crate::roots::RootId;
use crate::spte::Format;
use crate::table::{first, span};
use crate::tdp::{AccessCheck, External, Locked, Observer, Shared};

/// What becomes of a vCPU that is not in the base mode: in SMM, or in L2 without tables of its own. The mailing list
/// argued about it when the call was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum PrefaultOutside {
    /// Pages go into whatever root the vCPU uses at the moment: what was merged.
    #[default]
    CurrentRoot,
    /// Pages go into the root of the base mode.
    BaseRoot,
    /// The call fails.
    Refused,
}

/// One step of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "the page may have to be marked dirty"]
pub struct Prefault {
    /// How many pages from the given one on are mapped now, and no more than asked for.
    pub done: Pages,
    /// What the fault did.
    pub handled: Handled,
}

/// Why a page cannot be mapped ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum PrefaultError {
    /// No slot is there, or the access would be emulated (`-ENOENT`).
    #[error("no slot is there")]
    NoSlot,
    /// The host has no such page (`-EFAULT`).
    #[error("the host has no such page")]
    BadPage,
    /// It would have to be tried for ever: an invalidation is under way (`-EINTR` when a signal comes).
    #[error("an invalidation is under way")]
    Retry,
    /// No table can be had (`-ENOMEM`).
    #[error("all tables are in use")]
    OutOfTables,
}

/// How often a step is tried before it is given up. KVM goes on until a signal comes.
const ATTEMPTS: u32 = 16;

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Shared<'_, F, X, C>, O> {
    /// Maps the page at a frame into a root, as large as it may be; at most `left` pages count.
    ///
    /// # Errors
    /// See [`PrefaultError`].
    pub fn prefault<B: Backing>(
        &mut self,
        root: RootId,
        gfn: Gfn,
        left: Pages,
        env: &mut Env<'_, B>,
    ) -> Result<Prefault, PrefaultError> {
        let fault = Fault {
            gfn,
            kind: Kind::Read,
            present: Present::No,
            private: env.memory.is_private(gfn),
            prefetch: true,
        };
        for _ in 0..ATTEMPTS {
            let handled = self.page_fault(root, &fault, env);
            match handled.outcome {
                Outcome::Retry => {}
                Outcome::Fixed | Outcome::Spurious | Outcome::WriteProtected => {
                    let level = handled.size.level();
                    let end = first(gfn.raw(), level) + span(level);
                    let done = Pages::new((end - gfn.raw()).min(left.raw()));
                    return Ok(Prefault { done, handled });
                }
                Outcome::Emulate => return Err(PrefaultError::NoSlot),
                Outcome::MemoryFault | Outcome::BadPage => return Err(PrefaultError::BadPage),
                Outcome::Interrupted => return Err(PrefaultError::Retry),
                Outcome::OutOfTables => return Err(PrefaultError::OutOfTables),
            }
        }
        Err(PrefaultError::Retry)
    }
}
