//! A VFIO container without a device: what `VFIO_IOMMU_MAP_DMA` and `VFIO_IOMMU_UNMAP_DMA` accept, and what they leave behind
//! (`vfio_iommu_type1.c:vfio_dma_do_map`, `vfio_dma_do_unmap`, interface `VFIO_TYPE1v2_IOMMU`).
//!
//! `/dev/vfio/vfio` takes these calls only when the container has a group, that is a device (`container.c:vfio_ioctl_set_iommu`). So
//! they are played here; a VMM puts its own ioctls behind [`Container`].

use std::collections::BTreeMap;

use slat::memslot::Errno;

const PAGE: u64 = 4096;

/// The two calls of a container that conversions need.
pub(crate) trait Container {
    /// `VFIO_IOMMU_MAP_DMA`, for reading and writing: devices reach host memory at these addresses, which is pinned.
    fn map_dma(&mut self, iova: u64, size: u64, vaddr: u64) -> Result<(), Errno>;

    /// `VFIO_IOMMU_UNMAP_DMA`; gives how many bytes were mapped. Mappings go as they came: the range may hold several, and cut none.
    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64, Errno>;
}

/// What was mapped by one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    size: u64,
    vaddr: u64,
}

/// The container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Type1 {
    /// By the first address.
    mappings: BTreeMap<u64, Mapping>,
    /// How many there may be (`dma_entry_limit`).
    pub(crate) entries: usize,
    /// How much may be pinned, in bytes (`RLIMIT_MEMLOCK`).
    pub(crate) lock_limit: u64,
}

impl Default for Type1 {
    fn default() -> Self {
        Self {
            mappings: BTreeMap::new(),
            entries: usize::from(u16::MAX),
            lock_limit: u64::MAX,
        }
    }
}

impl Type1 {
    /// How many bytes are pinned.
    pub(crate) fn pinned(&self) -> u64 {
        self.mappings.values().map(|mapping| mapping.size).sum()
    }

    /// How many mappings there are.
    pub(crate) fn len(&self) -> usize {
        self.mappings.len()
    }

    /// Where a device's access goes; `None` is a fault of the IOMMU.
    pub(crate) fn translate(&self, iova: u64) -> Option<u64> {
        let (start, mapping) = self.mappings.range(..=iova).next_back()?;
        let inside = iova - start;
        (inside < mapping.size).then_some(mapping.vaddr + inside)
    }

    /// The mapping that this address lies inside of, and not at the begin.
    fn cut_at(&self, iova: u64) -> bool {
        !self.mappings.contains_key(&iova) && self.translate(iova).is_some()
    }
}

impl Container for Type1 {
    fn map_dma(&mut self, iova: u64, size: u64, vaddr: u64) -> Result<(), Errno> {
        let end = iova.checked_add(size.wrapping_sub(1));
        let (Some(end), Some(_)) = (end, vaddr.checked_add(size.wrapping_sub(1))) else {
            return Err(Errno::EINVAL);
        };
        if size == 0 || (iova | size | vaddr) % PAGE != 0 {
            return Err(Errno::EINVAL);
        }
        if self.translate(iova).is_some() || self.mappings.range(iova..=end).next().is_some() {
            return Err(Errno::EEXIST);
        }
        if self.mappings.len() >= self.entries {
            return Err(Errno::ENOSPC);
        }
        if size > self.lock_limit.saturating_sub(self.pinned()) {
            return Err(Errno::ENOMEM);
        }
        self.mappings.insert(iova, Mapping { size, vaddr });
        Ok(())
    }

    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64, Errno> {
        let last = iova.checked_add(size.wrapping_sub(1));
        let Some(last) = last.filter(|_| size != 0 && (iova | size) % PAGE == 0) else {
            return Err(Errno::EINVAL);
        };
        let cuts_end = last
            .checked_add(1)
            .is_some_and(|behind| self.cut_at(behind));
        if self.cut_at(iova) || cuts_end {
            return Err(Errno::EINVAL);
        }
        let before = self.pinned();
        self.mappings
            .retain(|start, _| !(iova..=last).contains(start));
        Ok(before - self.pinned())
    }
}

