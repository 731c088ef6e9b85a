//! One vCPU's MMU: the role it wants, and the roots it has.

use slat_memslot::Gfn;

use crate::role::{PageRole, RoleMismatch, check_mmu_role};

use super::cache::{Dropped, Found, Pgd, Root, RootCache, RootSet, SpecialRoot, Switch};
use super::request::{Request, Requests};
use super::root::{Acquired, Payload, RootId};
use super::table::RootTable;

/// Whether a root that is used again is synchronised and flushed (`kvm.flush_on_reuse`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FlushOnReuse {
    /// No.
    #[default]
    Off,
    /// Yes.
    On,
}

/// The guest's top-level table, where a shadow root follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestRoot {
    /// In a slot that the guest can see.
    Visible(Pgd),
    /// In no slot.
    Unbacked(Pgd),
}

impl GuestRoot {
    const fn pgd(self) -> Pgd {
        match self {
            Self::Visible(pgd) | Self::Unbacked(pgd) => pgd,
        }
    }
}

/// What a load did. All but the first flush the vCPU's own TLB, which spares the others a remote flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Load {
    /// Nothing: a root was in use.
    InUse(Root),
    /// It took a root that was there.
    Shared(RootId),
    /// It made a root.
    Created(RootId),
    /// The guest's table is in no slot: the vCPU runs on an empty root.
    Dummy,
}

/// What loading a new CR3 did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a root that was freed takes its page tables along"]
pub struct NewPgd<P> {
    /// What the cache did. On a miss a root has to be loaded before the next entry.
    pub switch: Switch<P>,
    /// Whether the vCPU's MMIO cache is emptied, and the count of writes to the root's table starts anew.
    pub reused: Option<Reused>,
}

/// What follows when a root is used again.
// As wide as the word that it is moved by: one byte of a word that was just written keeps the whole word waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Reused {
    /// The vCPU's MMIO cache is emptied.
    Direct,
    /// The same, and the count of writes to the shadowed table starts anew.
    Shadow,
}

/// One MMU of a vCPU (`struct kvm_mmu`), as far as roots go.
///
/// ```
/// use slat_mmu::role::{TdpDepth, TdpHost, VcpuMode, VcpuState, root_role_for_tdp};
/// use slat_mmu::roots::{Found, GuestRoot, Load, Pgd, RootTable, TdpMmu, VcpuMmu};
///
/// let host = TdpHost::new(TdpDepth::Npt4);
/// let role = |mode| root_role_for_tdp(&VcpuState { mode, ..VcpuState::default() }, &host);
/// let table = RootTable::new(TdpMmu::On);
/// let mut mmu = VcpuMmu::new(role(VcpuMode::Normal));
/// assert!(matches!(mmu.load(&table, GuestRoot::Visible(Pgd::ZERO), || ()), Load::Created(_)));
///
/// // SMM has a root of its own; on the way back the first one is found again.
/// assert!(mmu.reset_context(&table, role(VcpuMode::Smm)).len() == 1);
/// assert!(matches!(mmu.load(&table, GuestRoot::Visible(Pgd::ZERO), || ()), Load::Created(_)));
/// assert!(mmu.reset_context(&table, role(VcpuMode::Normal)).len() == 1);
/// assert!(matches!(mmu.load(&table, GuestRoot::Visible(Pgd::ZERO), || ()), Load::Shared(_)));
/// assert_eq!(mmu.check(&table), Ok(()));
/// ```
#[derive(Clone, Debug)]
pub struct VcpuMmu {
    role: PageRole,
    cache: RootCache,
    requests: Requests,
}

impl VcpuMmu {
    /// An MMU that wants roots of this role and has none.
    pub fn new(role: PageRole) -> Self {
        Self {
            role,
            cache: RootCache::new(),
            requests: Requests::NONE,
        }
    }

    /// The role it wants (`root_role`).
    #[inline]
    pub const fn role(&self) -> PageRole {
        self.role
    }

    /// Its roots.
    #[inline]
    pub const fn cache(&self) -> &RootCache {
        &self.cache
    }

