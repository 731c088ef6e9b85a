//! The registers and CPUID values of a vCPU that decide how it pages.

bitflags::bitflags! {
    /// Bits of CR0. Others may be set as well and mean nothing here.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Cr0: u64 {
        /// Protected mode.
        const PE = 1 << 0;
        /// Supervisor writes obey read-only pages.
        const WP = 1 << 16;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
        const _ = !0;
    }

    /// Bits of CR4. Others may be set as well and mean nothing here.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Cr4: u64 {
        /// 4 MiB pages in 32-bit paging.
        const PSE = 1 << 4;
        /// Eight-byte entries.
        const PAE = 1 << 5;
        /// Global pages.
        const PGE = 1 << 7;
        /// 57-bit linear addresses.
        const LA57 = 1 << 12;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// No supervisor fetches from user pages.
        const SMEP = 1 << 20;
        /// No supervisor accesses to user pages.
        const SMAP = 1 << 21;
        /// Protection keys of user pages.
        const PKE = 1 << 22;
        const _ = !0;
    }

    /// Bits of EFER. Others may be set as well and mean nothing here.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Efer: u64 {
        /// Long mode enable.
        const LME = 1 << 8;
        /// Long mode active.
        const LMA = 1 << 10;
        /// No-execute pages.
        const NX = 1 << 11;
        const _ = !0;
    }
}

/// Address widths of a vCPU's CPUID leaf 0x8000_0008.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PhysBits {
    /// MAXPHYADDR: bits 7 to 0 of EAX, or 36 without the leaf.
    pub physical: u8,
    /// GuestPhysAddrSize: bits 23 to 16 of EAX.
    pub guest_physical: u8,
}

impl PhysBits {
    /// What a vCPU without the leaf has (`cpuid.c:cpuid_query_maxphyaddr`).
    pub const WITHOUT_LEAF: Self = Self {
        physical: 36,
        guest_physical: 0,
    };

    /// From EAX of the leaf, if the vCPU has the leaf.
    ///
    /// ```
    /// use slat_mmu::role::PhysBits;
    /// assert_eq!(PhysBits::from_leaf(Some(0x0030_3934)).physical, 52);
    /// assert_eq!(PhysBits::from_leaf(Some(0x0030_3934)).guest_physical, 48);
    /// assert_eq!(PhysBits::from_leaf(None).physical, 36);
    /// ```
    pub const fn from_leaf(eax: Option<u32>) -> Self {
        match eax {
            None => Self::WITHOUT_LEAF,
            Some(eax) => {
                let [physical, _, guest_physical, _] = eax.to_le_bytes();
                Self {
                    physical,
                    guest_physical,
                }
            }
        }
    }
}

/// What the vCPU runs. SMM ends guest mode, so that there is no fourth case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum VcpuMode {
    /// L1, outside SMM.
    #[default]
    Normal,
    /// System-management mode.
    Smm,
    /// L2: a guest of the guest.
    Guest,
}

impl VcpuMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Normal, Self::Smm, Self::Guest];
}

/// The state of a vCPU as far as it could matter to its page tables; little of it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VcpuState {
    /// CR0.
    pub cr0: Cr0,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// PKRU.
    pub pkru: u32,
    /// Address widths of its CPUID.
    pub phys_bits: PhysBits,
    /// What it runs.
    pub mode: VcpuMode,
}

impl Default for VcpuState {
    /// After reset, without CPUID.
    fn default() -> Self {
        Self {
            cr0: Cr0::empty(),
            cr3: 0,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            pkru: 0,
            phys_bits: PhysBits::WITHOUT_LEAF,
            mode: VcpuMode::Normal,
        }
    }
}
