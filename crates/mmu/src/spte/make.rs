//! Making present entries: leaves, links, the parts of a split page, and the page that replaces its parts.
//!
//! KVM counterpart: `spte.c`. [`Codec::make_leaf`] follows the order of `spte.c:make_spte`, since some rules undo what
//! an earlier one did. What the kernel asks of its surroundings on the way is a field of [`LeafRequest`].

use crate::role::{PageRole, RoleFlag};
use slat_memslot::{Level, PageSize};

use super::bits::{self, ept};
use super::entry::bits_if;
use super::{Access, AdType, Codec, Format, Pfn, Spte};
use crate::host::{AdBits, Layout};

/// Why a leaf is made, which decides its accessed bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Fill {
    /// The guest is waiting for it.
    #[default]
    Fault,
    /// Nobody has asked yet: `KVM_PRE_FAULT_MEMORY`, or the neighbours of a shadowed page.
    Prefetch,
    /// A shadow entry follows a change of the guest's (`paging_tmpl.h:sync_spte`).
    Sync,
}

/// What the host makes of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HostWrite {
    /// The guest may write to it.
    #[default]
    Allowed,
    /// The slot is read-only, or the host maps the page read-only.
    Refused,
}

/// What kind of memory the frame is (`spte.c:kvm_is_mmio_pfn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum PfnKind {
    /// RAM, the zero page, or whatever may be cached.
    #[default]
    Memory,
    /// A device of the host: never cached, never encrypted.
    HostMmio,
}

/// Whether the guest's PAT has a say in EPT leaves (`vmx.c:vmx_ignore_guest_pat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum GuestPat {
    /// It has none: there is no DMA that bypasses caches, and the quirk `IGNORE_GUEST_PAT` is on.
    #[default]
    Ignored,
    /// It has, since either does not hold.
    Honoured,
}

/// The mitigation of iTLB multihit (`kvm.nx_huge_pages`), for one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NxHugePages {
    /// Huge leaves may be executable.
    #[default]
    Off,
    /// They may not.
    On,
}

/// The answer to whether a page's writes are tracked, or whether it is a shadowed page table that cannot go out of step
/// (`mmu.c:mmu_try_to_unsync_pages`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Tracking {
    /// Writes need not be seen.
    #[default]
    None,
    /// Each write has to be seen: the leaf cannot be writable.
    EveryWrite,
}

/// What the role of a table says to the leaves in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableRole {
    /// The size of the table's leaves.
    pub size: PageSize,
    /// The access that the levels above allow (`role.access`).
    pub access: Access,
    /// How A/D bits are used ([`Codec::ad_type_of_table`]).
    pub ad: AdType,
}

/// Everything that a leaf depends on.
///
/// [`LeafRequest::new`] is a plain fault on writable memory; change the fields that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafRequest<F> {
    /// The entry that is there.
    pub old: Spte<F>,
    /// The table it is in.
    pub table: TableRole,
    /// The first frame.
    pub pfn: Pfn,
    /// What kind of memory it is.
    pub pfn_kind: PfnKind,
    /// The access to give; everything, but for shadowed pages.
    pub access: Access,
    /// Why it is made.
    pub fill: Fill,
    /// Whether the host allows writes.
    pub host_write: HostWrite,
    /// Whether writes are tracked. Asked for only if [`Codec::asks_for_tracking`].
    pub tracking: Tracking,
    /// Whether the guest's PAT has a say.
    pub guest_pat: GuestPat,
    /// Whether huge leaves may be executable.
    pub nx_huge_pages: NxHugePages,
    /// Whether the slot's writes are logged (`KVM_MEM_LOG_DIRTY_PAGES`).
    pub dirty_log: bool,
}

impl<F> LeafRequest<F> {
    /// A fault on ordinary, writable memory in a table of the TDP MMU with hardware A/D bits.
    pub const fn new(old: Spte<F>, size: PageSize, pfn: Pfn) -> Self {
        Self {
            old,
            table: TableRole {
                size,
                access: Access::all(),
                ad: AdType::Enabled,
            },
            pfn,
            pfn_kind: PfnKind::Memory,
            access: Access::all(),
            fill: Fill::Fault,
            host_write: HostWrite::Allowed,
            tracking: Tracking::None,
            guest_pat: GuestPat::Ignored,
            nx_huge_pages: NxHugePages::Off,
            dirty_log: false,
        }
    }

    const fn level(&self) -> Level {
        self.table.size.level()
    }
}

/// What KVM would warn about in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Warning {
    /// The leaf has bits that hardware reserves.
    ReservedBits {
        /// Those bits.
        bits: u64,
    },
    /// A huge leaf is writable in a slot whose writes are logged.
    HugeInDirtyLog,
}

