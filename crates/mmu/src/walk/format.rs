//! The three formats of a guest's tables, as types (`paging_tmpl.h`: `PTTYPE` 64, 32 and EPT).

use crate::access::Access;

use super::memory::{Exchange, TableAddress, TableMemory};

/// A format of a guest's page-table entries: a closed set.
pub(super) trait GuestFormat {
    /// log2 of the entries of a table.
    const INDEX_BITS: u32;
    /// log2 of the bytes of an entry.
    const ENTRY_SHIFT: u32;
    /// The bits of the address.
    const ADDRESS: u64;
    /// The bits of which one makes an entry present.
    const PRESENT: u64;
    /// Bits that forbid: they are turned round before rights are put together.
    const INVERTED: u64;
    /// The accessed bit.
    const ACCESSED: u64;
    /// The dirty bit.
    const DIRTY: u64;

    /// An entry of eight bytes, but for the format that has smaller ones.
    #[inline]
    fn read<A: TableAddress, M: TableMemory<A> + ?Sized>(memory: &M, at: A) -> Option<u64> {
        memory.read_u64(at)
    }

    #[inline]
    fn exchange<A: TableAddress, M: TableMemory<A> + ?Sized>(
        memory: &M,
        at: A,
        current: u64,
        new: u64,
    ) -> Exchange {
        memory.compare_exchange_u64(at, current, new)
    }

    /// What entries allow together: `bits` are those that all of them have, with [`GuestFormat::INVERTED`] turned round.
    fn rights(bits: u64) -> Access;

    /// The protection key of a leaf.
    #[inline]
    fn key(leaf: u64) -> u8 {
        let _ = leaf;
        0
    }

    /// Address bits of a leaf that are not where the others are; `number` is the level from 0.
    #[inline]
    fn wide_address(leaf: u64, number: u8) -> u64 {
        let _ = (leaf, number);
        0
    }
}

/// Bit 7: the entry is a leaf above level 1.
pub(super) const PAGE_SIZE_BIT: u64 = 1 << 7;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const NO_EXECUTE: u64 = 1 << 63;

/// Four-byte entries: 32-bit paging without PAE.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paging32;

/// Eight-byte entries: PAE, four and five levels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paging64;

/// EPT of a guest that is a hypervisor itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct PagingEpt;

impl GuestFormat for Paging32 {
    const INDEX_BITS: u32 = 10;
    const ENTRY_SHIFT: u32 = 2;
    const ADDRESS: u64 = 0xffff_f000;
    const PRESENT: u64 = 1;
    const INVERTED: u64 = 0;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;

    #[inline]
    fn read<A: TableAddress, M: TableMemory<A> + ?Sized>(memory: &M, at: A) -> Option<u64> {
        memory.read_u32(at).map(u64::from)
    }

    #[inline]
    fn exchange<A: TableAddress, M: TableMemory<A> + ?Sized>(
        memory: &M,
        at: A,
        current: u64,
        new: u64,
    ) -> Exchange {
        match (u32::try_from(current), u32::try_from(new)) {
            (Ok(current), Ok(new)) => memory.compare_exchange_u32(at, current, new),
            _ => Exchange::Failed,
        }
    }

    #[inline]
    fn rights(bits: u64) -> Access {
        // No entry forbids execution.
        write_and_user(bits) | Access::EXECUTE
    }

    /// PSE-36: bits 16:13 of a leaf of 4 MiB are bits 35:32 of its address; for a CPU with more address bits up to 20:13,
    /// which are reserved else.
    #[inline]
    fn wide_address(leaf: u64, number: u8) -> u64 {
        match number {
            0 => 0,
            _ => (leaf >> 13 & 0xff) << 32,
        }
    }
}

impl GuestFormat for Paging64 {
    const INDEX_BITS: u32 = 9;
    const ENTRY_SHIFT: u32 = 3;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const PRESENT: u64 = 1;
    const INVERTED: u64 = NO_EXECUTE;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;

    #[inline]
    fn rights(bits: u64) -> Access {
        let execute = if bits & NO_EXECUTE != 0 {
            Access::EXECUTE
        } else {
            Access::empty()
        };
        write_and_user(bits) | execute
    }

    #[inline]
    fn key(leaf: u64) -> u8 {
        (leaf >> 59).to_le_bytes()[0] & 0xf
    }
}

impl GuestFormat for PagingEpt {
    const INDEX_BITS: u32 = 9;
    const ENTRY_SHIFT: u32 = 3;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const PRESENT: u64 = 7;
    const INVERTED: u64 = 0;
    const ACCESSED: u64 = 1 << 8;
    const DIRTY: u64 = 1 << 9;

    /// Reading is [`Access::USER`], as everywhere in EPT.
    #[inline]
    fn rights(bits: u64) -> Access {
        let [low, ..] = bits.to_le_bytes();
        let (read, write, execute) = (low & 1, low & 2, low >> 2 & 1);
        Access::from_bits_truncate(read << 2 | write | execute)
    }
}

#[inline]
fn write_and_user(bits: u64) -> Access {
    let [low, ..] = (bits & (WRITE | USER)).to_le_bytes();
    Access::from_bits_truncate(low)
}
