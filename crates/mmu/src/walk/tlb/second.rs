//! Pages of the guest and where they are on the host.

use slat_memslot::{Gfn, Gpa};

use super::context::Context;
use crate::access::Access;
use crate::tdp::SecondPage;

/// How many pages are kept.
const SLOTS: usize = 1024;

/// A page of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SecondEntry {
    pub(super) context: Context,
    pub(super) gfn: Gfn,
    pub(super) page: SecondPage,
    /// Whether it was walked for a write, so that the leaf is marked as dirty.
    pub(super) dirty: bool,
}

/// Direct-mapped by frame.
#[derive(Clone, Debug)]
pub(super) struct SecondPages(Box<[Option<SecondEntry>]>);

impl Default for SecondPages {
    fn default() -> Self {
        Self(vec![None; SLOTS].into_boxed_slice())
    }
}

#[inline]
fn slot(gfn: Gfn) -> usize {
    let [a, b, ..] = gfn.raw().to_le_bytes();
    usize::from(u16::from_le_bytes([a, b])) % SLOTS
}

impl SecondPages {
    /// Where a page is, if that is kept and allows the access without a mark.
    #[inline]
    pub(super) fn find(&self, context: &Context, gpa: Gpa, wanted: Access) -> Option<&SecondEntry> {
        let entry = self.0[slot(gpa.gfn())].as_ref()?;
        let same = entry.gfn == gpa.gfn() && entry.context.same_second(context);
        let enough =
            entry.page.rights.contains(wanted) && (entry.dirty || !wanted.contains(Access::WRITE));
        (same && enough).then_some(entry)
    }

    #[inline]
    pub(super) fn insert(&mut self, entry: SecondEntry) {
        self.0[slot(entry.gfn)] = Some(entry);
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&Context, Gfn) -> bool) {
        for slot in &mut self.0 {
            if slot
                .as_ref()
                .is_some_and(|entry| !keep(&entry.context, entry.gfn))
            {
                *slot = None;
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &SecondEntry> {
        self.0.iter().flatten()
    }
}
