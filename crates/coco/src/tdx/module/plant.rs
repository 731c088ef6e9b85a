//! States that no call leads to, for tests: planted faults, and states that only an export or an import reaches.

use slat_mmu::spte::Pfn;

use super::Module;
use super::call::GpaMapping;
use crate::tdx::locks::Hold;
use crate::tdx::op_state::OpState;
use crate::tdx::pamt::PageType;
use crate::tdx::sept::{SeptEntry, SeptState};
use crate::tdx::td::{Tdr, VpId};
use crate::tdx::vp::Where;

/// A lock that somebody is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(hidden)]
pub enum HeldLock {
    /// The TD's root page.
    Tdr(Hold),
    /// The tree.
    Tree(Hold),
    /// The epoch.
    Epoch(Hold),
    /// An entry.
    Entry(GpaMapping),
}

/// Everything that a call about memory can change.
#[cfg(all(test, not(shuttle)))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pamt: crate::tdx::pamt::Pamt,
    sept: Option<crate::tdx::sept::Sept>,
    children: u64,
    op_state: OpState,
    epochs: crate::tdx::Epochs,
    locks: crate::tdx::locks::Locks,
    contents: rustc_hash::FxHashMap<Pfn, crate::tdx::Content>,
    measured: u64,
}

#[cfg(all(test, not(shuttle)))]
impl Module {
    pub(crate) fn snapshot(&self, td: Tdr) -> Snapshot {
        let guard = self.state();
        let td = guard.td_ref(td);
        Snapshot {
            pamt: guard.pamt.clone(),
            sept: td.sept.clone(),
            children: td.children,
            op_state: td.op_state,
            epochs: td.epochs,
            locks: td.locks,
            contents: guard.contents.clone(),
            measured: td.measurement.operations(),
        }
    }

    /// Whether nothing has changed since.
    pub(crate) fn is_as(&self, td: Tdr, before: &Snapshot) -> bool {
        let guard = self.state();
        let td = guard.td_ref(td);
        (td.children, td.op_state) == (before.children, before.op_state)
            && (td.epochs, td.locks) == (before.epochs, before.locks)
            && td.measurement.operations() == before.measured
            && td.sept == before.sept
            && guard.contents == before.contents
            && guard.pamt == before.pamt
    }
}

#[doc(hidden)]
impl Module {
    /// Says what a TD does.
    pub fn plant_op_state(&self, td: Tdr, op_state: OpState) {
        self.state().td_mut(td).op_state = op_state;
    }

    /// Replaces the state of the entry that a walk for this mapping ends at.
    pub fn plant_entry(&self, td: Tdr, at: GpaMapping, state: SeptState, page: Pfn) {
        let mut guard = self.state();
        let sept = guard.td_mut(td).sept_mut();
        let place = sept.walk(at.gpa, at.level).place;
        *sept.entry_mut(place) = match state {
            SeptState::Free => SeptEntry::FREE,
            SeptState::Removed => SeptEntry::removed(true),
            SeptState::NlMapped => SeptEntry::link(page),
            SeptState::NlBlocked => SeptEntry::link(page).with_state(state, at.level),
            leaf => SeptEntry::leaf(leaf, page),
        };
    }

    /// Says what a page is.
    pub fn plant_page(
        &self,
        td: Tdr,
        page: Pfn,
        size: slat_memslot::PageSize,
        page_type: PageType,
    ) {
        self.state().pamt.take(page, size, page_type, td);
    }

    /// Makes a table that no entry leads to.
    pub fn plant_table(&self, td: Tdr, page: Pfn) {
        self.state().td_mut(td).sept_mut().add_table(page);
    }

    /// Says when a page was blocked.
    pub fn plant_blocked_epoch(&self, page: Pfn, epoch: u64) {
        self.state().pamt.set_blocked_epoch(page, epoch);
    }

    /// Says how many pages belong to a TD.
    pub fn plant_children(&self, td: Tdr, children: u64) {
        self.state().td_mut(td).children = children;
    }

    /// Takes the permissions from an entry.
    pub fn plant_permissions(&self, td: Tdr, at: GpaMapping) {
        let mut guard = self.state();
        let sept = guard.td_mut(td).sept_mut();
        let place = sept.walk(at.gpa, at.level).place;
        let entry = sept.entry_mut(place);
        if let Some(changed) = SeptEntry::from_raw(entry.raw() & !0b111) {
            *entry = changed;
        }
    }

    /// Takes a vCPU out without a word to anybody.
    pub fn plant_outside(&self, td: Tdr, vp: VpId) {
        self.state().td_mut(td).vps[usize::from(vp.0)].place = Where::Outside;
    }

    /// Begins an epoch whoever is inside.
    pub fn plant_epoch(&self, td: Tdr) {
        self.state().td_mut(td).epochs.plant_next();
    }

    /// Somebody takes a lock and keeps it. Says whether he got it.
    pub fn plant_lock(&self, td: Tdr, held: HeldLock) -> bool {
        let mut guard = self.state();
        let td = guard.td_mut(td);
        match held {
            HeldLock::Tdr(hold) => td.locks.tdr.acquire(hold),
            HeldLock::Tree(hold) => td.locks.tree.acquire(hold),
            HeldLock::Epoch(hold) => td.locks.epoch.acquire(hold),
            HeldLock::Entry(at) => {
                let place = td.sept().walk(at.gpa, at.level).place;
                td.sept_mut().entry_mut(place).lock_for_host()
            }
        }
    }

    /// He lets it go.
    pub fn release_lock(&self, td: Tdr, held: HeldLock) {
        let mut guard = self.state();
        let td = guard.td_mut(td);
        match held {
            HeldLock::Tdr(hold) => td.locks.tdr.release(hold),
            HeldLock::Tree(hold) => td.locks.tree.release(hold),
            HeldLock::Epoch(hold) => td.locks.epoch.release(hold),
            HeldLock::Entry(at) => {
                let place = td.sept().walk(at.gpa, at.level).place;
                td.sept_mut().entry_mut(place).unlock();
            }
        }
    }
}
