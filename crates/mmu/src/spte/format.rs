//! The two formats, as types, and the masks that a format on a host comes down to.

use core::fmt::Debug;

use super::ReservedBits;
use super::bits::{self, L1TF_MOVED_BITS, LayoutBits, ept, npt};
use super::reserved;
use crate::host::{AdBits, Encryption, ExecuteOnly, Host, Layout, MmioCaching, bits_between};

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Ept {}
    impl Sealed for super::Npt {}
}

/// A format of page-table entries: [`Ept`] or [`Npt`], a closed set.
///
/// Everything about a format is constant or a function of the [`Host`]; the host-dependent part is computed once, by
/// [`Codec::new`](super::Codec::new).
pub trait Format: sealed::Sealed + Copy + Eq + Debug + Send + Sync + 'static {
    /// The name in dumps.
    const NAME: &'static str;
    /// The bit that allows execution, 0 if there is none (`shadow_x_mask`).
    const EXECUTE: u64;
    /// The bit that forbids execution, 0 if there is none (`shadow_nx_mask`).
    const NO_EXECUTE: u64;
    /// The accessed bit.
    const ACCESSED: u64;
    /// The dirty bit.
    const DIRTY: u64;
    /// The bits of the memory type.
    const MEMORY_TYPE: u64;

    #[doc(hidden)]
    fn masks(host: &Host) -> Masks;

    #[doc(hidden)]
    fn reserved(host: &Host) -> ReservedBits;
}

/// Extended page tables of Intel CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ept;

/// Nested page tables of AMD CPUs; also the tables of 64-bit shadow paging on either vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Npt;

impl Format for Ept {
    const NAME: &'static str = "EPT";
    const EXECUTE: u64 = ept::EXECUTE;
    const NO_EXECUTE: u64 = 0;
    const ACCESSED: u64 = ept::ACCESSED;
    const DIRTY: u64 = ept::DIRTY;
    const MEMORY_TYPE: u64 = ept::MEMORY_TYPE | ept::IGNORE_PAT;

    fn masks(host: &Host) -> Masks {
        let layout = LayoutBits::of(host.layout);
        let present = ept_present(host);
        let has_ad = host.ad_enabled() || host.ad_bits == AdBits::Software;
        Masks {
            present,
            link: present | ept::RWX | user_execute(host.layout),
            user: ept_user(host.layout),
            read: ept_read(host.layout),
            user_execute: user_execute(host.layout),
            accessed: if has_ad { ept::ACCESSED } else { 0 },
            dirty: if has_ad { ept::DIRTY } else { 0 },
            host_writable: layout.ept_host_writable,
            mmu_writable: layout.ept_mmu_writable,
            tracked: ept::RWX | user_execute(host.layout),
            me_value: 0,
            ..Masks::common(host, &layout)
        }
        .finish(host, &layout, &ept_mmio(host.layout))
    }

    fn reserved(host: &Host) -> ReservedBits {
        reserved::ept_second_stage(host)
    }
}

impl Format for Npt {
    const NAME: &'static str = "NPT";
    const EXECUTE: u64 = 0;
    const NO_EXECUTE: u64 = npt::NO_EXECUTE;
    const ACCESSED: u64 = npt::ACCESSED;
    const DIRTY: u64 = npt::DIRTY;
    const MEMORY_TYPE: u64 = 0;

    fn masks(host: &Host) -> Masks {
        let layout = LayoutBits::of(host.layout);
        Masks {
            present: npt::PRESENT,
            link: npt::PRESENT | bits::WRITABLE | npt::USER | host.me_value(),
            user: npt::USER,
            read: npt_read(host.layout),
            user_execute: 0,
            accessed: npt::ACCESSED,
            dirty: npt::DIRTY,
            host_writable: npt::HOST_WRITABLE,
            mmu_writable: npt::MMU_WRITABLE,
            tracked: 0,
            saved: 0,
            me_value: host.me_value(),
            ..Masks::common(host, &layout)
        }
        .finish(host, &layout, &npt_mmio(host))
    }

    fn reserved(host: &Host) -> ReservedBits {
        reserved::npt_second_stage(host)
    }
}

