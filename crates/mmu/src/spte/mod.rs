//! Page-table entries: what every bit says, for EPT and for the 64-bit format of NPT and shadow tables.
//!
//! An entry is a [`Spte`], the only holder of raw bits. Reading one needs a [`Codec`], made once for a [`Format`] and a
//! [`Host`]; [`Codec::decode`] gives an [`Entry`] to match on. The tests that a walker makes for every entry are single
//! mask operations ([`Spte::is_present`], [`Spte::is_leaf`], [`Codec::is_frozen`], and so on).
//!
//! The verbs are KVM's: [`Codec::make_leaf`] is `spte.c:make_spte` with its order of rules, and there are the links
//! ([`Codec::make_link`]), the children of a split ([`Codec::make_small`]), the huge leaf that replaces small ones
//! ([`Codec::make_huge`]), MMIO entries ([`Codec::make_mmio`]), access tracking ([`Codec::track_access`]).
//!
//! # Invariants of present leaves
//! - (host-writable, MMU-writable, writable) is 111, 110, 100 or 000 ([`Writability::is_consistent`]).
//! - The A/D type is 0 in NPT tables, and never 3.
//! - Saved permissions are zero unless the entry is access-tracked.
//! - No bit of [`Codec::reserved`] is set.
//!
//! Layouts P1 and P2 follow kernel 6.12.117 and are held against recordings of it; what changed in 6.13, and P3, is
//! from reading only.
//!
//! ```
//! use slat_mmu::host::Host;
//! use slat_mmu::spte::{Codec, Entry, Ept, LeafRequest, Pfn, Spte};
//! use slat_memslot::{Level, PageSize};
//!
//! let codec = Codec::<Ept>::new(&Host::ept(40));
//! let request = LeafRequest::new(codec.nonpresent(), PageSize::Size4K, Pfn::new(0x13b497));
//! let made = codec.make_leaf(&request);
//! assert_eq!(made.spte, Spte::from_raw(0x8600_0001_3b49_7b77));
//!
//! let Entry::Leaf(leaf) = codec.decode(made.spte, Level::L1) else { unreachable!() };
//! assert!(leaf.writability.hardware && leaf.dirty);
//! ```

pub mod bits;
mod entry;
mod format;
mod make;
mod mmio;
mod pfn;
mod reserved;
mod track;

#[cfg(test)]
mod tests;

use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;

use slat_memslot::Level;

pub use crate::access::Access;
pub use entry::{AdType, Entry, Leaf, Link, MemoryType, Mmio, Writability};
pub use format::{Ept, Format, Masks, Npt};
pub use make::{
    Fill, GuestPat, HostWrite, LeafRequest, MadeLeaf, NxHugePages, PfnKind, TableRole, Tracking,
    Warning,
};
pub use mmio::MmioGeneration;
pub use pfn::Pfn;
pub(crate) use reserved::bad_mt_xwr;
pub use reserved::{NestedEpt, NoExecute, ReservedBits, ShadowPaging};

use crate::host::{AdBits, Host};

/// A page-table entry of format `F`, in raw bits.
#[repr(transparent)]
pub struct Spte<F>(u64, PhantomData<fn() -> F>);

