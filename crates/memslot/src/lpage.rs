//! Where in a slot huge pages are forbidden: KVM's `lpage_info`, computed instead of stored.
//!
//! KVM keeps one 32-bit word per possible huge page and slot: 31 bits count the reasons against a huge page, bit 31
//! says that private and shared frames are mixed in it. A huge page may be mapped iff its word is 0. At creation
//! (`x86.c:kvm_alloc_memslot_metadata`) the words follow from the slot's alignment alone, so they are computed on
//! demand here, and only later deviations take memory. A slot of 1 TiB costs as much as one of a page.

use std::collections::BTreeMap;

use crate::{Gfn, GfnRange, Hva, PAGE_SHIFT, PageSize};

/// The huge-page permissions of one slot.
///
/// ```
/// use slat_memslot::{Gfn, GfnRange, Hva, LpageInfo, PageSize, Pages};
/// // 4 MiB and one page, from 2 MiB on; host and guest addresses agree modulo 2 MiB.
/// let range = GfnRange::new(Gfn::new(0x200), Pages::new(0x401)).unwrap();
/// let lpage = LpageInfo::new(range, Hva::new(0x7f00_0020_0000));
/// assert_eq!(lpage.entries(PageSize::Size2M), 3);
/// assert!(lpage.allows(PageSize::Size2M, Gfn::new(0x3ff)));
/// assert!(!lpage.allows(PageSize::Size2M, Gfn::new(0x600)));
/// ```
#[derive(Clone, Debug)]
pub struct LpageInfo {
    range: GfnRange,
    hva: Hva,
    /// Most slots have none, and are smaller so.
    overrides: Option<Box<Overrides>>,
}

/// Words that deviate, by size and huge frame number: the counts above the alignment's, and bit 31.
type Overrides = [BTreeMap<u64, u32>; 2];

/// Where a size's overrides are; 4 KiB pages have none.
fn slot_of(size: PageSize) -> Option<usize> {
    PageSize::HUGE.iter().position(|huge| *huge == size)
}

/// The number of the huge frame that holds `gfn`.
fn huge_frame(size: PageSize, gfn: Gfn) -> u64 {
    gfn.raw() >> size.level().gfn_shift()
}

impl LpageInfo {
    /// Bit 31: the huge page holds private and shared frames (`KVM_LPAGE_MIXED_FLAG`).
    pub const MIXED: u32 = 1 << 31;

    /// The permissions of a new slot over `range`, mapped at `hva`.
    ///
    /// `hva` counts for slots with a guest_memfd too; the offset in that file does not, as in KVM.
    pub const fn new(range: GfnRange, hva: Hva) -> Self {
        Self {
            range,
            hva,
            overrides: None,
        }
    }

    /// The slot's frames.
    pub const fn range(&self) -> GfnRange {
        self.range
    }

    /// The host address of the slot's first byte.
    pub const fn hva(&self) -> Hva {
        self.hva
    }

    /// How many pages of this size touch the slot, also partly: the length of KVM's array.
    pub fn entries(&self, size: PageSize) -> u64 {
        huge_frame(size, self.range.last()) - huge_frame(size, self.range.start()) + 1
    }

    /// The word of the huge page that holds `gfn`: the reasons against it, and [`MIXED`](Self::MIXED).
    ///
    /// 0 for 4 KiB pages of the slot. Where the slot has no word the answer is 1, since no leaf may be there.
    pub fn disallow(&self, size: PageSize, gfn: Gfn) -> u32 {
        if !self.has_entry(size, gfn) {
            return 1;
        }
        let deviation = slot_of(size)
            .and_then(|at| self.overrides.as_ref()?[at].get(&huge_frame(size, gfn)))
            .copied()
            .unwrap_or(0);
        deviation + u32::from(self.is_misaligned(size, gfn))
    }

    /// Whether a page of this size may be mapped around `gfn`, as far as the slot is concerned.
    pub fn allows(&self, size: PageSize, gfn: Gfn) -> bool {
        self.disallow(size, gfn) == 0
    }

