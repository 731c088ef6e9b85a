//! The guest's instructions: PVALIDATE, RMPADJUST, RMPQUERY.

use slat_memslot::{Gfn, PageSize};
use slat_mmu::spte::Pfn;
use thiserror::Error;

use super::cell::Held;
use super::entry::{RmpEntry, RmpSize};
use super::fault::{ErrorCode, Fault, VC_NOT_VALIDATED};
use super::id::{Asid, Permissions, Vmpl};
use super::rules::{AdjustSelf, SmallerNested};
use super::table::{Deciding, Rmp};

/// Who executes an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestCpu {
    /// The guest.
    pub asid: Asid,
    /// Its privilege level.
    pub vmpl: Vmpl,
}

/// A private guest page as the tables translate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestPage {
    /// The guest frame.
    pub gfn: Gfn,
    /// Where the nested tables map it.
    pub pfn: Pfn,
    /// The size they map it in.
    pub nested: PageSize,
}

/// Why an instruction of the guest did not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum GuestError {
    /// EAX is 1, `FAIL_INPUT`.
    #[error("FAIL_INPUT")]
    Input,
    /// EAX is 2, `FAIL_PERMISSION`.
    #[error("FAIL_PERMISSION")]
    Permission,
    /// EAX is 6, `FAIL_SIZEMISMATCH`: the guest has to do it page by page.
    #[error("FAIL_SIZEMISMATCH")]
    SizeMismatch,
    /// The instruction does not complete.
    #[error("{0}")]
    Fault(Fault),
    /// Somebody else is at the entry. Hardware waits; here one has to try again.
    #[error("the entry is in use")]
    Busy,
}

impl GuestError {
    /// The value of EAX, if the instruction completes.
    pub const fn code(&self) -> Option<u32> {
        match self {
            Self::Input => Some(1),
            Self::Permission => Some(2),
            Self::SizeMismatch => Some(6),
            Self::Fault(_) | Self::Busy => None,
        }
    }
}

/// What PVALIDATE did, as the carry flag tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a page that was validated already is a sign of an attack"]
pub enum Validation {
    /// CF=0: the page was not what it was asked to be, and is now.
    Changed,
    /// CF=1: it was that already, contents and all. Linux takes it for an attack.
    Unchanged,
}

/// The operand of RMPADJUST.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Adjustment {
    /// Whose permissions.
    pub target: Vmpl,
    /// What they shall be.
    pub permissions: Permissions,
    /// Whether the page shall hold a vCPU's register state.
    pub vmsa: bool,
}

impl Adjustment {
    /// As RDX has it: level in 7:0, permissions in 15:8, VMSA in 16. `None` with anything else.
    pub fn from_rdx(rdx: u64) -> Option<Self> {
        if rdx >> 17 != 0 || rdx >> 12 & 0xf != 0 {
            return None;
        }
        Some(Self {
            target: Vmpl::new(rdx & 0xff)?,
            permissions: Permissions::from_bits_truncate((rdx >> 8).to_le_bytes()[0]),
            vmsa: rdx & 1 << 16 != 0,
        })
    }
}

/// What RMPQUERY tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// The entry's size (RCX).
    pub size: RmpSize,
    /// What the level may do (bits 15:8 of RDX).
    pub permissions: Permissions,
    /// Whether the page holds a vCPU's register state (bit 16 of RDX).
    pub vmsa: bool,
}

impl Rmp {
    /// PVALIDATE: the guest says whether it expects a page.
    ///
    /// Checks, in order: privilege level 0, alignment, that the page is the guest's and where the guest thinks it is, sizes.
    ///
    /// # Errors
    /// See [`GuestError`]; nothing has changed then.
    pub fn pvalidate(
        &self,
        cpu: GuestCpu,
        page: GuestPage,
        size: RmpSize,
        validate: bool,
    ) -> Result<Validation, GuestError> {
        if cpu.vmpl != Vmpl::Vmpl0 {
            return Err(GuestError::Fault(Fault::Gp));
        }
        if !size.is_aligned(page.gfn.raw()) {
            return Err(GuestError::Input);
        }
        let mut held = self.guest_entry(cpu, page, size)?;
        let entry = held.entry();
        if entry.validated == validate {
            return Ok(Validation::Unchanged);
        }
        held.set(RmpEntry {
            validated: validate,
            vmsa: entry.vmsa && validate,
            ..entry
        });
        Ok(Validation::Changed)
    }

