//! Bringing pages into step with the guest's tables (`mmu.c:kvm_sync_page`, `mmu.c:mmu_sync_children`).

use slat_memslot::{Gpa, Level};

use super::beside::TdpBeside;
use super::guest::{EntrySize, GuestTables, Shadowed};
use super::held::ShadowLocked;
use super::load::Roots;
use super::page::{ENTRIES, PageId, SpteRef};
use super::track::Asker;
use super::{ShadowRoot, size_at};
use crate::access::Access;
use crate::role::{PageRole, Quadrant, RoleFlag};
use crate::spte::{Fill, Format, HostWrite, LeafRequest, PfnKind, Spte, TableRole, Tracking};
use crate::tdp::Observer;
use crate::walk::{GuestEntry, TableMemory};

/// What bringing a page into step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Synced {
    /// Nothing that a TLB could hold has changed.
    Well,
    /// TLBs are to be flushed.
    Flush,
    /// The guest's table is gone, or the page is of another kind than the MMU's: it was zapped.
    Zapped,
}

/// What an entry came to.
enum EntrySync {
    Kept,
    Flush,
    NoMemory,
}

/// The fields of a role that say where in a tree a page is, not what kind of tree it is.
fn kind_of_tree(role: PageRole) -> PageRole {
    role.with_level(Level::L1)
        .with_access(Access::empty())
        .with_quadrant(Quadrant::Q0)
        .without(RoleFlag::Passthrough)
}

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
    /// Brings a page of the last level into step. It stays marked as out of it.
    pub(super) fn sync_page(&mut self, id: PageId, guest: &impl GuestTables) -> Synced {
        let role = self.mmu.pages.get(id).role;
        let fits = guest.role().map(kind_of_tree) == Some(kind_of_tree(role));
        let (mut flush, mut lost) = (false, !fits || role.is_direct());
        if !lost {
            for index in 0..ENTRIES {
                match self.sync_entry(SpteRef { page: id, index }, guest) {
                    EntrySync::Kept => {}
                    EntrySync::Flush => flush = true,
                    EntrySync::NoMemory => lost = true,
                }
            }
        }
        if lost {
            self.prepare_zap(id);
            return Synced::Zapped;
        }
        if flush { Synced::Flush } else { Synced::Well }
    }

    /// One entry (`paging_tmpl.h:sync_spte`).
    fn sync_entry(&mut self, at: SpteRef, guest: &impl GuestTables) -> EntrySync {
        let spte = self.entry(at);
        if self.mmu.codec.is_nonpresent(spte) {
            return EntrySync::Kept;
        }
        let page = self.mmu.pages.get(at.page);
        let size = page.entry_size();
        let place = Gpa::new(page.first_gpte() + u64::from(at.index) * size.bytes());
        let Some(raw) = guest.read(place, size) else {
            return EntrySync::NoMemory;
        };
        let Some((gfn, access)) = self.usable(at, guest.decode(raw, Level::L1)) else {
            self.drop_entry(at);
            return EntrySync::Flush;
        };
        if let Some(mmio) = self.mmu.codec.decode_mmio(spte) {
            let as_id = self.space_of(at.page);
            if mmio.gfn == gfn {
                self.set_mmio(at, gfn, access, guest.generation(as_id));
            } else {
                self.clear_entry(at);
            }
            return EntrySync::Kept;
        }
        let page = self.mmu.pages.get(at.page);
        let masks = self.mmu.codec.masks();
        // Only where entries can allow execution alone, nothing may be left of one.
        let nothing_left = u64::from(access.bits()) | masks.present == masks.nonpresent;
        if nothing_left || page.gfn_of(at.index) != gfn {
            self.drop_entry(at);
            return EntrySync::Flush;
        }
        if page.access_of(at.index) == access {
            return EntrySync::Kept;
        }
        self.mmu
            .pages
            .get_mut(at.page)
            .set_translation(at.index, gfn, access);
        match self.remake(at, spte, (gfn, access), guest) {
            true => EntrySync::Flush,
            false => EntrySync::Kept,
        }
    }

    /// The frame and access of a guest's entry of the last level, if it can be shadowed ahead of an access: only what is
    /// marked as accessed can (`paging_tmpl.h:prefetch_invalid_gpte`).
    pub(super) fn usable(
        &self,
        at: SpteRef,
        entry: GuestEntry,
    ) -> Option<(slat_memslot::Gfn, Access)> {
        let GuestEntry::Leaf {
            gfn,
            rights,
            accessed: true,
            dirty,
            ..
        } = entry
        else {
            return None;
        };
        let allowed = rights & self.mmu.pages.get(at.page).role.access();
        let access = match dirty {
            true => allowed,
            false => allowed - Access::WRITE,
        };
        Some((gfn, access))
    }

    /// Empties an entry of the last level, whatever it is (`mmu.c:drop_spte`).
    pub(super) fn drop_entry(&mut self, at: SpteRef) {
        if self.entry(at).is_present() {
            self.drop_leaf(at);
        } else {
            self.clear_entry(at);
        }
    }

    /// Makes a leaf anew with another access; says whether TLBs are to be flushed.
    fn remake(
        &mut self,
        at: SpteRef,
        old: Spte<F>,
        (gfn, access): (slat_memslot::Gfn, Access),
        guest: &impl GuestTables,
    ) -> bool {
        let role = self.mmu.pages.get(at.page).role;
        let codec = self.mmu.codec;
        let (size, settings) = (size_at(role.level()), guest.settings());
        let slot = guest.slot(role.as_id(), gfn);
        let host_write = match codec.is_host_writable(old) {
            true => HostWrite::Allowed,
            false => HostWrite::Refused,
        };
        let mut request = LeafRequest {
            table: TableRole {
                size,
                access: role.access(),
                ad: codec.ad_type_of_table(role),
            },
            pfn_kind: PfnKind::Memory,
            access,
            fill: Fill::Sync,
            host_write,
            guest_pat: settings.guest_pat,
            nx_huge_pages: settings.nx_huge_pages,
            dirty_log: slot.is_some_and(slat_memslot::Slot::is_logged),
            ..LeafRequest::new(old, size, codec.pfn(old))
        };
        if codec.asks_for_tracking(&request) && self.must_see_writes(gfn, Asker::Sync) {
            request.tracking = Tracking::EveryWrite;
        }
        let made = codec.make_leaf(&request);
        if made.mark_dirty {
            self.dirtied.push((role.as_id(), gfn));
        }
        self.update(at, made.spte)
    }

    /// Brings everything below a page into step, and lets the guest's writes to those tables be seen again.
    pub(super) fn sync_children(&mut self, parent: PageId, guest: &impl GuestTables) {
        let mut flush = false;
        loop {
            let batch = self.unsync_walk(parent);
            if batch.is_empty() {
                break;
            }
            let mut protected = false;
            for child in &batch {
                let page = self.mmu.pages.get(child.page);
                let (as_id, gfn) = (page.role.as_id(), page.gfn);
                protected |= self.write_protect(as_id, gfn, Level::L1);
            }
            if protected {
                self.flush_or_zap(true);
                flush = false;
            }
            for child in &batch {
                self.unlink_unsync(child.page);
                flush |= self.sync_page(child.page, guest) == Synced::Flush;
                self.clear_parents(child);
            }
        }
        self.flush_or_zap(flush);
    }

    /// Brings all pages of a vCPU's root into step (`mmu.c:kvm_mmu_sync_roots`), as a flush of the guest's TLB asks for.
    pub fn sync_roots<M: TableMemory + ?Sized>(&mut self, roots: &Roots, guest: &Shadowed<'_, M>) {
        if roots.mmu.role().is_direct() {
            return;
        }
        match roots.current(self.mmu) {
            Some(ShadowRoot::Page(page)) => self.sync_children(page, guest),
            Some(ShadowRoot::Pae(pae)) => {
                let pages: Vec<PageId> = pae.pages().collect();
                for page in pages {
                    self.sync_children(page, guest);
                }
            }
            Some(ShadowRoot::Dummy) | None => {}
        }
    }

    /// Brings the entry for one address into step, as `invlpg` asks for (`mmu.c:kvm_mmu_invalidate_addr`).
    pub fn invalidate_address<M: TableMemory + ?Sized>(
        &mut self,
        root: ShadowRoot,
        address: u64,
        guest: &Shadowed<'_, M>,
    ) {
        let mut at = self.mmu.walk_start(root, address);
        while let Some(here) = at {
            let page = self.mmu.pages.get(here.page);
            let below = page.unsync_children.count > 0;
            if page.unsync {
                self.invalidate_entry(here, guest);
            }
            at = match below {
                true => self.mmu.walk_down(here, address),
                false => None,
            };
        }
    }

    fn invalidate_entry(&mut self, at: SpteRef, guest: &impl GuestTables) {
        match self.sync_entry(at, guest) {
            EntrySync::Kept => return,
            EntrySync::Flush => {}
            EntrySync::NoMemory => {
                self.zap_entry(at, super::zap::Parentless::Keep);
            }
        }
        self.flush();
    }
}

impl<F> super::page::Page<F> {
    /// The size of the entries that it follows.
    pub(super) fn entry_size(&self) -> EntrySize {
        match self.role.has(RoleFlag::FourByteGpte) {
            true => EntrySize::Four,
            false => EntrySize::Eight,
        }
    }
}