    /// The same, to be changed.
    #[cfg(all(test, not(any(loom, shuttle))))]
    pub(super) const fn cache_mut(&mut self) -> &mut RootCache {
        &mut self.cache
    }

    /// What the vCPU has been asked to do before it enters the guest again.
    #[inline]
    pub const fn requests(&self) -> Requests {
        self.requests
    }

    /// Asks the vCPU to do something before it enters the guest again.
    #[inline]
    pub const fn request(&mut self, request: Request) {
        self.requests.insert(request);
    }

    /// Wants another role and keeps the roots (`mmu.c:kvm_init_mmu`).
    ///
    /// If the root in use does not have that role, it must be switched or freed before the next entry
    /// ([`VcpuMmu::check`]).
    #[inline]
    pub const fn init(&mut self, role: PageRole) {
        self.role = role;
    }

    /// Gives up all roots and wants a role anew (`mmu.c:kvm_mmu_reset_context`).
    #[must_use = "roots that were freed take their page tables along"]
    pub fn reset_context<P: Payload>(
        &mut self,
        table: &RootTable<P>,
        role: PageRole,
    ) -> Vec<Dropped<P>> {
        let dropped = self.free(table, RootSet::all());
        self.init(role);
        dropped
    }

    /// Switches to the root for a new CR3, with the role that is wanted now (`mmu.c:kvm_mmu_new_pgd`).
    #[inline]
    pub fn new_pgd<P: Payload>(
        &mut self,
        table: &RootTable<P>,
        pgd: Pgd,
        flush: FlushOnReuse,
    ) -> NewPgd<P> {
        // The result is put together once, and not moved: that costs more than the switch itself.
        match self.cache.hit(table, pgd, self.role) {
            Some(found) => NewPgd {
                switch: Switch {
                    found,
                    dropped: None,
                },
                reused: Some(self.reuse(flush)),
            },
            None => self.new_pgd_slowly(table, pgd, flush),
        }
    }

    #[cold]
    fn new_pgd_slowly<P: Payload>(
        &mut self,
        table: &RootTable<P>,
        pgd: Pgd,
        flush: FlushOnReuse,
    ) -> NewPgd<P> {
        let switch = self.cache.switch_slowly(table, pgd, self.role);
        let reused = (switch.found != Found::Nowhere).then(|| self.reuse(flush));
        NewPgd { switch, reused }
    }

    #[inline]
    fn reuse(&mut self, flush: FlushOnReuse) -> Reused {
        self.requests.insert(Request::LoadMmuPgd);
        if flush == FlushOnReuse::On {
            self.requests.insert(Request::MmuSync);
            self.requests.insert(Request::TlbFlushCurrent);
        }
        if self.role.is_direct() {
            Reused::Direct
        } else {
            Reused::Shadow
        }
    }

    /// Sees to it that a root is in use (`mmu.c:kvm_mmu_reload`, `mmu.c:kvm_mmu_load`).
    ///
    /// `payload` makes what a new root points at. A root that is in use is kept whatever its role: that is why the
    /// order of [`VcpuMmu::init`] and [`VcpuMmu::new_pgd`] matters.
    pub fn load<P: Payload>(
        &mut self,
        table: &RootTable<P>,
        guest: GuestRoot,
        payload: impl FnOnce() -> P,
    ) -> Load {
        if self.cache.current() != Root::None {
            return Load::InUse(self.cache.current());
        }
        match (self.role.is_direct(), guest) {
            (false, GuestRoot::Unbacked(pgd)) => {
                let dummy = Root::Special(SpecialRoot::Dummy);
                self.cache.set_current(pgd, dummy, self.role);
                Load::Dummy
            }
            (true, _) => self.load_page(table, Pgd::ZERO, payload),
            (false, _) => self.load_page(table, guest.pgd(), payload),
        }
    }

