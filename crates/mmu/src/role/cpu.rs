//! How a vCPU's registers say it walks its own page tables.

use core::fmt;

use slat_memslot::Level;

use super::vcpu::{Cr0, Cr4, Efer, VcpuMode, VcpuState};
use super::{Access, PageRole, RoleFlag, RoleLayout};

bitflags::bitflags! {
    /// Facts about a vCPU's paging that no page table depends on (`union kvm_mmu_extended_role`).
    ///
    /// They matter to walks of the guest's tables; the bits are slat's own, see [`ExtendedRole::word`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct ExtendedRole: u32 {
        /// The role has been computed since CPUID was last set.
        const VALID = 1 << 0;
        /// L1 may use execute-only EPT entries.
        const EXECONLY = 1 << 1;
        /// `CR4.PSE`.
        const CR4_PSE = 1 << 2;
        /// `CR4.PKE`, in long mode.
        const CR4_PKE = 1 << 3;
        /// `CR4.SMAP`.
        const CR4_SMAP = 1 << 4;
        /// `CR4.SMEP`; part of the base role in the layout with MBEC.
        const CR4_SMEP = 1 << 5;
        /// `CR4.LA57`, in long mode.
        const CR4_LA57 = 1 << 6;
        /// `EFER.LMA`.
        const EFER_LMA = 1 << 7;
        /// Page-fault error codes tell fetches; only in the layout with MBEC.
        const HAS_PFERR_FETCH = 1 << 8;
    }
}

impl ExtendedRole {
    /// KVM's word for it. A field that the layout lacks is left out.
    pub const fn word(self, layout: RoleLayout) -> u32 {
        let bits = self.bits();
        match layout {
            RoleLayout::Baseline | RoleLayout::Mirror => bits & 0xff,
            RoleLayout::Mbec => bits & 0x1f | (bits >> 1) & 0xe0,
        }
    }

    const fn with_if(self, flag: Self, wanted: bool) -> Self {
        if wanted { self.union(flag) } else { self }
    }
}

/// The role of a vCPU's own paging (`union kvm_cpu_role`): a base like that of a page table, and the extended role.
///
/// One integer, like [`PageRole`].
///
/// ```
/// use slat_mmu::role::{Cr0, Cr4, CpuRole, Efer, RoleLayout, VcpuState};
///
/// let long_mode = VcpuState {
///     cr0: Cr0::PG | Cr0::PE | Cr0::WP,
///     cr4: Cr4::PAE,
///     efer: Efer::LME | Efer::LMA | Efer::NX,
///     ..VcpuState::default()
/// };
/// let role = CpuRole::of(&long_mode, RoleLayout::Baseline);
/// assert_eq!(role.base_word(RoleLayout::Baseline), 0x3704);
/// assert_eq!(CpuRole::of(&VcpuState::default(), RoleLayout::Baseline).level(), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct CpuRole(u64);

impl CpuRole {
    /// The role of a vCPU in its present state (`mmu.c:kvm_calc_cpu_role`).
    ///
    /// With MBEC, `cr4_smep` is taken from CR4 as `smep_andnot_wp` is without; that is not checked against a kernel.
    pub fn of(vcpu: &VcpuState, layout: RoleLayout) -> Self {
        let start = PageRole::from_bits(0)
            .with_access(Access::all_in(layout))
            .with_if(RoleFlag::Smm, vcpu.mode == VcpuMode::Smm)
            .with_if(RoleFlag::GuestMode, vcpu.mode == VcpuMode::Guest);
        if !vcpu.cr0.contains(Cr0::PG) {
            return Self::new(start.with(RoleFlag::Direct).bits(), ExtendedRole::VALID);
        }
        let base = paging_bits(start, vcpu, layout);
        Self::new(base | guest_level(vcpu), extended(vcpu, layout))
    }

    const fn new(base: u32, extended: ExtendedRole) -> Self {
        Self((extended.bits() as u64) << 32 | base as u64)
    }

