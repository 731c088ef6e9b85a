//! Shadow pages: page tables that KVM's older MMU keeps in a hash.
//!
//! They serve three kinds of guests: those of a host without two-dimensional paging, whose own tables they follow; nested
//! guests, for which they follow the tables of L1's second stage; and, with `kvm.tdp_mmu=0`, ordinary guests, for which they
//! map frames in a line as the TDP MMU does.
//!
//! A [`ShadowMmu`] is a VM's. Everything that changes pages needs it alone, as KVM holds `mmu_lock` for writing:
//! [`ShadowMmu::lock`]. What KVM does without the lock is there without it as well: [`ShadowMmu::fast_fault`] and walks.
//!
//! | what | where | KVM counterpart |
//! |---|---|---|
//! | pages by frame and role, by age | `pages`, `get` | `kvm_mmu_find_shadow_page`, `active_mmu_pages` |
//! | which leaves map a frame, which entries link a page | `pte_list`, `rmap` | `kvm_rmap_head`, `parent_ptes` |
//! | zaps | `zap` | `__kvm_mmu_prepare_zap_page`, `kvm_zap_obsolete_pages`, `kvm_mmu_zap_oldest_mmu_pages` |
//! | storing a leaf | `set` | `mmu_set_spte` |
//! | faults that follow tables | `fetch` | `paging_tmpl.h:page_fault`, `paging_tmpl.h:fetch` |
//! | bringing pages into step | `sync`, `track` | `kvm_sync_page`, `mmu_sync_children`, `mmu_try_to_unsync_pages` |
//! | emulated writes to tables | `write` | `kvm_mmu_track_write` |
//! | faults that map in a line | `direct` | `direct_page_fault`, `direct_map` |
//! | frames: zapped, write-protected, aged | `frames` | `kvm_zap_rmap`, `slot_rmap_write_protect`, `kvm_age_rmap` |
//! | beside the TDP MMU | `beside` | `kvm_gfn_is_write_tracked`, `mmu_unsync_pages_lock`, `kvm_tdp_mmu_write_protect_gfn` |
//! | huge leaves split ahead of time | `split` | `kvm_shadow_mmu_try_split_huge_pages` |
//! | pages in place of huge ones | `nx` | `kvm_recover_nx_huge_pages` |
//! | roots | `load` | `mmu_alloc_direct_roots`, `mmu_alloc_shadow_roots` |
//!
//! # Invariants
//! - A leaf is in exactly one list of its frame and level, and a link in the list of the page that it leads to.
//! - The hash and the list of active pages have the same valid pages.
//! - Frames of guest tables above the last level are tracked and mapped writable nowhere.
//! - What is unsync is a page of the last level; the pages above it know.
//! - As many pages count against the limit as there are, but for those that only wait for a vCPU to leave them.
//!
//! Kernel 6.12.117.

pub mod audit;
mod beside;
mod direct;
mod fault_in;
mod fetch;
mod frames;
mod get;
mod guest;
mod held;
mod link;
mod load;
#[cfg(all(test, shuttle))]
mod model;
mod nx;
mod page;
mod pages;
mod pte_list;
mod rmap;
mod rules;
mod set;
mod sparse;
mod split;
mod stats;
mod sync;
#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
mod track;
mod walk;
mod write;
mod zap;

pub use beside::{NoTdp, ShadowBeside, TdpBeside};
pub use fault_in::{ResidentPages, ShadowBegun, ShadowFaultedIn, SlowShadowFault};
pub use fetch::{GuestWalk, MarkedTrail, ShadowFault};
pub use guest::Shadowed;
pub use held::ShadowLocked;
pub use load::{PaeRoots, Roots, SwitchRole};
pub use page::{PageId, PageInfo, SpteRef, ValidGeneration};
pub use rules::{ShadowRules, UnsyncChildren};
pub use stats::ShadowStats;
pub use walk::{Reached, ShadowRoot};
pub use write::{EmulatedWrite, EntryWritten};
pub use zap::NoRoom;

use slat_memslot::{AsId, Gfn, Level, Memory, PageSize, Pages, Slot};

use crate::ShadowPageLimit;
use crate::host::{Host, SecondStage};
use crate::role::PageRole;
use crate::roots::{Requests, RootId, RootTable, TdpMmu};
use crate::spte::{Codec, Format};
use crate::tdp::Observer;

/// The shadow pages of a VM.
///
/// ```
/// use slat_mmu::{host::Host, roots::TdpMmu, shadow::ShadowMmu, spte::Npt};
/// let mmu = ShadowMmu::<Npt>::new(&Host::shadow(40), TdpMmu::Off);
/// assert_eq!(mmu.used_pages().raw(), 0);
/// ```
#[derive(Debug)]
pub struct ShadowMmu<F: Format> {
    codec: Codec<F>,
    pages: pages::Pages<F>,
    lists: pte_list::Lists,
    frames: rmap::Frames,
    roots: RootTable<PageId>,
    generation: ValidGeneration,
    limit: ShadowPageLimit,
    stats: ShadowStats,
    /// Pages that stand in for huge ones and could be recovered, the first to go first (`possible_nx_huge_pages`).
    possible_nx: Vec<PageId>,
    /// Memory for splits ahead of time.
    split_caches: split::SplitCaches,
    /// Pages that follow tables of the guest's (`indirect_shadow_pages`).
    indirect: u64,
    requests: Requests,
    rules: ShadowRules,
}

