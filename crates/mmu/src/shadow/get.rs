//! Finding pages, and making them (`mmu.c:kvm_mmu_get_shadow_page`).

use slat_memslot::{Gfn, Level};

use super::beside::TdpBeside;
use super::guest::GuestTables;
use super::held::ShadowLocked;
use super::page::{PageId, SpteRef, quadrant};
use super::sync::Synced;
use crate::access::Access;
use crate::role::{PageRole, RoleFlag};
use crate::spte::Format;
use crate::tdp::{Event, Observer};

/// Whether a page maps frames in a line or follows a table of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follows {
    Line,
    GuestTable,
}

/// What a search for a page came to.
enum Search {
    Found(PageId),
    Missing,
}

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
    /// The page of a frame and role.
    pub(super) fn get_page(
        &mut self,
        gfn: Gfn,
        role: PageRole,
        guest: &impl GuestTables,
    ) -> PageId {
        let (page, created) = match self.find_page(gfn, role, guest) {
            Search::Found(page) => (page, false),
            Search::Missing => (self.make_page(gfn, role), true),
        };
        let info = self.mmu.info(page);
        self.tell(Event::ShadowPage {
            page: info,
            created,
        });
        page
    }

    /// Searches the frame's bucket of the hash (`mmu.c:kvm_mmu_find_shadow_page`).
    fn find_page(&mut self, gfn: Gfn, role: PageRole, guest: &impl GuestTables) -> Search {
        let (mut found, mut collisions) = (Search::Missing, 0);
        let bucket: Vec<PageId> = self.mmu.pages.in_bucket(gfn).collect();
        for id in bucket {
            if self.mmu.is_obsolete(id) {
                continue;
            }
            let page = self.mmu.pages.get(id);
            if page.gfn != gfn {
                collisions += 1;
            } else if page.role == role {
                if self.make_usable(id, guest) {
                    found = Search::Found(id);
                }
                break;
            } else if page.unsync && role.level() > Level::L1 {
                // The frame becomes a table of a higher level, which is write-protected: nothing unsync may stay.
                self.prepare_zap(id);
            }
        }
        self.commit_zap();
        if matches!(found, Search::Missing) {
            self.mmu.stats.mmu_cache_miss += 1;
        }
        let most = &mut self.mmu.stats.max_mmu_page_hash_collisions;
        *most = collisions.max(*most);
        found
    }

    /// Whether a page that was found can be used. One that is out of step is brought into it, but stays writable for the
    /// guest: until it flushes its TLB, several pages may be out of step with one table.
    fn make_usable(&mut self, id: PageId, guest: &impl GuestTables) -> bool {
        let page = self.mmu.pages.get(id);
        if page.role.is_direct() {
            return true;
        }
        if page.unsync {
            match self.sync_page(id, guest) {
                Synced::Zapped => return false,
                Synced::Flush => self.flush(),
                Synced::Well => {}
            }
        }
        self.mmu.pages.get(id).forget_flood();
        true
    }

    fn make_page(&mut self, gfn: Gfn, role: PageRole) -> PageId {
        let (generation, empty) = (self.mmu.generation, self.mmu.codec.nonpresent());
        let page = self.mmu.pages.add(gfn, role, generation, empty);
        if self.mmu.pages.get(page).has_gptes() {
            self.account_shadowed(page);
        }
        page
    }

    /// The role of a page that an entry is to link (`mmu.c:kvm_mmu_child_role`).
    pub(super) fn child_role(&self, at: SpteRef, follows: Follows, access: Access) -> PageRole {
        let parent = self.mmu.pages.get(at.page).role;
        let level = parent.level().child().unwrap_or(Level::L1);
        let role = parent
            .with_level(level)
            .with_access(access)
            .without(RoleFlag::Passthrough)
            .without(RoleFlag::Direct);
        let role = match follows {
            Follows::Line => role.with(RoleFlag::Direct),
            Follows::GuestTable => role,
        };
        if role.has(RoleFlag::FourByteGpte) {
            // A page covers half of a guest's table, and the parent's index says which.
            return role.with_quadrant(quadrant(at.index & 1));
        }
        role
    }

    /// The page that an entry is to link; `None` if it links just that (`mmu.c:kvm_mmu_get_child_sp`).
    pub(super) fn child_to_link(
        &mut self,
        at: SpteRef,
        gfn: Gfn,
        (follows, access): (Follows, Access),
        guest: &impl GuestTables,
    ) -> Option<PageId> {
        let role = self.child_role(at, follows, access);
        let entry = self.entry(at);
        if entry.is_present() && !entry.is_large() {
            let child = self.mmu.pages.get(self.child(entry));
            if child.gfn == gfn && child.role == role {
                return None;
            }
        }
        Some(self.get_page(gfn, role, guest))
    }
}
