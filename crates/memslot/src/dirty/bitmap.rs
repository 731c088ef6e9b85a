//! The dirty bitmap of one slot, without a bit per page until pages differ.
//!
//! KVM allocates two bitmaps of the slot's size when logging is switched on, and fills one with ones in
//! `INITIALLY_SET` mode (`kvm_main.c:kvm_alloc_dirty_bitmap`). Here the bitmap is cut into chunks of 32768 pages
//! that are all clear, all set, or spelt out; a new bitmap of a 1 TiB slot holds no chunk at all.
//!
//! Invariant: bits behind the last page read as clear, whatever a chunk says.

use core::ops::Range;

use super::chunk::{CHUNK_WORDS_U64, Chunk, place, valid};
use crate::{DirtyPages, DirtyWindow, Pages};

/// How a new bitmap starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum InitialBits {
    /// No page is dirty.
    #[default]
    Clear,
    /// Every page is dirty: `KVM_DIRTY_LOG_INITIALLY_SET`.
    Set,
}

/// The bits that a clear asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClearMask<'a> {
    /// Every bit.
    All,
    /// These words, the first one for the first page of the call; missing words count as 0.
    Words(&'a [u64]),
}

/// The dirty bitmap of one slot.
///
/// ```
/// use slat_memslot::{ClearMask, DirtyBitmap, InitialBits, Pages};
/// let mut bitmap = DirtyBitmap::new(Pages::new(100), InitialBits::Clear);
/// assert!(bitmap.set(3) && bitmap.set(99) && !bitmap.set(3));
/// assert_eq!(bitmap.get().to_string(), "3,99");
/// let cleared = bitmap.clear(64, 36, ClearMask::All);
/// assert_eq!(cleared[0].iter().collect::<Vec<_>>(), [99]);
/// assert_eq!(bitmap.get_and_clear().to_string(), "3");
/// assert_eq!(bitmap.count(), 0);
/// ```
#[derive(Clone, Debug)]
pub struct DirtyBitmap {
    pages: Pages,
    /// What the chunks hold that are not in `chunks`.
    rest: InitialBits,
    chunks: Vec<Chunk>,
    count: u64,
}

impl DirtyBitmap {
    /// The bitmap of a slot of `pages`.
    pub const fn new(pages: Pages, initial: InitialBits) -> Self {
        Self {
            pages,
            rest: initial,
            chunks: Vec::new(),
            count: match initial {
                InitialBits::Clear => 0,
                InitialBits::Set => pages.raw(),
            },
        }
    }

    /// How many pages the slot has.
    pub const fn pages(&self) -> Pages {
        self.pages
    }

    /// How many pages are dirty.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Whether a page of the slot is dirty; pages behind its end are not.
    pub fn test(&self, page: u64) -> bool {
        self.word(page / 64) >> (page % 64) & 1 != 0
    }

    /// Marks a page of the slot as dirty; whether it was clean. Pages behind the slot's end are ignored.
    pub fn set(&mut self, page: u64) -> bool {
        let new = page < self.pages.raw() && !self.test(page);
        if new {
            *self.word_mut(page / 64) |= 1 << (page % 64);
            self.count += 1;
        }
        new
    }

    /// A copy of all bits, as `KVM_GET_DIRTY_LOG` gives in manual mode. Shares what is spelt out.
    pub fn get(&self) -> DirtyPages {
        DirtyPages::from_chunks(self.pages, self.rest, self.chunks.iter().cloned())
    }

    /// All bits, which are clear afterwards, as `KVM_GET_DIRTY_LOG` gives outside manual mode.
    pub fn get_and_clear(&mut self) -> DirtyPages {
        let pages = self.get();
        *self = Self::new(self.pages, InitialBits::Clear);
        pages
    }

    /// Whether KVM accepts a clear of these pages (`kvm_main.c:kvm_clear_dirty_log_protect`): whole words, except
    /// at the end of the slot.
    pub const fn accepts_clear(&self, first_page: u64, num_pages: u64) -> bool {
        let pages = self.pages.raw();
        first_page % 64 == 0
            && first_page <= pages
            && num_pages <= pages - first_page
            && (num_pages == pages - first_page || num_pages % 64 == 0)
    }

    /// Clears the dirty pages among those that `mask` names, and gives the pages that were dirty: those to be armed
    /// again.
    ///
    /// Works on whole words, as KVM does; arguments that KVM refuses are rounded to them. Bits behind the slot's
    /// end are ignored.
    pub fn clear(
        &mut self,
        first_page: u64,
        num_pages: u64,
        mask: ClearMask<'_>,
    ) -> Vec<DirtyWindow> {
        let mut cleared = Vec::new();
        self.each_chunk(first_page, num_pages, mask, |bitmap, words, first| {
            bitmap.collect(words.clone(), first, mask, &mut cleared);
            bitmap.forget_in_chunk(words, first, mask);
        });
        cleared
    }

