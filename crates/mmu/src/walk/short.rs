//! The short way through tables in which nothing has to be told or marked.

use slat_memslot::Gpa;

use super::ErrorCode;
use super::format::{GuestFormat, Paging64};
use super::guest::{Translation, Walk, is_leaf, leaf_size, page_address};
use super::log::WalkObserver;
use super::memory::TableMemory;
use super::mode::PagingMode;
use super::stage::Stage;

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
                return self.smooth_leaf(entry, bits, level);
            }
        }
        entry = self.smooth_entry(entry, 0)?;
        self.smooth_leaf(entry, bits & (entry ^ Paging64::INVERTED), 0)
    }

    /// The entry of a table that the address selects.
    #[inline]
    fn smooth_entry(&mut self, table: u64, level: u32) -> Option<u64> {
        let wanted = ErrorCode::USER | ErrorCode::GUEST_PAGE | ErrorCode::WRITE;
        let index = self.address.raw() >> (12 + 9 * level) & 511;
        let place = Gpa::new(table & Paging64::ADDRESS | index << 3);
        let real = self.stage.translate(place, wanted).ok()?;
        self.memory.read_u64(real)
    }

    /// The end of a smooth walk, if it is a leaf that allows the access and has its marks.
    #[inline(always)]
    fn smooth_leaf(&mut self, leaf: u64, bits: u64, level: u32) -> Option<Translation<S::Address>> {
        let [number, ..] = level.to_le_bytes();
        let mut marks = Paging64::ACCESSED;
        if self.access.contains(ErrorCode::WRITE) {
            marks |= Paging64::DIRTY;
        }
        // All entries have the accessed bit, and the leaf what a write needs.
        let marked = bits & Paging64::ACCESSED != 0 && leaf & marks == marks;
        let good = marked
            && leaf & Paging64::PRESENT != 0
            && self.paging.reserved.violations(leaf, number) == 0
            && is_leaf(PagingMode::Level4, leaf, number);
        if !good {
            return None;
        }
        let (rights, key) = (Paging64::rights(bits), Paging64::key(leaf));
        if !self.paging.allows(self.access, rights, key) {
            return None;
        }
        let gpa = page_address::<Paging64>(leaf, number, self.address);
        Some(Translation {
            address: self.final_page(gpa).ok()?,
            gpa,
            size: leaf_size::<Paging64>(number),
            rights,
            leaf,
            key,
            dirty: leaf & Paging64::DIRTY != 0,
        })
    }
}