    fn load_page<P: Payload>(
        &mut self,
        table: &RootTable<P>,
        pgd: Pgd,
        payload: impl FnOnce() -> P,
    ) -> Load {
        let kind = table.kind_for(self.role, Gfn::new(pgd.raw() >> 12 & GFN_MASK));
        let acquired = table.acquire(kind, self.role, payload);
        self.cache
            .set_current(pgd, Root::Page(acquired.root()), self.role);
        match acquired {
            Acquired::Shared(root) => Load::Shared(root),
            Acquired::Created(root) => Load::Created(root),
        }
    }

    /// Puts the PAE root in use, where none is: four pointers of the vCPU's own, which no table of roots knows.
    ///
    /// # Panics
    /// A root is in use.
    pub fn load_pae(&mut self, pgd: Pgd) {
        assert_eq!(self.cache.current(), Root::None, "a root is in use");
        let pae = Root::Special(SpecialRoot::Pae);
        self.cache.set_current(pgd, pae, self.role);
    }

    /// Gives up some roots (`mmu.c:kvm_mmu_free_roots`).
    #[must_use = "roots that were freed take their page tables along"]
    pub fn free<P: Payload>(&mut self, table: &RootTable<P>, set: RootSet) -> Vec<Dropped<P>> {
        self.cache.free(table, set)
    }

    /// Gives up the roots that are obsolete (`mmu.c:kvm_mmu_free_obsolete_roots`). Special roots always count as such.
    #[must_use = "roots that were freed take their page tables along"]
    pub fn free_obsolete<P: Payload>(&mut self, table: &RootTable<P>) -> Vec<Dropped<P>> {
        let obsolete = self.cache.select(|root| match root {
            Root::Page(root) => table.is_obsolete(root),
            Root::Special(_) => true,
            Root::None => false,
        });
        self.free(table, obsolete)
    }

    /// Gives up the earlier roots that belong to L2 or have no page (`mmu.c:kvm_mmu_free_guest_mode_roots`).
    ///
    /// # Panics
    /// The role that is wanted is L2's.
    #[must_use = "roots that were freed take their page tables along"]
    pub fn free_guest_mode<P: Payload>(&mut self, table: &RootTable<P>) -> Vec<Dropped<P>> {
        assert!(!self.role.is_guest_mode(), "the MMU is in guest mode");
        let of_l2 = |root| match root {
            Root::Page(root) => table.role(root).is_none_or(PageRole::is_guest_mode),
            Root::Special(_) | Root::None => true,
        };
        let set = self.cache.select(of_l2) - RootSet::CURRENT;
        self.free(table, set)
    }

    /// Gives up the earlier roots that are out of step with the guest's tables (`mmu.c:kvm_mmu_sync_prev_roots`).
    #[must_use = "roots that were freed take their page tables along"]
    pub fn free_unsync_previous<P: Payload>(
        &mut self,
        table: &RootTable<P>,
        mut is_unsync: impl FnMut(RootId) -> bool,
    ) -> Vec<Dropped<P>> {
        let unsync = self.cache.select(|root| match root {
            Root::Page(root) => is_unsync(root),
            Root::Special(_) => true,
            Root::None => false,
        });
        self.free(table, unsync - RootSet::CURRENT)
    }

    /// Serves the next request. What concerns roots is done here; the rest is for the caller.
    #[must_use = "roots that were freed take their page tables along"]
    pub fn serve<P: Payload>(
        &mut self,
        table: &RootTable<P>,
    ) -> Option<(Request, Vec<Dropped<P>>)> {
        let request = self.requests.pop()?;
        let dropped = match request {
            Request::FreeObsoleteRoots => self.free_obsolete(table),
            _ => Vec::new(),
        };
        Some((request, dropped))
    }

    /// Checks that the root in use has the role that is wanted; see [`check_mmu_role`].
    ///
    /// # Errors
    /// It has another one, or is invalid.
    pub fn check<P: Payload>(&self, table: &RootTable<P>) -> Result<(), RoleMismatch> {
        match self.cache.current() {
            Root::Page(root) => table
                .role(root)
                .map_or(Ok(()), |found| check_mmu_role(self.role, found)),
            Root::None | Root::Special(_) => Ok(()),
        }
    }
}

/// The frame number in a CR3, whose uppermost bits are no address.
const GFN_MASK: u64 = (1 << 40) - 1;
