//! Roots: making them, loading them, giving them up.

use slat_memslot::{Gfn, Level};

use super::held::ShadowLocked;
use super::page::PageId;
use super::walk::ShadowRoot;
use crate::role::{PageRole, RoleFlag};
use crate::roots::{
    Acquired, Dropped, GuestRoot, Load, Pgd, Root, RootId, RootKind, RootSet, SpecialRoot, VcpuMmu,
};
use crate::spte::Format;
use crate::tdp::Observer;

/// The four pointers of a vCPU whose root has less than four levels (`pae_root`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PaeRoots([Option<(PageId, RootId)>; 4]);

impl PaeRoots {
    /// The page for an address: bits 31:30 choose.
    pub(super) fn at(&self, address: u64) -> Option<PageId> {
        let [part, ..] = (address >> 30 & 3).to_le_bytes();
        self.0[usize::from(part)].map(|(page, _)| page)
    }

    /// The pages.
    pub fn pages(&self) -> impl Iterator<Item = PageId> + '_ {
        self.0.iter().flatten().map(|(page, _)| *page)
    }
}

/// A vCPU's roots among shadow pages.
#[derive(Clone, Debug)]
pub struct Roots {
    /// The role it wants, and the cache.
    pub mmu: VcpuMmu,
    /// What a PAE root consists of.
    pub pae: PaeRoots,
}

impl Roots {
    /// None, of a vCPU that wants this role.
    pub fn new(role: PageRole) -> Self {
        Self {
            mmu: VcpuMmu::new(role),
            pae: PaeRoots::default(),
        }
    }

    /// Where walks of the vCPU begin; `None` if nothing is loaded.
    pub fn current<F: Format>(&self, shadow: &super::ShadowMmu<F>) -> Option<ShadowRoot> {
        match self.mmu.cache().current() {
            Root::None => None,
            Root::Special(SpecialRoot::Dummy) => Some(ShadowRoot::Dummy),
            Root::Special(SpecialRoot::Pae) => Some(ShadowRoot::Pae(self.pae)),
            Root::Page(root) => shadow.page_of_root(root).map(ShadowRoot::Page),
        }
    }
}

impl<F: Format, O: Observer<F>> ShadowLocked<'_, F, O> {
    /// Sees to it that a vCPU with a direct role has a root (`mmu.c:mmu_alloc_direct_roots`).
    ///
    /// # Errors
    /// There is no room for it.
    pub fn load_direct(&mut self, roots: &mut Roots) -> Result<(), super::NoRoom> {
        if roots.mmu.cache().current() != Root::None {
            return Ok(());
        }
        self.make_room()?;
        let role = roots.mmu.role();
        if role.level() >= Level::L4 {
            let guest = GuestRoot::Visible(Pgd::ZERO);
            self.load_page(roots, guest, Gfn::new(0), role);
            return Ok(());
        }
        let quarter = role.with_level(Level::L2);
        for (part, place) in (0..).zip(&mut roots.pae.0) {
            let gfn = Gfn::new(part << QUARTER);
            *place = Some(self.hold_page(gfn, quarter));
        }
        roots.mmu.load_pae(Pgd::ZERO);
        Ok(())
    }

    /// Finds or makes the page of a root, and loads it.
    pub(super) fn load_page(
        &mut self,
        roots: &mut Roots,
        guest: GuestRoot,
        gfn: Gfn,
        role: PageRole,
    ) {
        let page = self.get_page(gfn, role);
        if let Load::Created(root) = roots.mmu.load(&self.mmu.roots, guest, || page) {
            self.mmu.pages.get_mut(page).root = Some(root);
        }
    }

    /// Finds or makes a page, and holds it as a part of a root.
    pub(super) fn hold_page(&mut self, gfn: Gfn, role: PageRole) -> (PageId, RootId) {
        let page = self.get_page(gfn, role);
        let kind = RootKind::Shadow { gfn };
        let acquired = self.mmu.roots.acquire(kind, role, || page);
        if let Acquired::Created(root) = acquired {
            self.mmu.pages.get_mut(page).root = Some(root);
        }
        (page, acquired.root())
    }

    /// Gives up some of a vCPU's roots (`mmu.c:kvm_mmu_free_roots`).
    pub fn free_roots(&mut self, roots: &mut Roots, set: RootSet) {
        let dropped = roots.mmu.free(&self.mmu.roots, set);
        self.drop_roots(roots, dropped);
    }

    /// Gives up all of a vCPU's roots and lets it want another role (`mmu.c:kvm_mmu_reset_context`).
    pub fn reset_context(&mut self, roots: &mut Roots, role: PageRole) {
        self.free_roots(roots, RootSet::all());
        roots.mmu.init(role);
    }

    /// Gives up those that are obsolete (`mmu.c:kvm_mmu_free_obsolete_roots`).
    pub fn free_obsolete_roots(&mut self, roots: &mut Roots) {
        let dropped = roots.mmu.free_obsolete(&self.mmu.roots);
        self.drop_roots(roots, dropped);
    }

    /// What a vCPU's cache gave up goes, if it was on its way out.
    pub fn drop_roots(&mut self, roots: &mut Roots, dropped: Vec<Dropped<PageId>>) {
        for one in dropped {
            match one {
                Dropped::Page(released) => {
                    if let Some(freed) = released.freed() {
                        self.zap_left_root(&freed);
                    }
                }
                Dropped::Special(SpecialRoot::Pae) => {
                    let parts = core::mem::take(&mut roots.pae);
                    for (_, root) in parts.0.into_iter().flatten() {
                        if let Some(freed) = self.mmu.roots.release(root).freed() {
                            self.zap_left_root(&freed);
                        }
                    }
                }
                Dropped::Special(SpecialRoot::Dummy) => {}
            }
        }
        self.commit_zap();
    }

    /// Whether a root's pages are not to be used any more (`mmu.c:is_page_fault_stale`).
    pub(super) fn is_stale(&self, roots: &Roots) -> bool {
        match roots.mmu.cache().current() {
            Root::Page(root) => self
                .mmu
                .page_of_root(root)
                .is_none_or(|page| self.mmu.is_obsolete(page)),
            // Without a page of its own, all there is to know is whether the vCPU has been asked to drop it.
            Root::Special(_) => roots
                .mmu
                .requests()
                .contains(crate::roots::Request::FreeObsoleteRoots),
            Root::None => true,
        }
    }

    /// The role of pages in a quarter of a PAE root.
    pub(super) fn quarter_role(role: PageRole) -> PageRole {
        role.with_level(Level::L2).without(RoleFlag::Invalid)
    }
}

/// log2 of the frames of a quarter: 1 GiB.
const QUARTER: u32 = 18;
