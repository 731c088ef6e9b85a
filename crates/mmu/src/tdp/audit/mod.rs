//! The audit.

use slat_memslot::Gfn;

use super::events::Observer;
use super::lock::{Locked, Side};
use crate::table::TableId;

impl<S: Side, O: Observer<S::Format>> Locked<S, O> {
    pub(super) fn audit_after_step(&self) {}
    pub(super) fn audit_after_map(&self, _root: TableId, _gfn: Gfn) {}
}
