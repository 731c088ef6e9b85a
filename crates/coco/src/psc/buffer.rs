//! The buffer: its layout, and how it is read while the guest may write it.

use slat_memslot::Gfn;

use crate::rmp::RmpSize;

/// Entries that the largest buffer holds (`VMGEXIT_PSC_MAX_COUNT`).
pub const MAX_ENTRIES: u16 = 253;

/// Bytes of the header, and of an entry.
pub(super) const WORD: usize = 8;

/// Guest memory that holds the buffer, from its header on.
///
/// All offsets are in bytes and aligned to the size of the access. Each call is one access to memory that the guest may
/// write meanwhile: volatile or relaxed atomic, never repeated or split by the compiler. What is stored is for the guest
/// only and is never read back.
pub trait PscBuffer {
    /// Reads 16 bits.
    fn load_u16(&self, offset: usize) -> u16;

    /// Reads 64 bits.
    fn load_u64(&self, offset: usize) -> u64;

    /// Writes 16 bits.
    fn store_u16(&self, offset: usize, value: u16);
}

/// The header: 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PscHeader {
    /// The first entry that is not done. The host moves it on.
    pub cur_entry: u16,
    /// The last entry that counts.
    pub end_entry: u16,
    /// Reserved.
    pub reserved: u32,
}

impl PscHeader {
    /// As memory has it.
    pub const fn to_word(self) -> u64 {
        self.cur_entry as u64 | (self.end_entry as u64) << 16 | (self.reserved as u64) << 32
    }

    /// From memory.
    pub const fn from_word(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
        Self {
            cur_entry: u16::from_le_bytes([a, b]),
            end_entry: u16::from_le_bytes([c, d]),
            reserved: u32::from_le_bytes([e, f, g, h]),
        }
    }
}

/// What an entry asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PscOperation {
    /// 1: the pages shall be private.
    Private,
    /// 2: the pages shall be shared.
    Shared,
    /// 3: an entry of 2 MiB shall be taken apart.
    Psmash,
    /// 4: 512 entries shall become one.
    Unsmash,
    /// Not defined.
    Unknown(u8),
}

impl PscOperation {
    const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Private,
            2 => Self::Shared,
            3 => Self::Psmash,
            4 => Self::Unsmash,
            other => Self::Unknown(other),
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Private => 1,
            Self::Shared => 2,
            Self::Psmash => 3,
            Self::Unsmash => 4,
            Self::Unknown(bits) => bits & 0xf,
        }
    }
}

/// An entry: 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PscEntry {
    /// Pages of it that are done, 12 bits. The host moves it on.
    pub cur_page: u16,
    /// The first frame, 40 bits.
    pub gfn: Gfn,
    /// What to do.
    pub operation: PscOperation,
    /// The size: one page, or 512.
    pub size: RmpSize,
    /// Reserved, 7 bits.
    pub reserved: u8,
}

impl PscEntry {
    /// The first frame that no entry can name.
    pub(super) const END_GFN: u64 = 1 << 40;
    /// The reserved bits.
    pub(super) const RESERVED: u64 = 0x7f << 57;

    /// An entry of which nothing is done yet.
    pub const fn new(gfn: Gfn, operation: PscOperation, size: RmpSize) -> Self {
        Self {
            cur_page: 0,
            gfn,
            operation,
            size,
            reserved: 0,
        }
    }

    /// As memory has it.
    ///
    /// ```
    /// use slat_coco::psc::{PscEntry, PscOperation};
    /// use slat_coco::rmp::RmpSize;
    /// use slat_memslot::Gfn;
    /// let entry = PscEntry::new(Gfn::new(0x200), PscOperation::Private, RmpSize::Size2M);
    /// assert_eq!(entry.to_word(), 0x0110_0000_0020_0000);
    /// assert_eq!(PscEntry::from_word(entry.to_word()), entry);
    /// ```
    pub const fn to_word(self) -> u64 {
        let huge = matches!(self.size, RmpSize::Size2M) as u64;
        (self.cur_page & 0xfff) as u64
            | (self.gfn.raw() & 0xff_ffff_ffff) << 12
            | (self.operation.bits() as u64) << 52
            | huge << 56
            | (self.reserved as u64) << 57
    }

    /// From memory.
    #[inline]
    pub const fn from_word(word: u64) -> Self {
        let [low, high, .., seventh, top] = word.to_le_bytes();
        Self {
            cur_page: u16::from_le_bytes([low, high & 0xf]),
            gfn: Gfn::new(word >> 12 & 0xff_ffff_ffff),
            operation: PscOperation::from_bits(seventh >> 4),
            size: if top & 1 != 0 {
                RmpSize::Size2M
            } else {
                RmpSize::Size4K
            },
            reserved: top >> 1,
        }
    }
}

/// Where an entry is.
#[inline]
pub(super) const fn offset_of(index: usize) -> usize {
    WORD + index * WORD
}

/// The lowest 16 bits of an entry: how much is done, and four bits of the frame.
#[inline]
pub(super) const fn low_bits(gfn: Gfn, cur_page: u16) -> u16 {
    let [low, _, ..] = gfn.raw().to_le_bytes();
    (low as u16 & 0xf) << 12 | cur_page
}