/// What makes an EPT entry present (`shadow_present_mask`).
fn ept_present(host: &Host) -> u64 {
    let read = match host.execute_only {
        ExecuteOnly::Unsupported => ept::READ,
        ExecuteOnly::Supported => 0,
    };
    match host.layout {
        Layout::P1 => read,
        Layout::P2 => read | ept::SUPPRESS_VE,
        // Reading is a permission like any other since access has four bits.
        Layout::P3 => ept::SUPPRESS_VE,
    }
}

const fn user_execute(layout: Layout) -> u64 {
    match layout {
        Layout::P1 | Layout::P2 => 0,
        Layout::P3 => ept::USER_EXECUTE,
    }
}

const fn ept_user(layout: Layout) -> u64 {
    match layout {
        Layout::P1 | Layout::P2 => ept::READ,
        Layout::P3 => ept::USER_EXECUTE,
    }
}

const fn ept_read(layout: Layout) -> u64 {
    match layout {
        Layout::P1 | Layout::P2 => 0,
        Layout::P3 => ept::READ,
    }
}

const fn npt_read(layout: Layout) -> u64 {
    match layout {
        Layout::P1 | Layout::P2 => 0,
        Layout::P3 => npt::PRESENT,
    }
}

/// What KVM is asked to tell MMIO entries by (the arguments of `spte.c:kvm_mmu_set_mmio_spte_mask`).
pub(super) struct MmioMarks {
    pub(super) value: u64,
    pub(super) mask: u64,
    pub(super) access: u64,
}

fn ept_mmio(layout: Layout) -> MmioMarks {
    let suppress_ve = match layout {
        Layout::P1 => 0,
        Layout::P2 | Layout::P3 => ept::SUPPRESS_VE,
    };
    MmioMarks {
        value: ept::MISCONFIG_WX,
        mask: ept::RWX | suppress_ve,
        access: 0,
    }
}

/// Reserved address bits, if there are any (`spte.c:kvm_mmu_reset_all_pte_masks`, `svm.c:svm_adjust_mmio_mask`).
fn npt_mmio(host: &Host) -> MmioMarks {
    let reserved = match host.encryption {
        Encryption::Off if host.maxphyaddr < 52 => npt::MMIO,
        Encryption::Off => 0,
        Encryption::Available { c_bit } | Encryption::Active { c_bit } => {
            let first = host.phys_bits + u8::from(c_bit == host.phys_bits);
            bits_between(first, 52)
        }
    };
    let value = match reserved {
        0 => 0,
        bits => bits | npt::PRESENT,
    };
    MmioMarks {
        value,
        mask: value,
        access: bits::WRITABLE | npt::USER,
    }
}

/// All masks of a format on a host, computed once; KVM's globals of the same purpose are named at each.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masks {
    /// In every present entry (`shadow_present_mask`).
    pub(crate) present: u64,
    /// In every link to a table, besides the A/D bits.
    pub(crate) link: u64,
    /// What [`Access::USER`](super::Access::USER) is.
    pub(crate) user: u64,
    /// What [`Access::READ`](super::Access::READ) is, 0 if it does not exist.
    pub(crate) read: u64,
    /// `shadow_xu_mask`.
    pub(crate) user_execute: u64,
    /// `shadow_accessed_mask`.
    pub(crate) accessed: u64,
    /// `shadow_dirty_mask`.
    pub(crate) dirty: u64,
    /// What shows that an entry without hardware A/D bits was accessed.
    pub(crate) accessed_without_ad: u64,
    /// What shows that an entry without hardware A/D bits is dirty.
    pub(crate) dirty_without_ad: u64,
    /// `shadow_host_writable_mask`.
    pub(crate) host_writable: u64,
    /// `shadow_mmu_writable_mask`.
    pub(crate) mmu_writable: u64,
    /// Permissions that an access-tracked entry lacks (`shadow_acc_track_mask`).
    pub(crate) tracked: u64,
    /// `SHADOW_ACC_TRACK_SAVED_BITS_MASK`.
    pub(crate) saved: u64,
    /// `SHADOW_ACC_TRACK_SAVED_BITS_SHIFT`.
    pub(crate) saved_shift: u32,
    /// `SPTE_TDP_AD_SHIFT`.
    pub(crate) ad_shift: u32,
    /// `SPTE_TDP_AD_MASK`.
    pub(crate) ad_mask: u64,
    /// `SPTE_TDP_AD_DISABLED`.
    pub(crate) ad_disabled: u64,
    /// `shadow_me_value`.
    pub(crate) me_value: u64,
    /// The frame of a present entry (`SPTE_BASE_ADDR_MASK`).
    pub(crate) address: u64,
    /// `SHADOW_NONPRESENT_VALUE`.
    pub(crate) nonpresent: u64,
    /// `FROZEN_SPTE`.
    pub(crate) frozen: u64,
    /// `shadow_mmio_mask`; 0 without MMIO entries, so that no entry matches.
    pub(crate) mmio_mask: u64,
    /// `shadow_mmio_value`; 1 without MMIO entries.
    pub(crate) mmio_value: u64,
    /// `shadow_mmio_access_mask`.
    pub(crate) mmio_access: u64,
    /// `shadow_nonpresent_or_rsvd_mask`.
    pub(crate) l1tf: u64,
    /// `shadow_nonpresent_or_rsvd_lower_gfn_mask`.
    pub(crate) lower_gfn: u64,
    /// `MMIO_SPTE_GEN_LOW_BITS`.
    pub(crate) gen_low_bits: u8,
}

