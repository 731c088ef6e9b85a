//! Walks through shadow pages, which take no lock, and the accesses of hardware and fast faults that go with them.

use slat_memslot::{Gfn, Gpa, Level};

use super::ShadowMmu;
use super::load::PaeRoots;
use super::page::{PageId, SpteRef};
use crate::access::Access;
use crate::host::AdBits;
use crate::spte::{Entry, Format, Spte};
use crate::sync::Ordering;
use crate::tdp::{Event, Fast, HardwareAccess, Observer, SlotLog};

/// Where a walk begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowRoot {
    /// At a page.
    Page(PageId),
    /// At four pointers of the vCPU's own, which bits 31:30 of the address choose from.
    Pae(PaeRoots),
    /// Nowhere: the guest's table is in no slot.
    Dummy,
}

/// The entry that a walk ends at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached<F> {
    /// Where it is.
    pub at: SpteRef,
    /// The level of its page.
    pub level: Level,
    /// The entry.
    pub spte: Spte<F>,
}

/// The entry of a table of this level for an address.
pub(super) const fn index_of(address: u64, level: Level) -> u16 {
    let index = address >> (12 + level.gfn_shift()) & 0x1ff;
    let [a, b, ..] = index.to_le_bytes();
    u16::from_le_bytes([a, b])
}

impl<F: Format> ShadowMmu<F> {
    /// The first entry of a walk (`mmu.c:shadow_walk_init`).
    pub(super) fn walk_start(&self, root: ShadowRoot, address: u64) -> Option<SpteRef> {
        let page = match root {
            ShadowRoot::Page(page) => page,
            ShadowRoot::Pae(roots) => roots.at(address)?,
            ShadowRoot::Dummy => return None,
        };
        let level = self.pages.try_get(page)?.level();
        let index = index_of(address, level);
        Some(SpteRef { page, index })
    }

    /// The entry below a link.
    pub(super) fn walk_down(&self, at: SpteRef, address: u64) -> Option<SpteRef> {
        let page = self.pages.get(at.page);
        let spte = page.entry(at.index);
        if !spte.is_link(page.level()) {
            return None;
        }
        let [a, b, c, d, ..] = self.codec.pfn(spte).raw().to_le_bytes();
        let child = PageId::new(u32::from_le_bytes([a, b, c, d]));
        let index = index_of(address, self.pages.get(child).level());
        Some(SpteRef { page: child, index })
    }

    /// Goes down to the last entry for an address (`mmu.c:for_each_shadow_entry_lockless`).
    pub fn walk(&self, root: ShadowRoot, address: u64) -> Option<Reached<F>> {
        let start = self.walk_start(root, address)?;
        let below = |at: &SpteRef| self.walk_down(*at, address);
        let last = core::iter::successors(Some(start), below).last()?;
        let page = self.pages.get(last.page);
        Some(Reached {
            at: last,
            level: page.level(),
            spte: page.entry(last.index),
        })
    }

    /// The guest's frame that the leaf for an address maps there, if it is one.
    pub fn frame_at(&self, root: ShadowRoot, address: u64) -> Option<Gfn> {
        let reached = self.walk(root, address)?;
        if !reached.spte.is_leaf(reached.level) {
            return None;
        }
        let first = self.pages.get(reached.at.page).gfn_of(reached.at.index);
        let inside = (address >> 12) & (reached.level.pages().raw() - 1);
        Some(Gfn::new(first.raw() + inside))
    }

    /// What the leaf for an address allows, if there is one.
    pub fn rights_at(&self, root: ShadowRoot, address: u64) -> Option<Access> {
        let reached = self.walk(root, address)?;
        match self.codec.decode(reached.spte, reached.level) {
            Entry::Leaf(leaf) => Some(leaf.allowed()),
            Entry::Absent | Entry::Frozen | Entry::Link(_) | Entry::Mmio(_) => None,
        }
    }