impl<F> Spte<F> {
    /// Takes raw bits for an entry.
    #[inline]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw, PhantomData)
    }

    /// The raw bits.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether KVM takes the entry for present (`spte.h:is_shadow_present_pte`).
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & bits::MMU_PRESENT != 0
    }

    /// Whether bit 7 is set (`spte.h:is_large_pte`).
    #[inline]
    pub const fn is_large(self) -> bool {
        self.0 & bits::PAGE_SIZE != 0
    }

    /// Whether a present entry at `level` is a leaf (`spte.h:is_last_spte`). At level 1 everything is.
    #[inline]
    pub const fn is_last(self, level: Level) -> bool {
        matches!(level, Level::L1) || self.is_large()
    }

    /// The bits that are all set in a present leaf at `level`, and only there.
    #[inline]
    pub const fn leaf_mask(level: Level) -> u64 {
        match level {
            Level::L1 => bits::MMU_PRESENT,
            Level::L2 | Level::L3 | Level::L4 | Level::L5 => bits::MMU_PRESENT | bits::PAGE_SIZE,
        }
    }

    /// Whether the entry is a present leaf at `level`.
    #[inline]
    pub const fn is_leaf(self, level: Level) -> bool {
        let mask = Self::leaf_mask(level);
        self.0 & mask == mask
    }

    /// Whether the entry is a link to a table at `level`.
    #[inline]
    pub const fn is_link(self, level: Level) -> bool {
        !matches!(level, Level::L1)
            && self.0 & (bits::MMU_PRESENT | bits::PAGE_SIZE) == bits::MMU_PRESENT
    }

    /// Whether hardware lets the guest write (`spte.h:is_writable_pte`). Some values that are not present say so too.
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.0 & bits::WRITABLE != 0
    }

    #[inline]
    const fn with(self, bits: u64) -> Self {
        Self::from_raw(self.0 | bits)
    }

    #[inline]
    const fn without(self, bits: u64) -> Self {
        Self::from_raw(self.0 & !bits)
    }
}

/// What tells accessed and dirty in some leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdMasks {
    accessed: u64,
    dirty: u64,
}

impl AdMasks {
    /// The numbers of the two bits, if each is told by one.
    #[inline]
    pub(crate) const fn single_bits(self) -> Option<(u32, u32)> {
        if self.accessed.is_power_of_two() && self.dirty.is_power_of_two() {
            Some((self.accessed.trailing_zeros(), self.dirty.trailing_zeros()))
        } else {
            None
        }
    }

    /// What a leaf's bits say.
    #[inline]
    pub(crate) const fn marks<F>(self, leaf: Spte<F>) -> Marks {
        Marks {
            accessed: leaf.0 & self.accessed != 0,
            dirty: leaf.0 & self.dirty != 0,
        }
    }
}

/// What hardware has noted in a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Marks {
    /// The guest used the page (`kvm_set_pfn_accessed` when the leaf goes).
    pub accessed: bool,
    /// The guest wrote to the page (`kvm_set_pfn_dirty` when the leaf goes).
    pub dirty: bool,
}

impl<F> Clone for Spte<F> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Spte<F> {}

impl<F> PartialEq for Spte<F> {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<F> Eq for Spte<F> {}

impl<F> Hash for Spte<F> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<F> fmt::Debug for Spte<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spte {:#018x}", self.0)
    }
}

impl<F> fmt::LowerHex for Spte<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// How entries of format `F` are read and made on one host.
///
/// All masks are computed by [`Codec::new`]; reading and making entries allocates nothing and looks at no [`Host`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec<F> {
    masks: Masks,
    reserved: ReservedBits,
    host: Host,
    format: PhantomData<fn() -> F>,
}

impl<F: Format> Codec<F> {
    /// The codec of `host`.
    pub fn new(host: &Host) -> Self {
        Self {
            masks: F::masks(host),
            reserved: F::reserved(host),
            host: *host,
            format: PhantomData,
        }
    }

    /// The host it was made for.
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// All masks.
    #[inline]
    pub(crate) const fn masks(&self) -> &Masks {
        &self.masks
    }

    /// The empty entry: what a new table is filled with, and what zapping stores (`SHADOW_NONPRESENT_VALUE`).
    #[inline]
    pub const fn nonpresent(&self) -> Spte<F> {
        Spte::from_raw(self.masks.nonpresent)
    }

    /// The value that keeps others away from an entry of the TDP MMU while it is replaced (`FROZEN_SPTE`).
    #[inline]
    pub const fn frozen(&self) -> Spte<F> {
        Spte::from_raw(self.masks.frozen)
    }

    /// Whether the entry is exactly the empty one.
    #[inline]
    pub const fn is_nonpresent(&self, spte: Spte<F>) -> bool {
        spte.0 == self.masks.nonpresent
    }

    /// Whether the entry is frozen (`spte.h:is_frozen_spte`).
    #[inline]
    pub const fn is_frozen(&self, spte: Spte<F>) -> bool {
        spte.0 == self.masks.frozen
    }

