//! Page roles: what a page table was made for, in one word.
//!
//! KVM shares a page table between all users whose role is the same and never otherwise, so the role holds every fact
//! about a vCPU that its page tables depend on. [`PageRole`] packs these facts in one integer; two roles are the same
//! exactly if the integers are. KVM's own word for it, as the tracepoints print it, depends on the kernel and
//! comes from [`PageRole::word`].
//!
//! - [`PageRole`], [`RoleFlag`], [`Access`]: the role of one page table (`union kvm_mmu_page_role`).
//! - [`CpuRole`], [`ExtendedRole`]: how a vCPU's own registers say it walks its tables (`union kvm_cpu_role`).
//! - [`root_role_for_tdp`], [`CpuRole::shadow_root_role`], [`nested_ept_root_role`], [`nested_npt_root_role`]: the role of the root that a vCPU
//!   needs.
//! - [`check_mmu_role`]: the audit that KVM does not have, that the root in use has the role that the MMU wants.
//!
//! KVM counterparts: `kvm_host.h` for the layouts, `mmu.c:kvm_calc_cpu_role`, `mmu.c:kvm_calc_tdp_mmu_root_page_role`
//! and its siblings for the values. Checked against recordings of Linux 6.12; the values of the layout with MBEC are
//! computed only.

mod check;
mod cpu;
mod layout;
mod page;
mod root;
#[cfg(test)]
mod tests;
mod vcpu;

pub use crate::access::Access;
pub use check::{RoleMismatch, check_mirror_role, check_mmu_role};
pub use cpu::{CpuRole, ExtendedRole};
pub use layout::{RoleLayout, WordError};
pub use page::{PageRole, Quadrant, RoleFlag};
pub use root::{
    AccessDirty, NestedEpt, NestedEptDepth, NestedNptError, TdpDepth, TdpHost, WidthSource,
    mirror_root_role, nested_ept_root_role, nested_npt_root_role, reachable_tdp_roots,
    root_role_for_tdp, tdp_level,
};
pub use vcpu::{Cr0, Cr4, Efer, PhysBits, VcpuMode, VcpuState};
