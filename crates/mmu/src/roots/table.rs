//! All roots of a VM, their roles, and who holds them.

use core::fmt;

use slat_memslot::Gfn;

use crate::role::{PageRole, RoleFlag};

/// A root of one [`RootTable`]. No two roots ever have the same one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootId {
    index: u32,
    /// How often the place had been used before.
    generation: u32,
}

impl fmt::Debug for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootId({}.{})", self.index, self.generation)
    }
}

impl RootId {
    /// The place in the table.
    #[inline]
    const fn place(self) -> usize {
        self.index as usize
    }
}

/// Whether the TDP MMU is on (`kvm.tdp_mmu`); without it direct roots are shadow pages, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TdpMmu {
    /// Direct roots belong to the TDP MMU.
    #[default]
    On,
    /// All roots are shadow pages.
    Off,
}

/// Who manages a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RootKind {
    /// The TDP MMU, which holds a reference of its own until the root has been zapped.
    Tdp,
    /// The shadow MMU, which keeps a root without references for later use.
    Shadow {
        /// The guest frame of the table that is shadowed; 0 for a direct root.
        gfn: Gfn,
    },
}

/// How a root was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Acquired {
    /// It was there already, with the same role.
    Shared(RootId),
    /// There was none.
    Created(RootId),
}

impl Acquired {
    /// The root.
    #[inline]
    pub const fn root(self) -> RootId {
        match self {
            Self::Shared(root) | Self::Created(root) => root,
        }
    }
}

/// A root that is gone, with what it pointed at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freed<P> {
    /// The root; it names nothing any more.
    pub root: RootId,
    /// Its role when it went.
    pub role: PageRole,
    /// What it pointed at.
    pub payload: P,
}

/// What giving up a reference did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a root that was freed takes its page tables along"]
pub enum Released<P> {
    /// The root is still there.
    Kept(RootId),
    /// It was the last reference to an invalid root.
    Freed(Freed<P>),
}

impl<P> Released<P> {
    /// The root that is gone, if it is.
    pub fn freed(self) -> Option<Freed<P>> {
        match self {
            Self::Kept(_) => None,
            Self::Freed(freed) => Some(freed),
        }
    }
}

#[derive(Clone, Debug)]
struct Entry<P> {
    kind: RootKind,
    references: u32,
    valid_generation: u64,
    /// A TDP root that was invalidated and whose own reference is still there.
    scheduled: bool,
    payload: P,
}

#[derive(Clone, Debug)]
struct Place<P> {
    generation: u32,
    entry: Option<Entry<P>>,
}

/// All roots of a VM. `P` is what a root points at; nothing here looks at it.
///
/// ```
/// use slat_mmu::role::{TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
/// use slat_mmu::roots::{RootKind, RootTable, TdpMmu};
///
/// let mut table = RootTable::new(TdpMmu::On);
/// let role = root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::Npt4));
/// let root = table.acquire(RootKind::Tdp, role, || "page tables").root();
/// // The same role, the same root.
/// assert_eq!(table.acquire(RootKind::Tdp, role, || "others").root(), root);
/// assert_eq!(table.references(root), Some(3));
///
/// table.invalidate_all();
/// assert!(table.zap_invalidated().is_empty());
/// assert_eq!(table.release(root).freed(), None);
/// assert_eq!(table.release(root).freed().unwrap().payload, "page tables");
/// ```
#[derive(Clone, Debug)]
pub struct RootTable<P> {
    tdp_mmu: TdpMmu,
    /// Which shadow pages are valid (`mmu_valid_gen`); KVM keeps the lowest bit only.
    valid_generation: u64,
    /// By place, beside `places`: what every switch reads. `None` for a free place.
    roles: Vec<Option<PageRole>>,
    places: Vec<Place<P>>,
    free: Vec<u32>,
    /// Oldest first.
    order: Vec<RootId>,
}

impl<P> RootTable<P> {
    /// No roots.
    pub const fn new(tdp_mmu: TdpMmu) -> Self {
        Self {
            tdp_mmu,
            valid_generation: 0,
            roles: Vec::new(),
            places: Vec::new(),
            free: Vec::new(),
            order: Vec::new(),
        }
    }

    /// Who manages a root of this role that shadows the guest's table at `gfn`, if it shadows any.
    pub const fn kind_for(&self, role: PageRole, gfn: Gfn) -> RootKind {
        match (self.tdp_mmu, role.is_direct()) {
            (TdpMmu::On, true) => RootKind::Tdp,
            (TdpMmu::Off, true) => RootKind::Shadow { gfn: Gfn::new(0) },
            (_, false) => RootKind::Shadow { gfn },
        }
    }

