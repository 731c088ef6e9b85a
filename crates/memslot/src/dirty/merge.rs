//! Several dirty bitmaps of one slot as one: KVM's, the VMM's own writes, and those of devices.
//!
//! All must speak of the same pages. Walking them in step and stopping at the shortest would drop dirty pages
//! without a word, and the guest would be corrupt after migration; so a length that differs is an error here.

use crate::{DirtyPages, Pages};

/// One bitmap to be merged.
#[derive(Clone, Copy, Debug)]
pub enum DirtySource<'a> {
    /// 64-bit words, as many as the slot's pages need.
    Words(&'a [u64]),
    /// Pages that know their number.
    Pages(&'a DirtyPages),
}

impl<'a> From<&'a [u64]> for DirtySource<'a> {
    fn from(words: &'a [u64]) -> Self {
        Self::Words(words)
    }
}

impl<'a> From<&'a DirtyPages> for DirtySource<'a> {
    fn from(pages: &'a DirtyPages) -> Self {
        Self::Pages(pages)
    }
}

/// A bitmap does not belong to the slot that the others belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// A bitmap of words is too short or too long.
    #[error(
        "dirty bitmap {source_index} has {actual} words where the slot's pages need {expected}"
    )]
    WordCount {
        /// Which source, from 0.
        source_index: usize,
        /// The words that the slot's pages need.
        expected: usize,
        /// The words there are.
        actual: usize,
    },
    /// A set of pages is of a slot of another size.
    #[error("dirty bitmap {source_index} is of {} pages, the slot of {}", actual.raw(), expected.raw())]
    PageCount {
        /// Which source, from 0.
        source_index: usize,
        /// The pages of the slot.
        expected: Pages,
        /// The pages of the source.
        actual: Pages,
    },
    /// A bit behind the last page is set, so the bitmap is of a larger slot.
    #[error("dirty bitmap {source_index} has page {page} set, the slot only {} pages", pages.raw())]
    PageBehindEnd {
        /// Which source, from 0.
        source_index: usize,
        /// The lowest such page.
        page: u64,
        /// The pages of the slot.
        pages: Pages,
    },
}

/// The pages of a slot of `pages` that are dirty in any of the sources.
///
/// ```
/// use slat_memslot::{MergeError, Pages, merge_dirty};
/// let (kvm, vmm) = ([0b1u64, 0], [0b100u64, 1]);
/// let dirty = merge_dirty(Pages::new(100), [&kvm[..], &vmm[..]]).unwrap();
/// assert_eq!(dirty.to_string(), "0,2,64");
/// let short = merge_dirty(Pages::new(100), [&kvm[..1]]).unwrap_err();
/// assert_eq!(short, MergeError::WordCount { source_index: 0, expected: 2, actual: 1 });
/// ```
pub fn merge_dirty<'a, S>(
    pages: Pages,
    sources: impl IntoIterator<Item = S>,
) -> Result<DirtyPages, MergeError>
where
    S: Into<DirtySource<'a>>,
{
    let mut union = DirtyPages::none(pages);
    for (index, source) in sources.into_iter().enumerate() {
        match checked(source.into(), index, &union)? {
            DirtySource::Pages(source) => union.add(source),
            DirtySource::Words(words) => union.add(&DirtyPages::from_words(pages, words.to_vec())),
        }
    }
    Ok(union)
}

/// A source, when it is of the same pages as `slot`.
fn checked<'a>(
    source: DirtySource<'a>,
    source_index: usize,
    slot: &DirtyPages,
) -> Result<DirtySource<'a>, MergeError> {
    let pages = slot.pages();
    match source {
        DirtySource::Pages(source) if source.pages() != pages => Err(MergeError::PageCount {
            source_index,
            expected: pages,
            actual: source.pages(),
        }),
        DirtySource::Words(words) if words.len() != slot.word_count() => {
            Err(MergeError::WordCount {
                source_index,
                expected: slot.word_count(),
                actual: words.len(),
            })
        }
        DirtySource::Words(words) => match page_behind_end(words, pages) {
            Some(page) => Err(MergeError::PageBehindEnd {
                source_index,
                page,
                pages,
            }),
            None => Ok(source),
        },
        DirtySource::Pages(_) => Ok(source),
    }
}

/// The lowest set bit of the last word that stands for no page.
fn page_behind_end(words: &[u64], pages: Pages) -> Option<u64> {
    let tail = pages.raw() % 64;
    let stray = words.last()? & u64::MAX.checked_shl(u32::try_from(tail).ok()?)?;
    (tail != 0 && stray != 0).then(|| pages.raw() - tail + u64::from(stray.trailing_zeros()))
}

