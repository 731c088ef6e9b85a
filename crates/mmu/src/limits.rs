//! How many shadow pages a VM may have, and who says so.
//!
//! KVM counterparts: `x86.c:kvm_arch_commit_memory_region` (the automatic limit), `x86.c:kvm_vm_ioctl_set_nr_mmu_pages`
//! (the user's) and `mmu.c:kvm_mmu_change_mmu_pages` (a new limit takes effect). Pages of the TDP MMU are not
//! counted, so on a host that uses it the limit matters only to what is shadowed for nested guests.

use slat_memslot::{ChangeKind, Pages, VmError};

#[cfg(test)]
mod tests;

/// Who has chosen the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Tuning {
    /// KVM, from the size of all slots.
    #[default]
    Automatic,
    /// Userspace, through `KVM_SET_NR_MMU_PAGES`; for the rest of the VM's life.
    User,
}

/// Shadow pages over a new limit, which KVM zaps at once, the oldest first (`kvm_mmu_zap_oldest_mmu_pages`).
///
/// A page in use as a root stays, and a page can take others with it. When the zap is over, the count
/// of pages that are left becomes the limit ([`ShadowPageLimit::settle`]).
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "the oldest shadow pages have to go"]
pub struct Eviction {
    /// How many pages are over the limit.
    pub excess: Pages,
}

/// The most shadow pages that a VM may have (`n_max_mmu_pages`).
///
/// The automatic limit is a fiftieth of the pages in all slots of all address spaces, but at least 64. It is computed
/// anew when a slot is created or deleted, so that deleting a large slot can evict page tables of all the others.
/// `KVM_SET_NR_MMU_PAGES` sets another one and turns that off.
///
/// ```
/// use slat_memslot::{ChangeKind, Pages};
/// use slat_mmu::ShadowPageLimit;
///
/// let mut limit = ShadowPageLimit::new();
/// let in_use = Pages::new(135);
/// // 256 MiB and 18 MiB of slots: room for 1402 shadow pages.
/// assert_eq!(limit.commit_region(ChangeKind::Create, Pages::new(65_536 + 4608), in_use), None);
/// assert_eq!(limit.pages(), Pages::new(1402));
/// // The large slot goes. 92 pages are allowed now, so 43 of those in use must go with it.
/// let eviction = limit.commit_region(ChangeKind::Delete, Pages::new(4608), in_use).unwrap();
/// assert_eq!(eviction.excess, Pages::new(43));
/// limit.settle(eviction, Pages::new(92));
///
/// // A limit of one's own stays where it is.
/// assert_eq!(limit.set_by_user(4096, in_use), Ok(None));
/// assert_eq!(limit.commit_region(ChangeKind::Delete, Pages::new(0), in_use), None);
/// assert_eq!(limit.pages(), Pages::new(4096));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ShadowPageLimit {
    pages: Pages,
    tuning: Tuning,
}

impl ShadowPageLimit {
    /// The fewest pages that can be asked for, and the least automatic limit (`KVM_MIN_ALLOC_MMU_PAGES`).
    pub const LEAST: Pages = Pages::new(64);

    /// Slot pages for each shadow page of the automatic limit (`KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO`).
    pub const SLOT_PAGES_PER_SHADOW_PAGE: u64 = 50;

    /// A new VM: without a slot there is no shadow page either.
    pub const fn new() -> Self {
        Self {
            pages: Pages::new(0),
            tuning: Tuning::Automatic,
        }
    }

    /// The automatic limit for slots of `slot_pages` in all.
    ///
    /// ```
    /// use slat_memslot::Pages;
    /// use slat_mmu::ShadowPageLimit;
    /// assert_eq!(ShadowPageLimit::automatic(Pages::new(3249)), Pages::new(64));
    /// assert_eq!(ShadowPageLimit::automatic(Pages::in_bytes(1 << 30)), Pages::new(5242));
    /// ```
    #[inline]
    pub fn automatic(slot_pages: Pages) -> Pages {
        Pages::new(slot_pages.raw() / Self::SLOT_PAGES_PER_SHADOW_PAGE).max(Self::LEAST)
    }

    /// The limit.
    #[inline]
    pub const fn pages(&self) -> Pages {
        self.pages
    }

    /// Who has chosen it.
    #[inline]
    pub const fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// How many more pages may come while `in_use` are there (`kvm_mmu_available_pages`).
    #[inline]
    pub const fn available(&self, in_use: Pages) -> Pages {
        Pages::new(self.pages.raw().saturating_sub(in_use.raw()))
    }

    /// Follows a set-region call that has been carried out (`kvm_arch_commit_memory_region`).
    ///
    /// `slot_pages` counts all slots of all address spaces after the call ([`slat_memslot::Memory::total_pages`]),
    /// `in_use` the shadow pages. Gives what must be evicted, if anything.
    pub fn commit_region(
        &mut self,
        kind: ChangeKind,
        slot_pages: Pages,
        in_use: Pages,
    ) -> Option<Eviction> {
        match (self.tuning, kind) {
            (Tuning::Automatic, ChangeKind::Create | ChangeKind::Delete) => {
                self.change(Self::automatic(slot_pages), in_use)
            }
            _ => None,
        }
    }

    /// Answers `KVM_SET_NR_MMU_PAGES`. Gives what must be evicted, if anything.
    ///
    /// # Errors
    /// Fewer than [`ShadowPageLimit::LEAST`] pages; nothing changes then, and tuning stays as it was.
    pub fn set_by_user(&mut self, pages: u64, in_use: Pages) -> Result<Option<Eviction>, VmError> {
        if Pages::new(pages) < Self::LEAST {
            return Err(VmError::NrMmuPages { pages });
        }
        self.tuning = Tuning::User;
        Ok(self.change(Pages::new(pages), in_use))
    }

    /// Ends an [`Eviction`]: the pages left in use are the limit now, whether more or fewer than asked for.
    pub fn settle(&mut self, eviction: Eviction, in_use: Pages) {
        let Eviction { excess: _ } = eviction;
        self.pages = in_use;
    }

    /// `kvm_mmu_change_mmu_pages`.
    fn change(&mut self, goal: Pages, in_use: Pages) -> Option<Eviction> {
        self.pages = goal;
        (in_use > goal).then(|| Eviction {
            excess: in_use - goal,
        })
    }
}
