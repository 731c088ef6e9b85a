//! The audit of every step, in builds with debug assertions. In others the compiler leaves it out.

use core::sync::atomic::{AtomicU32, Ordering};

use slat_memslot::Gfn;

use super::root::Below;
use super::tree::Audit;
use super::{AuditContext, FrozenEntries, Violation};
use crate::spte::Format;
use crate::table::TableId;
use crate::tdp::events::Observer;
use crate::tdp::hooks::External;
use crate::tdp::lock::{Locked, Side};
use crate::tdp::tables::Tables;

/// A model checker has no time for it, and follows every load.
const AUDITED: bool = cfg!(all(debug_assertions, not(any(loom, shuttle))));
/// With more tables than this, a step looks at some only.
const FEW: usize = 64;
/// Numbers that are worth going through, given out or not.
const MADE: u32 = 512;
/// How many tables a step looks at then.
const WINDOW: u32 = 16;

/// The table that the next step goes on from. Not an atomic of the model checker's, since it orders nothing.
#[derive(Debug, Default)]
pub(in crate::tdp) struct StepCursor(AtomicU32);

impl StepCursor {
    /// The numbers that are next, of those below `made`.
    fn next(&self, made: u32) -> impl Iterator<Item = TableId> + use<> {
        let from = self.0.fetch_add(WINDOW, Ordering::Relaxed);
        let window = (0..WINDOW.min(made)).map(move |number| from.wrapping_add(number));
        window.map(move |number| TableId::new(number % made))
    }
}

impl<S: Side, O: Observer<S::Format>> Locked<S, O> {
    /// Audits what an operation has left behind, if the tables are its own.
    ///
    /// Tables that a caller is about to free are no leak, so leaks are [`Tables::audit`]'s only.
    #[inline]
    pub(in crate::tdp) fn audit_after_step(&self) {
        if AUDITED && !S::SHARED {
            require_none(&self.tables().audit_some());
        }
    }

    /// Audits the entries on the way to a frame, while others may be working.
    #[inline]
    pub(in crate::tdp) fn audit_after_map(&self, root: TableId, gfn: Gfn) {
        if AUDITED {
            require_none(&self.tables().audit_path(root, gfn));
        }
    }
}

impl<F: Format, X: External<F>, C> Tables<F, X, C> {
    /// All of few tables, else a window.
    pub(super) fn audit_some(&self) -> Vec<Violation> {
        let context = AuditContext::default();
        let mut audit = Audit::new(self, &context, FrozenEntries::LeftBehind);
        if audit.made <= MADE && self.arena.in_use() <= FEW {
            audit.everything();
            return audit.violations;
        }
        audit.roots(Below::LeftOut);
        for table in self.audit.next(audit.made) {
            if self.is_reachable(table, audit.made) {
                audit.single(table);
            }
        }
        audit.violations
    }
}

impl<F: Format, X, C> Tables<F, X, C> {
    /// The entries on the way to a frame.
    pub(super) fn audit_path(&self, root: TableId, gfn: Gfn) -> Vec<Violation> {
        let context = AuditContext::default();
        let mut audit = Audit::new(self, &context, FrozenEntries::Allowed);
        audit.path(root, gfn.raw());
        audit.violations
    }
}

#[track_caller]
fn require_none(violations: &[Violation]) {
    if violations.is_empty() {
        return;
    }
    let lines: Vec<_> = violations.iter().map(ToString::to_string).collect();
    panic!("the audit found:\n{}", lines.join("\n"));
}
