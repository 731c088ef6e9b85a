//! The short way through tables in which nothing has to be told or marked.

use slat_memslot::Gpa;

use super::Walk;
use super::leaf::{Translation, is_leaf, leaf_size, page_address};
use crate::access::Access;
use crate::walk::format::{GuestFormat, Paging64};
use crate::walk::log::WalkObserver;
use crate::walk::memory::TableMemory;
use crate::walk::mode::PagingMode;
use crate::walk::stage::Stage;
use crate::walk::{ErrorCode, GuestPaging};
use slat_memslot::Gva;

/// What a walk on the short way wants of a guest's table: CPUs mark entries, so that they write to it.
pub(in crate::walk) const TABLE: ErrorCode = ErrorCode::USER
    .union(ErrorCode::GUEST_PAGE)
    .union(ErrorCode::WRITE);

/// The page that a walk on the short way ends at.
#[derive(Clone, Copy, Debug)]
pub(in crate::walk) struct SmoothLeaf {
    pub(in crate::walk) gpa: Gpa,
    leaf: u64,
    number: u8,
    rights: Access,
    key: u8,
}

impl SmoothLeaf {
    /// Once the second stage has said where the page is.
    #[inline]
    pub(in crate::walk) fn at<A>(self, address: A) -> Translation<A> {
        Translation {
            address,
            gpa: self.gpa,
            size: leaf_size::<Paging64>(self.number),
            rights: self.rights,
            leaf: self.leaf,
            key: self.key,
            dirty: self.leaf & Paging64::DIRTY != 0,
        }
    }
}

impl GuestPaging {
    /// Where the entry is that an address selects in the table below an entry.
    #[inline]
    pub(in crate::walk) const fn smooth_place(table: u64, address: Gva, level: u32) -> Gpa {
        let index = address.raw() >> (12 + 9 * level) & 511;
        Gpa::new(table & Paging64::ADDRESS | index << 3)
    }

    /// The end of a smooth walk, if it is a leaf that allows the access and has its marks. `bits` are those that all
    /// entries have, with [`GuestFormat::INVERTED`] turned round.
    #[inline(always)]
    pub(in crate::walk) fn smooth_leaf(
        &self,
        (address, access): (Gva, ErrorCode),
        (leaf, bits): (u64, u64),
        level: u32,
    ) -> Option<SmoothLeaf> {
        let [number, ..] = level.to_le_bytes();
        let mut marks = Paging64::ACCESSED;
        if access.contains(ErrorCode::WRITE) {
            marks |= Paging64::DIRTY;
        }
        // All entries have the accessed bit, and the leaf what a write needs.
        let marked = bits & Paging64::ACCESSED != 0 && leaf & marks == marks;
        let good = marked
            && leaf & Paging64::PRESENT != 0
            && self.reserved.is_good(leaf, level)
            && is_leaf(PagingMode::Level4, leaf, number);
        if !good {
            return None;
        }
        let (rights, key) = (Paging64::rights(bits), Paging64::key(leaf));
        self.allows(access, rights, key).then(|| SmoothLeaf {
            gpa: page_address::<Paging64>(leaf, number, address),
            leaf,
            number,
            rights,
            key,
        })
    }
}

impl<M, S, O> Walk<'_, M, S, O>
where
    M: TableMemory<S::Address> + ?Sized,
    S: Stage,
    O: WalkObserver,
{
    /// The walk of most accesses, in long mode from a table of level `TOP` (from 0): nothing faults, nothing has to be
    /// marked, and nobody watches. Whatever is otherwise is left to the walk that looks at everything.
    #[inline]
    pub(super) fn smooth<const TOP: u32>(&mut self) -> Option<Translation<S::Address>> {
        if O::OBSERVES || !S::QUIET {
            return None;
        }
        let mut entry = self.paging.root;
        let mut bits = u64::MAX;
        for level in (1..=TOP).rev() {
            entry = self.smooth_entry(entry, level)?;
            bits &= entry ^ Paging64::INVERTED;
            if !self.paging.reserved.is_good_link(entry, level) {
                // A leaf, or something is wrong with it.
                return self.smooth_end(entry, bits, level);
            }
        }
        entry = self.smooth_entry(entry, 0)?;
        self.smooth_end(entry, bits & (entry ^ Paging64::INVERTED), 0)
    }

    /// The entry of a table that the address selects.
    #[inline(always)]
    fn smooth_entry(&mut self, table: u64, level: u32) -> Option<u64> {
        let place = GuestPaging::smooth_place(table, self.address, level);
        let real = self.stage.translate(place, TABLE).ok()?;
        self.memory.read_u64(real)
    }

    #[inline(always)]
    fn smooth_end(&mut self, leaf: u64, bits: u64, level: u32) -> Option<Translation<S::Address>> {
        let what = (self.address, self.access);
        let leaf = self.paging.smooth_leaf(what, (leaf, bits), level)?;
        Some(leaf.at(self.final_page(leaf.gpa).ok()?))
    }
}
