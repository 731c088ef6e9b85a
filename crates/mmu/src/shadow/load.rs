//! Roots: making them, loading them, giving them up.

use slat_memslot::{Gfn, Level};

use super::beside::TdpBeside;
use super::guest::{GuestTables, NoTables, Shadowed};
use super::held::ShadowLocked;
use super::page::{PageId, quadrant};
use super::walk::ShadowRoot;
use crate::role::PageRole;
use crate::roots::{
    Acquired, Dropped, FlushOnReuse, GuestRoot, Load, Pgd, Reused, Root, RootId, RootKind, RootSet,
    SpecialRoot, VcpuMmu,
};
use crate::spte::Format;
use crate::tdp::Observer;
use crate::walk::{PagingMode, Pointers, TableMemory};

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

/// Which role a switch of CR3 looks for: what the mailing list argued about in 2022.
///
/// The MMU's own role is right if the MMU was told of the new registers first, and finds the old root if not. The caller's is right in
/// either order, if the caller computes it from the new registers. Upstream kept the first and put the order right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SwitchRole {
    /// The role that the MMU wants at the moment: what was merged.
    #[default]
    Mmus,
    /// The role that the caller passes in.
    Callers(PageRole),
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
        self.place_of(self.mmu.cache().current(), shadow)
    }

    /// Where walks began below earlier roots, as far as they are cached.
    pub fn previous<F: Format>(&self, shadow: &super::ShadowMmu<F>) -> Vec<ShadowRoot> {
        let cached = self.mmu.cache().roots().skip(1);
        cached
            .filter_map(|(_, root)| self.place_of(root, shadow))
            .collect()
    }

    fn place_of<F: Format>(&self, root: Root, shadow: &super::ShadowMmu<F>) -> Option<ShadowRoot> {
        match root {
            Root::None => None,
            Root::Special(SpecialRoot::Dummy) => Some(ShadowRoot::Dummy),
            Root::Special(SpecialRoot::Pae) => Some(ShadowRoot::Pae(self.pae)),
            Root::Page(root) => shadow.page_of_root(root).map(ShadowRoot::Page),
        }
    }
}

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
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
            self.load_page(roots, (guest, Gfn::new(0)), role, &NoTables);
            return Ok(());
        }
        let quarter = role.with_level(Level::L2);
        for (part, place) in (0..).zip(&mut roots.pae.0) {
            let gfn = Gfn::new(part << QUARTER);
            *place = Some(self.hold_page(gfn, quarter, &NoTables));
        }
        roots.mmu.load_pae(Pgd::ZERO);
        Ok(())
    }

    /// Sees to it that a vCPU that shadows tables has a root (`mmu.c:mmu_alloc_shadow_roots`), and that it is in step with
    /// them. `pointers` are those of a guest with PAE paging.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn load_shadow<M: TableMemory + ?Sized>(
        &mut self,
        roots: &mut Roots,
        pointers: Pointers,
        guest: &Shadowed<'_, M>,
    ) -> Result<(), super::NoRoom> {
        if roots.mmu.cache().current() != Root::None {
            return Ok(());
        }
        let (role, pgd) = (roots.mmu.role(), Pgd::new(guest.paging.root()));
        let gfn = Gfn::new((pgd.raw() & ADDRESS) >> 12);
        // Neither a slot that is going nor one of KVM's own counts (`kvm_main.c:kvm_is_visible_memslot`).
        let is_visible = |gfn| {
            let slot = guest.memory.space(role.as_id()).by_gfn(gfn);
            slot.is_some_and(|slot| slot.key().id.is_user() && !slot.is_invalid())
        };
        if !is_visible(gfn) {
            let nowhere = GuestRoot::Unbacked(pgd);
            let _ = roots.mmu.load(&self.mmu.roots, nowhere, || PageId::new(0));
            return Ok(());
        }
        self.make_room()?;
        let mode = guest.paging.mode();
        if mode.top_table() >= Some(Level::L4) {
            self.load_page(roots, (GuestRoot::Visible(pgd), gfn), role, guest);
        } else {
            let quarter = role.with_level(Level::L2);
            for part in 0..4_u16 {
                let at = usize::from(part);
                let (gfn, quarter) = match (mode, pointers.0[at]) {
                    (PagingMode::Pae, pointer) => {
                        let table = Gfn::new((pointer & ADDRESS) >> 12);
                        if pointer & 1 == 0 || !is_visible(table) {
                            roots.pae.0[at] = None;
                            continue;
                        }
                        (table, quarter)
                    }
                    // A page directory of four-byte entries takes four pages.
                    _ => (gfn, quarter.with_quadrant(quadrant(part))),
                };
                roots.pae.0[at] = Some(self.hold_page(gfn, quarter, guest));
            }
            roots.mmu.load_pae(pgd);
        }
        self.sync_roots(roots, guest);
        Ok(())
    }

    /// The guest loads CR3, or what stands for it (`mmu.c:kvm_mmu_new_pgd`): a root that is cached is used again.
    /// Says whether it was.
    pub fn new_pgd(&mut self, roots: &mut Roots, pgd: Pgd, flush: FlushOnReuse) -> bool {
        let new = roots.mmu.new_pgd(&self.mmu.roots, pgd, flush);
        let dropped = new.switch.dropped.into_iter().collect();
        self.drop_roots(roots, dropped);
        let Some(reused) = new.reused else {
            return false;
        };
        if let (Reused::Shadow, Some(ShadowRoot::Page(page))) = (reused, roots.current(self.mmu)) {
            self.mmu.pages.get(page).forget_flood();
        }
        true
    }

    /// The same with a role from somewhere else than the MMU: see [`SwitchRole`].
    pub fn new_pgd_as(
        &mut self,
        roots: &mut Roots,
        pgd: Pgd,
        role: SwitchRole,
        flush: FlushOnReuse,
    ) -> bool {
        let own = roots.mmu.role();
        if let SwitchRole::Callers(role) = role {
            roots.mmu.init(role);
        }
        let reused = self.new_pgd(roots, pgd, flush);
        roots.mmu.init(own);
        reused
    }

    /// Gives up earlier roots that are out of step, instead of bringing them into it (`mmu.c:kvm_mmu_sync_prev_roots`).
    pub fn free_unsync_previous(&mut self, roots: &mut Roots) {
        let mmu = &self.mmu;
        let is_unsync = |root| {
            let page = mmu
                .page_of_root(root)
                .and_then(|page| mmu.pages.try_get(page));
            page.is_none_or(|page| page.unsync || page.unsync_children.count > 0)
        };
        let dropped = roots.mmu.free_unsync_previous(&mmu.roots, is_unsync);
        self.drop_roots(roots, dropped);
    }

    /// Finds or makes the page of a root, and loads it.
    pub(super) fn load_page(
        &mut self,
        roots: &mut Roots,
        (root, gfn): (GuestRoot, Gfn),
        role: PageRole,
        guest: &impl GuestTables,
    ) {
        let page = self.get_page(gfn, role, guest);
        if let Load::Created(root) = roots.mmu.load(&self.mmu.roots, root, || page) {
            self.mmu.pages.get_mut(page).root = Some(root);
        }
    }

    /// Finds or makes a page, and holds it as a part of a root.
    pub(super) fn hold_page(
        &mut self,
        gfn: Gfn,
        role: PageRole,
        guest: &impl GuestTables,
    ) -> (PageId, RootId) {
        let page = self.get_page(gfn, role, guest);
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
}

/// log2 of the frames of a quarter: 1 GiB.
const QUARTER: u32 = 18;

/// The address in CR3 or in a page-directory pointer.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
