//! Host page frames.

use core::fmt;

use slat_memslot::{Level, Pages};

/// A host page frame: a physical address divided by 4096 (`kvm_pfn_t`, without its error values).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pfn(u64);

impl Pfn {
    /// Wraps a frame number. Those of 40 bits and less fit an entry.
    #[inline]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The frame number.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Adds a count of frames; `None` when the sum does not fit 64 bits.
    #[inline]
    pub const fn checked_add(self, pages: Pages) -> Option<Self> {
        match self.0.checked_add(pages.raw()) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The frame rounded down to the start of its huge page at `level`.
    #[inline]
    pub const fn round_down(self, level: Level) -> Self {
        Self(self.0 & !(level.pages().raw() - 1))
    }

    /// The address bits of an entry.
    #[inline]
    pub(crate) const fn address(self) -> u64 {
        self.0 << 12
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
