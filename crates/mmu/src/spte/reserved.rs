//! Bits that hardware reserves in the entries that KVM makes (`shadow_zero_check`).
//!
//! KVM warns when it makes an entry with such a bit, and when a fault finds one. The masks depend on the level and on
//! bit 7, and EPT has combinations of bits 5:0 that are reserved as well.
//!
//! KVM counterparts: `mmu.c:reset_tdp_shadow_zero_bits_mask`, `mmu.c:reset_ept_shadow_zero_bits_mask`,
//! `mmu.c:reset_shadow_zero_bits_mask`.

use slat_memslot::{Level, PageSize};

use super::bits::{self, ept, npt};
use super::{Codec, Ept, Format, Npt, Spte};
use crate::host::{ExecuteOnly, Host, Layout, bits_between};

/// Reserved bits of one kind of table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReservedBits {
    /// By bit 7, then by level (`rsvd_bits_mask`).
    masks: [[u64; 5]; 2],
    /// A bit for each value of bits 5:0 that is reserved (`bad_mt_xwr`).
    bad_mt_xwr: u64,
    /// The bit that counts as execution too, 0 before mode-based execute control.
    user_execute: u64,
}

impl ReservedBits {
    /// The reserved bits that a present entry of `level` has; 0 if all is well (`spte.h:is_rsvd_spte`).
    ///
    /// A bad combination of memory type and permissions is reported as bits 5:0.
    pub const fn violations<F>(&self, spte: Spte<F>, level: Level) -> u64 {
        let raw = spte.raw();
        let reserved = raw & self.mask(spte, level);
        if self.is_bad_combination(raw) {
            reserved | raw & 0x3f
        } else {
            reserved
        }
    }

    /// Whether a present leaf of level 1 has no reserved bits, nor bit 7, which would choose other masks.
    #[inline(always)]
    pub(crate) const fn is_plain_leaf<F: Format>(&self, leaf: Spte<F>) -> bool {
        let plain = leaf.raw() & (self.masks[0][0] | 1 << 7) == 0;
        plain && (F::EXECUTE == 0 || !self.is_bad_combination(leaf.raw()))
    }

    /// The mask for an entry of `level`, which depends on the entry's bit 7 only (`spte.h:get_rsvd_bits`).
    #[inline]
    pub const fn mask<F>(&self, spte: Spte<F>, level: Level) -> u64 {
        self.masks[spte.is_large() as usize][level as usize - 1]
    }

    /// A bit for each value of bits 5:0 that EPT reserves; 0 for other formats.
    pub const fn bad_combinations(&self) -> u64 {
        self.bad_mt_xwr
    }

    const fn is_bad_combination(&self, raw: u64) -> bool {
        let execute = if raw & self.user_execute != 0 {
            ept::EXECUTE
        } else {
            0
        };
        self.bad_mt_xwr >> ((raw | execute) & 0x3f) & 1 != 0
    }

    /// Sets and clears bits in every mask.
    fn adjust(mut self, set: u64, clear: u64) -> Self {
        for mask in self.masks.iter_mut().flatten() {
            *mask = (*mask | set) & !clear;
        }
        self
    }
}

/// What a nested hypervisor may use in its EPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NestedEpt {
    /// Whether its CPU has execute-only entries.
    pub execute_only: ExecuteOnly,
    /// The largest leaf of its CPU.
    pub largest_page: PageSize,
}

/// What decides about shadow tables of a guest that pages by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShadowPaging {
    /// The level of the root, 3 to 5; 3 is the PAE format.
    pub root_level: Level,
    /// The largest leaf of the guest's CPU.
    pub largest_page: PageSize,
    /// Whether bit 63 forbids execution (`root_role.efer_nx`).
    pub no_execute: NoExecute,
}

/// Whether tables may use the no-execute bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoExecute {
    /// Bit 63 is reserved.
    Reserved,
    /// Bit 63 forbids execution.
    Allowed,
}

impl<F: Format> Codec<F> {
    /// The reserved bits that entries are checked against: those of the host's second-stage tables, in which bits of
    /// memory encryption are allowed, unless [`Codec::with_reserved`] has set others.
    pub const fn reserved(&self) -> &ReservedBits {
        &self.reserved
    }

    /// Whether an entry of `level` is a link that says nothing but where its table is: it allows everything, and hardware
    /// finds nothing wrong with it. Links of the TDP MMU are so.
    #[inline]
    pub(crate) const fn is_plain_link(&self, spte: Spte<F>, level: Level) -> bool {
        // Present for KVM and for hardware, readable or for user mode, writable, executable in EPT.
        const SET: u64 = bits::MMU_PRESENT | 7;
        // No leaf; in EPT no memory type, so that no combination of bits 5:0 is bad; in NPT executable.
        let clear = bits::PAGE_SIZE | if F::EXECUTE != 0 { 0x38 } else { F::NO_EXECUTE };
        let watched = SET | clear | self.reserved.masks[0][level as usize - 1];
        spte.raw() & watched == SET
    }

