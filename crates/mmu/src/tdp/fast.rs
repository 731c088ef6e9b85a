//! A fault that needs nothing but a bit or two of an entry that is there (`mmu.c:fast_page_fault`).

use slat_memslot::{Gfn, Level};

use super::events::{Event, Observer};
use super::hooks::{AccessCheck, External};
use super::lock::{Locked, Shared};
use crate::access::Access;
use crate::host::AdBits;
use crate::spte::{Format, Spte};
use crate::sync::Ordering;
use crate::table::TableId;

/// What a fast fault came to (`RET_PF_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fast {
    /// It needs the long way (`RET_PF_INVALID`).
    NotFast,
    /// The leaf allows the access by now.
    Spurious,
    /// A bit was set.
    Fixed {
        /// The page became writable: it is to be marked dirty in its slot's log.
        mark_dirty: bool,
    },
}

/// Whether the slot's writes are logged, so that no huge leaf may become writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotLog {
    /// They are not.
    Off,
    /// They are.
    On,
}

/// Attempts before it gives up on an entry that others keep changing.
const ATTEMPTS: u32 = 5;

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Shared<'_, F, X, C>, O> {
    /// Tries to fix a fault by a compare-exchange on its leaf. Whether the fault is of the kind, is for the caller to know
    /// (`mmu.c:page_fault_can_be_fast`).
    ///
    /// It is not reported as a change of an entry, since the kernel does not either, but as [`Event::FastFault`].
    pub fn fast_fault(&mut self, root: TableId, gfn: Gfn, access: Access, log: SlotLog) -> Fast {
        let (mut old, mut fast) = (self.tables().codec.nonpresent(), Fast::NotFast);
        // Beyond what the root can tell apart nothing is mapped; other frames' entries are not for this one.
        let reaches = gfn < self.tables().end_of(root);
        let attempts = if reaches { ATTEMPTS } else { 0 };
        for _ in 0..attempts {
            let found = self.tables().find(root, gfn.raw());
            old = found.spte;
            if !old.is_leaf(found.level) {
                break;
            }
            if self.allows(old, access) {
                fast = Fast::Spurious;
                break;
            }
            let Some(new) = self.fixed(old, found.level, access, log) else {
                break;
            };
            let entry = self.tables().entry(found.place.table, found.place.index);
            let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
            if entry
                .compare_exchange(old.raw(), new.raw(), success, failure)
                .is_ok()
            {
                fast = Fast::Fixed {
                    mark_dirty: new.is_writable() && !old.is_writable(),
                };
                break;
            }
        }
        if O::EVENTS {
            let new = if reaches {
                self.tables().find(root, gfn.raw()).spte
            } else {
                old
            };
            self.observer.event(Event::FastFault {
                gfn,
                old,
                new,
                fast,
            });
        }
        fast
    }

    /// The leaf with what the access needs, if it can have it without asking.
    fn fixed(&self, old: Spte<F>, level: Level, access: Access, log: SlotLog) -> Option<Spte<F>> {
        let codec = &self.tables().codec;
        let mut new = old;
        if !codec.host().ad_enabled() && codec.is_access_tracked(old) {
            new = codec.restore_access(new);
            if codec.host().ad_bits == AdBits::Software {
                new = codec.mark_accessed(new);
            }
        }
        if access.contains(Access::WRITE) && codec.is_mmu_writable(old) {
            new = codec.make_writable(new);
            let logged = log == SlotLog::On && !cfg!(slat_mutant = "huge_in_log");
            if level > Level::L1 && logged {
                return None;
            }
        }
        (new != old && self.allows(new, access)).then_some(new)
    }
}
