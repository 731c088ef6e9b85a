//! A range of entries: what it asks for, and what the guest is told when it is done.

use slat_memslot::{Gfn, PageSize};

use super::buffer::{PscBuffer, PscEntry, PscOperation, low_bits, offset_of};
use super::engine::PscStep;
use super::exit::{Direction, MapGpaRange, Resize, range_of};
use super::quirks::{OtherOperations, PscQuirks, SizeHint};
use crate::rmp::RmpSize;

/// Entries that are with the VMM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    /// Index of the first.
    pub(super) first: u16,
    /// How many.
    pub(super) entries: u16,
    /// The first, as it was when it was checked.
    pub(super) head: PscEntry,
    /// Size of the others.
    pub(super) size: RmpSize,
    /// The frame that the second one has to follow, less the pages before it.
    pub(super) base: Gfn,
    /// Pages of the whole range.
    pub(super) pages: u64,
}

impl Batch {
    /// What it asks the VMM for; `None` for what is done by doing nothing.
    #[inline]
    pub(super) fn step(&self, quirks: &PscQuirks) -> Option<PscStep> {
        let head = &self.head;
        let start = Gfn::new(head.gfn.raw() + u64::from(head.cur_page));
        let range = range_of(start, self.pages);
        let to = match head.operation {
            PscOperation::Private => Direction::ToPrivate,
            PscOperation::Shared => Direction::ToShared,
            PscOperation::Psmash | PscOperation::Unsmash
                if quirks.other == OtherOperations::Told =>
            {
                let to = match head.operation {
                    PscOperation::Psmash => RmpSize::Size4K,
                    _ => RmpSize::Size2M,
                };
                return Some(PscStep::Resize(Resize { range, to }));
            }
            _ => return None,
        };
        let hinted = match quirks.hint {
            SizeHint::OfFirstEntry => head.size,
            SizeHint::OfRange => self.size,
        };
        let hint: PageSize = hinted.page_size();
        Some(PscStep::Map(MapGpaRange { range, to, hint }))
    }

    /// Tells the guest that so many pages are done. Gives the cursor.
    #[inline]
    pub(super) fn mark(&self, buffer: &impl PscBuffer, done: u64) -> u16 {
        let head = &self.head;
        let of_head = left_of(head).min(done);
        let offset = offset_of(usize::from(self.first));
        buffer.store_u16(offset, low_bits(head.gfn, head.cur_page + small(of_head)));
        let (mut cursor, mut before) = (self.first, of_head);
        if of_head == left_of(head) {
            cursor += 1;
        }
        let whole = self.size.pages();
        while before < done {
            let now = whole.min(done - before);
            let gfn = Gfn::new(self.base.raw() + before);
            buffer.store_u16(offset_of(usize::from(cursor)), low_bits(gfn, small(now)));
            before += now;
            if now < whole {
                break;
            }
            cursor += 1;
        }
        buffer.store_u16(0, cursor);
        cursor
    }
}

/// Pages of an entry that are still to do.
#[inline]
pub(super) fn left_of(entry: &PscEntry) -> u64 {
    entry.size.pages() - u64::from(entry.cur_page)
}

/// Pages of one entry: 512 at most.
#[inline]
const fn small(pages: u64) -> u16 {
    let [low, high, ..] = pages.to_le_bytes();
    u16::from_le_bytes([low, high])
}
