//! Every bit of an entry, with its number, where it is defined, and KVM's name.
//!
//! SDM is Intel's manual, volume 3C, section "EPT Translation Mechanism". APM is AMD's manual, volume 2, sections 5.4
//! (fields of page-table entries) and 15.25 (nested paging). "KVM" means that hardware ignores the bit and KVM uses it.

use crate::host::{Layout, bits_between};

/// Bit 1 in every format: writable (SDM, APM 5.4.1; `PT_WRITABLE_MASK`).
pub const WRITABLE: u64 = 1 << 1;
/// Bit 7 in every format: a leaf above level 1 (SDM, APM 5.4.1; `PT_PAGE_SIZE_MASK`).
pub const PAGE_SIZE: u64 = 1 << 7;
/// Bit 11 in every format: present for KVM, whatever hardware sees (KVM; `SPTE_MMU_PRESENT_MASK`).
pub const MMU_PRESENT: u64 = 1 << 11;
/// Bits 51:12: the frame (SDM, APM 5.4; `SPTE_BASE_ADDR_MASK` on hosts without a C-bit).
pub const ADDRESS: u64 = bits_between(12, 52);

/// Bits of EPT entries.
pub mod ept {
    /// Bit 0: readable (SDM; `VMX_EPT_READABLE_MASK`).
    pub const READ: u64 = 1 << 0;
    /// Bit 2: executable, with mode-based execute control only in supervisor mode (SDM; `VMX_EPT_EXECUTABLE_MASK`).
    pub const EXECUTE: u64 = 1 << 2;
    /// Bits 2:0: read, write, execute (`VMX_EPT_RWX_MASK`).
    pub const RWX: u64 = READ | super::WRITABLE | EXECUTE;
    /// Bits 5:3: the memory type (SDM; `VMX_EPT_MT_MASK`).
    pub const MEMORY_TYPE: u64 = 7 << 3;
    /// Memory type 6, write-back, in bits 5:3.
    pub const WRITE_BACK: u64 = 6 << 3;
    /// Bit 6: ignore the guest's PAT (SDM; `VMX_EPT_IPAT_BIT`).
    pub const IGNORE_PAT: u64 = 1 << 6;
    /// Bit 8: accessed (SDM; `VMX_EPT_ACCESS_BIT`).
    pub const ACCESSED: u64 = 1 << 8;
    /// Bit 9: dirty (SDM; `VMX_EPT_DIRTY_BIT`).
    pub const DIRTY: u64 = 1 << 9;
    /// Bit 10: executable in user mode, with mode-based execute control (SDM; `VMX_EPT_USER_EXECUTABLE_MASK`).
    pub const USER_EXECUTE: u64 = 1 << 10;
    /// Bit 63: no #VE for this entry (SDM; `VMX_EPT_SUPPRESS_VE_BIT`).
    pub const SUPPRESS_VE: u64 = 1 << 63;
    /// Write and execute without read, which is misconfigured on every CPU (SDM; `VMX_EPT_MISCONFIG_WX_VALUE`).
    pub const MISCONFIG_WX: u64 = super::WRITABLE | EXECUTE;
}

/// Bits of entries in the 64-bit format of NPT and of shadow tables.
pub mod npt {
    /// Bit 0: present (APM 5.4.1; `PT_PRESENT_MASK`).
    pub const PRESENT: u64 = 1 << 0;
    /// Bit 2: user (APM 5.4.1; `PT_USER_MASK`).
    pub const USER: u64 = 1 << 2;
    /// Bit 5: accessed (APM 5.4.1; `PT_ACCESSED_MASK`).
    pub const ACCESSED: u64 = 1 << 5;
    /// Bit 6: dirty (APM 5.4.1; `PT_DIRTY_MASK`).
    pub const DIRTY: u64 = 1 << 6;
    /// Bit 9: the host lets the guest write (KVM; `DEFAULT_SPTE_HOST_WRITABLE`).
    pub const HOST_WRITABLE: u64 = 1 << 9;
    /// Bit 10: KVM's MMU lets the guest write (KVM; `DEFAULT_SPTE_MMU_WRITABLE`).
    pub const MMU_WRITABLE: u64 = 1 << 10;
    /// Bit 63: not executable (APM 5.4.1; `PT64_NX_MASK`).
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// The highest address bit, never part of an address on CPUs with fewer than 52: with [`PRESENT`] it makes an MMIO
    /// entry (`spte.c:kvm_mmu_reset_all_pte_masks`).
    pub const MMIO: u64 = 1 << 51;
}

/// How many bits of an MMIO entry on CPUs with L1TF are moved up (`SHADOW_NONPRESENT_OR_RSVD_MASK_LEN`).
pub(crate) const L1TF_MOVED_BITS: u8 = 5;

/// KVM's own bits, which depend on the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayoutBits {
    /// The value of an empty entry (`SHADOW_NONPRESENT_VALUE`).
    pub(crate) nonpresent: u64,
    /// The value that locks an entry of the TDP MMU (`FROZEN_SPTE`, once `REMOVED_SPTE`).
    pub(crate) frozen: u64,
    /// The lower of two bits that say how A/D bits are used (`SPTE_TDP_AD_SHIFT`).
    pub(crate) ad_shift: u32,
    /// The host lets the guest write, in EPT entries (`EPT_SPTE_HOST_WRITABLE`).
    pub(crate) ept_host_writable: u64,
    /// KVM's MMU lets the guest write, in EPT entries (`EPT_SPTE_MMU_WRITABLE`).
    pub(crate) ept_mmu_writable: u64,
    /// Permissions that an access-tracked entry saves (`SHADOW_ACC_TRACK_SAVED_BITS_MASK`).
    pub(crate) saved: u64,
    /// How far up it saves them (`SHADOW_ACC_TRACK_SAVED_BITS_SHIFT`).
    pub(crate) saved_shift: u32,
    /// Bits of an MMIO entry's generation that are at bit 3 and up; the other eleven are in 62:52
    /// (`MMIO_SPTE_GEN_LOW_BITS`).
    pub(crate) gen_low_bits: u8,
    /// What a mask for MMIO entries may contain (`SPTE_MMIO_ALLOWED_MASK`).
    pub(crate) mmio_allowed: u64,
}

