//! All roots of a VM, their roles, and who holds them.

use core::marker::PhantomData;

use slat_memslot::{AsId, Gfn};

use crate::role::PageRole;
use crate::sync::{Mutex, lock};

use super::place::{Entry, Place, Places};
use super::root::{
    Acquired, Freed, NextRoot, Payload, Released, RootId, RootKind, RootSelect, TdpMmu,
};

/// All roots of a VM, for many threads at once. `P` is what a root points at; nothing here looks at it.
///
/// Roles, references and payloads are atomics that are read without a lock. What is in the list of roots changes under
/// one lock, which is KVM's `tdp_mmu_pages_lock` for roots of the TDP MMU; for shadow pages it stands for `mmu_lock`.
///
/// ```
/// use slat_mmu::role::{TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
/// use slat_mmu::roots::{RootKind, RootTable, TdpMmu};
/// use slat_mmu::table::TableId;
///
/// let mut table = RootTable::new(TdpMmu::On);
/// let role = root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::Npt4));
/// let root = table.acquire(RootKind::Tdp, role, || TableId::new(7)).root();
/// // The same role, the same root.
/// assert_eq!(table.acquire(RootKind::Tdp, role, || TableId::new(8)).root(), root);
/// assert_eq!(table.references(root), Some(3));
///
/// table.invalidate_all();
/// assert!(table.zap_invalidated().is_empty());
/// assert_eq!(table.release(root).freed(), None);
/// assert_eq!(table.release(root).freed().unwrap().payload, TableId::new(7));
/// ```
#[derive(Debug)]
pub struct RootTable<P> {
    tdp_mmu: TdpMmu,
    /// Which shadow pages are valid (`mmu_valid_gen`); KVM keeps the lowest bit only.
    pub(super) valid_generation: u64,
    pub(super) places: Places,
    pub(super) list: Mutex<List>,
    payload: PhantomData<P>,
}

/// Which places are in use.
#[derive(Debug, Default)]
pub(super) struct List {
    /// The roots, oldest first.
    order: Vec<RootId>,
    /// What roots in the places that became free will be called.
    free: Vec<RootId>,
    /// The first place that was never used.
    next: u32,
}

impl List {
    /// A root by its age, 0 being the oldest.
    pub(super) fn nth(&self, number: usize) -> Option<RootId> {
        self.order.get(number).copied()
    }

    /// A name for a new root, which is the newest.
    fn add(&mut self) -> RootId {
        let root = self.free.pop().unwrap_or_else(|| {
            let index = self.next;
            self.next = index.checked_add(1).expect("fewer roots than 2^32");
            RootId {
                index,
                generation: 0,
            }
        });
        self.order.push(root);
        root
    }
}

impl<P: Payload> RootTable<P> {
    /// No roots.
    pub fn new(tdp_mmu: TdpMmu) -> Self {
        Self {
            tdp_mmu,
            valid_generation: 0,
            places: Places::new(),
            list: Mutex::new(List::default()),
            payload: PhantomData,
        }
    }

    /// Whether direct roots are the TDP MMU's.
    pub const fn tdp_mmu(&self) -> TdpMmu {
        self.tdp_mmu
    }

    /// Who manages a root of this role that shadows the guest's table at `gfn`, if it shadows any.
    pub const fn kind_for(&self, role: PageRole, gfn: Gfn) -> RootKind {
        match (self.tdp_mmu, role.is_direct()) {
            (TdpMmu::On, true) => RootKind::Tdp,
            (TdpMmu::Off, true) => RootKind::Shadow { gfn: Gfn::new(0) },
            (_, false) => RootKind::Shadow { gfn },
        }
    }

    // --- What is known about a root, without the lock ----------------------------------------------------------------

    /// The role of a root, `invalid` included.
    #[inline]
    pub fn role(&self, root: RootId) -> Option<PageRole> {
        self.place(root)?.role(root.generation)
    }

    /// Whether a root that is held has exactly this role.
    #[inline]
    pub(super) fn held_has_role(&self, root: RootId, role: PageRole) -> bool {
        debug_assert!(self.role(root).is_some(), "{root:?} is held and gone");
        self.place(root)
            .is_some_and(|place| place.has_role(root.generation, role))
    }

    /// The number of references, the TDP MMU's own included.
    pub fn references(&self, root: RootId) -> Option<u32> {
        self.place(root)?.references(root.generation)
    }

    /// Who manages a root.
    pub fn kind(&self, root: RootId) -> Option<RootKind> {
        Some(self.entry(root)?.kind)
    }

