//! The host's instructions: RMPUPDATE, PSMASH, RMPREAD, and the kernel's lookup.

use slat_memslot::Gfn;
use slat_mmu::spte::Pfn;
use thiserror::Error;

use super::cell::Held;
use super::entry::{FirmwareUse, RmpEntry, RmpReadEntry, RmpSize, RmpState};
use super::id::{Asid, VmplPermissions};
use super::raw::END_GFN;
use super::rules::{NothingToSmash, OddOperand, SameUpdate, UnalignedPsmash};
use super::table::{Conflict, REGION, Rmp, Tails};

/// What is wrong with the input of RMPUPDATE or PSMASH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum BadInput {
    /// The table has no entry for the frame.
    #[error("{0:?} has no entry")]
    Outside(Pfn),
    /// The frame is no multiple of the size.
    #[error("{0:?} is not aligned to 2M")]
    UnalignedPfn(Pfn),
    /// The guest address is no multiple of the size.
    #[error("guest address {0:#x} is not aligned to the size")]
    UnalignedGpa(u64),
    /// The guest address does not fit an entry.
    #[error("guest address {0:#x} has more than 51 bits")]
    LargeGpa(u64),
    /// The ASID does not fit an entry.
    #[error("ASID {0:#x} has more than 10 bits")]
    LargeAsid(u32),
    /// Not assigned, yet somebody's or immutable.
    #[error("not assigned, but with an ASID or immutable")]
    OwnedByNobody,
    /// Assigned to the hypervisor.
    #[error("assigned to ASID 0, but not immutable")]
    AssignedToHost,
    /// No entry of 2 MiB is there.
    #[error("{0:?} has no 2M entry")]
    NotHuge(Pfn),
}

/// Why RMPUPDATE may not touch an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum NotPermitted {
    /// It is immutable: only firmware can change it.
    #[error("the entry is immutable")]
    Immutable,
    /// It is fixed to the hypervisor.
    #[error("the page is fixed to the hypervisor")]
    HvFixed,
    /// A vCPU runs on it.
    #[error("a vCPU runs on this VMSA")]
    VmsaInUse,
}

/// Whether an overlap goes away by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overlap {
    /// Somebody is changing another entry of the same 2 MiB. Linux retries, and is right to.
    Transient,
    /// An entry of the other size is there. Linux retries for ever.
    Structural,
}

/// Why RMPUPDATE failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum RmpupdateError {
    /// 1, `FAIL_INPUT`.
    #[error("FAIL_INPUT: {0}")]
    Input(BadInput),
    /// 2, `FAIL_PERMISSION`.
    #[error("FAIL_PERMISSION: {0}")]
    Permission(NotPermitted),
    /// 3, `FAIL_INUSE`: somebody is changing the entry.
    #[error("FAIL_INUSE")]
    InUse,
    /// 4, `FAIL_OVERLAP`.
    #[error("FAIL_OVERLAP ({0:?})")]
    Overlap(Overlap),
}

impl RmpupdateError {
    /// The value of EAX.
    pub const fn code(&self) -> u32 {
        match self {
            Self::Input(_) => 1,
            Self::Permission(_) => 2,
            Self::InUse => 3,
            Self::Overlap(_) => 4,
        }
    }

    /// Whether trying again can help without anything else being done.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::InUse | Self::Overlap(Overlap::Transient))
    }
}

/// Why PSMASH failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum PsmashError {
    /// 1, `FAIL_INPUT`.
    #[error("FAIL_INPUT: {0}")]
    Input(BadInput),
    /// 2, `FAIL_PERMISSION`: the entry is immutable.
    #[error("FAIL_PERMISSION: {0}")]
    Permission(NotPermitted),
    /// 3, `FAIL_INUSE`: somebody is changing an entry of the 2 MiB.
    #[error("FAIL_INUSE")]
    InUse,
    /// 4, `FAIL_BADADDR`.
    #[error("FAIL_BADADDR: {0}")]
    BadAddress(BadInput),
}

impl PsmashError {
    /// The value of EAX.
    pub const fn code(&self) -> u32 {
        match self {
            Self::Input(_) => 1,
            Self::Permission(_) => 2,
            Self::InUse => 3,
            Self::BadAddress(_) => 4,
        }
    }
}