    /// The base in [`PageRole`]'s places, with level 0 without paging.
    const fn base_bits(self) -> u32 {
        let [a, b, c, d, ..] = self.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// The extended role.
    #[inline]
    pub const fn extended(self) -> ExtendedRole {
        let [_, _, _, _, a, b, c, d] = self.0.to_le_bytes();
        ExtendedRole::from_bits_truncate(u32::from_le_bytes([a, b, c, d]))
    }

    /// The level of the guest's top table, or nothing if paging is off (`is_cr0_pg`).
    #[inline]
    pub const fn level(self) -> Option<Level> {
        match self.base_bits() & 0xf {
            0 => None,
            _ => Some(PageRole::from_bits(self.base_bits()).level()),
        }
    }

    /// Whether a field of the base is set.
    #[inline]
    pub const fn has(self, flag: RoleFlag) -> bool {
        PageRole::from_bits(self.base_bits()).has(flag)
    }

    /// The base as the role of a page table at a level of its own.
    #[inline]
    pub(super) const fn base_at(self, level: Level) -> PageRole {
        PageRole::from_bits(self.base_bits()).with_level(level)
    }

    /// KVM's word for the base.
    pub const fn base_word(self, layout: RoleLayout) -> u32 {
        layout.encode(self.base_bits())
    }

    /// KVM's word for all of it: the extended role in the upper half.
    pub fn word(self, layout: RoleLayout) -> u64 {
        u64::from(self.extended().word(layout)) << 32 | u64::from(self.base_word(layout))
    }

    /// The role of this vCPU's root without TDP (`mmu.c:kvm_init_shadow_mmu`): no shadow root has fewer than three levels,
    /// and shadow pages always have NX.
    ///
    /// ```
    /// use slat_mmu::role::{CpuRole, RoleLayout, VcpuState};
    /// let role = CpuRole::of(&VcpuState::default(), RoleLayout::Baseline);
    /// assert_eq!(role.shadow_root_role().word(RoleLayout::Baseline), 0x1783);
    /// ```
    pub fn shadow_root_role(self) -> PageRole {
        let level = self.level().map_or(Level::L3, |level| level.max(Level::L3));
        self.base_at(level).with(RoleFlag::EferNx)
    }
}

/// The fields of the base that count only with paging on.
fn paging_bits(start: PageRole, vcpu: &VcpuState, layout: RoleLayout) -> u32 {
    let wp = vcpu.cr0.contains(Cr0::WP);
    let smep = vcpu.cr4.contains(Cr4::SMEP);
    let smep_flag = match layout {
        RoleLayout::Baseline | RoleLayout::Mirror => (RoleFlag::SmepAndNotWp, smep && !wp),
        RoleLayout::Mbec => (RoleFlag::Cr4Smep, smep),
    };
    start
        .with_if(RoleFlag::EferNx, vcpu.efer.contains(Efer::NX))
        .with_if(RoleFlag::Cr0Wp, wp)
        .with_if(smep_flag.0, smep_flag.1)
        .with_if(RoleFlag::SmapAndNotWp, vcpu.cr4.contains(Cr4::SMAP) && !wp)
        .with_if(RoleFlag::FourByteGpte, !vcpu.cr4.contains(Cr4::PAE))
        .bits()
}

/// Long mode, which KVM takes for off without PAE.
fn is_long_mode(vcpu: &VcpuState) -> bool {
    vcpu.efer.contains(Efer::LMA) && vcpu.cr4.contains(Cr4::PAE)
}

/// The level of the guest's top table, as a number.
fn guest_level(vcpu: &VcpuState) -> u32 {
    let level = match (is_long_mode(vcpu), vcpu.cr4) {
        (true, cr4) if cr4.contains(Cr4::LA57) => Level::L5,
        (true, _) => Level::L4,
        (false, cr4) if cr4.contains(Cr4::PAE) => Level::L3,
        (false, _) => Level::L2,
    };
    level as u32
}

/// The extended role with paging on.
fn extended(vcpu: &VcpuState, layout: RoleLayout) -> ExtendedRole {
    let cr4 = vcpu.cr4;
    let long = is_long_mode(vcpu);
    let smep_here = layout != RoleLayout::Mbec;
    ExtendedRole::VALID
        .with_if(ExtendedRole::CR4_PSE, cr4.contains(Cr4::PSE))
        .with_if(ExtendedRole::CR4_SMAP, cr4.contains(Cr4::SMAP))
        .with_if(ExtendedRole::CR4_SMEP, cr4.contains(Cr4::SMEP) && smep_here)
        .with_if(ExtendedRole::CR4_PKE, cr4.contains(Cr4::PKE) && long)
        .with_if(ExtendedRole::CR4_LA57, cr4.contains(Cr4::LA57) && long)
        .with_if(ExtendedRole::EFER_LMA, long)
}

impl fmt::Debug for CpuRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.base_at(self.level().unwrap_or(Level::L1));
        f.debug_struct("CpuRole")
            .field("level", &self.level())
            .field("base", &base)
            .field("extended", &self.extended())
            .finish()
    }
}
