//! What pages hold, as one byte each.

use std::collections::BTreeMap;

use crate::{GmemId, Hva, PAGE_SHIFT};

/// A page, by what it is a page of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A page of userspace's memory, by its number.
    Host(u64),
    /// A page of a guest_memfd.
    File(GmemId, u64),
}

impl Place {
    /// The page at a host address.
    pub const fn host(hva: Hva) -> Self {
        Self::Host(hva.raw() >> PAGE_SHIFT)
    }
}

/// What pages hold. Those that nobody wrote hold zeros and cost nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents(BTreeMap<Place, u8>);

impl Contents {
    /// What a page holds.
    pub fn get(&self, place: Place) -> u8 {
        self.0.get(&place).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, place: Place, byte: u8) {
        match byte {
            0 => drop(self.0.remove(&place)),
            byte => drop(self.0.insert(place, byte)),
        }
    }

    /// Pages that are given back.
    pub(crate) fn discard(&mut self, first: Place, end: Place) {
        while let Some((place, _)) = self.0.range(first..end).next() {
            let place = *place;
            self.0.remove(&place);
        }
    }
}