    /// The role of a root, `invalid` included.
    #[inline]
    pub fn role(&self, root: RootId) -> Option<PageRole> {
        self.entry(root)?;
        self.roles[root.place()]
    }

    /// Whether a root that is held has exactly this role.
    ///
    /// Does not look at the generation: who holds a reference knows that the place is not another root's.
    #[inline]
    pub(super) fn held_has_role(&self, root: RootId, role: PageRole) -> bool {
        debug_assert!(self.entry(root).is_some(), "{root:?} is held and gone");
        self.roles.get(root.place()) == Some(&Some(role))
    }

    /// The number of references, the TDP MMU's own included.
    pub fn references(&self, root: RootId) -> Option<u32> {
        Some(self.entry(root)?.references)
    }

    /// Who manages a root.
    pub fn kind(&self, root: RootId) -> Option<RootKind> {
        Some(self.entry(root)?.kind)
    }

    /// What a root points at.
    pub fn payload(&self, root: RootId) -> Option<&P> {
        Some(&self.entry(root)?.payload)
    }

    /// What a root points at, to be changed.
    pub fn payload_mut(&mut self, root: RootId) -> Option<&mut P> {
        Some(&mut self.entry_mut(root)?.payload)
    }

    /// All roots with their roles, the newest first, as KVM walks them.
    pub fn iter(&self) -> impl Iterator<Item = (RootId, PageRole)> {
        let role = |root: &RootId| Some((*root, self.role(*root)?));
        self.order.iter().rev().filter_map(role)
    }

    /// How many roots there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether a vCPU must drop a root when it is asked to (`mmu.c:is_obsolete_sp`). A root that is gone is.
    pub fn is_obsolete(&self, root: RootId) -> bool {
        match (self.role(root), self.entry(root)) {
            (Some(role), Some(entry)) => role.is_invalid() || self.is_outdated(entry),
            _ => true,
        }
    }

    /// A shadow page of the generation that is not valid.
    fn is_outdated(&self, entry: &Entry<P>) -> bool {
        entry.kind != RootKind::Tdp && entry.valid_generation != self.valid_generation
    }

    /// Takes a reference to the root with this role, which is made if there is none
    /// (`tdp_mmu.c:kvm_tdp_mmu_alloc_root`, `mmu.c:mmu_alloc_root`).
    ///
    /// An invalid root is never found, since `invalid` is part of the role.
    pub fn acquire(
        &mut self,
        kind: RootKind,
        role: PageRole,
        payload: impl FnOnce() -> P,
    ) -> Acquired {
        match self.find(kind, role) {
            Some(root) => {
                self.add_reference(root);
                Acquired::Shared(root)
            }
            None => Acquired::Created(self.create(kind, role, payload())),
        }
    }

    /// The usable root of this kind and role.
    pub fn find(&self, kind: RootKind, role: PageRole) -> Option<RootId> {
        let matches = |entry: &Entry<P>| entry.kind == kind && !self.is_outdated(entry);
        let mut same_role = self.iter().filter(|(_, other)| *other == role);
        let found = same_role.find(|(root, _)| self.entry(*root).is_some_and(matches));
        found.map(|(root, _)| root)
    }

    fn add_reference(&mut self, root: RootId) {
        if let Some(entry) = self.entry_mut(root) {
            entry.references += 1;
        }
    }

    fn create(&mut self, kind: RootKind, role: PageRole, payload: P) -> RootId {
        let entry = Entry {
            kind,
            references: match kind {
                RootKind::Tdp => 2,
                RootKind::Shadow { .. } => 1,
            },
            valid_generation: self.valid_generation,
            scheduled: false,
            payload,
        };
        let root = self.place(entry, role);
        self.order.push(root);
        root
    }

    /// Puts an entry into a free place.
    fn place(&mut self, entry: Entry<P>, role: PageRole) -> RootId {
        let Some(index) = self.free.pop() else {
            let index = u32::try_from(self.places.len()).expect("fewer roots than 2^32");
            self.roles.push(Some(role));
            self.places.push(Place {
                generation: 0,
                entry: Some(entry),
            });
            return RootId {
                index,
                generation: 0,
            };
        };
        let place = &mut self.places[index as usize];
        place.entry = Some(entry);
        let generation = place.generation;
        self.roles[index as usize] = Some(role);
        RootId { index, generation }
    }

    /// Gives up a reference (`tdp_mmu.c:kvm_tdp_mmu_put_root`, `mmu.c:mmu_free_root_page`).
    ///
    /// # Panics
    /// There is no such reference: the root is gone, or its only reference is the TDP MMU's own, which
    /// [`RootTable::zap_invalidated`] gives up.
    pub fn release(&mut self, root: RootId) -> Released<P> {
        let entry = self
            .entry(root)
            .expect("a root is held until it is released");
        let own = u32::from(entry.kind == RootKind::Tdp && self.holds_own(root));
        assert!(
            entry.references > own,
            "{root:?} has no reference to give up"
        );
        self.put(root)
    }

