//! Paging levels and leaf sizes.

use crate::Pages;

/// A level of the page tables; `L1` holds 4 KiB leaves, as KVM's `PG_LEVEL_4K` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum Level {
    /// 4 KiB leaves.
    L1 = 1,
    /// 2 MiB leaves, or tables of level 1.
    L2,
    /// 1 GiB leaves, or tables of level 2.
    L3,
    /// 512 GiB per entry; never a leaf on x86.
    L4,
    /// 256 TiB per entry; never a leaf on x86.
    L5,
}

impl Level {
    /// All levels, lowest first.
    pub const ALL: [Self; 5] = [Self::L1, Self::L2, Self::L3, Self::L4, Self::L5];

    /// log2 of the 4 KiB pages that one entry of this level covers.
    #[inline]
    pub const fn gfn_shift(self) -> u32 {
        9 * (self as u32 - 1)
    }

    /// The 4 KiB pages that one entry of this level covers.
    #[inline]
    pub const fn pages(self) -> Pages {
        Pages::new(1 << self.gfn_shift())
    }

    /// The level above.
    #[inline]
    pub const fn parent(self) -> Option<Self> {
        match self {
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => Some(Self::L4),
            Self::L4 => Some(Self::L5),
            Self::L5 => None,
        }
    }

    /// The level below.
    #[inline]
    pub const fn child(self) -> Option<Self> {
        match self {
            Self::L1 => None,
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
            Self::L4 => Some(Self::L3),
            Self::L5 => Some(Self::L4),
        }
    }
}

/// The sizes a leaf can have; a leaf at level 4 cannot be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl PageSize {
    /// The two sizes above 4 KiB, smaller first: the levels `lpage_info` is kept for.
    pub const HUGE: [Self; 2] = [Self::Size2M, Self::Size1G];

    /// The level whose leaves have this size.
    #[inline]
    pub const fn level(self) -> Level {
        match self {
            Self::Size4K => Level::L1,
            Self::Size2M => Level::L2,
            Self::Size1G => Level::L3,
        }
    }

    /// The size in 4 KiB pages.
    #[inline]
    pub const fn pages(self) -> Pages {
        self.level().pages()
    }
}

impl core::fmt::Display for PageSize {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Size4K => "4K",
            Self::Size2M => "2M",
            Self::Size1G => "1G",
        })
    }
}