    /// RMPADJUST: the guest says what a lower privilege level may do with a page, and at level 0 whether it holds a vCPU's
    /// register state.
    ///
    /// Checks, in order: alignment, that the target is below, that the page is the guest's, sizes, that it is validated, that
    /// nothing is given that the level does not have itself.
    ///
    /// # Errors
    /// See [`GuestError`]; nothing has changed then.
    pub fn rmpadjust(
        &self,
        cpu: GuestCpu,
        page: GuestPage,
        size: RmpSize,
        adjustment: Adjustment,
    ) -> Result<(), GuestError> {
        let unaligned = !size.is_aligned(page.gfn.raw());
        if unaligned || (adjustment.vmsa && size == RmpSize::Size2M) {
            return Err(GuestError::Input);
        }
        let self_at_0 = cpu.vmpl == Vmpl::Vmpl0 && adjustment.target == Vmpl::Vmpl0;
        let ignored = self_at_0 && self.rules().adjust_self == AdjustSelf::Ignored;
        if adjustment.target <= cpu.vmpl && !ignored {
            return Err(GuestError::Permission);
        }
        let mut held = self.guest_entry(cpu, page, size)?;
        let entry = held.entry();
        if !entry.validated {
            return Err(GuestError::Fault(Fault::Vc(VC_NOT_VALIDATED)));
        }
        if ignored {
            return Ok(());
        }
        let own = entry.permissions.of(cpu.vmpl);
        let allowed = own.contains(adjustment.permissions);
        let vmsa_allowed = cpu.vmpl == Vmpl::Vmpl0 || !adjustment.vmsa;
        if !allowed || !vmsa_allowed || entry.in_use {
            return Err(GuestError::Permission);
        }
        held.set(RmpEntry {
            permissions: entry
                .permissions
                .with(adjustment.target, adjustment.permissions),
            vmsa: match cpu.vmpl {
                Vmpl::Vmpl0 => adjustment.vmsa,
                _ => entry.vmsa,
            },
            ..entry
        });
        Ok(())
    }

    /// RMPQUERY: the guest asks what a level that is not above its own may do.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn rmpquery(
        &self,
        cpu: GuestCpu,
        page: GuestPage,
        target: Vmpl,
    ) -> Result<Query, GuestError> {
        if target < cpu.vmpl {
            return Err(GuestError::Permission);
        }
        let (entry, deciding) = self.deciding_entry(page.pfn);
        owned(cpu, page, &entry, deciding, false)?;
        Ok(Query {
            size: deciding,
            permissions: entry.permissions.of(target),
            vmsa: entry.vmsa,
        })
    }

    /// The entry that an instruction changes, if it is the guest's and of the size that the instruction asks for.
    fn guest_entry(
        &self,
        cpu: GuestCpu,
        page: GuestPage,
        size: RmpSize,
    ) -> Result<Held<'_>, GuestError> {
        if !self.covers(page.pfn) {
            return Err(nested(ErrorCode::empty()));
        }
        let (held, deciding) = match self.lock_deciding(page.pfn).ok_or(GuestError::Busy)? {
            Deciding::Own(held) => (held, RmpSize::Size4K),
            Deciding::Head(held) => (held, RmpSize::Size2M),
        };
        owned(cpu, page, &held.entry(), deciding, true)?;
        match (size, deciding) {
            (RmpSize::Size4K, RmpSize::Size2M) => Err(nested(ErrorCode::SIZE)),
            (RmpSize::Size2M, RmpSize::Size4K) => Err(GuestError::SizeMismatch),
            (RmpSize::Size2M, RmpSize::Size2M) if page.nested == PageSize::Size4K => {
                Err(match self.rules().smaller_nested {
                    SmallerNested::SizeMismatch => GuestError::SizeMismatch,
                    SmallerNested::NestedFault => nested(ErrorCode::empty()),
                })
            }
            _ => Ok(held),
        }
    }
}

/// Whether the page is the guest's, where the guest thinks it is, and may be changed by it.
fn owned(
    cpu: GuestCpu,
    page: GuestPage,
    entry: &RmpEntry,
    deciding: RmpSize,
    mutable: bool,
) -> Result<(), GuestError> {
    let offset = page.pfn.raw() & (deciding.pages() - 1);
    let here = entry.gfn.raw() + offset == page.gfn.raw();
    let guests = entry.assigned && entry.asid == cpu.asid && here;
    if guests && !(mutable && entry.immutable) {
        return Ok(());
    }
    Err(nested(ErrorCode::empty()))
}

/// A nested page fault of an instruction, which always speaks of private memory.
const fn nested(more: ErrorCode) -> GuestError {
    let code = ErrorCode::PRESENT
        .union(ErrorCode::WRITE)
        .union(ErrorCode::USER)
        .union(ErrorCode::RMP)
        .union(ErrorCode::FINAL)
        .union(ErrorCode::ENCRYPTED);
    GuestError::Fault(Fault::Nested(code.union(more)))
}
