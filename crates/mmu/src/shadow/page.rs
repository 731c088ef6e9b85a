//! One shadow page (`struct kvm_mmu_page`).

use core::fmt;
use core::marker::PhantomData;

use slat_memslot::{Gfn, Level, PAGE_SHIFT};

use super::pte_list::ListHead;
use crate::access::Access;
use crate::role::{PageRole, Quadrant, RoleFlag};
use crate::roots::{Payload, RootId};
use crate::spte::Spte;
use crate::sync::{AtomicU32, Ordering, PlainAtomicU64};

/// Entries of a page.
pub(super) const ENTRIES: u16 = 512;

/// The number of a shadow page. It stands for the frame of its table, and is used again when the page is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct PageId(u32);

impl PageId {
    /// From the number.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The number.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

impl Payload for PageId {
    fn into_raw(self) -> u32 {
        self.0
    }

    fn from_raw(raw: u32) -> Self {
        Self(raw)
    }
}

/// One entry of a shadow page (`u64 *sptep`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpteRef {
    /// The page.
    pub page: PageId,
    /// The entry, below 512.
    pub index: u16,
}

/// Which of `mmu_valid_gen`'s two values a page has; pages of the other one are obsolete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ValidGeneration {
    /// 0.
    #[default]
    Even,
    /// 1.
    Odd,
}

impl ValidGeneration {
    /// KVM's number.
    pub const fn raw(self) -> u8 {
        self as u8
    }

    /// The other one.
    #[must_use]
    pub const fn next(self) -> Self {
        match self {
            Self::Even => Self::Odd,
            Self::Odd => Self::Even,
        }
    }
}

/// What KVM's page tracepoints print of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageInfo {
    /// Its number.
    pub page: PageId,
    /// `mmu_valid_gen`.
    pub generation: ValidGeneration,
    /// The frame of the guest's table, or the first frame that a direct page maps.
    pub gfn: Gfn,
    /// Its role.
    pub role: PageRole,
    /// How many vCPUs have it as a root.
    pub root_count: u32,
    /// Whether the guest may write to its table.
    pub unsync: bool,
}

/// As the tracepoints print it.
impl fmt::Display for PageInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sp gen {} gfn {:x} {} root {} {}",
            self.generation.raw(),
            self.gfn.raw(),
            self.role,
            self.root_count,
            if self.unsync { "unsync" } else { "sync" }
        )
    }
}

/// Where leaves of a page that shadows a table lead: the guest's own words (`shadowed_translation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shadowed {
    pub(super) gfn: u64,
    pub(super) access: Access,
}

/// The children of a page that have unsync pages below them or are such (`unsync_child_bitmap`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UnsyncChildren {
    pub(super) bits: [u64; 8],
    /// `unsync_children`.
    pub(super) count: u32,
}

impl UnsyncChildren {
    /// Marks an entry; says whether it was not marked.
    pub(super) fn set(&mut self, index: u16) -> bool {
        let (word, bit) = (usize::from(index >> 6), 1 << (index & 63));
        let new = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        self.count += u32::from(new);
        new
    }

    pub(super) fn clear(&mut self, index: u16) {
        let (word, bit) = (usize::from(index >> 6), 1 << (index & 63));
        self.count -= u32::from(self.bits[word] & bit != 0);
        self.bits[word] &= !bit;
    }

    pub(super) fn has(&self, index: u16) -> bool {
        self.bits[usize::from(index >> 6)] >> (index & 63) & 1 != 0
    }

    /// The first marked entry from one on.
    pub(super) fn next(&self, from: u16) -> Option<u16> {
        (from..ENTRIES).find(|index| self.has(*index))
    }
}

/// Whether a page stands in for a huge page that the mitigation of iTLB multihit forbids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum NxDisallowed {
    #[default]
    No,
    /// `nx_huge_page_disallowed`; the page is not on the list of those to recover.
    Yes,
    /// The same, and it is.
    Recoverable,
}

