//! Zapping everything below a root, in passes (`tdp_mmu.c:tdp_mmu_zap_root`).

use core::ops::Range;

use slat_memslot::{Gfn, GfnRange, Level};

use crate::roots::RootSelect;
use crate::spte::{Format, Spte};
use crate::sync::{AtomicU64, Ordering};
use crate::table::TableId;
use crate::tdp::cursor::Cursor;
use crate::tdp::events::Observer;
use crate::tdp::hooks::{AccessCheck, External};
use crate::tdp::leaves::Leaves;
use crate::tdp::lock::{Exclusive, Locked, Shared};
use crate::tdp::resched::{Progress, Resched};
use crate::tdp::rootwalk::{RootTypes, RootWalk};
use crate::tdp::store::{NotStored, Store};

/// In which order the entries below a root go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Passes {
    /// 4 KiB, 2 MiB, 1 GiB, root: no entry that is zapped has much below it, so that the lock can be given up often. Since
    /// 6.9, and before that without the first two.
    #[default]
    SmallestFirst,
    /// 1 GiB, root: as a fault may do it that replaces a table by a huge leaf (`CONFIG_KVM_PROVE_MMU`, and up to 6.8).
    LargestFirst,
}

impl Passes {
    /// The level that each pass zaps, below a root of this level.
    const fn levels(self, root: Level) -> [Option<Level>; 4] {
        match self {
            Self::SmallestFirst => [
                Some(Level::L1),
                Some(Level::L2),
                Some(Level::L3),
                Some(root),
            ],
            Self::LargestFirst => [Some(Level::L3), Some(root), None, None],
        }
    }
}

/// Where an operation is in the passes over a root.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PassState {
    passes: Passes,
    number: usize,
}

impl PassState {
    pub(super) const fn new(passes: Passes) -> Self {
        Self { passes, number: 0 }
    }
}

/// How the leaves of a table are zapped on each side of the lock.
pub(super) trait ZapRun: Store {
    /// Zaps the leaves of a run of entries, from the cursor on, in a table of level 1.
    fn zap_run<O: Observer<Self::Format>>(
        locked: &mut Locked<Self, O>,
        cursor: &Cursor<Self::Format>,
        run: Range<usize>,
    );
}

impl<F: Format, X: External<F>, C: AccessCheck> ZapRun for Shared<'_, F, X, C> {
    /// An entry that changes under the compare-exchange is looked at again.
    fn zap_run<O: Observer<F>>(
        locked: &mut Locked<Self, O>,
        cursor: &Cursor<F>,
        run: Range<usize>,
    ) {
        let (tables, masks) = (locked.side.tables, locked.ad_masks(cursor.table()));
        let (empty, mut at) = (tables.codec.nonpresent(), locked.at(cursor));
        let mut zapped = 0;
        for entry in &tables.arena.table(cursor.table())[run] {
            if let Some(old) = zap_leaf::<F>(entry, empty) {
                zapped += 1;
                locked.report_change(at, old, empty);
                locked.harvest_leaf(Level::L1, old, masks);
            }
            at.gfn += 1;
        }
        locked.counts().add_leaves(Level::L1, -zapped);
    }
}

/// Empties an entry while it is present, and gives what it was.
#[inline]
fn zap_leaf<F>(entry: &AtomicU64, empty: Spte<F>) -> Option<Spte<F>> {
    let mut old = Spte::from_raw(entry.load(Ordering::Relaxed));
    while old.is_present() {
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        match entry.compare_exchange(old.raw(), empty.raw(), success, failure) {
            Ok(_) => return Some(old),
            Err(_) if cfg!(slat_mutant = "zap_once") => return None,
            Err(now) => old = Spte::from_raw(now),
        }
    }
    None
}

impl<F: Format, X: External<F>, C: AccessCheck> ZapRun for Exclusive<'_, F, X, C> {
    fn zap_run<O: Observer<F>>(
        locked: &mut Locked<Self, O>,
        cursor: &Cursor<F>,
        run: Range<usize>,
    ) {
        let (mut cursor, empty) = (*cursor, locked.tables().codec.nonpresent());
        for index in run.clone() {
            if cursor.old.is_present() {
                // What the owner of mirror tables does not let go stays.
                let _busy = Self::replace(locked, &mut cursor, empty);
            }
            if index + 1 < run.end {
                cursor.advance(locked.tables());
            }
        }
    }
}

