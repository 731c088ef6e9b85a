//! Mapping pages before the guest asks for them (`KVM_PRE_FAULT_MEMORY`, `mmu.c:kvm_arch_vcpu_pre_fault_memory`).

use core::fmt;

use slat_memslot::{Gfn, Pages, Slot};
use thiserror::Error;

use super::backing::Backing;
use super::handle::{Env, Handled, Outcome};
use super::page_track::PageTrack;
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
    /// A signal is pending (`-EINTR`).
    #[error("a signal is pending")]
    Interrupted,
    /// The slot is being deleted or moved (`-EAGAIN`, since 6.18).
    #[error("the slot is being deleted or moved")]
    InvalidSlot,
    /// KVM would try for ever; only a signal ends it (`-EINTR`).
    #[error("the kernel would try for ever: {why} ({tries} tries)")]
    Endless {
        /// What no try changes.
        why: Endless,
        /// How often it was tried here.
        tries: u32,
    },
    /// No table can be had (`-ENOMEM`).
    #[error("all tables are in use")]
    OutOfTables,
}

/// Why a page would be tried for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endless {
    /// The vCPU's root was thrown away, and only an entry into the guest would load another one. Since 6.15 the call itself
    /// does ([`Profile::pre_fault_spins`](slat_memslot::Profile::pre_fault_spins)).
    ObsoleteRoot,
    /// The slot is being deleted or moved, and that waits for the call to end
    /// ([`Profile::pre_fault_waits_for_slot`](slat_memslot::Profile::pre_fault_waits_for_slot)).
    InvalidSlot,
    /// The host is changing the page; it ends when that does.
    Invalidation,
    /// The page is broken, or each answer is stale at once.
    Page,
}

impl fmt::Display for Endless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ObsoleteRoot => "the root was thrown away, and the vCPU does not enter the guest",
            Self::InvalidSlot => "the slot is being deleted or moved, which waits for the call",
            Self::Invalidation => "an invalidation is under way",
            Self::Page => "no answer of the host lasts",
        })
    }
}

/// How often a step is tried before it is given up. KVM goes on until a signal comes.
const ATTEMPTS: u32 = 16;

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Shared<'_, F, X, C>, O> {
    /// Maps the page at a frame into a root, as large as it may be; at most `left` pages count.
    ///
    /// # Errors
    /// See [`PrefaultError`].
    pub fn prefault<B: Backing, S: PageTrack>(
        &mut self,
        root: RootId,
        gfn: Gfn,
        left: Pages,
        env: &mut Env<'_, B, S>,
    ) -> Result<Prefault, PrefaultError> {
        let fault = Fault {
            gfn,
            kind: Kind::Read,
            present: Present::No,
            private: env.memory.is_private(gfn),
            prefetch: true,
        };
        if self.refuses(root, gfn, env) {
            return Err(PrefaultError::InvalidSlot);
        }
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
                Outcome::Interrupted => return Err(PrefaultError::Interrupted),
                Outcome::OutOfTables => return Err(PrefaultError::OutOfTables),
            }
        }
        Err(PrefaultError::Endless {
            why: self.why_endless(root, gfn, env),
            tries: ATTEMPTS,
        })
    }

    /// Whether the kernel gives up at a slot that is going.
    fn refuses<B, S>(&self, root: RootId, gfn: Gfn, env: &Env<'_, B, S>) -> bool {
        let waits = env.memory.profile().pre_fault_waits_for_slot.get();
        !waits && self.is_slot_invalid(root, gfn, env)
    }

    fn is_slot_invalid<B, S>(&self, root: RootId, gfn: Gfn, env: &Env<'_, B, S>) -> bool {
        let role = self.tables().roots().role(root);
        let slot = role.and_then(|role| env.memory.space(role.as_id()).by_gfn(gfn));
        slot.is_some_and(Slot::is_invalid)
    }

    /// In the order in which a fault finds out.
    fn why_endless<B, S>(&self, root: RootId, gfn: Gfn, env: &Env<'_, B, S>) -> Endless {
        let now = env.invalidation.sequence();
        if self.is_slot_invalid(root, gfn, env) {
            Endless::InvalidSlot
        } else if env.invalidation.must_retry(now, gfn) {
            Endless::Invalidation
        } else if self.tables().roots().is_obsolete(root) {
            Endless::ObsoleteRoot
        } else {
            Endless::Page
        }
    }
}