/// A shadow page.
#[derive(Debug)]
pub(super) struct Page<F> {
    pub(super) gfn: Gfn,
    pub(super) role: PageRole,
    pub(super) generation: ValidGeneration,
    /// Entries change with the lock held for writing, but for accessed and dirty bits, and write permissions that come
    /// back with a fast fault.
    pub(super) entries: Box<[PlainAtomicU64]>,
    pub(super) shadowed: Option<Box<[Shadowed; ENTRIES as usize]>>,
    /// The entries that link it.
    pub(super) parents: ListHead,
    /// Its name as a root, once it has been one.
    pub(super) root: Option<RootId>,
    pub(super) unsync: bool,
    pub(super) unsync_children: UnsyncChildren,
    /// Emulated writes to its table since a walk last went through it.
    pub(super) write_flooding: AtomicU32,
    pub(super) nx: NxDisallowed,
    /// Its neighbours on the list of active pages.
    pub(super) newer: Option<PageId>,
    pub(super) older: Option<PageId>,
    /// The next page in its bucket of the hash.
    pub(super) next_in_bucket: Option<PageId>,
    pub(super) format: PhantomData<fn() -> F>,
}

impl<F> Page<F> {
    pub(super) fn level(&self) -> Level {
        self.role.level()
    }

    /// Whether it follows a table of the guest's (`sp_has_gptes`).
    pub(super) fn has_gptes(&self) -> bool {
        !self.role.is_direct() && !self.role.has(RoleFlag::Passthrough)
    }

    /// A walk goes through it: it is a table indeed.
    pub(super) fn forget_flood(&self) {
        self.write_flooding.store(0, Ordering::Relaxed);
    }

    pub(super) fn entry(&self, index: u16) -> Spte<F> {
        Spte::from_raw(self.entries[usize::from(index)].load(Ordering::Acquire))
    }

    /// Stores an entry; gives the one that was there.
    pub(super) fn replace(&mut self, index: u16, spte: Spte<F>) -> Spte<F> {
        let entry = &self.entries[usize::from(index)];
        Spte::from_raw(entry.swap(spte.raw(), Ordering::AcqRel))
    }

    /// The frame of a leaf (`mmu.c:kvm_mmu_page_get_gfn`).
    pub(super) fn gfn_of(&self, index: u16) -> Gfn {
        if self.role.has(RoleFlag::Passthrough) {
            return self.gfn;
        }
        if let Some(shadowed) = &self.shadowed {
            return Gfn::new(shadowed[usize::from(index)].gfn);
        }
        let part = u64::from(index) << self.level().gfn_shift();
        Gfn::new(self.gfn.raw().wrapping_add(part))
    }

    /// What the guest's own entries allow for a leaf (`mmu.c:kvm_mmu_page_get_access`).
    pub(super) fn access_of(&self, index: u16) -> Access {
        match &self.shadowed {
            Some(shadowed) => shadowed[usize::from(index)].access,
            None => self.role.access(),
        }
    }

    pub(super) fn set_translation(&mut self, index: u16, gfn: Gfn, access: Access) {
        if let Some(shadowed) = &mut self.shadowed {
            shadowed[usize::from(index)] = Shadowed {
                gfn: gfn.raw(),
                access,
            };
        }
    }

    /// The guest-physical address of the first entry that it shadows (`paging_tmpl.h:get_level1_sp_gpa`).
    pub(super) fn first_gpte(&self) -> u64 {
        let quadrant = u64::from(self.role.quadrant() as u8);
        // A table of four-byte entries takes two pages.
        let offset = match self.role.has(RoleFlag::FourByteGpte) {
            true => quadrant << (PAGE_SHIFT - 1),
            false => 0,
        };
        (self.gfn.raw() << PAGE_SHIFT) + offset
    }
}

/// The quadrant with a number, of which the low two bits count.
pub(super) const fn quadrant(number: u16) -> Quadrant {
    match number & 3 {
        0 => Quadrant::Q0,
        1 => Quadrant::Q1,
        2 => Quadrant::Q2,
        _ => Quadrant::Q3,
    }
}
