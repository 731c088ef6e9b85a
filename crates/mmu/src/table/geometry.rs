//! Which entry of a table belongs to which guest frame.

use slat_memslot::Level;

use super::ENTRIES;

/// log2 of the entries of a table.
const INDEX_BITS: u32 = ENTRIES.trailing_zeros();

const _: () = assert!(ENTRIES.is_power_of_two());

const fn shift(level: Level) -> u32 {
    INDEX_BITS * (level as u32 - 1)
}

/// The frames that one entry of this level covers: [`Level::pages`], with as many entries per table as the build has.
#[inline]
pub(crate) const fn span(level: Level) -> u64 {
    1 << shift(level)
}

/// The entry for a frame, in a table of this level.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the entries of a table are few"
)]
pub(crate) const fn index(gfn: u64, level: Level) -> usize {
    (gfn >> shift(level)) as usize % ENTRIES
}

/// The first frame of the entry that covers a frame.
#[inline]
pub(crate) const fn first(gfn: u64, level: Level) -> u64 {
    gfn & !(span(level) - 1)
}