/// Why RMPREAD failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum RmpreadError {
    /// 1: the table has no entry for the frame.
    #[error("FAIL_INPUT: {0:?} has no entry")]
    Outside(Pfn),
    /// 2: not the host asks.
    #[error("FAIL_PERMISSION: executed with ASID {0}")]
    Guest(Asid),
}

impl RmpreadError {
    /// The value of EAX.
    pub const fn code(&self) -> u32 {
        match self {
            Self::Outside(_) => 1,
            Self::Guest(_) => 2,
        }
    }
}

/// What KVM learns about a frame (`__snp_lookup_rmpentry`): two facts from two entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lookup {
    /// From the frame's own entry. Inside an entry of 2 MiB it is false for all frames but the first.
    pub assigned: bool,
    /// From the entry of the region's head.
    pub size: RmpSize,
}

impl Rmp {
    /// RMPUPDATE: gives a page of the host to somebody, or takes it back.
    ///
    /// Checks, in order: input, permission, whether somebody else is at the entry, sizes. On success nothing is left of what
    /// the guest established: validated, VMSA, permissions ([`SameUpdate`]).
    ///
    /// # Errors
    /// See [`RmpupdateError`]; nothing has changed then.
    pub fn rmpupdate(&self, pfn: Pfn, state: &RmpState) -> Result<(), RmpupdateError> {
        let entry = self
            .check_operand(pfn, state)
            .map_err(RmpupdateError::Input)?;
        permitted(&self.own_entry(pfn)).map_err(RmpupdateError::Permission)?;
        let mut held = self.lock_own(pfn).map_err(update_conflict)?;
        permitted(&held.entry()).map_err(RmpupdateError::Permission)?;
        self.check_sizes(pfn, state.size, &held)?;
        let entry = self.keep_if_same(&held.entry(), entry);
        held.set(entry);
        Ok(())
    }

    fn check_operand(&self, pfn: Pfn, state: &RmpState) -> Result<RmpEntry, BadInput> {
        if !self.covers(pfn) {
            return Err(BadInput::Outside(pfn));
        }
        if !state.size.is_aligned(pfn.raw()) {
            return Err(BadInput::UnalignedPfn(pfn));
        }
        let gfn = state.gpa >> 12;
        if gfn >= END_GFN {
            return Err(BadInput::LargeGpa(state.gpa));
        }
        if state.gpa & 0xfff != 0 || !state.size.is_aligned(gfn) {
            return Err(BadInput::UnalignedGpa(state.gpa));
        }
        let asid = Asid::new(state.asid).ok_or(BadInput::LargeAsid(state.asid))?;
        if self.rules().odd_operand == OddOperand::Refused {
            check_ownership(state)?;
        }
        Ok(entry_of(state, Gfn::new(gfn), asid))
    }

    fn check_sizes(&self, pfn: Pfn, size: RmpSize, held: &Held<'_>) -> Result<(), RmpupdateError> {
        let huge = match pfn.raw() % REGION {
            0 => held.seen().is_huge(),
            _ => self.head_beside(pfn).map_err(update_conflict)?.is_huge(),
        };
        match size {
            RmpSize::Size4K if huge => Err(RmpupdateError::Overlap(Overlap::Structural)),
            RmpSize::Size4K => Ok(()),
            RmpSize::Size2M => match self.tails_beside(pfn) {
                Tails::Free => Ok(()),
                Tails::Changing => Err(RmpupdateError::Overlap(Overlap::Transient)),
                Tails::Assigned => Err(RmpupdateError::Overlap(Overlap::Structural)),
                Tails::Fixed => Err(RmpupdateError::Permission(NotPermitted::HvFixed)),
            },
        }
    }

    fn keep_if_same(&self, before: &RmpEntry, after: RmpEntry) -> RmpEntry {
        let same = RmpEntry {
            vmsa: before.vmsa,
            validated: before.validated,
            permissions: before.permissions,
            ..after
        };
        match self.rules().same_update {
            SameUpdate::Keeps if same == *before => same,
            _ => after,
        }
    }

