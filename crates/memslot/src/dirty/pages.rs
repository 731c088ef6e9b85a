//! A set of dirty pages of one slot, as `KVM_GET_DIRTY_LOG` gives it.

use core::fmt;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::DirtyWindow;
use super::chunk::{CHUNK_PAGES, CHUNK_WORDS, Chunk, place, valid};
use crate::{InitialBits, Pages};

/// Dirty pages of a slot: one bit per page, as in the ioctl, where pages differ at all. The set of a slot of any size
/// costs as much as the dirty pages are scattered.
///
/// ```
/// use slat_memslot::{DirtyPages, Pages};
/// let dirty = DirtyPages::from_words(Pages::new(100), vec![0b1011, 1 << 35]);
/// assert_eq!(dirty.count(), 4);
/// assert_eq!(dirty.to_string(), "0-1,3,99");
/// assert_eq!(dirty.to_words(), [0b1011, 1 << 35]);
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(from = "Spelt", into = "Spelt")
)]
pub struct DirtyPages {
    pages: Pages,
    /// What the chunks hold that are not in `chunks`.
    rest: InitialBits,
    /// By number. Bits behind the last page may be anything.
    chunks: BTreeMap<u64, Chunk>,
}

/// The form in serde's formats.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Spelt {
    pages: Pages,
    words: Vec<u64>,
}

#[cfg(feature = "serde")]
impl From<Spelt> for DirtyPages {
    fn from(spelt: Spelt) -> Self {
        Self::from_words(spelt.pages, spelt.words)
    }
}

#[cfg(feature = "serde")]
impl From<DirtyPages> for Spelt {
    fn from(dirty: DirtyPages) -> Self {
        Self {
            pages: dirty.pages,
            words: dirty.to_words(),
        }
    }
}

impl PartialEq for DirtyPages {
    fn eq(&self, other: &Self) -> bool {
        self.pages == other.pages && self.runs().eq(other.runs())
    }
}

impl Eq for DirtyPages {}

impl DirtyPages {
    /// No dirty page in a slot of `pages`.
    pub fn none(pages: Pages) -> Self {
        Self::from_chunks(pages, InitialBits::Clear, [])
    }

    /// The bits of a slot of `pages`; missing words are clean, bits behind the last page are dropped.
    pub fn from_words(pages: Pages, words: Vec<u64>) -> Self {
        let chunks = words.chunks(CHUNK_WORDS).map(|words| {
            let mut chunk = [0; CHUNK_WORDS];
            for (own, word) in chunk.iter_mut().zip(words) {
                *own = *word;
            }
            match words.iter().all(|word| *word == 0) {
                true => Chunk::Uniform(InitialBits::Clear),
                false => Chunk::Words(Arc::new(chunk)),
            }
        });
        Self::from_chunks(pages, InitialBits::Clear, chunks)
    }

    /// The pages of the first chunks, and for the others `rest`.
    pub(super) fn from_chunks(
        pages: Pages,
        rest: InitialBits,
        chunks: impl IntoIterator<Item = Chunk>,
    ) -> Self {
        let first = (0..pages.raw().div_ceil(CHUNK_PAGES)).zip(chunks);
        Self {
            pages,
            rest,
            chunks: first.filter(|(_, chunk)| !chunk.is_all(rest)).collect(),
        }
    }

    /// How many pages the slot has.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// How many 64-bit words spell the pages out: `pages / 64` rounded up.
    pub(super) fn word_count(&self) -> usize {
        usize::try_from(self.pages.raw().div_ceil(64)).unwrap_or(usize::MAX)
    }

    /// The pages spelt out in 64-bit little-endian words, `pages / 64` rounded up: 32 MiB for a slot of 1 TiB.
    pub fn to_words(&self) -> Vec<u64> {
        let mut words = vec![self.rest.word(); self.word_count()];
        for (at, copy) in (0..).zip(words.chunks_mut(CHUNK_WORDS)) {
            match self.chunks.get(&at) {
                Some(Chunk::Words(words)) => copy.copy_from_slice(&words[..copy.len()]),
                Some(Chunk::Uniform(bits)) => copy.fill(bits.word()),
                None => {}
            }
        }
        if let Some(last) = words.last_mut() {
            *last &= valid(self.pages.raw(), self.pages.raw().div_ceil(64) - 1);
        }
        words
    }