/// First bit of an MMIO entry's generation (`MMIO_SPTE_GEN_LOW_START`).
pub(crate) const GEN_LOW_START: u8 = 3;
/// First bit of the generation's upper part (`MMIO_SPTE_GEN_HIGH_START`).
pub(crate) const GEN_HIGH_START: u8 = 52;
/// Bits in the upper part (`MMIO_SPTE_GEN_HIGH_BITS`).
pub(crate) const GEN_HIGH_BITS: u8 = 11;

const P2: LayoutBits = LayoutBits {
    nonpresent: 1 << 63,
    frozen: 1 << 63 | 0x5a0,
    ad_shift: 52,
    ept_host_writable: 1 << 57,
    ept_mmu_writable: 1 << 58,
    saved: ept::READ | ept::EXECUTE,
    saved_shift: 54,
    gen_low_bits: 8,
    mmio_allowed: 1 << 63 | ADDRESS | 7,
};

const P1: LayoutBits = LayoutBits {
    nonpresent: 0,
    frozen: 0x5a0,
    ..P2
};

const P3: LayoutBits = LayoutBits {
    nonpresent: 1 << 63,
    frozen: 1 << 63 | 0x1a0,
    ad_shift: 60,
    ept_host_writable: 1 << 53,
    ept_mmu_writable: 1 << 55,
    saved: ept::READ | ept::EXECUTE | ept::USER_EXECUTE,
    saved_shift: 52,
    gen_low_bits: 7,
    mmio_allowed: 1 << 63 | ADDRESS | ept::USER_EXECUTE | 7,
};

impl LayoutBits {
    pub(crate) const fn of(layout: Layout) -> Self {
        match layout {
            Layout::P1 => P1,
            Layout::P2 => P2,
            Layout::P3 => P3,
        }
    }

    /// Both bits of the A/D type (`SPTE_TDP_AD_MASK`).
    pub(crate) const fn ad_mask(&self) -> u64 {
        3 << self.ad_shift
    }

    /// Where saved permissions are (`SHADOW_ACC_TRACK_SAVED_MASK`).
    pub(crate) const fn saved_mask(&self) -> u64 {
        self.saved << self.saved_shift
    }

    /// The lower part of the generation (`MMIO_SPTE_GEN_LOW_MASK`).
    pub(crate) const fn gen_low_mask(&self) -> u64 {
        ((1 << self.gen_low_bits) - 1) << GEN_LOW_START
    }
}

/// The upper part of an MMIO entry's generation (`MMIO_SPTE_GEN_HIGH_MASK`).
pub(crate) const GEN_HIGH_MASK: u64 = ((1 << GEN_HIGH_BITS) - 1) << GEN_HIGH_START;

/// Whether no two masks share a bit.
const fn disjoint(masks: &[u64]) -> bool {
    let (mut seen, mut i) = (0, 0);
    while i < masks.len() {
        if seen & masks[i] != 0 {
            return false;
        }
        seen |= masks[i];
        i += 1;
    }
    true
}

const fn ept_is_disjoint(layout: &LayoutBits) -> bool {
    // Up to P2 bit 10 is unused in EPT entries, so that it can be listed for every layout.
    disjoint(&[
        ept::READ,
        WRITABLE,
        ept::EXECUTE,
        ept::MEMORY_TYPE,
        ept::IGNORE_PAT,
        PAGE_SIZE,
        ept::ACCESSED,
        ept::DIRTY,
        ept::USER_EXECUTE,
        MMU_PRESENT,
        ADDRESS,
        layout.ad_mask(),
        layout.saved_mask(),
        layout.ept_host_writable,
        layout.ept_mmu_writable,
        ept::SUPPRESS_VE,
    ])
}

const fn npt_is_disjoint(layout: &LayoutBits) -> bool {
    disjoint(&[
        npt::PRESENT,
        WRITABLE,
        npt::USER,
        npt::ACCESSED,
        npt::DIRTY,
        PAGE_SIZE,
        npt::HOST_WRITABLE,
        npt::MMU_WRITABLE,
        MMU_PRESENT,
        ADDRESS,
        layout.ad_mask(),
        npt::NO_EXECUTE,
    ])
}

/// The generation touches nothing that tells an MMIO entry from others, and a frozen entry is not present.
const fn mmio_is_disjoint(layout: &LayoutBits) -> bool {
    disjoint(&[
        layout.gen_low_mask(),
        GEN_HIGH_MASK,
        MMU_PRESENT,
        layout.mmio_allowed,
    ]) && layout.frozen & MMU_PRESENT == 0
}

const _: () = assert!(ept_is_disjoint(&P1) && ept_is_disjoint(&P2) && ept_is_disjoint(&P3));
const _: () = assert!(npt_is_disjoint(&P1) && npt_is_disjoint(&P2) && npt_is_disjoint(&P3));
const _: () = assert!(mmio_is_disjoint(&P1) && mmio_is_disjoint(&P2) && mmio_is_disjoint(&P3));
