//! Memory whose contents are symbols, under keys that are symbols.

use core::ops::Range;

use rustc_hash::FxHashMap;

/// Parts of a page that are written one at a time.
pub const HALVES: usize = 2;

/// A memory encryption key: the name of the guest that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    pub(super) const fn new(raw: u64) -> Self {
        Self(raw)
    }
}

/// What half a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stored {
    /// A value that was written under a key, or without one.
    Value {
        /// What was written.
        value: u64,
        /// Under which key.
        key: Option<Key>,
    },
    /// What nobody ever wrote: another key's text that was taken for one's own.
    Noise,
}

impl Stored {
    /// What is read with this key, or without one: the value if it was written that way.
    pub fn read(self, with: Option<Key>) -> Option<u64> {
        match self {
            Self::Value { value, key } if key == with => Some(value),
            Self::Value { .. } | Self::Noise => None,
        }
    }

    pub(super) fn under(value: Option<u64>, key: Option<Key>) -> Self {
        match value {
            Some(value) => Self::Value { value, key },
            None => Self::Noise,
        }
    }
}

/// Pages by number, zero and in the clear until they are written.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages(FxHashMap<u64, [Stored; HALVES]>);

impl Pages {
    pub(super) fn page(&self, number: u64) -> [Stored; HALVES] {
        const ZERO: Stored = Stored::Value {
            value: 0,
            key: None,
        };
        self.0.get(&number).copied().unwrap_or([ZERO; HALVES])
    }

    /// Others take the place of pages, zero and in the clear.
    pub(super) fn discard(&mut self, numbers: &Range<u64>) {
        self.0.retain(|number, _| !numbers.contains(number));
    }

    /// The host copies a page to another frame, as it is in memory. Encryption depends on the frame: what was written under a key is
    /// text of no key there.
    pub(super) fn relocate(&mut self, number: u64) {
        let moved = self.page(number).map(|half| match half {
            Stored::Value { key: None, .. } => half,
            Stored::Value { key: Some(_), .. } | Stored::Noise => Stored::Noise,
        });
        self.set(number, moved);
    }

    pub(super) fn set(&mut self, number: u64, page: [Stored; HALVES]) {
        let _before = self.0.insert(number, page);
    }

    pub(super) fn set_half(&mut self, number: u64, half: usize, stored: Stored) {
        let mut page = self.page(number);
        page[half] = stored;
        self.set(number, page);
    }
}
