//! Making roots unusable, and giving up those that are.

use crate::role::{PageRole, RoleFlag};
use crate::sync::lock;

use super::root::{Freed, Payload, Released, RootId, RootKind};
use super::table::RootTable;

impl<P: Payload> RootTable<P> {
    /// Makes all roots unusable but mirrors, as the first half of `mmu.c:kvm_mmu_zap_all_fast` does. The root of a TDX VM's
    /// private memory has to last as long as the VM.
    ///
    /// Every vCPU of the VM must then be sent [`Request::FreeObsoleteRoots`](super::Request::FreeObsoleteRoots).
    pub fn invalidate_all(&mut self) {
        self.invalidate_each(|_, _| ());
    }

    /// The same, and tells what each root points at and the role that it has now.
    pub(crate) fn invalidate_each(&mut self, mut tell: impl FnMut(P, PageRole)) {
        self.valid_generation += 1;
        let list = lock(&self.list);
        for (root, role) in self.newest_first(&list) {
            let lasts = role.is_invalid() || role.has(RoleFlag::IsMirror);
            if self.kind(root) != Some(RootKind::Tdp) || lasts {
                continue;
            }
            if let Some(place) = self.places.get(root.place()) {
                place.invalidate();
                place.schedule();
            }
            if let Some(payload) = self.payload(root) {
                tell(payload, role.with(RoleFlag::Invalid));
            }
        }
    }

    /// Takes back [`RootTable::invalidate_all`] where nothing has been zapped yet, so that its cost can be measured again
    /// and again.
    #[doc(hidden)]
    pub fn revive_all(&mut self) {
        self.revive_each(|_, _| ());
    }

    /// The same, and tells what each root that is valid again points at and its role.
    pub(crate) fn revive_each(&mut self, mut tell: impl FnMut(P, PageRole)) {
        let list = lock(&self.list);
        for (root, role) in self.newest_first(&list) {
            let Some(place) = self.places.get(root.place()) else {
                continue;
            };
            if self.take_scheduled(root) {
                place.revive();
                if let Some(payload) = self.payload(root) {
                    tell(payload, role.without(RoleFlag::Invalid));
                }
            }
        }
    }

    /// The second half: gives up what the first has made unusable, and gives the roots that are gone, shadow pages first.
    ///
    /// A root that a vCPU holds loses its page tables too but stays until that vCPU drops it. Who zaps page tables
    /// himself uses [`RootTable::take_scheduled`] and [`RootTable::put_own`] for the roots of the TDP MMU.
    #[must_use = "the roots that were freed take their page tables along"]
    pub fn zap_invalidated(&self) -> Vec<Freed<P>> {
        let mut outdated = self.outdated();
        // The oldest first.
        outdated.reverse();
        let zap = |root| self.zap_shadow(root);
        let mut freed: Vec<_> = outdated.into_iter().filter_map(zap).collect();
        for (root, _) in self.iter() {
            if self.take_scheduled(root) {
                freed.extend(self.put_own(root).freed());
            }
        }
        freed
    }

    fn outdated(&self) -> Vec<RootId> {
        let roots = self.iter().map(|(root, _)| root);
        let is_outdated = |root: &RootId| self.entry(*root).is_some_and(|e| self.is_outdated(&e));
        roots.filter(is_outdated).collect()
    }

    /// Takes a root of the TDP MMU off those that wait to be zapped; says whether it was one.
    ///
    /// Who is told so zaps the root's page tables and then calls [`RootTable::put_own`], as
    /// `tdp_mmu.c:kvm_tdp_mmu_zap_invalidated_roots` does:
    ///
    /// ```
    /// # use slat_mmu::role::{TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
    /// # use slat_mmu::roots::{RootKind, RootSelect, RootTable, TdpMmu};
    /// # let mut table = RootTable::new(TdpMmu::On);
    /// # let role = root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::Npt4));
    /// # let root = table.acquire(RootKind::Tdp, role, || ()).root();
    /// # let _ = table.release(root);
    /// table.invalidate_all();
    /// let (mut at, mut freed) = (None, Vec::new());
    /// loop {
    ///     let next = table.next_root(at, RootSelect::All, None);
    ///     freed.extend(next.freed);
    ///     at = next.root;
    ///     let Some(root) = at else { break };
    ///     if table.take_scheduled(root) {
    ///         // Zap what is under it here.
    ///         freed.extend(table.put_own(root).freed());
    ///     }
    /// }
    /// assert_eq!(freed.len(), 1);
    /// ```
    pub fn take_scheduled(&self, root: RootId) -> bool {
        self.place(root)
            .is_some_and(|place| place.take_scheduled(root.generation))
    }

    /// Gives up the TDP MMU's own reference to an invalid root.
    ///
    /// # Panics
    /// The root is valid or not the TDP MMU's, or this has been done before.
    pub fn put_own(&self, root: RootId) -> Released<P> {
        let invalid = self.role(root).is_some_and(|role| role.is_invalid());
        assert!(invalid, "{root:?} is not on its way out");
        let left = self
            .place(root)
            .and_then(|place| place.put_own(root.generation))
            .unwrap_or_else(|| panic!("{root:?} is not held by the TDP MMU"));
        self.freed_if_last(root, left)
    }

    /// Zaps one shadow root (`mmu.c:kvm_mmu_prepare_zap_page`): it is gone if nobody holds it, else invalid.
    ///
    /// If it is held, every vCPU of the VM must be sent
    /// [`Request::FreeObsoleteRoots`](super::Request::FreeObsoleteRoots). TDP roots are left alone.
    #[must_use = "a root that was freed takes its page tables along"]
    pub fn zap_shadow(&self, root: RootId) -> Option<Freed<P>> {
        let mut list = lock(&self.list);
        let place = self.place(root)?;
        if place.entry(root.generation)?.kind == RootKind::Tdp {
            return None;
        }
        place.invalidate();
        match (self.references(root)?, self.role(root)?) {
            (0, role) => Some(self.remove(&mut list, root, role)),
            _ => None,
        }
    }
}