    /// The largest page that may be mapped around `gfn`; `None` outside the slot
    /// (`mmu.c:__kvm_mmu_max_mapping_level`).
    pub fn largest(&self, gfn: Gfn) -> Option<PageSize> {
        let sizes = [PageSize::Size1G, PageSize::Size2M, PageSize::Size4K];
        sizes.into_iter().find(|size| self.allows(*size, gfn))
    }

    /// Counts a write-tracked frame: both huge pages around it get one reason more
    /// (`mmu.c:kvm_mmu_gfn_disallow_lpage`). `false` when the frame is outside the slot.
    pub fn track(&mut self, gfn: Gfn) -> bool {
        let inside = self.range.contains(gfn);
        if inside {
            for (size, words) in PageSize::HUGE.into_iter().zip(self.overrides_mut()) {
                let word = words.entry(huge_frame(size, gfn)).or_insert(0);
                // One below the flag, so that the count and the alignment's reason never reach it.
                if *word & !Self::MIXED < Self::MIXED - 2 {
                    *word += 1;
                }
            }
        }
        inside
    }

    /// Takes one [`track`](Self::track) back (`mmu.c:kvm_mmu_gfn_allow_lpage`); `false` when nothing was counted
    /// in one of the huge pages around the frame.
    pub fn untrack(&mut self, gfn: Gfn) -> bool {
        let counted = |(size, words): (PageSize, &BTreeMap<u64, u32>)| {
            let word = words.get(&huge_frame(size, gfn));
            word.is_some_and(|word| word & !Self::MIXED != 0)
        };
        let all = |words: &Overrides| PageSize::HUGE.into_iter().zip(words).all(counted);
        let found = self.range.contains(gfn) && self.overrides.as_deref().is_some_and(all);
        if found {
            for (size, words) in PageSize::HUGE.into_iter().zip(self.overrides_mut()) {
                change(words, huge_frame(size, gfn), |word| word - 1);
            }
        }
        found
    }

    /// Sets or clears bit 31 of the word around `gfn`. `false` where there is no such word.
    pub fn set_mixed(&mut self, size: PageSize, gfn: Gfn, mixed: bool) -> bool {
        let (Some(at), true) = (slot_of(size), self.has_entry(size, gfn)) else {
            return false;
        };
        let bit = if mixed { Self::MIXED } else { 0 };
        if mixed || self.overrides.is_some() {
            change(
                &mut self.overrides_mut()[at],
                huge_frame(size, gfn),
                |word| word & !Self::MIXED | bit,
            );
        }
        true
    }

    /// The overrides, made if there are none.
    fn overrides_mut(&mut self) -> &mut Overrides {
        self.overrides.get_or_insert_default()
    }

    /// Whether the slot has a word for the page around `gfn`.
    fn has_entry(&self, size: PageSize, gfn: Gfn) -> bool {
        let first = huge_frame(size, self.range.start());
        (first..=huge_frame(size, self.range.last())).contains(&huge_frame(size, gfn))
    }

    /// Whether alignment forbids the page: it sticks out of the slot, or guest and host address disagree below its
    /// size. Several such reasons still count once, since KVM assigns 1 instead of adding.
    fn is_misaligned(&self, size: PageSize, gfn: Gfn) -> bool {
        let low_bits = size.pages().raw() - 1;
        let first = gfn.raw() & !low_bits;
        let before = first < self.range.start().raw();
        let behind = first | low_bits > self.range.last().raw();
        let hva_frame = self.hva.raw() >> PAGE_SHIFT;
        before || behind || (self.range.start().raw() ^ hva_frame) & low_bits != 0
    }
}

/// Changes one word of a sparse map that holds no zero words.
fn change(words: &mut BTreeMap<u64, u32>, at: u64, new: impl FnOnce(u32) -> u32) {
    match new(words.get(&at).copied().unwrap_or(0)) {
        0 => words.remove(&at),
        word => words.insert(at, word),
    };
}

#[cfg(test)]
mod tests;
