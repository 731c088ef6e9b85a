//! Storing a leaf or an MMIO entry (`mmu.c:mmu_set_spte`).

use slat_memslot::{Generation, Gfn, Level};

use super::beside::TdpBeside;
use super::held::ShadowLocked;
use super::page::SpteRef;
use super::size_at;
use super::track::Asker;
use crate::access::Access;
use crate::fault::Settings;
use crate::spte::{
    Fill, Format, HostWrite, LeafRequest, Mmio, Pfn, PfnKind, Spte, TableRole, Tracking,
};
use crate::tdp::{Event, Observer};

/// A page of the host that a leaf is to map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapped {
    pub(super) pfn: Pfn,
    pub(super) kind: PfnKind,
    pub(super) host_write: HostWrite,
}

/// Whether the guest waits for a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// It does, and wants to write.
    Write,
    /// It does, and does not want to write.
    Read,
    /// `KVM_PRE_FAULT_MEMORY`.
    Prefault,
    /// It has not asked: a neighbour.
    Neighbour,
}

/// A leaf to be stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeafToSet {
    pub(super) gfn: Gfn,
    pub(super) access: Access,
    pub(super) page: Mapped,
    pub(super) want: Want,
    pub(super) settings: Settings,
    pub(super) logged: bool,
}

/// What storing it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Fixed,
    /// It was there.
    Spurious,
    /// It is there, but not writable, since each write has to be seen.
    WriteProtected,
}

/// The same, with what the caller has to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct SetLeaf {
    pub(super) stored: Stored,
    pub(super) mark_dirty: bool,
}

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
    /// What of an entry has to go before another page is mapped by it. Says whether something went, and whether a leaf of
    /// the same page is there.
    fn make_way(&mut self, at: SpteRef, pfn: Option<Pfn>) -> (bool, bool) {
        let old = self.entry(at);
        let level = self.mmu.pages.get(at.page).level();
        if old.is_link(level) {
            self.unlink(at);
            (true, false)
        } else if old.is_leaf(level) && Some(self.mmu.codec.pfn(old)) != pfn {
            self.drop_leaf(at);
            (true, false)
        } else {
            (false, old.is_present())
        }
    }

    /// Stores a leaf.
    pub(super) fn set_leaf(&mut self, at: SpteRef, leaf: &LeafToSet) -> SetLeaf {
        let (mut flush, was_mapped) = self.make_way(at, Some(leaf.page.pfn));
        let old = self.entry(at);
        let (new, protected, mark_dirty) = self.make_leaf(at, old, leaf);
        let mut stored = Stored::Spurious;
        if new != old {
            flush |= self.update(at, new);
            stored = Stored::Fixed;
            let level = self.mmu.pages.get(at.page).level();
            self.tell(Event::ShadowSpteSet {
                level,
                gfn: leaf.gfn,
                spte: new,
                page: at.page,
            });
        }
        if protected && leaf.want == Want::Write {
            stored = Stored::WriteProtected;
        }
        if flush {
            self.flush();
        }
        if was_mapped {
            let page = self.mmu.pages.get_mut(at.page);
            page.set_translation(at.index, leaf.gfn, leaf.access);
        } else {
            self.add_leaf(at, leaf.gfn, leaf.access);
        }
        SetLeaf { stored, mark_dirty }
    }

    /// The entry, whether writes were held back, and whether the page is dirty by it.
    fn make_leaf(&mut self, at: SpteRef, old: Spte<F>, leaf: &LeafToSet) -> (Spte<F>, bool, bool) {
        let role = self.mmu.pages.get(at.page).role;
        let size = size_at(role.level());
        let (fill, asker) = match leaf.want {
            Want::Write | Want::Read => (Fill::Fault, Asker::Fault),
            Want::Prefault | Want::Neighbour => (Fill::Prefetch, Asker::Prefetch),
        };
        let mut request = LeafRequest {
            table: TableRole {
                size,
                access: role.access(),
                ad: self.mmu.codec.ad_type_of_table(role),
            },
            pfn_kind: leaf.page.kind,
            access: leaf.access,
            fill,
            host_write: leaf.page.host_write,
            guest_pat: leaf.settings.guest_pat,
            nx_huge_pages: leaf.settings.nx_huge_pages,
            dirty_log: leaf.logged,
            ..LeafRequest::new(old, size, leaf.page.pfn)
        };
        if self.mmu.codec.asks_for_tracking(&request) && self.must_see_writes(leaf.gfn, asker) {
            request.tracking = Tracking::EveryWrite;
        }
        let made = self.mmu.codec.make_leaf(&request);
        (made.spte, made.write_protected, made.mark_dirty)
    }

    /// Stores an MMIO entry (`mmu.c:mark_mmio_spte`).
    pub(super) fn set_mmio(
        &mut self,
        at: SpteRef,
        gfn: Gfn,
        access: Access,
        generation: Generation,
    ) {
        let (flush, _) = self.make_way(at, None);
        let codec = self.mmu.codec;
        if let Some(spte) = codec.make_mmio(gfn, access, generation) {
            self.store(at, spte);
            self.tell(Event::MmioMarked {
                mmio: Mmio {
                    gfn,
                    access,
                    generation: codec.mmio_generation(generation),
                },
                spte,
            });
        }
        if flush {
            self.flush();
        }
    }

    /// The level of the page that an entry is in.
    pub(super) fn level_of(&self, at: SpteRef) -> Level {
        self.mmu.pages.get(at.page).level()
    }
}
