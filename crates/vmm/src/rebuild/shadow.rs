//! Shadow pages: tables that follow the guest's, of which no event tells how they are linked.

use std::collections::{BTreeMap, HashMap};

use slat_memslot::{Gfn, Level};
use slat_mmu::role::PageRole;

/// One shadow page that was made and not zapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowPage {
    /// The frame of the guest's table that it shadows, or the first frame that it maps if it is direct.
    pub gfn: Gfn,
    /// Its role, as far as the event tells it.
    pub role: PageRole,
    /// The leaves that faults stored in it, by their number. Whether they are still there no event tells.
    pub leaves: BTreeMap<u16, (Gfn, u64)>,
}

/// All shadow pages in a trace.
#[derive(Clone, Debug, Default)]
pub(super) struct ShadowPages {
    pages: HashMap<(u32, Gfn, PageRole), ShadowPage>,
    /// The page that a thread got last, by level.
    last: HashMap<(u32, Level), (u32, Gfn, PageRole)>,
    frames: HashMap<u64, (u32, Gfn, PageRole)>,
    pub(super) made: u64,
    pub(super) zapped: u64,
}

impl ShadowPages {
    pub(super) const fn any(&self) -> bool {
        self.made > 0
    }

    /// A thread made a page, or found one. `vm` tells VMs apart.
    pub(super) fn get(
        &mut self,
        (vm, thread): (u32, u32),
        gfn: Gfn,
        role: PageRole,
        created: bool,
    ) {
        let key = (vm, gfn, role);
        self.made += u64::from(created);
        let page = ShadowPage {
            gfn,
            role,
            leaves: BTreeMap::new(),
        };
        if created {
            self.pages.insert(key, page);
        } else {
            self.pages.entry(key).or_insert(page);
        }
        self.last.insert((thread, role.level()), key);
    }

    /// A fault stored a leaf.
    pub(super) fn set(&mut self, thread: u32, (gfn, level): (Gfn, Level), spte: u64, at: u64) {
        let last = self.last.get(&(thread, level)).copied();
        let known = self.frames.get(&(at >> 12)).copied();
        let known = known.filter(|key| self.pages.contains_key(key));
        let Some(key) = known.or(last) else {
            return;
        };
        self.frames.insert(at >> 12, key);
        if let Some(page) = self.pages.get_mut(&key) {
            let index = u16::try_from(at >> 3 & 511).unwrap_or(0);
            page.leaves.insert(index, (gfn, spte));
        }
    }

    /// A page is taken apart.
    pub(super) fn zap(&mut self, vm: u32, gfn: Gfn, role: PageRole) {
        let removed = self.pages.remove(&(vm, gfn, role));
        self.zapped += u64::from(removed.is_some());
    }

    /// The pages that are left, in order.
    pub(super) fn into_pages(self) -> Vec<ShadowPage> {
        let mut pages: Vec<ShadowPage> = self.pages.into_values().collect();
        pages.sort_by_key(|page| {
            (
                std::cmp::Reverse(page.role.level() as u8),
                page.gfn,
                page.role,
            )
        });
        pages
    }
}
