//! What a CPU does with the tables on an access: it walks, and leaves its marks in the leaf.

use slat_memslot::Gfn;

use super::hooks::{AccessCheck, External};
use super::lock::{Locked, Shared};
use super::walk::Found;
use crate::spte::{Access, Entry, Format, Mmio, Spte};
use crate::sync::Ordering;
use crate::table::TableId;

/// What an access comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HardwareAccess<F> {
    /// It reaches its page.
    Done {
        /// Whether the leaf became dirty by it: hardware that logs modified pages logs this one.
        became_dirty: bool,
    },
    /// Nothing is mapped, or nothing that allows anything.
    NotPresent,
    /// A leaf is there that does not allow it.
    NotAllowed,
    /// An MMIO entry is there (`PFERR_RSVD_MASK`, EPT misconfiguration).
    Mmio {
        /// The entry.
        spte: Spte<F>,
        /// What it says.
        mmio: Mmio,
    },
}

impl<F: Format, X: External<F>, C: AccessCheck, O> Locked<Shared<'_, F, X, C>, O> {
    /// Makes an access as hardware does: reading is [`Access::USER`].
    ///
    /// The leaf is marked as accessed, and on a write as dirty, where hardware maintains these bits. Marks in links, which
    /// KVM sets ahead, are left alone.
    pub fn hardware_access(
        &mut self,
        root: TableId,
        gfn: Gfn,
        access: Access,
    ) -> HardwareAccess<F> {
        loop {
            let found = self.tables().find(root, gfn.raw());
            let leaf = match self.tables().codec.decode(found.spte, found.level) {
                Entry::Leaf(leaf) => leaf,
                Entry::Mmio(mmio) => {
                    return HardwareAccess::Mmio {
                        spte: found.spte,
                        mmio,
                    };
                }
                Entry::Absent | Entry::Frozen | Entry::Link(_) => {
                    return HardwareAccess::NotPresent;
                }
            };
            if !leaf.allowed().contains(access) {
                return match self.tables().codec.is_access_tracked(found.spte) {
                    true => HardwareAccess::NotPresent,
                    false => HardwareAccess::NotAllowed,
                };
            }
            if let Some(became_dirty) = self.leave_marks(&found, access) {
                return HardwareAccess::Done { became_dirty };
            }
        }
    }

    /// Marks a leaf, and says whether it became dirty; `None` if it is not what it was. Hardware reads, checks and marks an
    /// entry as one locked operation, so that a leaf which becomes a link meanwhile is never marked.
    fn leave_marks(&self, found: &Found<F>, access: Access) -> Option<bool> {
        let tables = self.tables();
        let (old, mut marks) = (found.spte.raw(), 0);
        if !tables.codec.is_ad_disabled(found.spte) {
            marks |= F::ACCESSED;
            if access.contains(Access::WRITE) {
                marks |= F::DIRTY;
            }
        }
        let missing = marks & !old;
        if missing != 0 {
            let entry = tables.entry(found.place.table, found.place.index);
            let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
            entry
                .compare_exchange(old, old | marks, success, failure)
                .ok()?;
        }
        Some(missing & F::DIRTY != 0)
    }
}
