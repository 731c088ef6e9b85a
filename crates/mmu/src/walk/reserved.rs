//! Bits that a guest's entries must not have (`guest_rsvd_check`).
//!
//! KVM counterparts: `mmu.c:__reset_rsvds_bits_mask`, `mmu.c:__reset_rsvds_bits_mask_ept`.

use slat_memslot::PageSize;

use crate::host::{ExecuteOnly, bits_between};
use crate::spte::bad_mt_xwr;

use super::GuestCpu;
use super::format::PAGE_SIZE_BIT;
use super::mode::PagingMode;

/// Reserved bits by bit 7 and level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reserved {
    masks: [[u64; 5]; 2],
    /// A bit for each value of bits 5:0 that EPT reserves.
    bad_mt_xwr: u64,
}

/// Bit 63 without `EFER.NX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bit63 {
    Reserved,
    NoExecute,
}

impl Reserved {
    const NONE: Self = Self {
        masks: [[0; 5]; 2],
        bad_mt_xwr: 0,
    };

    /// Of a guest's own tables.
    pub(super) fn of(mode: PagingMode, cpu: &GuestCpu, bit_63: Bit63) -> Self {
        let high = match mode {
            PagingMode::Pae => cpu.reserved_gpa_bits() & bits_between(0, 63),
            _ => cpu.reserved_gpa_bits() & bits_between(0, 52),
        };
        let high = match bit_63 {
            Bit63::Reserved => high | 1 << 63,
            Bit63::NoExecute => high,
        };
        match mode {
            PagingMode::Bits32Pse => Self::with_large_l2(bits_between(17, 22)),
            PagingMode::Pae => Self::pae(cpu, high),
            PagingMode::Level4 | PagingMode::Level5 => Self::long(cpu, high),
            PagingMode::Unpaged | PagingMode::Bits32 | PagingMode::Ept4 | PagingMode::Ept5 => {
                Self::NONE
            }
        }
    }

    /// Of 32-bit paging with PSE as a CPU does it: bits 20 to 13 of a leaf are address bits 39 to 32, as far as MAXPHYADDR
    /// allows.
    pub(super) fn wide_pse(cpu: &GuestCpu) -> Self {
        let width = cpu.maxphyaddr.clamp(32, 40);
        Self::with_large_l2(bits_between(width - 19, 22))
    }

    const fn with_large_l2(mask: u64) -> Self {
        Self {
            masks: [[0; 5], [0, mask, 0, 0, 0]],
            bad_mt_xwr: 0,
        }
    }

    /// Page-directory pointers are checked when they are loaded, not here.
    fn pae(cpu: &GuestCpu, high: u64) -> Self {
        let pointers = cpu.reserved_pointer_bits();
        Self {
            masks: [
                [high, high, pointers, 0, 0],
                [high, high | bits_between(13, 21), 0, 0, 0],
            ],
            bad_mt_xwr: 0,
        }
    }

    fn long(cpu: &GuestCpu, high: u64) -> Self {
        let no_1g = if cpu.largest_page < PageSize::Size1G {
            PAGE_SIZE_BIT
        } else {
            0
        };
        let top = high | PAGE_SIZE_BIT | cpu.reserved_global_bit();
        Self {
            masks: [
                [high, high, high | no_1g, top, top],
                [
                    high,
                    high | bits_between(13, 21),
                    high | bits_between(13, 30) | no_1g,
                    top,
                    top,
                ],
            ],
            bad_mt_xwr: 0,
        }
    }

    /// Of a nested hypervisor's EPT.
    pub(super) fn ept(cpu: &GuestCpu, execute_only: ExecuteOnly) -> Self {
        let high = cpu.reserved_gpa_bits() & bits_between(0, 52);
        let no_leaf = |size| {
            if cpu.largest_page < size {
                PAGE_SIZE_BIT
            } else {
                0
            }
        };
        let (no_2m, no_1g) = (no_leaf(PageSize::Size2M), no_leaf(PageSize::Size1G));
        let link = high | bits_between(3, 7);
        let top = link | PAGE_SIZE_BIT;
        Self {
            masks: [
                [high, link | no_2m, link | no_1g, top, top],
                [
                    high,
                    high | bits_between(12, 21) | no_2m,
                    high | bits_between(12, 30) | no_1g,
                    top,
                    top,
                ],
            ],
            bad_mt_xwr: bad_mt_xwr(execute_only),
        }
    }

    /// Whether an entry of long mode above level 1 links to a table, and nothing is wrong with it. `level` counts from 0.
    #[inline]
    pub(super) fn is_good_link(&self, entry: u64, level: u32) -> bool {
        // Present, no leaf, no reserved bit: one comparison.
        let bad = self.masks[0][(level % 5) as usize] | PAGE_SIZE_BIT;
        (entry ^ 1) & (bad | 1) == 0
    }

    /// Whether a present entry of long mode has no reserved bit. `level` counts from 0.
    #[inline]
    pub(super) fn is_good(&self, entry: u64, level: u32) -> bool {
        let large = usize::from(entry & PAGE_SIZE_BIT != 0);
        entry & self.masks[large][(level % 5) as usize] == 0
    }

    /// The reserved bits that a present entry has; 0 if all is well. `level` counts from 0.
    #[inline]
    pub(super) fn violations(&self, entry: u64, level: u8) -> u64 {
        let large = usize::from(entry & PAGE_SIZE_BIT != 0);
        let bits = entry & self.masks[large][usize::from(level)];
        match self.bad_mt_xwr >> (entry & 0x3f) & 1 {
            0 => bits,
            _ => bits | entry & 0x3f,
        }
    }
}
