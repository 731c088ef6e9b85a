//! What is known about a table, beside it (`struct kvm_mmu_page`).

use slat_memslot::Gfn;

use crate::role::PageRole;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::table::TableId;

/// The entry that links to a table (`sp->ptep`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Parent {
    /// The table it is in.
    pub table: TableId,
    /// Which one, from 0.
    pub index: usize,
}

/// No table.
const ROOT: u64 = u64::MAX;
const INDEX_BITS: u32 = 9;

impl Parent {
    #[expect(clippy::cast_possible_truncation, reason = "the number has 32 bits")]
    const fn unpack(raw: u64) -> Option<Self> {
        if raw == ROOT {
            return None;
        }
        Some(Self {
            table: TableId::new((raw >> INDEX_BITS) as u32),
            index: (raw & ((1 << INDEX_BITS) - 1)) as usize,
        })
    }

    const fn pack(self) -> u64 {
        (self.table.raw() as u64) << INDEX_BITS | self.index as u64
    }
}

/// What is known about a table. All of it is written before the table is linked, but for a root's role, which changes
/// under the exclusive lock only, and `nx_disallowed`, which is taken back.
#[derive(Debug, Default)]
pub(super) struct Page {
    role: AtomicU32,
    nx_disallowed: AtomicBool,
    gfn: AtomicU64,
    parent: AtomicU64,
}

impl Page {
    /// Describes a table that nobody else can reach yet.
    pub(super) fn describe(&self, role: PageRole, gfn: Gfn, parent: Option<Parent>) {
        self.role.store(role.bits(), Ordering::Relaxed);
        self.nx_disallowed.store(false, Ordering::Relaxed);
        self.gfn.store(gfn.raw(), Ordering::Relaxed);
        let parent = parent.map_or(ROOT, Parent::pack);
        self.parent.store(parent, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn role(&self) -> PageRole {
        PageRole::from_bits(self.role.load(Ordering::Relaxed))
    }

    pub(super) fn set_role(&self, role: PageRole) {
        self.role.store(role.bits(), Ordering::Relaxed);
    }

    /// The first frame that the table covers.
    #[inline]
    pub(super) fn gfn(&self) -> Gfn {
        Gfn::new(self.gfn.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn parent(&self) -> Option<Parent> {
        Parent::unpack(self.parent.load(Ordering::Relaxed))
    }

    /// Whether the table is there because a huge page must not be executable (`nx_huge_page_disallowed`).
    #[inline]
    pub(super) fn is_nx_disallowed(&self) -> bool {
        self.nx_disallowed.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn set_nx_disallowed(&self, disallowed: bool) {
        self.nx_disallowed.store(disallowed, Ordering::Relaxed);
    }
}