    /// What a root points at.
    pub fn payload(&self, root: RootId) -> Option<P> {
        Some(P::from_raw(self.entry(root)?.payload))
    }

    /// Whether a vCPU must drop a root when it is asked to (`mmu.c:is_obsolete_sp`). A root that is gone is.
    pub fn is_obsolete(&self, root: RootId) -> bool {
        match (self.role(root), self.entry(root)) {
            (Some(role), Some(entry)) => role.is_invalid() || self.is_outdated(&entry),
            _ => true,
        }
    }

    /// A shadow page of the generation that is not valid.
    pub(super) fn is_outdated(&self, entry: &Entry) -> bool {
        entry.kind != RootKind::Tdp && entry.valid_generation != self.valid_generation
    }

    #[inline]
    pub(super) fn place(&self, root: RootId) -> Option<&Place> {
        self.places.get(root.place())
    }

    pub(super) fn entry(&self, root: RootId) -> Option<Entry> {
        self.place(root)?.entry(root.generation)
    }

    // --- The list ----------------------------------------------------------------------------------------------------

    /// All roots with their roles, the newest first, as they are at this moment. None of them is held.
    pub fn iter(&self) -> impl Iterator<Item = (RootId, PageRole)> {
        let list = lock(&self.list);
        self.newest_first(&list).collect::<Vec<_>>().into_iter()
    }

