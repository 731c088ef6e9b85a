//! The audit that the root in use has the role that the MMU wants.
//!
//! KVM compares roles when it looks for a root, and never again. A root that was found for the wrong role stays in
//! use until something drops it: the vCPU runs on page tables that were made for another state. Maintainers have asked for
//! this check (`docs/roots.md`); Linux 6.12 and later kernels looked at do not have it.

use thiserror::Error;

use super::{PageRole, mirror_root_role};

/// A root whose role is not what the MMU wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[error("the MMU wants {wanted:#}, the root is {found:#}: {} differ", self.list())]
pub struct RoleMismatch {
    /// What the MMU wants.
    pub wanted: PageRole,
    /// What the root has.
    pub found: PageRole,
}

impl RoleMismatch {
    /// KVM's names of the fields that differ.
    pub fn fields(&self) -> impl Iterator<Item = &'static str> {
        self.wanted.differences(self.found)
    }

    fn list(&self) -> String {
        self.fields().collect::<Vec<_>>().join(", ")
    }
}

/// Checks that a root has exactly the role that the MMU wants.
///
/// It must hold at every entry to the guest, when all requests have been served. Between a zap-all and the service of
/// its request the root in use is invalid, and the check says so. Roots without a page of their own (PAE, dummy) are
/// exempt.
///
/// ```
/// use slat_mmu::role::{TdpDepth, TdpHost, VcpuMode, VcpuState, check_mmu_role, root_role_for_tdp};
///
/// let host = TdpHost::new(TdpDepth::Npt4);
/// let l1 = root_role_for_tdp(&VcpuState::default(), &host);
/// let l2 = root_role_for_tdp(&VcpuState { mode: VcpuMode::Guest, ..VcpuState::default() }, &host);
/// assert_eq!(check_mmu_role(l1, l1), Ok(()));
/// assert!(check_mmu_role(l1, l2).unwrap_err().fields().eq(["guest_mode"]));
/// ```
///
/// # Errors
/// The two differ in any field.
#[inline]
pub const fn check_mmu_role(mmu_role: PageRole, root_role: PageRole) -> Result<(), RoleMismatch> {
    if mmu_role.bits() == root_role.bits() {
        return Ok(());
    }
    Err(RoleMismatch {
        wanted: mmu_role,
        found: root_role,
    })
}

/// The same for the mirror root of a TDX VM, which has the MMU's role and `is_mirror`.
///
/// # Errors
/// The two differ in any other field, or the root is no mirror.
#[inline]
pub const fn check_mirror_role(
    mmu_role: PageRole,
    mirror_role: PageRole,
) -> Result<(), RoleMismatch> {
    check_mmu_role(mirror_root_role(mmu_role), mirror_role)
}
