//! The root in use and three earlier ones.

use crate::role::PageRole;

use super::order::Order;
use super::root::{Payload, Released, RootId};
use super::table::RootTable;

/// What a vCPU's own top-level table is: CR3, an EPT pointer, or a nested CR3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Pgd(u64);

impl Pgd {
    /// What direct roots are kept under.
    pub const ZERO: Self = Self(0);

    /// From the register.
    #[inline]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The register.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }
}

/// A root without a page of its own in the table of roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpecialRoot {
    /// Four page-directory pointers in a page of the vCPU.
    Pae,
    /// An empty page, for a guest whose table is in no slot.
    Dummy,
}

/// What a place in the cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Root {
    /// Nothing.
    #[default]
    None,
    /// A root without a page of its own; only ever the one in use.
    Special(SpecialRoot),
    /// A root of the table.
    Page(RootId),
}

/// A reference that a cache gave up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a root that was freed takes its page tables along"]
pub enum Dropped<P> {
    /// A root that nobody else can hold.
    Special(SpecialRoot),
    /// A reference to a root of the table.
    Page(Released<P>),
}

bitflags::bitflags! {
    /// Places of a cache (`KVM_MMU_ROOT_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct RootSet: u8 {
        /// The root in use.
        const CURRENT = 1 << 0;
        /// The one before it.
        const PREVIOUS_0 = 1 << 1;
        /// The one before that.
        const PREVIOUS_1 = 1 << 2;
        /// The oldest.
        const PREVIOUS_2 = 1 << 3;
    }
}

impl RootSet {
    /// The place with this number, 0 being the one in use.
    pub(super) const fn place(number: usize) -> Self {
        Self::from_bits_truncate(1 << (number & 3))
    }
}

/// Where a switch found its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Found {
    /// It was in use already.
    Current,
    /// In this place of the earlier ones, 0 being the latest; it is in use now.
    Previous(usize),
    /// Nowhere: no root is in use now, and one must be loaded.
    Nowhere,
}

impl Found {
    /// In the place with this number, 0 being the one in use.
    #[inline]
    const fn at(number: usize) -> Self {
        match number.checked_sub(1) {
            None => Self::Current,
            Some(previous) => Self::Previous(previous),
        }
    }
}

/// What a switch did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a miss leaves the vCPU without a root, and a root that was freed takes its page tables along"]
pub struct Switch<P> {
    /// Where the root was.
    pub found: Found,
    /// What had to go.
    pub dropped: Option<Dropped<P>>,
}

/// Places of a cache.
const PLACES: usize = 4;

/// The root in use and the three before it, each with the CR3 it was made for (`struct kvm_mmu`'s `root` and
/// `prev_roots`).
///
/// A cache holds a reference to each of its roots, so it must be emptied into the table that they came from.
///
/// ```text
///                      current  prev 0  prev 1  prev 2
///                         A       B       C       D
/// switch to C: a hit      C       A       B       D     the earlier ones move down into the gap
/// switch to E: a miss     -       C       A       B     D is dropped, and E must be loaded
/// load E                  E       C       A       B
/// ```
///
/// For a direct role CR3 does not count: whatever it is, the root is the same.
#[derive(Clone, Debug, Default)]
pub struct RootCache {
    /// By slot, like the next two; a hit moves none of them.
    pgds: [Pgd; PLACES],
    /// The bits of the role that a page had when it came; 0, which no role is, for other roots.
    roles: [u32; PLACES],
    roots: [Root; PLACES],
    /// Which slot is the root in use, and which are the earlier ones.
    order: Order,
}

impl RootCache {
    /// No root.
    pub fn new() -> Self {
        Self::default()
    }

    /// The root in use.
    #[inline]
    pub fn current(&self) -> Root {
        self.roots[self.order.slot(0)]
    }

    /// Empties a place, 0 being the one in use, and gives what it held.
    fn take(&mut self, number: usize) -> Root {
        let slot = self.order.slot(number);
        self.pgds[slot] = Pgd::ZERO;
        self.roles[slot] = 0;
        core::mem::take(&mut self.roots[slot])
    }