#[cfg(test)]
mod tests {
    use core::ops::Range;

    use super::*;

    /// Numbers that repeat (Marsaglia's xorshift).
    fn below(state: &mut u64, end: usize) -> usize {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        usize::try_from((*state >> 11) % end as u64).expect("less than the end")
    }

    const PAGES: usize = 24;
    const ENTRIES: usize = 6;
    const LOCKED: usize = 18;

    /// Pages, each with the number of the call that mapped it.
    struct Pages([Option<u64>; PAGES]);

    impl Pages {
        fn mapped(&self) -> usize {
            self.0.iter().flatten().count()
        }

        fn calls(&self) -> usize {
            let mut calls: Vec<u64> = self.0.iter().flatten().copied().collect();
            calls.dedup();
            calls.len()
        }

        fn map(&mut self, range: Range<usize>, call: u64) -> Result<(), Errno> {
            if range.is_empty() {
                return Err(Errno::EINVAL);
            }
            if self.0[range.clone()].iter().any(Option::is_some) {
                return Err(Errno::EEXIST);
            }
            if self.calls() == ENTRIES {
                return Err(Errno::ENOSPC);
            }
            if self.mapped() + range.len() > LOCKED {
                return Err(Errno::ENOMEM);
            }
            self.0[range].fill(Some(call));
            Ok(())
        }

        fn unmap(&mut self, range: Range<usize>) -> Result<u64, Errno> {
            let cut = |at: usize| {
                let inside = (1..PAGES).contains(&at) && self.0[at].is_some();
                inside && self.0[at] == self.0[at - 1]
            };
            if range.is_empty() || cut(range.start) || cut(range.end) {
                return Err(Errno::EINVAL);
            }
            let before = self.mapped();
            self.0[range].fill(None);
            Ok((before - self.mapped()) as u64 * PAGE)
        }
    }

    #[test]
    fn a_container_keeps_what_was_mapped_at_a_time_together() {
        let given = std::env::var("SLAT_SEED").ok();
        let seed = given.and_then(|seed| seed.parse().ok()).unwrap_or(1_u64);
        println!("seed {seed}");
        let mut state = seed | 1;
        for _ in 0..200 {
            let mut container = Type1 {
                entries: ENTRIES,
                lock_limit: LOCKED as u64 * PAGE,
                ..Type1::default()
            };
            let mut pages = Pages([None; PAGES]);
            for call in 0..40 {
                let first = below(&mut state, PAGES);
                let count = below(&mut state, (PAGES - first).min(6));
                let (iova, size) = (first as u64 * PAGE, count as u64 * PAGE);
                let range = first..first + count;
                if below(&mut state, 2) == 0 {
                    let wanted = pages.map(range, call);
                    assert_eq!(container.map_dma(iova, size, iova), wanted);
                } else {
                    assert_eq!(container.unmap_dma(iova, size), pages.unmap(range));
                }
                for (page, mapped) in (0..).zip(&pages.0) {
                    let address = page * PAGE + 7;
                    assert_eq!(container.translate(address), mapped.map(|_| address));
                }
            }
        }
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let mut container = Type1::default();
        for (iova, size, vaddr) in [
            (0, 0, 0),
            (1, PAGE, 0),
            (0, PAGE + 1, 0),
            (0, PAGE, 8),
            (u64::MAX - PAGE + 1, 2 * PAGE, 0),
            (0, 2 * PAGE, u64::MAX - PAGE + 1),
        ] {
            assert_eq!(container.map_dma(iova, size, vaddr), Err(Errno::EINVAL));
        }
        for (iova, size) in [(0, 0), (1, PAGE), (0, 1), (u64::MAX - PAGE + 1, 2 * PAGE)] {
            assert_eq!(container.unmap_dma(iova, size), Err(Errno::EINVAL));
        }
        assert_eq!(container.unmap_dma(0, PAGE), Ok(0), "nothing is mapped");
    }
}
