//! Memory that a VMM registers so that it stays where it is (`KVM_MEMORY_ENCRYPT_REG_REGION`).

use core::ops::Range;

use slat_memslot::Hva;

use super::error::SevRule;

const PAGE: u64 = 4096;

/// A range of a VMM's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EncRegion {
    /// Where it begins; need not be the start of a page.
    pub addr: Hva,
    /// Its bytes.
    pub size: u64,
}

impl EncRegion {
    /// How many pages it touches (`sev_pin_memory`); `None` if it is empty, wraps, or has more than 2^31 - 1.
    pub fn pages(self) -> Option<u64> {
        let start = self.addr.raw();
        let last = start.checked_add(self.size.checked_sub(1)?)?;
        // KVM has the end beside the start: a range that ends with the last byte of all wraps.
        let _end = start.checked_add(self.size)?;
        let pages = last / PAGE - start / PAGE + 1;
        (pages <= i32::MAX as u64).then_some(pages)
    }

    /// Those pages by number, from the start of memory; none where [`EncRegion::pages`] has none.
    fn numbers(self) -> Range<u64> {
        let first = self.addr.raw() / PAGE;
        first..first + self.pages().unwrap_or(0)
    }
}

/// All that is registered, with what may be pinned in all. The same range may be registered twice, and overlapping ones too; each
/// counts.
#[derive(Clone, Debug)]
pub struct Regions {
    list: Vec<EncRegion>,
    /// Of each, pages that are pinned and are not at their addresses any more.
    gone: Vec<Vec<Range<u64>>>,
    pinned: u64,
    limit: u64,
}

impl Default for Regions {
    fn default() -> Self {
        Self::with_limit(u64::MAX)
    }
}

impl Regions {
    /// None yet; at most so many pages may be pinned (`RLIMIT_MEMLOCK`, of a process without `CAP_IPC_LOCK`).
    pub const fn with_limit(limit: u64) -> Self {
        Self {
            list: Vec::new(),
            gone: Vec::new(),
            pinned: 0,
            limit,
        }
    }

    /// Pins a range (`sev_mem_enc_register_region`).
    ///
    /// # Errors
    /// The range is empty or wraps, or too much would be pinned.
    pub fn register(&mut self, region: EncRegion) -> Result<(), SevRule> {
        self.pinned = self.room_for(region)?;
        self.list.push(region);
        self.gone.push(Vec::new());
        Ok(())
    }

    /// What would be pinned with a range more.
    pub(super) fn room_for(&self, region: EncRegion) -> Result<u64, SevRule> {
        let pages = region.pages().ok_or(SevRule::EmptyOrWrapping)?;
        let pinned = self.pinned.saturating_add(pages);
        if pinned > self.limit {
            return Err(SevRule::LockLimit);
        }
        Ok(pinned)
    }

    /// Lets a range go (`sev_mem_enc_unregister_region`): the first that was registered with the same start and size.
    ///
    /// # Errors
    /// There is none. Part of a range cannot be let go.
    pub fn unregister(&mut self, region: EncRegion) -> Result<(), SevRule> {
        let found = self.list.iter().position(|known| *known == region);
        let index = found.ok_or(SevRule::NoSuchRegion)?;
        self.pinned -= region.pages().unwrap_or(0);
        let _region = self.list.remove(index);
        let _pages = self.gone.remove(index);
        Ok(())
    }

    /// Others take the place of pages. Those that were there stay pinned, and count, until their range is let go; nobody reaches them.
    pub(super) fn discard(&mut self, pages: &Range<u64>) {
        for (region, gone) in self.list.iter().zip(&mut self.gone) {
            let all = region.numbers();
            let part = pages.start.max(all.start)..pages.end.min(all.end);
            let known = |range: &Range<u64>| range.start <= part.start && part.end <= range.end;
            if !part.is_empty() && !gone.iter().any(known) {
                gone.push(part);
            }
        }
    }

    /// Whether the page that has this number now is pinned: a range was registered when it was there already.
    pub fn is_pinned(&self, page: u64) -> bool {
        let mut regions = self.list.iter().zip(&self.gone);
        regions.any(|(region, gone)| {
            region.numbers().contains(&page) && !gone.iter().any(|range| range.contains(&page))
        })
    }

    /// What is registered, oldest first.
    pub fn list(&self) -> &[EncRegion] {
        &self.list
    }

    /// Pages that are pinned, those of overlapping ranges counted for each.
    pub const fn pinned(&self) -> u64 {
        self.pinned
    }
}