    /// With the reserved bits of other tables, since they belong to one MMU rather than to a host.
    #[must_use]
    pub const fn with_reserved(mut self, reserved: ReservedBits) -> Self {
        self.reserved = reserved;
        self
    }
}

impl Codec<Ept> {
    /// Reserved bits of the tables that shadow a nested hypervisor's EPT.
    pub fn nested_reserved(&self, nested: NestedEpt) -> ReservedBits {
        ept_reserved(&self.host, nested)
    }
}

impl Codec<Npt> {
    /// Reserved bits of shadow tables. Of the bits of memory encryption only the C-bit in use is allowed.
    pub fn shadow_reserved(&self, shadow: ShadowPaging) -> ReservedBits {
        let reserved = match shadow.root_level {
            Level::L1 | Level::L2 | Level::L3 => pae_reserved(&self.host, shadow.no_execute),
            Level::L4 | Level::L5 => npt_reserved(&self.host, shadow),
        };
        match self.host.me_mask() {
            0 => reserved,
            me_mask => reserved.adjust(me_mask, self.host.me_value()),
        }
    }
}

/// The table of `mmu.c:reset_tdp_shadow_zero_bits_mask` for EPT.
pub(super) fn ept_second_stage(host: &Host) -> ReservedBits {
    let own = NestedEpt {
        execute_only: ExecuteOnly::Unsupported,
        largest_page: host.largest_page,
    };
    ept_reserved(host, own).adjust(0, host.me_mask())
}

/// The table of `mmu.c:reset_tdp_shadow_zero_bits_mask` for NPT.
pub(super) fn npt_second_stage(host: &Host) -> ReservedBits {
    let own = ShadowPaging {
        root_level: host.max_level,
        largest_page: host.largest_page,
        no_execute: NoExecute::Allowed,
    };
    npt_reserved(host, own).adjust(0, host.me_mask())
}

fn ept_reserved(host: &Host, nested: NestedEpt) -> ReservedBits {
    let high = bits_between(host.maxphyaddr, 52);
    let no_1g = no_leaf(PageSize::Size1G, nested.largest_page);
    let no_2m = no_leaf(PageSize::Size2M, nested.largest_page);
    let link = high | bits_between(3, 7);
    let top = link | bits::PAGE_SIZE;
    ReservedBits {
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
        bad_mt_xwr: bad_mt_xwr(nested.execute_only),
        user_execute: match host.layout {
            Layout::P1 | Layout::P2 => 0,
            Layout::P3 => ept::USER_EXECUTE,
        },
    }
}

/// Memory types 2, 3 and 7, writing without reading, and executing without reading where the CPU cannot.
pub(crate) fn bad_mt_xwr(execute_only: ExecuteOnly) -> u64 {
    const EVERY_TYPE: u64 = 0x0101_0101_0101_0101;
    const BAD_TYPES: u64 = 0xff << (2 * 8) | 0xff << (3 * 8) | 0xff << (7 * 8);
    let no_read = match execute_only {
        ExecuteOnly::Unsupported => 1 << 0b010 | 1 << 0b110 | 1 << 0b100,
        ExecuteOnly::Supported => 1 << 0b010 | 1 << 0b110,
    };
    BAD_TYPES | (EVERY_TYPE * no_read)
}

/// Bits above 51 are never reserved here, other than the no-execute bit. AMD's bit 8 is, on either vendor.
fn npt_reserved(host: &Host, shadow: ShadowPaging) -> ReservedBits {
    let high = bits_between(host.maxphyaddr, 52) | no_execute_bit(shadow.no_execute);
    let no_1g = no_leaf(PageSize::Size1G, shadow.largest_page);
    let top = high | bits::PAGE_SIZE | 1 << 8;
    let level5 = match shadow.root_level {
        Level::L5 => top,
        Level::L1 | Level::L2 | Level::L3 | Level::L4 => 0,
    };
    ReservedBits {
        masks: [
            [high, high, high | no_1g, top, level5],
            [
                high,
                high | bits_between(13, 21),
                high | bits_between(13, 30) | no_1g,
                top,
                level5,
            ],
        ],
        bad_mt_xwr: 0,
        user_execute: 0,
    }
}

/// The PAE format has no ignored bits above 51.
fn pae_reserved(host: &Host, no_execute: NoExecute) -> ReservedBits {
    let high = bits_between(host.maxphyaddr, 63) | no_execute_bit(no_execute);
    let pointers = high | npt::NO_EXECUTE | bits_between(5, 9) | bits_between(1, 3);
    ReservedBits {
        masks: [
            [high, high, pointers, 0, 0],
            [high, high | bits_between(13, 21), 0, 0, 0],
        ],
        bad_mt_xwr: 0,
        user_execute: 0,
    }
}

fn no_execute_bit(no_execute: NoExecute) -> u64 {
    match no_execute {
        NoExecute::Reserved => npt::NO_EXECUTE,
        NoExecute::Allowed => 0,
    }
}

/// Bit 7 where leaves of `size` do not exist.
fn no_leaf(size: PageSize, largest: PageSize) -> u64 {
    if size > largest { bits::PAGE_SIZE } else { 0 }
}