    /// All places, the root in use first.
    pub fn roots(&self) -> impl Iterator<Item = (Pgd, Root)> {
        let slots = (0..PLACES).map(|number| self.order.slot(number));
        slots.map(|slot| (self.pgds[slot], self.roots[slot]))
    }

    /// The places that hold a root for which `wanted` says so.
    pub(super) fn select(&self, mut wanted: impl FnMut(Root) -> bool) -> RootSet {
        let roots = self.roots().map(|(_, root)| root).enumerate();
        let chosen = roots.filter(|(_, root)| *root != Root::None && wanted(*root));
        chosen.fold(RootSet::empty(), |set, (number, _)| {
            set | RootSet::place(number)
        })
    }

    /// Makes a root with this CR3 and role the one in use, if a page is in use and the root is here; else does nothing, and
    /// [`RootCache::switch_slowly`] has to follow (`mmu.c:fast_pgd_switch`).
    ///
    /// A root counts if its role is the wanted one in full, `invalid` included, and if the CR3 is equal or the role is
    /// direct. Nothing is allocated or released.
    #[inline]
    pub(super) fn hit<P: Payload>(
        &mut self,
        table: &RootTable<P>,
        pgd: Pgd,
        role: PageRole,
    ) -> Option<Found> {
        if self.is_at(0, table, pgd, role) {
            return Some(Found::Current);
        }
        // Kernel and user mode of a guest take turns: one jump, which is foreseen.
        if matches!(self.current(), Root::Page(_)) && self.is_at(1, table, pgd, role) {
            self.order = self.order.swap_first();
            return Some(Found::Previous(0));
        }
        self.hit_previous(table, pgd, role)
    }

    /// The same for the earlier roots. Apart, so that the root in use and the latest one are found without a call.
    #[inline(never)]
    fn hit_previous<P: Payload>(
        &mut self,
        table: &RootTable<P>,
        pgd: Pgd,
        role: PageRole,
    ) -> Option<Found> {
        let slot_bit = self.find(table, pgd, role)?;
        match self.current() {
            Root::Page(_) => Some(Found::at(self.bring_forward(slot_bit))),
            Root::None | Root::Special(_) => None,
        }
    }

    /// Makes the root in a slot, given as a bit, the one in use; gives its number before.
    #[inline]
    fn bring_forward(&mut self, slot_bit: u32) -> usize {
        let number = self.order.number(slot_bit);
        self.order = self.order.bring_slot_forward(slot_bit);
        number
    }

    /// Whether the root in a place is the wanted one.
    #[inline]
    fn is_at<P: Payload>(
        &self,
        number: usize,
        table: &RootTable<P>,
        pgd: Pgd,
        role: PageRole,
    ) -> bool {
        let slot = self.order.slot(number);
        let same_pgd = role.is_direct() | (self.pgds[slot] == pgd);
        same_pgd & (self.roles[slot] == role.bits()) && self.is_usable(table, slot, role)
    }

    /// The first root that can be used, as a bit for its slot.
    #[inline(always)]
    fn find<P: Payload>(&self, table: &RootTable<P>, pgd: Pgd, role: PageRole) -> Option<u32> {
        let candidates = self.candidates(pgd, role);
        if !candidates.is_power_of_two() {
            return self.find_among(table, candidates, role);
        }
        let slot = candidates.trailing_zeros() as usize % PLACES;
        self.is_usable(table, slot, role).then_some(candidates)
    }

    /// The same where none or several have the CR3 and the role: an obsolete root beside its successor.
    #[cold]
    fn find_among<P: Payload>(
        &self,
        table: &RootTable<P>,
        candidates: u32,
        role: PageRole,
    ) -> Option<u32> {
        let mut slots = (0..PLACES).map(|number| self.order.slot(number));
        let usable =
            |slot: &usize| candidates >> slot & 1 == 1 && self.is_usable(table, *slot, role);
        slots.find(usable).map(|slot| 1 << slot)
    }