    /// Whether the host lets the guest write to the page (`spte.h:is_host_writable_spte`).
    #[inline]
    pub const fn is_host_writable(&self, spte: Spte<F>) -> bool {
        spte.0 & self.masks.host_writable != 0
    }

    /// Whether a write may be allowed without asking again (`spte.h:is_mmu_writable_spte`).
    #[inline]
    pub const fn is_mmu_writable(&self, spte: Spte<F>) -> bool {
        spte.0 & self.masks.mmu_writable != 0
    }

    /// The frame of a present entry: a leaf's page, or the table that a link leads to (`spte.h:spte_to_pfn`).
    #[inline]
    pub const fn pfn(&self, spte: Spte<F>) -> Pfn {
        Pfn::new((spte.0 & self.masks.address) >> 12)
    }

    /// Whether a present entry allows execution, in supervisor mode where modes differ (`spte.h:is_executable_pte`).
    #[inline]
    pub const fn is_executable(&self, spte: Spte<F>) -> bool {
        spte.0 & (F::EXECUTE | F::NO_EXECUTE) == F::EXECUTE
    }

    /// Whether a present entry has been accessed since the mark was last taken (`spte.h:is_accessed_spte`).
    ///
    /// Up to 6.12 an entry without hardware A/D bits counts as accessed unless it is access-tracked.
    #[inline]
    pub const fn is_accessed(&self, spte: Spte<F>) -> bool {
        let mask = if self.is_ad_disabled(spte) {
            self.masks.accessed_without_ad
        } else {
            self.masks.accessed
        };
        spte.0 & mask != 0
    }

    /// Whether a present leaf is dirty (`spte.h:is_dirty_spte`).
    ///
    /// Up to 6.12 an entry without hardware A/D bits counts as dirty while it is writable.
    #[inline]
    pub const fn is_dirty(&self, spte: Spte<F>) -> bool {
        let mask = if self.is_ad_disabled(spte) {
            self.masks.dirty_without_ad
        } else {
            self.masks.dirty
        };
        spte.0 & mask != 0
    }

    /// What tells accessed and dirty in the leaves of a table whose role asks for this type: the masks of
    /// [`Codec::is_accessed`] and [`Codec::is_dirty`], for whoever reads a whole table.
    #[inline]
    pub(crate) const fn ad_masks(&self, ad: AdType) -> AdMasks {
        match ad {
            AdType::Disabled => AdMasks {
                accessed: self.masks.accessed_without_ad,
                dirty: self.masks.dirty_without_ad,
            },
            AdType::Enabled | AdType::WriteProtectOnly | AdType::Unused => AdMasks {
                accessed: self.masks.accessed,
                dirty: self.masks.dirty,
            },
        }
    }

    /// Whether hardware or a lockless fault may change a present entry at any time, so that it has to be replaced
    /// atomically (`spte.c:spte_has_volatile_bits`, since 6.15 `spte.c:spte_needs_atomic_update`).
    pub const fn is_volatile(&self, spte: Spte<F>) -> bool {
        if !spte.is_writable() && self.is_mmu_writable(spte) {
            return true;
        }
        let clean = spte.is_writable() && spte.0 & self.masks.dirty == 0;
        match (self.host.ad_bits, self.is_ad_disabled(spte)) {
            (AdBits::Hardware, true) => self.is_access_tracked(spte),
            (AdBits::Hardware, false) => spte.0 & self.masks.accessed == 0 || clean,
            (AdBits::Software, true) => true,
            (AdBits::Software, false) => clean,
        }
    }

    /// Whether hardware would turn a violation at this entry into a #VE for the guest
    /// (`spte.h:is_ept_ve_possible`), which must not happen.
    pub const fn may_raise_ve(&self, spte: Spte<F>) -> bool {
        self.masks.nonpresent != 0
            && self.masks.present & bits::ept::SUPPRESS_VE != 0
            && spte.0 & bits::ept::SUPPRESS_VE == 0
            && spte.0 & bits::ept::RWX != bits::ept::MISCONFIG_WX
    }
}
