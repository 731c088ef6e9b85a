//! The role of the root that a vCPU needs.

use slat_memslot::Level;
use thiserror::Error;

use super::vcpu::{PhysBits, VcpuMode, VcpuState};
use super::{Access, CpuRole, PageRole, RoleFlag, RoleLayout};

/// How many levels the second stage has on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TdpDepth {
    /// EPT with four levels.
    Ept4,
    /// EPT with four or five levels: the guest's MAXPHYADDR chooses.
    Ept5,
    /// NPT under a 32-bit host.
    NptPae,
    /// NPT under a host that pages with four levels.
    Npt4,
    /// NPT under a host that pages with five levels.
    Npt5,
}

impl TdpDepth {
    /// All depths.
    pub const ALL: [Self; 5] = [Self::Ept4, Self::Ept5, Self::NptPae, Self::Npt4, Self::Npt5];
}

/// Who maintains accessed and dirty bits in the second stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AccessDirty {
    /// The hardware.
    #[default]
    Hardware,
    /// KVM: a CPU without EPT A/D bits, or `eptad=0`.
    Software,
}

/// Which width of the vCPU's CPUID decides between four and five levels of EPT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WidthSource {
    /// MAXPHYADDR.
    #[default]
    Physical,
    /// GuestPhysAddrSize: VMs of TDX.
    GuestPhysical,
}

/// What is the same for all TDP roots of a VM, whatever its vCPUs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TdpHost {
    /// Where the kernel keeps the fields of a role.
    pub layout: RoleLayout,
    /// How many levels the second stage has.
    pub depth: TdpDepth,
    /// Who maintains accessed and dirty bits.
    pub access_dirty: AccessDirty,
    /// Which width chooses the level.
    pub width: WidthSource,
}

impl TdpHost {
    /// Linux 6.12 with A/D bits and an ordinary VM.
    pub const fn new(depth: TdpDepth) -> Self {
        Self {
            layout: RoleLayout::Baseline,
            depth,
            access_dirty: AccessDirty::Hardware,
            width: WidthSource::Physical,
        }
    }

    /// The width that counts, in bits.
    const fn bits(&self, widths: PhysBits) -> u8 {
        match self.width {
            WidthSource::Physical => widths.physical,
            WidthSource::GuestPhysical => widths.guest_physical,
        }
    }
}

/// The widest guest-physical address that four levels reach.
const FOUR_LEVEL_BITS: u8 = 48;

/// The level of a vCPU's TDP root (`mmu.c:kvm_mmu_get_tdp_level`).
///
/// EPT has four levels for a guest whose MAXPHYADDR four levels can reach. NPT has as many levels as the host's own
/// paging, whatever the guest's CPUID says.
///
/// ```
/// use slat_memslot::Level;
/// use slat_mmu::role::{PhysBits, TdpDepth, TdpHost, tdp_level};
///
/// let widths = |eax| PhysBits::from_leaf(Some(eax));
/// assert_eq!(tdp_level(&TdpHost::new(TdpDepth::Ept5), widths(48)), Level::L4);
/// assert_eq!(tdp_level(&TdpHost::new(TdpDepth::Ept5), widths(49)), Level::L5);
/// assert_eq!(tdp_level(&TdpHost::new(TdpDepth::Npt5), widths(48)), Level::L5);
/// ```
#[inline]
pub const fn tdp_level(host: &TdpHost, widths: PhysBits) -> Level {
    match host.depth {
        TdpDepth::NptPae => Level::L3,
        TdpDepth::Ept4 | TdpDepth::Npt4 => Level::L4,
        TdpDepth::Ept5 if host.bits(widths) <= FOUR_LEVEL_BITS => Level::L4,
        TdpDepth::Ept5 | TdpDepth::Npt5 => Level::L5,
    }
}

/// The role of a vCPU's TDP root (`mmu.c:kvm_calc_tdp_mmu_root_page_role`).
///
/// Of the vCPU's state only two things count: the address width in its CPUID, and whether it is in SMM or runs L2.
///
/// ```
/// use slat_mmu::role::{RoleLayout, TdpDepth, TdpHost, VcpuMode, VcpuState, root_role_for_tdp};
///
/// let host = TdpHost::new(TdpDepth::Ept4);
/// let vcpu = VcpuState { mode: VcpuMode::Smm, ..VcpuState::default() };
/// assert_eq!(root_role_for_tdp(&vcpu, &host).word(RoleLayout::Baseline), 0x1003784);
/// ```
#[inline]
pub const fn root_role_for_tdp(vcpu: &VcpuState, host: &TdpHost) -> PageRole {
    tdp_root(vcpu.mode, tdp_level(host, vcpu.phys_bits), host)
}