    /// Makes an access as hardware does, of supervisor or user mode: reading is no bit of `access`, and [`Access::USER`] is
    /// user mode. Marks leaves as accessed and dirty.
    ///
    /// In EPT every access is one of user mode.
    pub fn hardware_access(
        &self,
        root: ShadowRoot,
        address: u64,
        access: Access,
    ) -> HardwareAccess<F> {
        let Some(reached) = self.walk(root, address) else {
            return HardwareAccess::NotPresent;
        };
        let codec = &self.codec;
        let leaf = match codec.decode(reached.spte, reached.level) {
            Entry::Leaf(leaf) => leaf,
            Entry::Mmio(mmio) => {
                let spte = reached.spte;
                return HardwareAccess::Mmio { spte, mmio };
            }
            Entry::Absent | Entry::Frozen | Entry::Link(_) => return HardwareAccess::NotPresent,
        };
        if !leaf.allowed().contains(access) {
            return match codec.is_access_tracked(reached.spte) {
                true => HardwareAccess::NotPresent,
                false => HardwareAccess::NotAllowed,
            };
        }
        let mut marks = 0;
        if !codec.is_ad_disabled(reached.spte) {
            marks |= F::ACCESSED;
            if access.contains(Access::WRITE) {
                marks |= F::DIRTY;
            }
        }
        let entry = &self.pages.get(reached.at.page).entries[usize::from(reached.at.index)];
        let before = entry.fetch_or(marks, Ordering::AcqRel);
        HardwareAccess::Done {
            became_dirty: marks & !before & F::DIRTY != 0,
        }
    }

    /// Tries to fix a fault by a compare-exchange on its leaf, without the lock (`mmu.c:fast_page_fault`). Whether the
    /// fault is of the kind, is for the caller to know.
    pub fn fast_fault(
        &self,
        root: ShadowRoot,
        gpa: Gpa,
        access: Access,
        log: SlotLog,
        out: &mut impl Observer<F>,
    ) -> Fast {
        let empty = self.codec.nonpresent();
        let (mut old, mut fast) = (empty, Fast::NotFast);
        for _ in 0..FAST_ATTEMPTS {
            let Some(reached) = self.walk(root, gpa.raw()) else {
                break;
            };
            old = reached.spte;
            if !old.is_leaf(reached.level) {
                break;
            }
            if self.allows(old, access) {
                fast = Fast::Spurious;
                break;
            }
            let Some(new) = self.mended(&reached, access, log) else {
                break;
            };
            let entry = &self.pages.get(reached.at.page).entries[usize::from(reached.at.index)];
            let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
            let swapped = entry.compare_exchange(old.raw(), new.raw(), success, failure);
            if swapped.is_ok() {
                let mark_dirty = new.is_writable() && !old.is_writable();
                fast = Fast::Fixed { mark_dirty };
                break;
            }
        }
        let new = self.walk(root, gpa.raw()).map_or(empty, |at| at.spte);
        out.event(Event::FastFault {
            gfn: gpa.gfn(),
            old,
            new,
            fast,
        });
        fast
    }

    /// Whether a leaf allows an access by itself (`mmu.c:is_access_allowed`).
    fn allows(&self, leaf: Spte<F>, access: Access) -> bool {
        let codec = &self.codec;
        if access.contains(Access::EXECUTE) {
            codec.is_executable(leaf)
        } else if access.contains(Access::WRITE) {
            leaf.is_writable()
        } else {
            !codec.is_access_tracked(leaf)
        }
    }

    /// The leaf with what an access needs, if it can have it without asking.
    fn mended(&self, reached: &Reached<F>, access: Access, log: SlotLog) -> Option<Spte<F>> {
        let (codec, old) = (&self.codec, reached.spte);
        let mut new = old;
        if !codec.host().ad_enabled() && codec.is_access_tracked(old) {
            new = codec.restore_access(new);
            if codec.host().ad_bits == AdBits::Software {
                new = codec.mark_accessed(new);
            }
        }
        if access.contains(Access::WRITE) && codec.is_mmu_writable(old) {
            new = codec.make_writable(new);
            if reached.level > Level::L1 && log == SlotLog::On {
                return None;
            }
        }
        (new != old && self.allows(new, access)).then_some(new)
    }
}

/// Attempts before a fast fault gives up on an entry that others keep changing.
const FAST_ATTEMPTS: u32 = 5;
