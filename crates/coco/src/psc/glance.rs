//! All entries of a buffer at a glance: whether they are the usual ones, and which of them begins a range.
//!
//! There is no branch for an entry, so that what a guest mixes costs no more than what it does not mix.

use core::ops::Range;

use super::buffer::{MAX_ENTRIES, PscBuffer, PscEntry, offset_of};

/// Places for entries: 253, rounded up, so that no index needs a check.
pub(super) const PLACES: usize = 256;

#[inline]
pub(super) const fn place(index: u16) -> usize {
    index as usize % PLACES
}

const SMALL: u64 = 1 << 12;
const LARGE: u64 = 1 << 21;
const ADDRESS: u64 = (PscEntry::END_GFN - 1) << 12;
const FIRST_OPERATION: u64 = 1 << 52;
/// The highest bit of an address.
const FAR: u64 = 1 << 51;
/// What is not usual in any entry, once the first of the four operations counts as 0 and the first address beyond the limit
/// as [`FAR`]: pages that are done, addresses from there on, other operations, what is reserved.
const ODD: u64 = 0xfff | FAR | 0b1100 << 52 | PscEntry::RESERVED;

/// How far behind an entry comes the one that goes on with it, by the entry's highest byte: size and reserved bits.
static STEPS: [u64; PLACES] = {
    let mut steps = [0; PLACES];
    (steps[0], steps[1]) = (SMALL, LARGE);
    steps
};

/// Usual are whole pages in the guest's memory, with one of the four operations and nothing reserved.
#[derive(Clone, Debug)]
pub(super) struct Glance {
    /// The end of the guest's memory, in whole 2 MiB. Above the highest of them no frame has one behind it.
    limit: u64,
    /// What is added to an entry so that its bits tell.
    shift: u64,
    /// Bits that it should not have then, by the entry's highest byte.
    unusual: [u64; PLACES],
}

/// Which entries are usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usual {
    All,
    AllButFirst,
    /// The marks are worth nothing.
    No,
}

/// A buffer's entries, as they were read.
#[derive(Clone, Debug)]
pub(super) struct Entries {
    pub(super) words: [u64; PLACES],
    /// 0 for an entry that goes on with the one before it. The first one's says nothing.
    pub(super) breaks: [u64; PLACES],
}

impl Glance {
    pub(super) const fn new(end_gfn: u64) -> Self {
        let highest = PscEntry::END_GFN - 512;
        let end = if end_gfn < highest { end_gfn } else { highest };
        let limit = end << 12 & !(LARGE - 1);
        let mut unusual = [u64::MAX; PLACES];
        if limit > 0 {
            unusual[0] = ODD;
            unusual[1] = ODD | (LARGE - SMALL);
        }
        let near = if limit < FAR { limit } else { FAR };
        Self {
            limit,
            shift: (FAR - near).wrapping_sub(FIRST_OPERATION),
            unusual,
        }
    }

    /// Reads entries, each once, and marks where ranges begin.
    ///
    /// Not inlined: all registers are for its loop.
    #[inline(never)]
    pub(super) fn read(
        &self,
        buffer: &impl PscBuffer,
        range: Range<u16>,
        entries: &mut Entries,
    ) -> Usual {
        // The compiler is told what the header was checked for, so that no access below needs a check.
        let (start, end) = (
            usize::from(range.start),
            usize::from(range.end.min(MAX_ENTRIES)),
        );
        let head = buffer.load_u64(offset_of(start));
        entries.words[place(range.start)] = head;
        let (first, mut follows) = self.see(head);
        let (mut unusual, mut all) = (0, 0);
        let mut take = |index: usize| {
            let word = buffer.load_u64(offset_of(index));
            entries.words[index] = word;
            entries.breaks[index] = word ^ follows;
            let seen = self.see(word);
            unusual |= seen.0;
            all |= word;
            follows = seen.1;
        };
        // Four at a time: what the loop itself costs is felt.
        let mut index = start + 1;
        while index < end.saturating_sub(3) {
            take(index);
            take(index + 1);
            take(index + 2);
            take(index + 3);
            index += 4;
        }
        while index < end {
            take(index);
            index += 1;
        }
        // An address with this bit may look near again once the shift is added.
        unusual |= all & FAR;
        let first = first | head & FAR;
        if first | unusual == 0 && self.limit > 0 {
            return Usual::All;
        }
        let words = entries.words.get(start..end).unwrap_or_default();
        self.look(first, unusual, words)
    }

    /// What is unusual about an entry, and what would go on with it.
    #[inline]
    fn see(&self, word: u64) -> (u64, u64) {
        let [.., top] = word.to_le_bytes();
        let top = usize::from(top);
        let unusual = word.wrapping_add(self.shift) & self.unusual[top];
        (unusual, word.wrapping_add(STEPS[top]))
    }

    /// Something is unusual: perhaps no more than addresses with the highest bit, which can be below the limit.
    #[inline(never)]
    fn look(&self, first: u64, rest: u64, words: &[u64]) -> Usual {
        if self.limit == 0 || rest & !FAR != 0 {
            return Usual::No;
        }
        let last = self.limit - SMALL;
        // Each is below the limit if none of the differences has its sign.
        let beyond = |words: &[u64]| {
            let differences = words.iter().map(|word| last.wrapping_sub(word & ADDRESS));
            differences.fold(0, |all, one| all | one) >> 63 != 0
        };
        if rest != 0 && beyond(words.get(1..).unwrap_or_default()) {
            Usual::No
        } else if first & !FAR != 0 || beyond(words.get(..1).unwrap_or_default()) {
            Usual::AllButFirst
        } else {
            Usual::All
        }
    }
}