/// A leaf that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the entry has to be stored, and the page may have to be logged"]
pub struct MadeLeaf<F> {
    /// The entry.
    pub spte: Spte<F>,
    /// Write access was asked for and held back, since writes are tracked. A write that faulted has to be emulated.
    pub write_protected: bool,
    /// The leaf is writable in a logged slot: its page is dirty from now on.
    pub mark_dirty: bool,
    /// What KVM would warn about.
    pub warning: Option<Warning>,
}

impl<F: Format> Codec<F> {
    /// How the leaves of a table use A/D bits, from its role and whether it belongs to a nested guest.
    ///
    /// ```
    /// use slat_mmu::host::Host;
    /// use slat_mmu::role::{PageRole, RoleFlag};
    /// use slat_mmu::spte::{AdType, Codec, Ept};
    /// let codec = Codec::<Ept>::new(&Host::ept(40));
    /// let role = PageRole::new(slat_memslot::Level::L4);
    /// assert_eq!(codec.ad_type_of_table(role), AdType::Enabled);
    /// let guest_mode = role.with(RoleFlag::GuestMode);
    /// assert_eq!(codec.ad_type_of_table(guest_mode), AdType::WriteProtectOnly);
    /// ```
    pub const fn ad_type_of_table(&self, role: PageRole) -> AdType {
        if role.has(RoleFlag::AdDisabled) {
            AdType::Disabled
        } else if role.has(RoleFlag::GuestMode) && self.host.pml() {
            AdType::WriteProtectOnly
        } else {
            AdType::Enabled
        }
    }

    /// Whether making this leaf depends on [`LeafRequest::tracking`]. KVM does not ask when a writable leaf is
    /// replaced; up to 6.12 the new one is then left clean, too.
    pub fn asks_for_tracking(&self, request: &LeafRequest<F>) -> bool {
        self.wants_write(request) && !replaces_writable(request)
    }

    /// Makes a leaf (`spte.c:make_spte`).
    // Faults do not ask for the warning, which then is not looked for.
    #[inline(always)]
    pub fn make_leaf(&self, request: &LeafRequest<F>) -> MadeLeaf<F> {
        let write_protected =
            self.asks_for_tracking(request) && request.tracking == Tracking::EveryWrite;
        let writable = self.wants_write(request) && !write_protected;
        let raw = Spte::<F>::leaf_mask(request.level())
            | self.masks.present
            | self.ad_bits(request.table.ad)
            | self.accessed_bits(request)
            | self.protection(self.leaf_access(request))
            | memory_bits::<F>(request)
            | bits_if(
                self.is_host_writable_request(request),
                self.masks.host_writable,
            )
            | bits_if(request.pfn_kind == PfnKind::Memory, self.masks.me_value)
            | request.pfn.address()
            | bits_if(writable, bits::WRITABLE | self.masks.mmu_writable)
            | bits_if(writable, self.dirty_bits(request));
        let spte = self.track_if_early(request, Spte::from_raw(raw));
        MadeLeaf {
            spte,
            write_protected,
            mark_dirty: spte.is_writable() && request.dirty_log,
            warning: self.leaf_warning(request, spte),
        }
    }

    /// Makes a link to a table (`spte.c:make_nonleaf_spte`). Only [`AdType::Disabled`] makes a difference.
    ///
    /// The TDP MMU passes whether the host has A/D bits at all, the shadow MMU what the table's role says.
    pub const fn make_link(&self, table: Pfn, ad: AdType) -> Spte<F> {
        let ad_bits = match ad {
            AdType::Disabled => self.ad_bits(AdType::Disabled),
            AdType::Enabled | AdType::WriteProtectOnly | AdType::Unused => self.masks.accessed,
        };
        Spte::from_raw(bits::MMU_PRESENT | self.masks.link | table.address() | ad_bits)
    }

    /// Makes the entry `index` of the table `child` that a huge leaf is split into (`spte.c:make_small_spte`, before 6.13
    /// `spte.c:make_huge_page_split_spte`). `None` where KVM would declare the VM broken: `huge` is no huge leaf.
    ///
    /// A 4 KiB leaf becomes executable again where only its size forbade it. All else is kept.
    pub fn make_small(
        &self,
        huge: Spte<F>,
        child: &TableRole,
        index: u16,
        nx_huge_pages: NxHugePages,
    ) -> Option<Spte<F>> {
        if !huge.is_present() || !huge.is_large() || index >= 512 {
            return None;
        }
        let offset = u64::from(index) * child.size.pages().raw();
        let small = huge.with(Pfn::new(offset).address());
        if child.size != PageSize::Size4K {
            return Some(small);
        }
        let small = small.without(bits::PAGE_SIZE);
        Some(match nx_huge_pages {
            NxHugePages::Off => small,
            NxHugePages::On => self.regain_execute(small, child.access),
        })
    }

