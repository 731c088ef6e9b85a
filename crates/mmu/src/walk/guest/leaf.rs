//! The end of a walk: a leaf and what it comes to.

use core::fmt;

use slat_memslot::{Gpa, Gva};

use crate::access::Access;
use crate::walk::format::{GuestFormat, PAGE_SIZE_BIT};
use crate::walk::mode::PagingMode;

/// The size of what one leaf of a guest's tables maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeafSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 4 MiB: 32-bit paging with PSE.
    Size4M,
    /// 1 GiB.
    Size1G,
    /// Everything: there is no paging.
    Unpaged,
}

impl LeafSize {
    /// All of them, each at its own number.
    pub(in crate::walk) const ALL: [Self; 5] = [
        Self::Size4K,
        Self::Size2M,
        Self::Size4M,
        Self::Size1G,
        Self::Unpaged,
    ];

    /// In bytes; nothing without paging.
    pub const fn bytes(self) -> Option<u64> {
        match self {
            Self::Size4K => Some(1 << 12),
            Self::Size2M => Some(1 << 21),
            Self::Size4M => Some(1 << 22),
            Self::Size1G => Some(1 << 30),
            Self::Unpaged => None,
        }
    }
}

impl fmt::Display for LeafSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size4K => "4K",
            Self::Size2M => "2M",
            Self::Size4M => "4M",
            Self::Size1G => "1G",
            Self::Unpaged => "unpaged",
        })
    }
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Translation<A = Gpa> {
    /// The address that was asked for, translated: to the byte.
    pub address: A,
    /// The same before the second stage, if there is one.
    pub gpa: Gpa,
    /// The size of the guest's leaf.
    pub size: LeafSize,
    /// What the guest's entries allow together; everything without paging.
    pub rights: Access,
    /// The leaf, as it is after the walk; 0 without paging.
    pub leaf: u64,
    /// The leaf's protection key.
    pub key: u8,
    /// Whether the leaf is marked as dirty, or nobody marks it.
    pub dirty: bool,
}

impl<A> Translation<A> {
    /// The rights that a shadow of the leaf may have: not writable before the leaf is dirty, so that the first write is
    /// seen (`paging_tmpl.h:protect_clean_gpte`).
    #[inline]
    pub fn shadow_rights(&self) -> Access {
        if self.dirty {
            self.rights
        } else {
            self.rights - Access::WRITE
        }
    }
}

/// Whether a walk ends at an entry. Bit 7 means nothing in 32-bit paging without PSE; elsewhere it is reserved where it
/// means nothing.
#[inline]
pub(in crate::walk) fn is_leaf(mode: PagingMode, entry: u64, number: u8) -> bool {
    number == 0 || entry & PAGE_SIZE_BIT != 0 && mode != PagingMode::Bits32
}

/// log2 of the bytes that an entry covers; `number` is the level from 0.
#[inline]
pub(super) const fn span_shift<F: GuestFormat>(number: u8) -> u32 {
    12 + F::INDEX_BITS * number as u32
}

/// The byte that an address selects in the page of a leaf.
#[inline]
pub(in crate::walk) fn page_address<F: GuestFormat>(leaf: u64, number: u8, address: Gva) -> Gpa {
    let offset = (1 << span_shift::<F>(number)) - 1;
    let base = leaf & F::ADDRESS & !offset;
    Gpa::new(base | F::wide_address(leaf, number) | address.raw() & offset)
}

#[inline]
pub(in crate::walk) fn leaf_size<F: GuestFormat>(number: u8) -> LeafSize {
    match span_shift::<F>(number) {
        12 => LeafSize::Size4K,
        21 => LeafSize::Size2M,
        22 => LeafSize::Size4M,
        _ => LeafSize::Size1G,
    }
}
