//! Translations of the guest's own addresses to those of the host.

use slat_memslot::{Gpa, Gva, Hpa};

use super::Tlb;
use super::context::Context;
use crate::access::Access;
use crate::walk::LeafSize;

/// A translation of 4 KiB, whatever the sizes of the leaves that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedPage {
    /// To whom it belongs.
    pub context: Context,
    /// The page.
    pub address: Gva,
    /// Where it is for the guest.
    pub gpa: Gpa,
    /// Where it is for the host.
    pub hpa: Hpa,
    /// The size of the guest's leaf: a flush of any address in it concerns this page.
    pub size: LeafSize,
    /// What the guest's entries allow.
    pub rights: Access,
    /// What the second stage allows; reading is [`Access::USER`].
    pub second_rights: Access,
    /// The protection key.
    pub key: u8,
    /// Whether it may be written to without a walk: it was walked for a write, so that both leaves are marked as dirty.
    pub dirty: bool,
    /// Whether flushes of one identifier spare it (bit 8 of the leaf, with CR4.PGE).
    pub global: bool,
}

impl CachedPage {
    /// Whether an address is in the leaf that this page is part of.
    pub fn covers(&self, address: Gva) -> bool {
        match self.size.bytes() {
            Some(bytes) => (self.address.raw() ^ address.raw()) & !(bytes - 1) == 0,
            None => self.address.raw() >> 12 == address.raw() >> 12,
        }
    }
}

/// How many pages are kept.
const SLOTS: usize = 4096;

/// A place on a cache line of its own.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Slot(Option<CachedPage>);

/// Direct-mapped by the page's number.
#[derive(Clone, Debug)]
pub(super) struct Pages(Box<[Slot]>);

impl Default for Pages {
    fn default() -> Self {
        Self(vec![Slot::default(); SLOTS].into_boxed_slice())
    }
}

#[inline]
fn slot(address: Gva) -> usize {
    let [a, b, ..] = (address.raw() >> 12).to_le_bytes();
    usize::from(u16::from_le_bytes([a, b])) % SLOTS
}

impl Pages {
    /// The translation of an address, if it is kept.
    #[inline]
    pub(super) fn find(&self, context: &Context, address: Gva) -> Option<&CachedPage> {
        let page = self.0[slot(address)].0.as_ref()?;
        let same_page = page.address.raw() >> 12 == address.raw() >> 12;
        let same_context = page.context == *context
            || page.global
                && page.context.space == context.space
                && page.context.same_second(context);
        (same_page && same_context).then_some(page)
    }

    #[inline]
    pub(super) fn insert(&mut self, page: CachedPage) {
        self.0[slot(page.address)] = Slot(Some(page));
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&CachedPage) -> bool) {
        for slot in &mut self.0 {
            if slot.0.as_ref().is_some_and(|page| !keep(page)) {
                *slot = Slot(None);
            }
        }
    }
}

impl Tlb {
    /// The translations that are kept.
    pub fn pages(&self) -> impl Iterator<Item = &CachedPage> {
        self.pages.0.iter().filter_map(|slot| slot.0.as_ref())
    }
}