const fn tdp_root(mode: VcpuMode, level: Level, host: &TdpHost) -> PageRole {
    let software = matches!(host.access_dirty, AccessDirty::Software);
    PageRole::new(level)
        .with_access(Access::all_in(host.layout))
        .with(RoleFlag::Direct)
        .with(RoleFlag::EferNx)
        .with(RoleFlag::Cr0Wp)
        .with_if(RoleFlag::AdDisabled, software)
        .with_if(RoleFlag::Smm, matches!(mode, VcpuMode::Smm))
        .with_if(RoleFlag::GuestMode, matches!(mode, VcpuMode::Guest))
}

/// Every TDP root that vCPUs of one VM on this host can need, lower levels first.
///
/// Six where EPT has five levels, three anywhere else. Mirror roots of TDX are not among them
/// ([`mirror_root_role`]).
///
/// ```
/// use slat_mmu::role::{RoleLayout, TdpDepth, TdpHost, reachable_tdp_roots};
/// let words = reachable_tdp_roots(TdpHost::new(TdpDepth::Ept5)).map(|role| role.word(RoleLayout::Baseline));
/// assert!(words.eq([0x3784, 0x1003784, 0x23784, 0x3785, 0x1003785, 0x23785]));
/// ```
pub fn reachable_tdp_roots(host: TdpHost) -> impl Iterator<Item = PageRole> {
    let levels = match host.depth {
        TdpDepth::NptPae => &[Level::L3][..],
        TdpDepth::Ept4 | TdpDepth::Npt4 => &[Level::L4],
        TdpDepth::Npt5 => &[Level::L5],
        TdpDepth::Ept5 => &[Level::L4, Level::L5],
    };
    let of_level = move |level| VcpuMode::ALL.map(|mode| tdp_root(mode, level, &host));
    levels.iter().copied().flat_map(of_level)
}

/// The role of the mirror root that goes with a root of a TDX VM.
#[inline]
pub const fn mirror_root_role(root: PageRole) -> PageRole {
    root.with(RoleFlag::IsMirror)
}

/// What the EPT pointer that L1 gives to its L2 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NestedEpt {
    /// The length of the walk.
    pub depth: NestedEptDepth,
    /// The pointer's A/D bit.
    pub access_dirty: AccessDirty,
}

/// The length of a nested EPT walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NestedEptDepth {
    /// Four levels.
    #[default]
    Four,
    /// Five levels.
    Five,
}

/// The role of the root that shadows L1's EPT (`mmu.c:kvm_calc_shadow_ept_root_page_role`).
///
/// ```
/// use slat_mmu::role::{AccessDirty, NestedEpt, NestedEptDepth, RoleLayout, nested_ept_root_role};
/// let ept = NestedEpt { depth: NestedEptDepth::Four, access_dirty: AccessDirty::Software };
/// assert_eq!(nested_ept_root_role(ept, RoleLayout::Baseline).word(RoleLayout::Baseline), 0x30704);
/// ```
pub const fn nested_ept_root_role(ept: NestedEpt, layout: RoleLayout) -> PageRole {
    let level = match ept.depth {
        NestedEptDepth::Four => Level::L4,
        NestedEptDepth::Five => Level::L5,
    };
    let software = matches!(ept.access_dirty, AccessDirty::Software);
    PageRole::new(level)
        .with_access(Access::all_in(layout))
        .with(RoleFlag::GuestMode)
        .with_if(RoleFlag::AdDisabled, software)
}

/// Why nested page tables of L1 have no root: states that KVM warns about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum NestedNptError {
    /// L1 has paging off, so that its nested page tables have no format.
    #[error("L1 has paging off")]
    NoPaging,
    /// The vCPU does not run L2.
    #[error("the vCPU does not run L2")]
    NotGuestMode,
}

/// The role of the root that shadows L1's nested page tables (`mmu.c:kvm_init_shadow_npt_mmu`).
///
/// `l1` is the CPU role of L1's registers while the vCPU runs L2: L1's paging mode is the format of its nested tables.
/// A five-level root over four-level tables passes through at the top.
///
/// # Errors
/// L1 pages not at all, or L2 does not run.
pub const fn nested_npt_root_role(
    l1: CpuRole,
    tdp_level: Level,
) -> Result<PageRole, NestedNptError> {
    let Some(guest_level) = l1.level() else {
        return Err(NestedNptError::NoPaging);
    };
    if !l1.has(RoleFlag::GuestMode) {
        return Err(NestedNptError::NotGuestMode);
    }
    let on_top = matches!((tdp_level, guest_level), (Level::L5, Level::L4));
    Ok(l1.base_at(tdp_level).with_if(RoleFlag::Passthrough, on_top))
}