    /// Adds the pages of another set, which has been checked to belong to the same slot.
    pub(super) fn add(&mut self, other: &Self) {
        if other.rest == InitialBits::Set {
            if self.rest == InitialBits::Clear {
                let own = core::mem::replace(self, other.clone());
                return self.add(&own);
            }
            self.chunks.retain(|at, _| other.chunks.contains_key(at));
        }
        for (at, chunk) in &other.chunks {
            match (self.chunks.get_mut(at), self.rest) {
                (Some(own), _) => own.add(chunk),
                (None, InitialBits::Set) => {}
                (None, InitialBits::Clear) => drop(self.chunks.insert(*at, chunk.clone())),
            }
        }
    }

    /// Makes the pages of `range` clean.
    pub(super) fn remove_range(&mut self, range: core::ops::Range<u64>) {
        let end = range.end.min(self.pages.raw());
        if range.start == 0 && end == self.pages.raw() {
            *self = Self::none(self.pages);
        }
        let mut at = range.start;
        while at < end {
            let chunk = at / CHUNK_PAGES;
            let stop = end.min((chunk + 1) * CHUNK_PAGES);
            self.remove_in_chunk(chunk, at..stop);
            at = stop;
        }
    }

    /// The same where `range` lies in one chunk.
    fn remove_in_chunk(&mut self, chunk: u64, range: core::ops::Range<u64>) {
        let clear = Chunk::Uniform(InitialBits::Clear);
        if range.end - range.start == CHUNK_PAGES {
            match self.rest {
                InitialBits::Clear => drop(self.chunks.remove(&chunk)),
                InitialBits::Set => drop(self.chunks.insert(chunk, clear)),
            }
            return;
        }
        let own = match (self.chunks.get_mut(&chunk), self.rest) {
            (Some(own), _) => own,
            (None, InitialBits::Clear) => return,
            (None, rest) => self.chunks.entry(chunk).or_insert(Chunk::Uniform(rest)),
        };
        let words = own.words();
        let mut at = range.start;
        while at < range.end {
            let stop = (at / 64 + 1).saturating_mul(64).min(range.end);
            let ones = u64::MAX >> (64 - (stop - at));
            words[place(at / 64).1] &= !(ones << (at % 64));
            at = stop;
        }
    }

    /// How many pages are dirty.
    pub fn count(&self) -> u64 {
        let pages = self.pages.raw();
        let here = |at: u64| pages.saturating_sub(at * CHUNK_PAGES).min(CHUNK_PAGES);
        let stored: u64 = self.chunks.keys().map(|at| here(*at)).sum();
        let rest = match self.rest {
            InitialBits::Clear => 0,
            InitialBits::Set => pages - stored,
        };
        let chunks = self.chunks.iter().map(|(at, chunk)| chunk.count(here(*at)));
        rest + chunks.sum::<u64>()
    }

    /// The dirty pages, relative to the slot, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs().flat_map(|(first, end)| first..end)
    }

    /// The dirty pages as half-open ranges `(first, end)`, ascending and apart.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        self.runs().collect()
    }

    /// The dirty pages by 64, aligned within the slot, ascending: as KVM arms them again.
    ///
    /// ```
    /// use slat_memslot::{DirtyPages, DirtyWindow, Pages};
    /// let pages = DirtyPages::from_words(Pages::new(200), vec![1 << 63, 0b11, 0]);
    /// let windows: Vec<_> = pages.windows().collect();
    /// let window = |offset, mask| DirtyWindow { offset, mask };
    /// assert_eq!(windows, [window(0, 1 << 63), window(64, 0b11)]);
    /// ```
    pub fn windows(&self) -> impl Iterator<Item = DirtyWindow> + '_ {
        let mut runs = self.runs().peekable();
        let mut left = None;
        core::iter::from_fn(move || {
            let (first, end) = left.take().or_else(|| runs.next())?;
            let offset = first - first % 64;
            let mut window = DirtyWindow { offset, mask: 0 };
            left = window.add(first, end);
            while let Some((first, end)) = runs.next_if(|(first, _)| first - offset < 64) {
                left = window.add(first, end);
            }
            Some(window)
        })
    }

    /// The same one by one; chunks without a border cost nothing.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut at = 0;
        core::iter::from_fn(move || {
            let first = self.find(at, true)?;
            at = self.find(first, false).unwrap_or(self.pages.raw());
            Some((first, at))
        })
    }

    /// The first page from `from` on that is dirty, or that is clean.
    fn find(&self, from: u64, dirty: bool) -> Option<u64> {
        let end = self.pages.raw();
        let mut at = from;
        while at < end {
            let chunk = at / CHUNK_PAGES;
            let base = chunk * CHUNK_PAGES;
            at = match self.chunks.get(&chunk) {
                Some(own) => match own.find(at - base, dirty) {
                    Some(hit) => return Some(base + hit).filter(|page| *page < end),
                    None => base + CHUNK_PAGES,
                },
                None if (self.rest == InitialBits::Set) == dirty => return Some(at),
                None => {
                    let next = self.chunks.range(chunk..).next();
                    next.map_or(end, |(next, _)| next * CHUNK_PAGES)
                }
            };
        }
        None
    }
}

