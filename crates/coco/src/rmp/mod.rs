//! The reverse map (RMP) of SEV-SNP: to whom each frame of the host belongs.
//!
//! Nested tables say where a guest frame is; the reverse map says which guest frame a host frame is. Hardware compares the
//! two at the end of each walk, so that no hypervisor can swap pages of a guest behind its back.
//!
//! - [`Rmp`]: the table, with the instructions as methods: [`Rmp::rmpupdate`], [`Rmp::psmash`], [`Rmp::rmpread`] of the
//!   host, [`Rmp::pvalidate`], [`Rmp::rmpadjust`], [`Rmp::rmpquery`] of the guest, and the commands of firmware that
//!   change entries.
//! - [`RmpEntry`], [`RmpState`], [`RmpReadEntry`]: what an entry means, and the layouts it is written in.
//! - [`Rules`]: what only one source tells, as switches.
//!
//! Manual: AMD64 APM volume 2, 15.36; volume 3, the instructions' pages. KVM counterparts:
//! `arch/x86/virt/svm/sev.c:rmpupdate`, `psmash`, `__snp_lookup_rmpentry`; kernel 6.12.117.

mod access;
mod cell;
mod entry;
mod fault;
mod firmware;
mod guard;
mod guest;
mod host;
mod id;
mod raw;
mod rules;
mod table;
#[cfg(test)]
mod tests;

pub use access::{Accessor, Reached, RmpCheck, Touch, Visibility};
pub use entry::{FirmwareUse, PageState, RmpEntry, RmpReadEntry, RmpSize, RmpState};
pub use fault::{ErrorCode, Fault, VC_NOT_VALIDATED};
pub use firmware::{FirmwareError, LaunchPage};
pub use guard::RmpGuard;
pub use guest::{Adjustment, GuestCpu, GuestError, GuestPage, Query, Validation};
pub use host::{
    BadInput, Lookup, NotPermitted, Overlap, PsmashError, RmpreadError, RmpupdateError,
};
pub use id::{Asid, Permissions, Vmpl, VmplPermissions};
pub use rules::{
    AdjustSelf, NothingToSmash, OddOperand, Rules, SameUpdate, SharedRead, SmallerNested,
    UnalignedPsmash,
};
pub use table::{InUse, Rmp};
