//! Rounds of a live migration or of diff snapshots that lose no dirty page when one fails.
//!
//! Reading KVM's dirty log forgets it. A VMM that reads it and then fails to write the snapshot has lost the pages
//! for the next one, unless it keeps them. A [`DirtyBacklog`] does: what an epoch harvested stays in the backlog
//! until it is known to have arrived, and an epoch that ends in any other way, by an error, a `?` or a panic,
//! leaves it there for the next.

use core::ops::Range;

use crate::{DirtyBitmap, DirtyPages, InitialBits, MergeError, Pages, merge_dirty};

/// The dirty pages of one slot that have not arrived yet.
///
/// ```
/// use slat_memslot::{DirtyBacklog, DirtyPages, Pages};
/// let mut backlog = DirtyBacklog::new(Pages::new(64));
/// let harvested = DirtyPages::from_words(Pages::new(64), vec![0b111]);
/// let mut epoch = backlog.begin(&harvested).unwrap();
/// epoch.sent(0..1);
/// drop(epoch); // the connection broke
///
/// let harvested = DirtyPages::from_words(Pages::new(64), vec![1 << 9]);
/// let epoch = backlog.begin(&harvested).unwrap();
/// assert_eq!(epoch.pages().to_string(), "1-2,9");
/// epoch.commit();
/// assert_eq!(backlog.pages().count(), 0);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DirtyBacklog {
    pending: DirtyPages,
}

/// One round of transfer; ends by [`commit`](Self::commit), or keeps what was not sent.
#[derive(Debug)]
#[must_use = "an epoch that is dropped at once sends nothing"]
pub struct DirtyEpoch<'a> {
    // Only what has arrived is taken out of the backlog, so that an epoch may end anywhere without losing a page;
    // there is nothing to put back.
    backlog: &'a mut DirtyBacklog,
}

impl DirtyBacklog {
    /// Nothing pending in a slot of `pages`.
    pub fn new(pages: Pages) -> Self {
        Self {
            pending: DirtyPages::none(pages),
        }
    }

    /// Everything pending: before the first round of a migration every page still has to be sent.
    pub fn full(pages: Pages) -> Self {
        Self {
            pending: DirtyBitmap::new(pages, InitialBits::Set).get(),
        }
    }

    /// The pages that have not arrived yet.
    pub const fn pages(&self) -> &DirtyPages {
        &self.pending
    }

    /// Adds harvested pages without starting to send, as when the log is read on an error path.
    ///
    /// # Errors
    /// When `harvested` is of a slot of another size; nothing is changed then.
    pub fn add(&mut self, harvested: &DirtyPages) -> Result<(), MergeError> {
        self.pending = merge_dirty(self.pending.pages(), [&self.pending, harvested])?;
        Ok(())
    }

    /// Starts a round with the harvested pages and all that earlier rounds have left.
    ///
    /// # Errors
    /// When `harvested` is of a slot of another size; nothing is changed then.
    pub fn begin(&mut self, harvested: &DirtyPages) -> Result<DirtyEpoch<'_>, MergeError> {
        self.add(harvested)?;
        Ok(DirtyEpoch { backlog: self })
    }
}

impl DirtyEpoch<'_> {
    /// The pages still to be sent.
    pub const fn pages(&self) -> &DirtyPages {
        &self.backlog.pending
    }

    /// Notes that the pages of `range`, relative to the slot, have arrived for good: they are not reported again,
    /// even if the rest of this epoch fails.
    pub fn sent(&mut self, range: Range<u64>) {
        self.backlog.pending.remove_range(range);
    }

    /// All pages have arrived: forgets them.
    pub fn commit(self) {
        *self.backlog = DirtyBacklog::new(self.backlog.pending.pages());
    }

    /// Gives the round up; what was not sent is reported by the next. The same as dropping the epoch, but says how
    /// many pages those are.
    pub fn abort(self) -> Pages {
        Pages::new(self.pages().count())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_length_mismatch_changes_nothing() {
        let mut backlog = DirtyBacklog::full(Pages::new(70));
        assert_eq!(backlog.pages().count(), 70);
        let other = DirtyPages::none(Pages::new(71));
        assert!(backlog.begin(&other).is_err());
        assert_eq!(backlog.pages().count(), 70);
    }

    #[test]
    fn a_panic_in_a_transfer_loses_nothing() {
        let mut backlog = DirtyBacklog::new(Pages::new(8));
        let harvested = DirtyPages::from_words(Pages::new(8), vec![0xff]);
        let transfer = std::panic::AssertUnwindSafe(|| {
            let mut epoch = backlog.begin(&harvested).unwrap();
            epoch.sent(0..4);
            std::panic::resume_unwind(Box::new("the socket is gone"));
        });
        assert!(std::panic::catch_unwind(transfer).is_err());
        assert_eq!(backlog.pages().to_string(), "4-7");
    }

    /// How an epoch ends.
    #[derive(Clone, Debug)]
    enum Ending {
        Commit,
        Abort,
        Drop,
    }

    fn ending() -> impl Strategy<Value = Ending> {
        prop_oneof![
            Just(Ending::Commit),
            Just(Ending::Abort),
            Just(Ending::Drop),
        ]
    }

    proptest! {
        #[test]
        fn every_page_arrives_or_is_reported_again(
            pages in 1u64..300,
            epochs in prop::collection::vec(
                (
                    prop::collection::vec(any::<u64>(), 0..5),
                    prop::collection::vec((0u64..320, 0u64..320), 0..4),
                    ending(),
                ),
                0..12,
            ),
        ) {
            let mut backlog = DirtyBacklog::new(Pages::new(pages));
            let mut pending = BTreeSet::new();
            for (words, sent, ending) in epochs {
                let harvested = DirtyPages::from_words(Pages::new(pages), words);
                pending.extend(harvested.iter());
                let mut epoch = backlog.begin(&harvested).unwrap();
                prop_assert!(epoch.pages().iter().eq(pending.iter().copied()));
                for (start, end) in sent {
                    epoch.sent(start..end);
                    pending.retain(|page| !(start..end).contains(page));
                }
                match ending {
                    Ending::Commit => {
                        epoch.commit();
                        pending.clear();
                    }
                    Ending::Abort => prop_assert_eq!(epoch.abort().raw(), pending.len() as u64),
                    Ending::Drop => drop(epoch),
                }
                prop_assert!(backlog.pages().iter().eq(pending.iter().copied()));
            }
        }
    }
}