    /// PSMASH: takes an entry of 2 MiB apart. What the guest has established is kept in all 512.
    ///
    /// # Errors
    /// See [`PsmashError`]; nothing has changed then.
    pub fn psmash(&self, pfn: Pfn) -> Result<(), PsmashError> {
        let pfn = match self.rules().unaligned_psmash {
            UnalignedPsmash::RoundedDown => Pfn::new(pfn.raw() / REGION * REGION),
            UnalignedPsmash::Refused => pfn,
        };
        if !self.covers(pfn) {
            return Err(PsmashError::BadAddress(BadInput::Outside(pfn)));
        }
        if pfn.raw() % REGION != 0 {
            return Err(PsmashError::Input(BadInput::UnalignedPfn(pfn)));
        }
        self.smashable(pfn, &self.own_entry(pfn))?;
        let mut head = self.lock_own(pfn).map_err(|_| PsmashError::InUse)?;
        let entry = head.entry();
        self.smashable(pfn, &entry)?;
        let mut tails = self.lock_tails(pfn).map_err(|_| PsmashError::InUse)?;
        for (index, tail) in (1..).zip(&mut tails) {
            tail.set(entry.part(index));
        }
        // Tails first: as long as the head is of 2 MiB they mean nothing.
        drop(tails);
        head.set(entry.part(0));
        Ok(())
    }

    fn smashable(&self, pfn: Pfn, entry: &RmpEntry) -> Result<(), PsmashError> {
        permitted(entry).map_err(PsmashError::Permission)?;
        if entry.assigned && entry.size == RmpSize::Size2M {
            return Ok(());
        }
        let nothing = BadInput::NotHuge(pfn);
        Err(match self.rules().nothing_to_smash {
            NothingToSmash::Input => PsmashError::Input(nothing),
            NothingToSmash::BadAddress => PsmashError::BadAddress(nothing),
        })
    }

    /// RMPREAD: what the host may know about a frame's own entry.
    ///
    /// # Errors
    /// The frame has no entry, or the caller is not the host.
    pub fn rmpread(&self, caller: Asid, pfn: Pfn) -> Result<RmpReadEntry, RmpreadError> {
        if !caller.is_host() {
            return Err(RmpreadError::Guest(caller));
        }
        if !self.covers(pfn) {
            return Err(RmpreadError::Outside(pfn));
        }
        let entry = self.own_entry(pfn);
        Ok(RmpReadEntry {
            gfn: entry.gfn,
            assigned: entry.assigned,
            size: entry.size,
            region_in_use: pfn.raw() % REGION == 0 && self.any_tail_assigned(pfn),
            immutable: entry.immutable,
            asid: entry.asid,
        })
    }

    /// What KVM's lookup says; `None` without an entry (`snp_lookup_rmpentry`).
    pub fn lookup(&self, pfn: Pfn) -> Option<Lookup> {
        self.covers(pfn).then(|| {
            let head = Pfn::new(pfn.raw() / REGION * REGION);
            Lookup {
                assigned: self.own_entry(pfn).assigned,
                size: self.own_entry(head).size,
            }
        })
    }
}

const fn check_ownership(state: &RmpState) -> Result<(), BadInput> {
    match (state.assigned, state.asid, state.immutable) {
        (false, 0, false) | (true, _, true) | (true, 1.., _) => Ok(()),
        (false, _, _) => Err(BadInput::OwnedByNobody),
        (true, 0, false) => Err(BadInput::AssignedToHost),
    }
}

/// The entry that an operand asks for.
const fn entry_of(state: &RmpState, gfn: Gfn, asid: Asid) -> RmpEntry {
    let permissions = if state.assigned && !asid.is_host() {
        VmplPermissions::RESET
    } else {
        VmplPermissions::NONE
    };
    RmpEntry {
        assigned: state.assigned,
        // The size of what is not assigned means nothing, and nothing of it is kept.
        size: if state.assigned {
            state.size
        } else {
            RmpSize::Size4K
        },
        immutable: state.immutable,
        gfn,
        asid,
        permissions,
        ..RmpEntry::HYPERVISOR
    }
}

fn permitted(entry: &RmpEntry) -> Result<(), NotPermitted> {
    if entry.firmware == FirmwareUse::HvFixed {
        return Err(NotPermitted::HvFixed);
    }
    if entry.immutable {
        return Err(NotPermitted::Immutable);
    }
    if entry.in_use {
        return Err(NotPermitted::VmsaInUse);
    }
    Ok(())
}

const fn update_conflict(conflict: Conflict) -> RmpupdateError {
    match conflict {
        Conflict::Entry => RmpupdateError::InUse,
        Conflict::Region => RmpupdateError::Overlap(Overlap::Transient),
    }
}