    /// The same as [`clear`](Self::clear), without saying which pages were dirty: costs no memory.
    pub fn forget(&mut self, first_page: u64, num_pages: u64, mask: ClearMask<'_>) {
        self.each_chunk(first_page, num_pages, mask, |bitmap, words, first| {
            bitmap.forget_in_chunk(words, first, mask);
        });
    }

    /// Calls `each` with the words to clear, chunk by chunk, and the word that the mask starts at; chunks that are
    /// clear are left out.
    fn each_chunk(
        &mut self,
        first_page: u64,
        num_pages: u64,
        mask: ClearMask<'_>,
        mut each: impl FnMut(&mut Self, Range<u64>, u64),
    ) {
        let first = first_page / 64;
        let end = first_page.saturating_add(num_pages).div_ceil(64);
        let end = end.min(self.words()).min(mask.end(first));
        let mut at = first;
        while at < end {
            let stop = end.min((at / CHUNK_WORDS_U64 + 1) * CHUNK_WORDS_U64);
            if !self.is_clear(at) {
                each(self, at..stop, first);
            }
            at = stop;
        }
        if self.count == 0 {
            *self = Self::new(self.pages, InitialBits::Clear);
        }
    }

    /// The dirty pages of these words that the mask, which starts at word `first`, names.
    fn collect(
        &self,
        words: Range<u64>,
        first: u64,
        mask: ClearMask<'_>,
        found: &mut Vec<DirtyWindow>,
    ) {
        for word in words {
            let hit = mask.word(word - first) & self.word(word);
            if hit != 0 {
                let offset = word * 64;
                found.push(DirtyWindow { offset, mask: hit });
            }
        }
    }

    /// Makes clean what [`collect`](Self::collect) names, where `words` lie in one chunk.
    fn forget_in_chunk(&mut self, words: Range<u64>, first: u64, mask: ClearMask<'_>) {
        let (start, end) = (words.start, words.end);
        let whole =
            start % CHUNK_WORDS_U64 == 0 && (end - start == CHUNK_WORDS_U64 || end == self.words());
        if mask == ClearMask::All && whole {
            let pages = (end * 64).min(self.pages.raw()) - start * 64;
            let chunk = self.chunk_mut(start);
            let gone = chunk.count(pages);
            *chunk = Chunk::Uniform(InitialBits::Clear);
            self.count -= gone;
            return;
        }
        for word in words {
            let hit = mask.word(word - first) & self.word(word);
            if hit != 0 {
                *self.word_mut(word) &= !hit;
                self.count -= u64::from(hit.count_ones());
            }
        }
    }

    /// The number of words with a page of the slot.
    const fn words(&self) -> u64 {
        self.pages.raw().div_ceil(64)
    }

    /// Whether the chunk of this word is known to hold no bit.
    fn is_clear(&self, word: u64) -> bool {
        let uniform = match self.chunks.get(place(word).0) {
            Some(Chunk::Words(_)) => return false,
            Some(Chunk::Uniform(bits)) => *bits,
            None => self.rest,
        };
        uniform == InitialBits::Clear
    }

    fn word(&self, word: u64) -> u64 {
        let (chunk, at) = place(word);
        let chunk = self.chunks.get(chunk);
        chunk.map_or(self.rest.word(), |chunk| chunk.word(at)) & valid(self.pages.raw(), word)
    }

    /// The chunk of a word of the slot.
    fn chunk_mut(&mut self, word: u64) -> &mut Chunk {
        let (chunk, _) = place(word);
        if self.chunks.len() <= chunk {
            self.chunks.resize(chunk + 1, Chunk::Uniform(self.rest));
        }
        &mut self.chunks[chunk]
    }

    fn word_mut(&mut self, word: u64) -> &mut u64 {
        let (_, at) = place(word);
        &mut self.chunk_mut(word).words()[at]
    }
}

