//! Addresses, frames and counts as types, so that a guest frame cannot be passed where a host address is meant.
//!
//! Only meaningful arithmetic exists: a frame plus a count of pages is a frame, the distance of two frames is a
//! count. Raw integers come back with `raw()` at the two edges that need them, ABI structs and entry bits.

use core::fmt;

/// log2 of the base page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a base page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident, $label:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw value; every value is allowed.
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw value.
            #[inline]
            pub const fn raw(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, " {:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

macro_rules! byte_address {
    ($name:ident) => {
        impl $name {
            /// Whether the address is a multiple of 4096.
            #[inline]
            pub const fn is_page_aligned(self) -> bool {
                self.0 & (PAGE_SIZE - 1) == 0
            }

            /// Adds a number of bytes; `None` when the sum does not fit 64 bits.
            #[inline]
            pub const fn checked_add_bytes(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }
    };
}

macro_rules! frame {
    ($name:ident) => {
        impl $name {
            /// Adds a count of pages; `None` when the sum does not fit 64 bits.
            #[inline]
            pub const fn checked_add(self, pages: Pages) -> Option<Self> {
                match self.0.checked_add(pages.0) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// The frame rounded down to the start of its huge page at `level`.
            #[inline]
            pub const fn round_down(self, level: crate::Level) -> Self {
                Self(self.0 & !(level.pages().raw() - 1))
            }
        }

        impl core::ops::Add<Pages> for $name {
            type Output = Self;
            #[inline]
            fn add(self, pages: Pages) -> Self {
                Self(self.0 + pages.0)
            }
        }

        impl core::ops::Sub for $name {
            type Output = Pages;
            #[inline]
            fn sub(self, other: Self) -> Pages {
                Pages(self.0 - other.0)
            }
        }
    };
}

unit!(
    /// A guest-physical address, in bytes.
    Gpa, "gpa"
);
unit!(
    /// A host-virtual address in the VMM's process, in bytes (`userspace_addr` of a memory slot).
    Hva, "hva"
);
unit!(
    /// A guest-virtual address, in bytes: what a guest's instructions use, a linear address.
    Gva, "gva"
);
unit!(
    /// A host-physical address, in bytes: what second-stage tables translate to.
    Hpa, "hpa"
);
unit!(
    /// A guest frame number: a guest-physical address divided by 4096.
    Gfn, "gfn"
);
unit!(
    /// A count of 4 KiB pages.
    Pages, "pages"
);
byte_address!(Gpa);
byte_address!(Hva);
byte_address!(Gva);
byte_address!(Hpa);
frame!(Gfn);

impl Gpa {
    /// The frame that holds this address.
    #[inline]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }
}

impl Gfn {
    /// The address of the frame's first byte. Frames of 52 bits and more do not fit and lose their upper bits, as
    /// a shift in C does.
    #[inline]
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }
}

impl Pages {
    /// The count in bytes. Counts of 2^52 and more lose their upper bits.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// The whole pages in `bytes`, rounded down.
    #[inline]
    pub const fn in_bytes(bytes: u64) -> Self {
        Self(bytes >> PAGE_SHIFT)
    }
}

impl core::ops::Add for Pages {
    type Output = Self;
    #[inline]
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl core::ops::Sub for Pages {
    type Output = Self;
    #[inline]
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl core::ops::AddAssign for Pages {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl core::ops::SubAssign for Pages {
    #[inline]
    fn sub_assign(&mut self, other: Self) {
        self.0 -= other.0;
    }
}

/// A half-open, non-empty range of guest frames.
///
/// ```
/// use slat_memslot::{Gfn, GfnRange, Pages};
/// let range = GfnRange::new(Gfn::new(0x100), Pages::new(16)).unwrap();
/// assert_eq!(range.end(), Gfn::new(0x110));
/// assert!(range.contains(Gfn::new(0x10f)) && !range.contains(range.end()));
/// assert!(GfnRange::new(Gfn::new(0), Pages::new(0)).is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GfnRange {
    start: Gfn,
    end: Gfn,
}

impl GfnRange {
    /// The range of `pages` frames from `start`; `None` when it is empty or its end does not fit.
    #[inline]
    pub const fn new(start: Gfn, pages: Pages) -> Option<Self> {
        match start.checked_add(pages) {
            Some(end) if pages.0 != 0 => Some(Self { start, end }),
            _ => None,
        }
    }

    /// The range from `start` up to, not including, `end`; `None` when it would be empty.
    #[inline]
    pub const fn between(start: Gfn, end: Gfn) -> Option<Self> {
        if start.0 < end.0 {
            Some(Self { start, end })
        } else {
            None
        }
    }

    /// The first frame.
    #[inline]
    pub const fn start(self) -> Gfn {
        self.start
    }

    /// The frame behind the last one.
    #[inline]
    pub const fn end(self) -> Gfn {
        self.end
    }

    /// The last frame.
    #[inline]
    pub const fn last(self) -> Gfn {
        Gfn(self.end.0 - 1)
    }

    /// How many frames.
    #[inline]
    pub const fn pages(self) -> Pages {
        Pages(self.end.0 - self.start.0)
    }

    /// Whether `gfn` lies inside.
    #[inline]
    pub const fn contains(self, gfn: Gfn) -> bool {
        self.start.0 <= gfn.0 && gfn.0 < self.end.0
    }

    /// Whether `other` lies inside as a whole.
    #[inline]
    pub const fn covers(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }

    /// Whether the two share a frame.
    #[inline]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.0 < other.end.0 && other.start.0 < self.end.0
    }

    /// The frames that both hold.
    #[inline]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::between(self.start.max(other.start), self.end.min(other.end))
    }
}

impl fmt::Debug for GfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gfn {self}")
    }
}

impl fmt::Display for GfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start.0, self.end.0)
    }
}

#[cfg(test)]
mod tests;
