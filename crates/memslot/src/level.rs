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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_is_512_times_the_one_below() {
        for pair in Level::ALL.windows(2) {
            let [below, above] = [pair[0], pair[1]];
            assert_eq!(above.pages().raw(), 512 * below.pages().raw());
            assert_eq!(below.parent(), Some(above));
            assert_eq!(above.child(), Some(below));
        }
        assert_eq!((Level::L1.child(), Level::L5.parent()), (None, None));
        assert_eq!(Level::L1.pages(), Pages::new(1));
    }

    #[test]
    fn sizes_are_named_by_their_bytes() {
        let named = [("4K", 1 << 12), ("2M", 1 << 21), ("1G", 1 << 30)];
        let sizes = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
        for (size, (name, bytes)) in sizes.into_iter().zip(named) {
            assert_eq!(
                (size.to_string().as_str(), size.pages().bytes()),
                (name, bytes)
            );
        }
    }
}
