//! Translations of the guest's own addresses to those of the host.

use slat_memslot::{Gpa, Gva, Hpa, Level};

use super::Tlb;
use super::context::{AddressSpaceId, Context, Pcid};
use crate::access::Access;
use crate::role::PageRole;
use crate::table::TableId;
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

/// A place, of 40 bytes. What is small lies in one word: few stores keep a page, for which whoever pins an epoch next waits;
/// and fewer pages of the host hold all places.
#[derive(Clone, Copy, Debug)]
struct Slot {
    address: Gva,
    gpa: Gpa,
    hpa: Hpa,
    context: Context,
    /// Rights in bits 0 and on, those of the second stage from bit 4, key from 8, size from 12; 0 if nothing is kept here.
    small: u32,
}

const KEPT: u32 = 1 << 31;
const GLOBAL: u32 = 1 << 30;
const DIRTY: u32 = 1 << 29;

impl Slot {
    fn empty() -> Self {
        Self {
            address: Gva::new(0),
            gpa: Gpa::new(0),
            hpa: Hpa::new(0),
            context: Context {
                root: TableId::new(0),
                role: PageRole::new(Level::L4),
                space: AddressSpaceId(0),
                pcid: Pcid::default(),
            },
            small: 0,
        }
    }

    #[inline(always)]
    fn keep(page: &CachedPage) -> Self {
        let rights = page.rights.bits() | page.second_rights.bits() << 4;
        let sizes = page.key & 0xf | (page.size as u8) << 4;
        Self {
            address: page.address,
            gpa: page.gpa,
            hpa: page.hpa,
            context: page.context,
            small: KEPT
                | u32::from(page.global) << 30
                | u32::from(page.dirty) << 29
                | u32::from(sizes) << 8
                | u32::from(rights),
        }
    }

    #[inline(always)]
    fn page(&self) -> Option<CachedPage> {
        let [rights, sizes, ..] = self.small.to_le_bytes();
        (self.small & KEPT != 0).then(|| CachedPage {
            context: self.context,
            address: self.address,
            gpa: self.gpa,
            hpa: self.hpa,
            size: LeafSize::ALL[usize::from(sizes >> 4) % LeafSize::ALL.len()],
            rights: Access::from_bits_truncate(rights & 0xf),
            second_rights: Access::from_bits_truncate(rights >> 4),
            key: sizes & 0xf,
            dirty: self.small & DIRTY != 0,
            global: self.small & GLOBAL != 0,
        })
    }
}

/// Direct-mapped by the page's number.
#[derive(Clone, Debug)]
pub(super) struct Pages(Box<[Slot; SLOTS]>);

impl Default for Pages {
    fn default() -> Self {
        Self(Box::new([Slot::empty(); SLOTS]))
    }
}

#[inline]
fn slot(address: Gva) -> usize {
    let [a, b, ..] = (address.raw() >> 12).to_le_bytes();
    usize::from(u16::from_le_bytes([a, b])) % SLOTS
}

impl Pages {
    /// The translation of an address, if it is kept.
    #[inline(always)]
    pub(super) fn find(&self, context: &Context, address: Gva) -> Option<CachedPage> {
        let kept = &self.0[slot(address)];
        // Most that is found at a place and does not fit is of another address.
        if kept.address.raw() >> 12 != address.raw() >> 12 {
            return None;
        }
        let page = kept.page()?;
        let same_context = page.context.is(context)
            || page.global
                && page.context.space == context.space
                && page.context.same_second(context);
        same_context.then_some(page)
    }

    #[inline(always)]
    pub(super) fn insert(&mut self, page: &CachedPage) {
        self.0[slot(page.address)] = Slot::keep(page);
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&CachedPage) -> bool) {
        for slot in &mut *self.0 {
            if slot.page().is_some_and(|page| !keep(&page)) {
                *slot = Slot::empty();
            }
        }
    }
}

impl Tlb {
    /// The translations that are kept.
    pub fn pages(&self) -> impl Iterator<Item = CachedPage> {
        self.pages.0.iter().filter_map(Slot::page)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// Every combination of the small fields comes back as it was.
    #[test]
    fn what_is_kept_is_what_was_given() {
        for bits in 0..1_u32 << 13 {
            let [low, high, ..] = bits.to_le_bytes();
            for size in LeafSize::ALL {
                let page = CachedPage {
                    context: Context {
                        root: TableId::new(bits),
                        role: PageRole::new(Level::L5),
                        space: AddressSpaceId(u16::from(low)),
                        pcid: Pcid::of_cr3(u64::from(bits)),
                    },
                    address: Gva::new(u64::from(bits) << 12),
                    gpa: Gpa::new(u64::MAX << 12),
                    hpa: Hpa::new(u64::from(bits) << 40),
                    size,
                    rights: Access::from_bits_truncate(low & 7),
                    second_rights: Access::from_bits_truncate(low >> 3 & 7),
                    key: high & 0xf,
                    dirty: low & 1 << 6 != 0,
                    global: low & 1 << 7 != 0,
                };
                assert_eq!(Slot::keep(&page).page(), Some(page));
            }
        }
        assert_eq!(Slot::empty().page(), None);
    }
}
