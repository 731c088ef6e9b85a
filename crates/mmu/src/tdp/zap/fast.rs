//! Fast zap: all roots become unusable at once, and what they map goes afterwards (`mmu.c:kvm_mmu_zap_all_fast`).

use std::sync::PoisonError;

use crate::role::PageRole;
use crate::roots::{RootId, RootSelect};
use crate::spte::Format;
use crate::sync::RwLock;
use crate::table::Reader;
use crate::tdp::events::{Event, Observer};
use crate::tdp::hooks::{AccessCheck, External};
use crate::tdp::lock::{Exclusive, Locked, Shared, Side};
use crate::tdp::resched::{Progress, Resched};
use crate::tdp::rootwalk::RootWalk;
use crate::tdp::tables::Tables;
use crate::tdp::zap::Passes;
use crate::tdp::zap::root::{EVERYTHING, PassState, zap_root};

/// Who zaps the invalidated roots, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum FastZap {
    /// The caller, before the call returns: up to 5.17, and since 6.6. This is what deleting a slot costs there.
    #[default]
    BeforeReturn,
    /// A worker, later: between 5.18 and 6.5 KVM queued each root to one. Whoever plays the worker runs
    /// [`ZapInvalidated`] with a budget.
    Worker,
    /// Nobody, as an experiment: the tables go without a look at their leaves, and what hardware has noted in those is
    /// lost. Needs the tables to oneself ([`Locked::discard_invalidated`]).
    Discard,
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Exclusive<'_, F, X, C>, O> {
    /// Makes all direct roots unusable (`tdp_mmu.c:kvm_tdp_mmu_invalidate_all_roots`); mirrors stay. Costs what there are
    /// roots, however much they map.
    ///
    /// Every vCPU must be sent [`Request::FreeObsoleteRoots`](crate::roots::Request::FreeObsoleteRoots) before the lock is
    /// given up, and [`ZapInvalidated`] must be run.
    pub fn invalidate_roots(&mut self) {
        if O::EVENTS {
            self.observer.event(Event::ZapAllFast);
        }
        let tables = &mut *self.side.tables;
        let arena = &tables.arena;
        tables
            .roots
            .invalidate_each(|table, role| arena.meta(table).set_role(role));
        self.audit_after_step();
    }
}

/// Zaps the roots that were invalidated and gives up the TDP MMU's own reference to each
/// (`tdp_mmu.c:kvm_tdp_mmu_zap_invalidated_roots`).
///
/// Others fault on new roots meanwhile. A root that a vCPU still holds loses all it maps and stays until it is let go.
#[derive(Debug)]
#[must_use = "it does nothing until it is run"]
pub struct ZapInvalidated {
    walk: RootWalk,
    state: PassState,
    /// The root whose turn it is, which nobody else zaps any more.
    taken: Option<RootId>,
}

impl ZapInvalidated {
    /// In these passes.
    pub const fn new(passes: Passes) -> Self {
        Self {
            walk: RootWalk::new(RootSelect::All, None, EVERYTHING),
            state: PassState::new(passes),
            taken: None,
        }
    }

    /// Zaps until it is over or `resched` wants to give way.
    pub fn run<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>, R: Resched>(
        &mut self,
        locked: &mut Locked<Shared<'_, F, X, C>, O>,
        resched: &mut R,
    ) -> Progress {
        while let Some(place) = self.walk.current(locked) {
            if let Some(root) = self.take_turn(locked) {
                let (walk, state) = (&mut self.walk, &mut self.state);
                if zap_root(locked, resched, walk, state, place) == Progress::Paused {
                    return Progress::Paused;
                }
                self.taken = None;
                // Only now: until it is zapped, the host's memory management has to find it.
                if let Some(freed) = locked.tables().roots.put_own(root).freed() {
                    locked.free_root(freed);
                }
            }
            self.walk.next_root();
        }
        Progress::Done
    }

    /// The root that the walk is on, if it is to be zapped and nobody else does it.
    fn take_turn<S: Side, O: Observer<S::Format>>(
        &mut self,
        locked: &Locked<S, O>,
    ) -> Option<RootId> {
        if self.taken.is_none() {
            let root = self.walk.root()?;
            let roots = &locked.tables().roots;
            self.taken = roots.take_scheduled(root).then_some(root);
            debug_assert!(
                self.taken.is_none() || roots.role(root).is_some_and(PageRole::is_invalid),
                "only invalid roots are scheduled"
            );
        }
        self.taken
    }
}

/// Invalidates all roots and, if the policy says so, zaps them before it returns. `request` sends
/// [`Request::FreeObsoleteRoots`](crate::roots::Request::FreeObsoleteRoots) to every vCPU, with the lock held.
///
/// The lock is given up whenever `resched` wants it, so that faults and writers come through.
pub fn zap_all_fast<F, X, C, O, R>(
    lock: &RwLock<Tables<F, X, C>>,
    reader: &mut Reader,
    (observer, resched): (&mut O, &mut R),
    (policy, passes): (FastZap, Passes),
    request: impl FnOnce(),
) where
    F: Format,
    X: External<F>,
    C: AccessCheck,
    O: Observer<F>,
    R: Resched,
{
    {
        let mut tables = lock.write().unwrap_or_else(PoisonError::into_inner);
        let mut locked = tables.exclusive(&mut *observer);
        locked.invalidate_roots();
        request();
        if policy == FastZap::Discard {
            let _tables = locked.discard_invalidated();
        }
    }
    if policy != FastZap::BeforeReturn {
        return;
    }
    let mut zap = ZapInvalidated::new(passes);
    loop {
        let tables = lock.read().unwrap_or_else(PoisonError::into_inner);
        let mut locked = tables.shared(reader, &mut *observer);
        if zap.run(&mut locked, resched) == Progress::Done {
            break;
        }
    }
    let tables = lock.read().unwrap_or_else(PoisonError::into_inner);
    tables.reclaim();
}