    /// Whether the TDP MMU's own reference is still there.
    fn holds_own(&self, root: RootId) -> bool {
        let valid = self.role(root).is_some_and(|role| !role.is_invalid());
        valid || self.entry(root).is_some_and(|entry| entry.scheduled)
    }

    /// Gives up a reference that is there.
    fn put(&mut self, root: RootId) -> Released<P> {
        let invalid = self.role(root).is_some_and(PageRole::is_invalid);
        let Some(entry) = self.entry_mut(root) else {
            return Released::Kept(root);
        };
        entry.references -= 1;
        match (entry.references, invalid) {
            (0, true) => self
                .remove(root)
                .map_or(Released::Kept(root), Released::Freed),
            _ => Released::Kept(root),
        }
    }

    /// Takes a root out of the table.
    fn remove(&mut self, root: RootId) -> Option<Freed<P>> {
        let role = self.role(root)?;
        let place = &mut self.places[root.place()];
        let entry = place.entry.take()?;
        // A place whose generations are used up is never used again.
        if let Some(generation) = place.generation.checked_add(1) {
            place.generation = generation;
            self.free.push(root.index);
        }
        self.roles[root.place()] = None;
        self.order.retain(|other| *other != root);
        Some(Freed {
            root,
            role,
            payload: entry.payload,
        })
    }

    /// Makes all roots unusable, as the first half of `mmu.c:kvm_mmu_zap_all_fast` does.
    ///
    /// Every vCPU of the VM must then be sent [`Request::FreeObsoleteRoots`](super::Request::FreeObsoleteRoots).
    pub fn invalidate_all(&mut self) {
        self.valid_generation += 1;
        for index in 0..self.order.len() {
            let root = self.order[index];
            if self.kind(root) == Some(RootKind::Tdp) && !self.is_obsolete(root) {
                self.mark_invalid(root);
                if let Some(entry) = self.entry_mut(root) {
                    entry.scheduled = true;
                }
            }
        }
    }

    /// The second half: zaps what the first has made unusable, and gives the roots that are gone, shadow pages first.
    ///
    /// A root that a vCPU holds loses its page tables too but stays until that vCPU drops it.
    #[must_use = "the roots that were freed take their page tables along"]
    pub fn zap_invalidated(&mut self) -> Vec<Freed<P>> {
        let outdated = self.select(|table, entry| table.is_outdated(entry));
        let mut freed: Vec<_> = outdated
            .into_iter()
            .filter_map(|root| self.zap_shadow(root))
            .collect();
        // KVM walks its list of TDP roots from the newest.
        let scheduled = self.select(|_, entry| entry.scheduled);
        for root in scheduled.into_iter().rev() {
            if let Some(entry) = self.entry_mut(root) {
                entry.scheduled = false;
            }
            freed.extend(self.put(root).freed());
        }
        freed
    }

    /// Zaps one shadow root (`mmu.c:kvm_mmu_prepare_zap_page`): it is gone if nobody holds it, else invalid.
    ///
    /// If it is held, every vCPU of the VM must be sent
    /// [`Request::FreeObsoleteRoots`](super::Request::FreeObsoleteRoots). TDP roots are left alone.
    #[must_use = "a root that was freed takes its page tables along"]
    pub fn zap_shadow(&mut self, root: RootId) -> Option<Freed<P>> {
        let entry = self.entry(root)?;
        if entry.kind == RootKind::Tdp {
            return None;
        }
        let held = entry.references > 0;
        self.mark_invalid(root);
        if held { None } else { self.remove(root) }
    }

    fn select(&self, wanted: impl Fn(&Self, &Entry<P>) -> bool) -> Vec<RootId> {
        let is_wanted = |root: &RootId| self.entry(*root).is_some_and(|entry| wanted(self, entry));
        self.order.iter().copied().filter(is_wanted).collect()
    }

    fn mark_invalid(&mut self, root: RootId) {
        let role = &mut self.roles[root.place()];
        *role = role.map(|role| role.with(RoleFlag::Invalid));
    }

    fn entry(&self, root: RootId) -> Option<&Entry<P>> {
        let place = self.places.get(root.place())?;
        place
            .entry
            .as_ref()
            .filter(|_| place.generation == root.generation)
    }

    fn entry_mut(&mut self, root: RootId) -> Option<&mut Entry<P>> {
        let place = self.places.get_mut(root.place())?;
        let current = place.generation == root.generation;
        place.entry.as_mut().filter(|_| current)
    }
}