    #[inline]
    fn is_usable<P: Payload>(&self, table: &RootTable<P>, slot: usize, role: PageRole) -> bool {
        match self.roots[slot] {
            Root::Page(root) => table.held_has_role(root, role),
            Root::None | Root::Special(_) => false,
        }
    }

    /// A bit for each slot whose root had this role when it came, and has this CR3 if that counts.
    #[inline]
    fn candidates(&self, pgd: Pgd, role: PageRole) -> u32 {
        let counts = if role.is_direct() { 0 } else { u64::MAX };
        let mut candidates = 0;
        for slot in 0..PLACES {
            let same_pgd = (self.pgds[slot].0 ^ pgd.0) & counts == 0;
            let same_role = self.roles[slot] == role.bits();
            candidates |= u32::from(same_pgd & same_role) << slot;
        }
        candidates
    }

    /// Switches on a miss, or where no page was in use. A hit releases nothing but a special root that was in use.
    #[cold]
    pub(super) fn switch_slowly<P: Payload>(
        &mut self,
        table: &RootTable<P>,
        pgd: Pgd,
        role: PageRole,
    ) -> Switch<P> {
        let root = self.current();
        if let Root::Page(_) = root {
            return self.miss(table);
        }
        let found = self.find(table, pgd, role);
        let number = found.map(|slot_bit| self.order.number(slot_bit));
        self.take(0);
        if let Some(number) = number {
            // What was in use leaves its empty slot behind, which becomes the last.
            self.order = self.order.bring_forward(number).send_back(1);
        }
        Switch {
            found: number.map_or(Found::Nowhere, Found::at),
            dropped: special(root),
        }
    }

    /// Moves everything down by one; what was oldest goes.
    fn miss<P: Payload>(&mut self, table: &RootTable<P>) -> Switch<P> {
        let oldest = self.take(PLACES - 1);
        self.order = self.order.bring_forward(PLACES - 1);
        Switch {
            found: Found::Nowhere,
            dropped: drop_reference(table, oldest),
        }
    }

    /// Puts a root in use, where none is. The reference is the cache's from now on.
    pub(super) fn set_current(&mut self, pgd: Pgd, root: Root, role: PageRole) {
        debug_assert_eq!(self.current(), Root::None, "a root is in use");
        let slot = self.order.slot(0);
        self.pgds[slot] = pgd;
        self.roots[slot] = root;
        self.roles[slot] = match root {
            Root::Page(_) => role.bits(),
            Root::None | Root::Special(_) => 0,
        };
    }

    /// Puts a root in use and the one that was among the earlier ones; the oldest is forgotten.
    #[cfg(all(test, not(any(loom, shuttle))))]
    pub(super) fn plant_current(&mut self, root: Root, role: PageRole) {
        self.take(PLACES - 1);
        self.order = self.order.bring_forward(PLACES - 1);
        self.set_current(Pgd::ZERO, root, role);
    }

    /// Gives up the references of some places, the earlier roots first (`mmu.c:kvm_mmu_free_roots`).
    #[must_use = "roots that were freed take their page tables along"]
    pub fn free<P: Payload>(&mut self, table: &RootTable<P>, set: RootSet) -> Vec<Dropped<P>> {
        let mut dropped = Vec::new();
        for number in [1, 2, 3, 0] {
            if set.contains(RootSet::place(number)) {
                dropped.extend(drop_reference(table, self.take(number)));
            }
        }
        dropped
    }
}

fn special<P>(root: Root) -> Option<Dropped<P>> {
    match root {
        Root::Special(special) => Some(Dropped::Special(special)),
        Root::None | Root::Page(_) => None,
    }
}

fn drop_reference<P: Payload>(table: &RootTable<P>, root: Root) -> Option<Dropped<P>> {
    match root {
        Root::Page(root) => Some(Dropped::Page(table.release(root))),
        other => special(other),
    }
}