impl Masks {
    /// What does not depend on the format; the rest is zero.
    fn common(host: &Host, layout: &LayoutBits) -> Self {
        let (l1tf, lower_gfn) = l1tf_masks(host);
        Self {
            present: 0,
            link: 0,
            user: 0,
            read: 0,
            user_execute: 0,
            accessed: 0,
            dirty: 0,
            accessed_without_ad: 0,
            dirty_without_ad: 0,
            host_writable: 0,
            mmu_writable: 0,
            tracked: 0,
            saved: layout.saved,
            saved_shift: layout.saved_shift,
            ad_shift: layout.ad_shift,
            ad_mask: layout.ad_mask(),
            ad_disabled: 1 << layout.ad_shift,
            me_value: 0,
            address: bits::ADDRESS & !host.me_value(),
            nonpresent: layout.nonpresent,
            frozen: layout.frozen,
            mmio_mask: 0,
            mmio_value: 1,
            mmio_access: 0,
            l1tf,
            lower_gfn,
            gen_low_bits: layout.gen_low_bits,
        }
    }

    /// Completes the masks: MMIO marks, and what tells accessed and dirty without hardware A/D bits.
    fn finish(mut self, host: &Host, layout: &LayoutBits, marks: &MmioMarks) -> Self {
        (self.accessed_without_ad, self.dirty_without_ad) = match host.ad_bits {
            AdBits::Hardware => (self.tracked, bits::WRITABLE),
            AdBits::Software => (self.accessed, self.dirty),
        };
        if host.mmio_caching == MmioCaching::On && self.accepts_mmio(layout, marks) {
            self.mmio_mask = marks.mask;
            self.mmio_value = marks.value;
        }
        self.mmio_access = marks.access;
        self
    }

    /// The rules that MMIO marks have to keep, else there are no MMIO entries (`spte.c:kvm_mmu_set_mmio_spte_mask`).
    pub(super) fn accepts_mmio(&self, layout: &LayoutBits, marks: &MmioMarks) -> bool {
        let MmioMarks { value, mask, .. } = *marks;
        value != 0
            && mask & !layout.mmio_allowed == 0
            && value & (self.l1tf << L1TF_MOVED_BITS) == 0
            && value & mask == value
            && self.frozen & mask != value
    }

    /// Whether MMIO entries exist (`enable_mmio_caching`).
    pub(crate) const fn caches_mmio(&self) -> bool {
        self.mmio_mask != 0
    }
}

/// `shadow_nonpresent_or_rsvd_mask` and the mask of the frame bits below it (`spte.c:kvm_mmu_reset_all_pte_masks`).
///
/// On a CPU with L1TF an entry that is not present must not hold the address of cached memory. Five bits below the
/// top of what the cache can address are moved up by five, and set where they were.
fn l1tf_masks(host: &Host) -> (u64, u64) {
    match host.l1tf_cache_bits {
        Some(cache_bits) if (L1TF_MOVED_BITS..52 - L1TF_MOVED_BITS).contains(&cache_bits) => {
            let low = cache_bits - L1TF_MOVED_BITS;
            (bits_between(low, cache_bits), bits_between(12, low))
        }
        _ => (0, bits_between(12, host.phys_bits.min(52))),
    }
}