impl<F: Format> ShadowMmu<F> {
    /// No pages, on a host. `tdp_mmu` says whether direct roots are the TDP MMU's.
    pub fn new(host: &Host, tdp_mmu: TdpMmu) -> Self {
        Self {
            codec: Codec::new(host),
            pages: pages::Pages::new(),
            lists: pte_list::Lists::default(),
            frames: rmap::Frames::default(),
            roots: RootTable::new(tdp_mmu),
            generation: ValidGeneration::default(),
            limit: ShadowPageLimit::new(),
            stats: ShadowStats::default(),
            possible_nx: Vec::new(),
            split_caches: split::SplitCaches::default(),
            indirect: 0,
            requests: Requests::NONE,
            rules: ShadowRules::UPSTREAM,
        }
    }

    /// With the rules of another kernel.
    #[must_use]
    pub fn with_rules(self, rules: ShadowRules) -> Self {
        Self { rules, ..self }
    }

    /// How entries are made and read.
    pub const fn codec(&self) -> &Codec<F> {
        &self.codec
    }

    /// The roots among the pages, for the caches of vCPUs.
    pub const fn roots(&self) -> &RootTable<PageId> {
        &self.roots
    }

    /// The limit of pages.
    pub const fn limit(&self) -> &ShadowPageLimit {
        &self.limit
    }

    /// What was counted.
    pub const fn stats(&self) -> &ShadowStats {
        &self.stats
    }

    /// Pages that count against the limit (`n_used_mmu_pages`).
    pub const fn used_pages(&self) -> Pages {
        Pages::new(self.pages.used)
    }

    /// Whether any page follows a table of the guest's, so that its writes to tables matter.
    pub const fn has_indirect(&self) -> bool {
        self.indirect > 0
    }

    /// What all vCPUs of the VM are to be asked for since this was last taken.
    #[must_use = "vCPUs must be asked"]
    pub const fn take_requests(&mut self) -> Requests {
        core::mem::replace(&mut self.requests, Requests::NONE)
    }

    /// Takes the lock for writing; `out` is told what happens. Where the TDP MMU has tables of the same VM, take
    /// [`ShadowMmu::lock_beside`] instead.
    pub fn lock<O: Observer<F>>(&mut self, out: O) -> ShadowLocked<'_, F, O> {
        ShadowLocked::new(self, out, NoTdp)
    }

    /// The same beside the tables of the TDP MMU, which the same lock guards.
    pub fn lock_beside<O: Observer<F>, T: TdpBeside<F>>(
        &mut self,
        out: O,
        tdp: T,
    ) -> ShadowLocked<'_, F, O, T> {
        ShadowLocked::new(self, out, tdp)
    }

    /// The pages for faults of the TDP MMU, which hold the lock for reading.
    pub fn beside(&mut self) -> ShadowBeside<'_, F> {
        ShadowBeside::new(self)
    }

    /// The active pages, the newest first (`active_mmu_pages`).
    pub fn active(&self) -> impl Iterator<Item = PageInfo> + '_ {
        let ids = self.pages.newest_first();
        ids.map(|id| self.info(id))
    }

    fn info(&self, id: PageId) -> PageInfo {
        self.pages.info(id, self.root_count(id))
    }

    /// How many vCPUs have a page as a root.
    fn root_count(&self, id: PageId) -> u32 {
        let root = self.pages.get(id).root;
        root.and_then(|root| self.roots.references(root))
            .unwrap_or(0)
    }

    /// Whether a page is to be dropped by those that use it (`mmu.c:is_obsolete_sp`).
    fn is_obsolete(&self, id: PageId) -> bool {
        let page = self.pages.get(id);
        page.role.is_invalid() || page.generation != self.generation
    }

    /// Whether the host has two-dimensional paging (`tdp_enabled`).
    fn has_tdp(&self) -> bool {
        self.codec.host().second_stage != SecondStage::Off
    }

    /// The page of a root; none if the root is gone.
    pub fn page_of_root(&self, root: RootId) -> Option<PageId> {
        self.roots.payload(root)
    }

    /// The role of a page.
    pub fn role_of(&self, page: PageId) -> Option<PageRole> {
        Some(self.pages.try_get(page)?.role)
    }

    /// Whether somebody wants to see every write to a frame, in either address space
    /// (`page_track.c:kvm_gfn_is_write_tracked`).
    pub fn is_write_tracked(&self, gfn: Gfn) -> bool {
        let spaces = [AsId::NORMAL, AsId::SMM];
        spaces
            .iter()
            .any(|as_id| self.frames.tracked(*as_id, gfn) > 0)
    }

    /// Whether shadowed tables allow a leaf of a size around a frame.
    pub fn allows_huge(&self, as_id: AsId, size: PageSize, gfn: Gfn) -> bool {
        self.frames.small(as_id, size.level(), gfn) == 0
    }

    /// The largest leaf that the slot, the attributes and shadowed tables allow around a frame, up to `most`
    /// (`mmu.c:__kvm_mmu_max_mapping_level`).
    pub fn largest_page(&self, memory: &Memory, slot: &Slot, gfn: Gfn, most: PageSize) -> PageSize {
        let key = slot.key();
        let allowed = |size: &PageSize| {
            *size <= most
                && self.allows_huge(key.as_id, *size, gfn)
                && memory.allows_huge(key, *size, gfn)
        };
        let huge = [PageSize::Size1G, PageSize::Size2M];
        huge.into_iter().find(allowed).unwrap_or(PageSize::Size4K)
    }
}

/// The size of leaves at a level.
const fn size_at(level: Level) -> PageSize {
    match level {
        Level::L1 => PageSize::Size4K,
        Level::L2 => PageSize::Size2M,
        Level::L3 | Level::L4 | Level::L5 => PageSize::Size1G,
    }
}
