//! A set of dirty pages of one slot, as `KVM_GET_DIRTY_LOG` gives it.

use core::fmt;

use crate::Pages;

/// Dirty pages of a slot: one bit per page, in 64-bit little-endian words as in the ioctl.
///
/// ```
/// use slat_memslot::{DirtyPages, Pages};
/// let dirty = DirtyPages::from_words(Pages::new(100), vec![0b1011, 1 << 35]);
/// assert_eq!(dirty.count(), 4);
/// assert_eq!(dirty.to_string(), "0-1,3,99");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DirtyPages {
    pages: Pages,
    words: Vec<u64>,
}

impl DirtyPages {
    /// No dirty page in a slot of `pages`.
    pub fn none(pages: Pages) -> Self {
        Self::from_words(pages, Vec::new())
    }

    /// The bits of a slot of `pages`; missing words are clean, bits behind the last page are dropped.
    pub fn from_words(pages: Pages, mut words: Vec<u64>) -> Self {
        let count = usize::try_from(pages.raw().div_ceil(64)).unwrap_or(usize::MAX);
        words.resize(count, 0);
        let tail = pages.raw() % 64;
        if let (Some(last), true) = (words.last_mut(), tail != 0) {
            *last &= (1 << tail) - 1;
        }
        Self { pages, words }
    }

    /// How many pages the slot has.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// The words, `pages / 64` rounded up.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds the pages of words that have been checked to belong to the same slot.
    pub(super) fn add_words(&mut self, words: &[u64]) {
        for (own, other) in self.words.iter_mut().zip(words) {
            *own |= other;
        }
    }

    /// Makes the pages of `range` clean.
    pub(super) fn remove_range(&mut self, range: core::ops::Range<u64>) {
        let end = range.end.min(self.pages.raw());
        let mut at = range.start;
        while at < end {
            let stop = (at / 64 + 1).saturating_mul(64).min(end);
            let ones = u64::MAX >> (64 - (stop - at));
            let word = usize::try_from(at / 64).ok();
            if let Some(word) = word.and_then(|word| self.words.get_mut(word)) {
                *word &= !(ones << (at % 64));
            }
            at = stop;
        }
    }

    /// How many pages are dirty.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// The dirty pages, relative to the slot, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        (0u64..).zip(&self.words).flat_map(|(at, word)| {
            let mut rest = *word;
            core::iter::from_fn(move || {
                let bit = u64::from(rest.trailing_zeros());
                (rest != 0).then(|| {
                    rest &= rest - 1;
                    at * 64 + bit
                })
            })
        })
    }

    /// The dirty pages as half-open ranges `(first, end)`, ascending and apart.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for page in self.iter() {
            match ranges.last_mut() {
                Some((_, end)) if *end == page => *end += 1,
                _ => ranges.push((page, page + 1)),
            }
        }
        ranges
    }
}

impl fmt::Display for DirtyPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (first, end) in self.ranges() {
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