/// Zaps everything below the root that `walk` is on.
pub(super) fn zap_root<S: ZapRun, O: Observer<S::Format>, R: Resched>(
    locked: &mut Locked<S, O>,
    resched: &mut R,
    walk: &mut RootWalk,
    state: &mut PassState,
    (root, from): (TableId, u64),
) -> Progress {
    let page = locked.tables().page(root);
    locked.tables().forget(root, Leaves::All);
    let levels = state.passes.levels(page.role().level());
    let mut from = from;
    while let Some(Some(level)) = levels.get(state.number).copied() {
        if zap_pass(locked, resched, walk, root, (from, level)) == Progress::Paused {
            return Progress::Paused;
        }
        state.number += 1;
        walk.rewind();
        from = 0;
    }
    state.number = 0;
    Progress::Done
}

/// One pass: entries of this level and below go.
fn zap_pass<S: ZapRun, O: Observer<S::Format>, R: Resched>(
    locked: &mut Locked<S, O>,
    resched: &mut R,
    walk: &mut RootWalk,
    root: TableId,
    (from, level): (u64, Level),
) -> Progress {
    let end = walk.end();
    let mut cursor = Cursor::start(locked.tables(), root, level, from);
    while cursor.is_before(end) {
        if walk.gives_way(&cursor, resched) {
            return Progress::Paused;
        }
        if !R::ENABLED && cursor.level() == level && level == Level::L1 {
            zap_table_of_leaves(locked, &mut cursor, end);
        } else if cursor.old.is_present() && cursor.level() <= level {
            let empty = locked.tables().codec.nonpresent();
            let zapped = S::replace(locked, &mut cursor, empty);
            if zapped == Err(NotStored::Lost) && !cfg!(slat_mutant = "zap_once") {
                // It was read again: look at it once more.
                continue;
            }
        }
        cursor.advance(locked.tables());
    }
    Progress::Done
}

/// The entries of a table of level 1, one after the other, without going back to the cursor for each.
fn zap_table_of_leaves<S: ZapRun, O: Observer<S::Format>>(
    locked: &mut Locked<S, O>,
    cursor: &mut Cursor<S::Format>,
    end: u64,
) {
    let run = cursor.run(end);
    locked.tables().forget(cursor.table(), Leaves::All);
    S::zap_run(locked, cursor, run.clone());
    cursor.finish(&run);
}

/// Every frame that a table can map.
pub(super) const EVERYTHING: GfnRange = {
    // As many as five levels can tell apart; a walk stops at the host's last frame.
    let end = Gfn::new(1 << 45);
    match GfnRange::between(Gfn::new(0), end) {
        Some(range) => range,
        None => panic!("the range is not empty"),
    }
};

/// Zaps everything below all roots, invalid ones too (`tdp_mmu.c:kvm_tdp_mmu_zap_all`), when the memory of the VM's
/// process goes. The roots stay, and so do mirrors with all they map: nothing of theirs is the process's.
#[derive(Debug)]
#[must_use = "it does nothing until it is run"]
pub struct ZapAll {
    walk: RootWalk,
    state: PassState,
}

impl ZapAll {
    /// In these passes.
    pub const fn new(passes: Passes) -> Self {
        Self {
            walk: RootWalk::new(RootSelect::All, None, EVERYTHING).with_types(RootTypes::Direct),
            state: PassState::new(passes),
        }
    }

    /// Mirrors too, when the VM is no more and their owner lets go of everything
    /// (`tdp_mmu.c:kvm_mmu_uninit_tdp_mmu`).
    pub const fn of_mirrors_too(passes: Passes) -> Self {
        Self {
            walk: RootWalk::new(RootSelect::All, None, EVERYTHING),
            state: PassState::new(passes),
        }
    }

    /// Zaps until it is over or `resched` wants to give way.
    pub fn run<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>, R: Resched>(
        &mut self,
        locked: &mut Locked<Exclusive<'_, F, X, C>, O>,
        resched: &mut R,
    ) -> Progress {
        while let Some(place) = self.walk.current(locked) {
            let (walk, state) = (&mut self.walk, &mut self.state);
            if zap_root(locked, resched, walk, state, place) == Progress::Paused {
                return Progress::Paused;
            }
            self.walk.next_root();
        }
        locked.audit_after_step();
        Progress::Done
    }
}