/// The dirty pages as half-open ranges `(first, end)`, ascending, where clean gaps of at most `max_gap` pages are
/// taken along: fewer, longer transfers for a few clean pages sent in vain.
///
/// ```
/// use slat_memslot::{DirtyPages, Pages, coalesce_dirty};
/// let dirty = DirtyPages::from_words(Pages::new(64), vec![0b1001_0011]);
/// let ranges = |gap| coalesce_dirty(&dirty, Pages::new(gap)).collect::<Vec<_>>();
/// assert_eq!(ranges(0), [(0, 2), (4, 5), (7, 8)]);
/// assert_eq!(ranges(2), [(0, 8)]);
/// ```
pub fn coalesce_dirty(dirty: &DirtyPages, max_gap: Pages) -> impl Iterator<Item = (u64, u64)> + '_ {
    let mut runs = dirty.runs().peekable();
    core::iter::from_fn(move || {
        let (first, mut end) = runs.next()?;
        while let Some((_, next)) = runs.next_if(|(start, _)| start - end <= max_gap.raw()) {
            end = next;
        }
        Some((first, end))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_named() {
        let dirty = DirtyPages::none(Pages::new(100));
        let other = DirtyPages::none(Pages::new(101));
        let error = merge_dirty(Pages::new(100), [&dirty, &other]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "dirty bitmap 1 is of 101 pages, the slot of 100"
        );
        let error = merge_dirty(Pages::new(100), [&[0u64; 3][..]]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "dirty bitmap 0 has 3 words where the slot's pages need 2"
        );
        let error = merge_dirty(Pages::new(100), [&[0, 1u64 << 36][..]]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "dirty bitmap 0 has page 100 set, the slot only 100 pages"
        );
    }

    #[test]
    fn sources_may_be_of_both_kinds() {
        let (words, pages) = (
            [1u64, 1 << 63],
            DirtyPages::from_words(Pages::new(128), vec![2]),
        );
        let sources = [DirtySource::Words(&words), DirtySource::Pages(&pages)];
        let merged = merge_dirty(Pages::new(128), sources).unwrap();
        assert_eq!(merged.to_string(), "0-1,127");
        assert_eq!(
            coalesce_dirty(&merged, Pages::new(125)).collect::<Vec<_>>(),
            [(0, 128)]
        );
    }

    /// Words with long runs of equal bits as well as mixed ones.
    fn any_words() -> impl Strategy<Value = Vec<u64>> {
        let word = prop_oneof![
            Just(0),
            Just(u64::MAX),
            any::<u64>(),
            (0u32..64).prop_map(|s| u64::MAX << s)
        ];
        prop::collection::vec(word, 0..12)
    }

    proptest! {
        #[test]
        fn union_has_the_pages_of_all(pages in 0u64..700, bitmaps in prop::collection::vec(any_words(), 0..4)) {
            let pages = Pages::new(pages);
            let bitmaps: Vec<_> = bitmaps.into_iter().map(|w| DirtyPages::from_words(pages, w)).collect();
            let words: Vec<_> = bitmaps.iter().map(DirtyPages::to_words).collect();
            let merged = merge_dirty(pages, words.iter().map(Vec::as_slice)).unwrap();
            let again = merge_dirty(pages, &bitmaps).unwrap();
            prop_assert_eq!(&merged, &again);
            let mut expected: Vec<u64> = bitmaps.iter().flat_map(DirtyPages::iter).collect();
            expected.sort_unstable();
            expected.dedup();
            prop_assert!(merged.iter().eq(expected));
        }

        #[test]
        fn ranges_bridge_gaps_up_to_the_maximum(pages in 0u64..700, words in any_words(), gap in 0u64..100) {
            let dirty = DirtyPages::from_words(Pages::new(pages), words);
            let mut expected: Vec<(u64, u64)> = Vec::new();
            for page in dirty.iter() {
                match expected.last_mut() {
                    Some((_, end)) if page - *end <= gap => *end = page + 1,
                    _ => expected.push((page, page + 1)),
                }
            }
            let ranges: Vec<_> = coalesce_dirty(&dirty, Pages::new(gap)).collect();
            prop_assert_eq!(ranges, expected);
            prop_assert_eq!(coalesce_dirty(&dirty, Pages::new(0)).collect::<Vec<_>>(), dirty.ranges());
        }
    }
}