impl fmt::Display for DirtyPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (first, end) in self.runs() {
            f.write_str(core::mem::replace(&mut separator, ","))?;
            match end - first {
                1 => write!(f, "{first}")?,
                _ => write!(f, "{first}-{}", end - 1)?,
            }
        }
        if separator.is_empty() {
            f.write_str("none")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use crate::{ClearMask, DirtyBitmap, DirtyPages, DirtyWindow, InitialBits, Pages};

    /// A bitmap of two chunks and a bit, with runs of it cleared or set, and the same as a set of pages.
    fn sets() -> impl Strategy<Value = (DirtyPages, BTreeSet<u64>)> {
        const PAGES: u64 = 2 * 32768 + 100;
        let run = (0..=PAGES / 64, 0..=PAGES / 64, any::<bool>());
        let runs = prop::collection::vec(run, 0..6);
        (any::<bool>(), runs).prop_map(|(all, runs)| {
            let initial = [InitialBits::Clear, InitialBits::Set][usize::from(all)];
            let mut bitmap = DirtyBitmap::new(Pages::new(PAGES), initial);
            let mut pages: BTreeSet<u64> = (0..PAGES).filter(|_| all).collect();
            for (first, count, set) in runs {
                let first = first * 64;
                let end = (first + count * 64).min(PAGES);
                if set {
                    let some = (first..end).step_by(7).take(50);
                    some.for_each(|page| assert_eq!(bitmap.set(page), pages.insert(page)));
                } else {
                    bitmap.forget(first, end.saturating_sub(first), ClearMask::All);
                    pages.retain(|page| !(first..end).contains(page));
                }
                assert_eq!(bitmap.count(), pages.len() as u64);
            }
            (bitmap.get(), pages)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn agree_with_sets_of_pages((a, pages) in sets(), (b, other) in sets(), range in any::<(u16, u16)>()) {
            prop_assert!(a.iter().eq(pages.iter().copied()));
            prop_assert_eq!(a.count(), pages.len() as u64);
            prop_assert!(a.windows().all(|w| w.mask != 0 && w.offset % 64 == 0));
            prop_assert!(a.windows().flat_map(DirtyWindow::iter).eq(pages.iter().copied()));
            prop_assert_eq!(a == b, pages == other);
            let spelt = DirtyPages::from_words(a.pages(), a.to_words());
            prop_assert_eq!(&spelt, &a);
            let mut union = a.clone();
            union.add(&b);
            prop_assert!(union.iter().eq(pages.union(&other).copied()));
            for at in [0, 40_000] {
                let range = at + u64::from(range.0 / 2)..at + u64::from(range.0 / 2) + u64::from(range.1);
                let mut rest = a.clone();
                rest.remove_range(range.clone());
                prop_assert!(rest.iter().eq(pages.iter().copied().filter(|page| !range.contains(page))));
            }
        }
    }

    #[test]
    fn the_largest_slot_costs_no_bit_per_page() {
        let pages = Pages::new((1 << 31) - 1);
        let mut bitmap = DirtyBitmap::new(pages, InitialBits::Set);
        let all = bitmap.get();
        assert_eq!(all.to_string(), "0-2147483646");
        bitmap.forget(0, 1 << 30, ClearMask::All);
        let mut half = bitmap.get_and_clear();
        assert_eq!((half.count(), half.ranges().len()), ((1 << 30) - 1, 1));
        assert!(bitmap.set(pages.raw() - 1) && half != all);
        assert_eq!(bitmap.get().chunks.len(), 1);
        half.add(&all);
        assert_eq!(half, all);
    }
}