    /// As KVM walks them.
    pub(super) fn newest_first<'l>(
        &'l self,
        list: &'l List,
    ) -> impl Iterator<Item = (RootId, PageRole)> + 'l {
        let role = |root: &RootId| Some((*root, self.role(*root)?));
        list.order.iter().rev().filter_map(role)
    }

    /// How many roots there are.
    pub fn len(&self) -> usize {
        lock(&self.list).order.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Goes to the root of the TDP MMU that follows another one, newest first (`tdp_mmu.c:tdp_mmu_next_root`).
    ///
    /// Holds the root that it gives, and gives up the one before, so that the list may change between two steps. A
    /// root whose last reference is gone is passed over. Whoever stops before the end releases the root he is on.
    ///
    /// ```
    /// # use slat_mmu::role::{TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
    /// # use slat_mmu::roots::{RootKind, RootSelect, RootTable, TdpMmu};
    /// # let table = RootTable::new(TdpMmu::On);
    /// # let role = root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::Npt4));
    /// # table.acquire(RootKind::Tdp, role, || ());
    /// let (mut at, mut freed) = (None, Vec::new());
    /// loop {
    ///     let next = table.next_root(at, RootSelect::Valid, None);
    ///     freed.extend(next.freed);
    ///     at = next.root;
    ///     let Some(root) = at else { break };
    ///     assert_eq!(table.references(root), Some(3));
    /// }
    /// assert!(freed.is_empty());
    /// ```
    ///
    /// # Panics
    /// `after` is not held.
    pub fn next_root(
        &self,
        after: Option<RootId>,
        select: RootSelect,
        as_id: Option<AsId>,
    ) -> NextRoot<P> {
        let wanted = |role: PageRole| {
            (select == RootSelect::All || !role.is_invalid())
                && as_id.is_none_or(|as_id| as_id == role.as_id())
        };
        NextRoot {
            root: self.hold_next(after, wanted),
            freed: after.and_then(|root| self.release(root).freed()),
        }
    }

    /// Takes a reference to the first root after another one that can be held and is wanted.
    fn hold_next(
        &self,
        after: Option<RootId>,
        wanted: impl Fn(PageRole) -> bool,
    ) -> Option<RootId> {
        let list = lock(&self.list);
        let end = after.map_or(list.order.len(), |after| {
            let at = list.order.iter().position(|root| *root == after);
            at.expect("a root is held while an iteration is on it")
        });
        let next = list.order[..end].iter().rev().copied();
        let mut tdp = next.filter(|root| self.kind(*root) == Some(RootKind::Tdp));
        tdp.find(|root| self.role(*root).is_some_and(&wanted) && self.try_hold(*root))
    }

    // --- References --------------------------------------------------------------------------------------------------

    /// Takes a reference to the root with this role, which is made if there is none
    /// (`tdp_mmu.c:kvm_tdp_mmu_alloc_root`, `mmu.c:mmu_alloc_root`).
    ///
    /// An invalid root is never found, since `invalid` is part of the role. `payload` runs under the lock, and must not
    /// use the table.
    ///
    /// # Panics
    /// The role is invalid.
    pub fn acquire(&self, kind: RootKind, role: PageRole, payload: impl FnOnce() -> P) -> Acquired {
        assert!(!role.is_invalid(), "a root starts valid");
        let mut list = lock(&self.list);
        let found = self
            .usable(&list, kind, role)
            .find(|root| self.hold_found(*root, kind));
        match found {
            Some(root) => Acquired::Shared(root),
            None => Acquired::Created(self.create(&mut list, kind, role, payload())),
        }
    }

    /// The usable root of this kind and role. It is not held.
    pub fn find(&self, kind: RootKind, role: PageRole) -> Option<RootId> {
        let list = lock(&self.list);
        self.usable(&list, kind, role).next()
    }

    fn usable<'l>(
        &'l self,
        list: &'l List,
        kind: RootKind,
        role: PageRole,
    ) -> impl Iterator<Item = RootId> + 'l {
        let matches = move |entry: Entry| entry.kind == kind && !self.is_outdated(&entry);
        let same_role = self
            .newest_first(list)
            .filter(move |(_, other)| *other == role);
        same_role
            .map(|(root, _)| root)
            .filter(move |root| self.entry(*root).is_some_and(matches))
    }

    /// Holds a root that was found under the lock. Shadow pages without references are there to be found.
    fn hold_found(&self, root: RootId, kind: RootKind) -> bool {
        match kind {
            RootKind::Tdp => self.try_hold(root),
            RootKind::Shadow { .. } => self
                .place(root)
                .is_some_and(|place| place.hold_shadow(root.generation)),
        }
    }

    fn create(&self, list: &mut List, kind: RootKind, role: PageRole, payload: P) -> RootId {
        let entry = Entry {
            kind,
            valid_generation: self.valid_generation,
            payload: payload.into_raw(),
        };
        let root = list.add();
        let place = self.places.make(root.place());
        place.fill(root.generation, role, entry);
        root
    }

    /// Takes a reference to a root if it still has one (`refcount_inc_not_zero`). Takes no lock.
    ///
    /// For a shadow root this is stricter than [`RootTable::acquire`], which finds it without references.
    #[inline]
    pub fn try_hold(&self, root: RootId) -> bool {
        self.place(root)
            .is_some_and(|place| place.hold(root.generation))
    }

    /// Gives up a reference (`tdp_mmu.c:kvm_tdp_mmu_put_root`, `mmu.c:mmu_free_root_page`).
    ///
    /// # Panics
    /// There is no such reference: the root is gone, or its only reference is the TDP MMU's own, which
    /// [`RootTable::put_own`] gives up.
    pub fn release(&self, root: RootId) -> Released<P> {
        match self.kind(root) {
            Some(RootKind::Shadow { .. }) => self.release_shadow(root),
            Some(RootKind::Tdp) | None => {
                let left = self.put(root);
                self.freed_if_last(root, left)
            }
        }
    }

    /// Under the lock: losing the last reference and becoming invalid at the same time must free a shadow page once.
    fn release_shadow(&self, root: RootId) -> Released<P> {
        let mut list = lock(&self.list);
        match (self.put(root), self.role(root)) {
            (0, Some(role)) if role.is_invalid() => {
                Released::Freed(self.remove(&mut list, root, role))
            }
            _ => Released::Kept(root),
        }
    }

    /// Gives up a reference; gives how many are left.
    fn put(&self, root: RootId) -> u32 {
        self.place(root)
            .and_then(|place| place.put(root.generation))
            .unwrap_or_else(|| panic!("{root:?} has no reference to give up"))
    }

    /// Frees a root of the TDP MMU that has no reference left. It is invalid then, or it would have the TDP MMU's own, and
    /// nobody takes a reference to it any more.
    pub(super) fn freed_if_last(&self, root: RootId, left: u32) -> Released<P> {
        match self.role(root) {
            Some(role) if left == 0 => {
                debug_assert!(role.is_invalid(), "{root:?} is valid and not held");
                Released::Freed(self.remove(&mut lock(&self.list), root, role))
            }
            _ => Released::Kept(root),
        }
    }

    /// Takes a root out of the table.
    pub(super) fn remove(&self, list: &mut List, root: RootId, role: PageRole) -> Freed<P> {
        let place = self.places.make(root.place());
        let payload = place.entry(root.generation).map(|entry| entry.payload);
        let payload = payload.expect("a root is taken out once");
        list.order.retain(|other| *other != root);
        // A place whose generations are used up is never used again.
        let next = root.next();
        list.free.extend(next);
        place.empty(next.unwrap_or(root).generation);
        Freed {
            root,
            role,
            payload: P::from_raw(payload),
        }
    }
}