    /// Makes the huge leaf that replaces a table from one of its leaves (`spte.c:make_huge_spte`, since 6.13). `None`
    /// where KVM would declare the VM broken: `small` is not present, or `size` is not huge.
    pub fn make_huge(
        &self,
        small: Spte<F>,
        size: PageSize,
        nx_huge_pages: NxHugePages,
    ) -> Option<Spte<F>> {
        if !small.is_present() || size == PageSize::Size4K {
            return None;
        }
        let inside = Pfn::new(size.pages().raw() - 1).address();
        let huge = small.with(bits::PAGE_SIZE).without(inside);
        Some(match nx_huge_pages {
            NxHugePages::Off => huge,
            NxHugePages::On => self.with_execute(huge, Access::empty()),
        })
    }

    /// The access that is left when huge leaves must not be executable.
    fn leaf_access(&self, request: &LeafRequest<F>) -> Access {
        match (request.table.size, request.nx_huge_pages) {
            (PageSize::Size4K, _) | (_, NxHugePages::Off) => request.access,
            (PageSize::Size2M | PageSize::Size1G, NxHugePages::On) => {
                request.access - self.every_execution()
            }
        }
    }

    /// Everything that is a right to execute.
    const fn every_execution(&self) -> Access {
        match self.masks.user_execute {
            0 => Access::EXECUTE,
            _ => Access::EXECUTE.union(Access::USER),
        }
    }

    fn is_host_writable_request(&self, request: &LeafRequest<F>) -> bool {
        request.host_write == HostWrite::Allowed
    }

    fn wants_write(&self, request: &LeafRequest<F>) -> bool {
        request.access.contains(Access::WRITE) && self.is_host_writable_request(request)
    }

    fn accessed_bits(&self, request: &LeafRequest<F>) -> u64 {
        let accessed = match (self.host.ad_bits, request.fill) {
            (AdBits::Hardware, Fill::Fault) => request.table.ad != AdType::Disabled,
            (AdBits::Software, Fill::Fault | Fill::Sync) => true,
            (AdBits::Hardware, Fill::Sync) | (_, Fill::Prefetch) => false,
        };
        bits_if(accessed, self.masks.accessed)
    }

    /// Up to 6.12 a leaf that replaces a writable one stays clean. An old MMIO entry of EPT or NPT at level 1 counts as
    /// writable, since its bit 1 is set.
    fn dirty_bits(&self, request: &LeafRequest<F>) -> u64 {
        let dirty = match self.host.ad_bits {
            AdBits::Hardware => request.table.ad != AdType::Disabled && !replaces_writable(request),
            AdBits::Software => true,
        };
        bits_if(dirty, self.masks.dirty)
    }

    fn track_if_early(&self, request: &LeafRequest<F>, spte: Spte<F>) -> Spte<F> {
        match (self.host.ad_bits, request.fill) {
            (_, Fill::Prefetch) | (AdBits::Hardware, Fill::Sync) => self.track_access(spte),
            (_, Fill::Fault) | (AdBits::Software, Fill::Sync) => spte,
        }
    }

    fn leaf_warning(&self, request: &LeafRequest<F>, spte: Spte<F>) -> Option<Warning> {
        let level = request.level();
        let bits = self.reserved.violations(spte, level);
        if bits != 0 {
            return Some(Warning::ReservedBits { bits });
        }
        let logged_huge = spte.is_writable() && request.dirty_log && level > Level::L1;
        logged_huge.then_some(Warning::HugeInDirtyLog)
    }

    /// What a 4 KiB leaf may execute again. Before P3 it is all or nothing, and a table without execution leaves it.
    fn regain_execute(&self, small: Spte<F>, access: Access) -> Spte<F> {
        match self.host.layout {
            Layout::P1 | Layout::P2 if !access.contains(Access::EXECUTE) => small,
            Layout::P1 | Layout::P2 | Layout::P3 => self.with_execute(small, access),
        }
    }

    /// With the right to execute that `access` has, whether tracked or not (`spte.c:make_spte_executable`,
    /// `spte.c:make_spte_nonexecutable`).
    fn with_execute(&self, spte: Spte<F>, access: Access) -> Spte<F> {
        let all = F::EXECUTE | F::NO_EXECUTE | self.masks.user_execute;
        let set = self.protection(access) & all;
        if !self.is_access_tracked(spte) {
            return spte.without(all).with(set);
        }
        let restored = self.restore_access(spte).without(all).with(set);
        self.track_access(restored)
    }
}

/// Whether the old entry passes for a writable leaf. At level 1 every value does that has bit 1.
fn replaces_writable<F>(request: &LeafRequest<F>) -> bool {
    request.old.is_last(request.level()) && request.old.is_writable()
}

/// The memory type (`vmx.c:vmx_get_mt_mask`); NPT has none.
fn memory_bits<F: Format>(request: &LeafRequest<F>) -> u64 {
    let memory = match (request.pfn_kind, request.guest_pat) {
        (PfnKind::HostMmio, _) => 0,
        (PfnKind::Memory, GuestPat::Ignored) => ept::WRITE_BACK | ept::IGNORE_PAT,
        (PfnKind::Memory, GuestPat::Honoured) => ept::WRITE_BACK,
    };
    memory & F::MEMORY_TYPE
}