impl ClearMask<'_> {
    /// The word behind the last that it names, when it starts at word `first`.
    fn end(self, first: u64) -> u64 {
        match self {
            Self::All => u64::MAX,
            Self::Words(words) => first.saturating_add(words.len() as u64),
        }
    }

    fn word(self, at: u64) -> u64 {
        match self {
            Self::All => u64::MAX,
            Self::Words(words) => usize::try_from(at)
                .ok()
                .and_then(|at| words.get(at))
                .copied()
                .unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tebibyte_takes_no_chunk_until_pages_differ() {
        let pages = Pages::new(1 << 28);
        let mut bitmap = DirtyBitmap::new(pages, InitialBits::Set);
        assert_eq!((bitmap.count(), bitmap.chunks.len()), (1 << 28, 0));
        assert!(bitmap.test(12345) && !bitmap.set(12345) && !bitmap.test(1 << 28));
        assert_eq!(bitmap.clear(0, 64, ClearMask::Words(&[1])).len(), 1);
        assert_eq!((bitmap.count(), bitmap.chunks.len()), ((1 << 28) - 1, 1));
        let cleared = bitmap.clear(0, 1 << 28, ClearMask::All);
        assert_eq!((cleared.len(), bitmap.count()), (1 << 22, 0));
        let spelt_out = |chunk: &&Chunk| matches!(chunk, Chunk::Words(_));
        assert_eq!(bitmap.chunks.iter().filter(spelt_out).count(), 0);
    }

    #[test]
    fn clear_accepts_what_kvm_accepts() {
        let bitmap = DirtyBitmap::new(Pages::new(100), InitialBits::Clear);
        let accepted = [(0, 100), (0, 64), (64, 36), (0, 0), (64, 0)];
        let refused = [(64, 35), (0, 99), (0, 128), (128, 0), (1, 0), (0, u64::MAX)];
        assert!(accepted.iter().all(|(f, n)| bitmap.accepts_clear(*f, *n)));
        assert!(!refused.iter().any(|(f, n)| bitmap.accepts_clear(*f, *n)));
    }

    #[test]
    fn bits_behind_the_end_are_never_set() {
        let mut bitmap = DirtyBitmap::new(Pages::new(70), InitialBits::Set);
        assert_eq!(bitmap.get().to_words(), [u64::MAX, 0x3f]);
        let cleared = bitmap.clear(64, 6, ClearMask::Words(&[u64::MAX, u64::MAX]));
        assert_eq!(
            cleared,
            [DirtyWindow {
                offset: 64,
                mask: 0x3f
            }]
        );
        assert!(!bitmap.set(70) && !bitmap.set(u64::MAX));
        assert_eq!(bitmap.get_and_clear().count(), 64);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(prop::sample::Index),
        Clear(prop::sample::Index, prop::sample::Index, Option<Vec<u64>>),
        Harvest,
    }

    fn operation() -> impl Strategy<Value = Op> {
        let index = any::<prop::sample::Index>;
        let words = prop::option::of(prop::collection::vec(any::<u64>(), 0..1200));
        prop_oneof![
            8 => index().prop_map(Op::Set),
            2 => (index(), index(), words).prop_map(|(a, b, words)| Op::Clear(a, b, words)),
            1 => Just(Op::Harvest),
        ]
    }

    /// Clears in a set of pages and gives the pages that were in it.
    fn naive_clear(
        dirty: &mut BTreeSet<u64>,
        first: u64,
        num: u64,
        words: Option<&[u64]>,
    ) -> Vec<u64> {
        let wanted = |page: &u64| {
            let at = usize::try_from((page - first) / 64).unwrap();
            words.is_none_or(|words| words.get(at).is_some_and(|w| w >> (page % 64) & 1 != 0))
        };
        let hit: Vec<u64> = dirty
            .range(first..first + num)
            .copied()
            .filter(wanted)
            .collect();
        hit.iter().for_each(|page| assert!(dirty.remove(page)));
        hit
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn agrees_with_a_set_of_pages(
            pages in prop_oneof![1u64..200, 32_700u64..32_900, 60_000u64..100_000],
            all in any::<bool>(),
            ops in prop::collection::vec(operation(), 0..40),
        ) {
            let initial = if all { InitialBits::Set } else { InitialBits::Clear };
            let mut bitmap = DirtyBitmap::new(Pages::new(pages), initial);
            let mut dirty: BTreeSet<u64> = if all { (0..pages).collect() } else { BTreeSet::new() };
            let words = usize::try_from(pages.div_ceil(64)).unwrap();
            for op in ops {
                match op {
                    Op::Set(index) => {
                        let page = index.index(usize::try_from(pages).unwrap()) as u64;
                        prop_assert_eq!(bitmap.set(page), dirty.insert(page));
                    }
                    Op::Clear(from, count, bits) => {
                        let first = from.index(words + 1) as u64 * 64;
                        let first = if first > pages { 0 } else { first };
                        let num = (count.index(words + 1) as u64 * 64).min(pages - first);
                        prop_assert!(bitmap.accepts_clear(first, num));
                        let mask = bits.as_deref().map_or(ClearMask::All, ClearMask::Words);
                        let cleared = bitmap.clear(first, num, mask);
                        prop_assert!(cleared.iter().all(|w| w.mask != 0 && w.offset % 64 == 0));
                        let cleared: Vec<u64> = cleared.into_iter().flat_map(DirtyWindow::iter).collect();
                        prop_assert_eq!(cleared, naive_clear(&mut dirty, first, num, bits.as_deref()));
                    }
                    Op::Harvest => {
                        let taken: BTreeSet<u64> = bitmap.get_and_clear().iter().collect();
                        prop_assert_eq!(taken, core::mem::take(&mut dirty));
                    }
                }
                prop_assert_eq!(bitmap.count(), dirty.len() as u64);
            }
            prop_assert!(bitmap.get().iter().eq(dirty.iter().copied()));
            prop_assert!((0..pages + 70).all(|page| bitmap.test(page) == dirty.contains(&page)));
        }
    }
}
