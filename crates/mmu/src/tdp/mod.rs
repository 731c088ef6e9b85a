//! The TDP MMU: page tables that map guest frames to pages of the host, changed by many vCPUs at a time.
//!
//! [`Tables`] are the page tables of one VM. Like KVM's they are guarded by a reader-writer lock, the caller's, whose two
//! sides are types: faults enter with [`Tables::shared`] and work with compare-exchange against each other; removal over
//! a range enters with [`Tables::exclusive`] and needs no atomic operation. All operations are methods of [`Locked`], or
//! values like [`ZapLeafs`] where they may give the lock up on the way.
//!
//! # Invariants
//! - An entry that another thread must not touch is frozen; who finds one tries again later.
//! - Who removes a link owns the table below: he freezes its entries one by one, so that a fault that is still in there
//!   fails, and retires the table. It is used again when no reader that could have seen the link is left.
//! - A table's role, frame and parent are written before its link and never change, but for `invalid` in a root's role,
//!   which changes with the tables to oneself.
//! - A leaf never changes its page without being empty in between.
//! - A parent's change is reported before its children's.
//!
//! KVM counterparts: `tdp_mmu.c`, `tdp_iter.c`; kernel 6.12.117, with mirror tables as in later kernels.

mod age;
pub mod audit;
mod change;
mod collapse;
mod count;
mod cursor;
mod descent;
pub mod dump;
mod events;
mod fast;
mod hardware;
mod hardware_walk;
mod hooks;
mod leaves;
mod lock;
mod log;
mod map;
#[cfg(test)]
mod model;
mod nx;
mod page;
mod range;
mod resched;
mod root;
mod rootwalk;
mod split;
mod store;
mod table_of;
mod tables;
mod trace;
mod walk;
mod zap;

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

pub use age::Age;
pub use collapse::{Collapse, CollapseTables, Collapsed};
pub use count::Totals;
pub(crate) use descent::Reached;
pub use dump::Dump;
pub use events::{
    Event, FlushReason, FlushScope, Harvest, Harvesting, Observer, SplitResult, Unobserved,
};
pub use fast::{Fast, SlotLog};
pub use hardware::HardwareAccess;
pub use hardware_walk::{SecondCause, SecondFault, SecondObserver, SecondPage, SecondStep};
pub use hooks::{AccessCheck, Busy, EntryChange, External, NoCheck, NoExternal, Translated};
pub use lock::{Exclusive, HeldForWriting, Locked, Shared, Side};
pub use log::{ByWhat, ClearDirty, Weaken};
pub use map::{MapError, MapRequest, Mapped, NxFault, Resolution, Retry, Target};
pub use page::Parent;
pub use resched::{Every, Progress, Resched, Uninterrupted};
pub use root::OutOfTables;
pub use rootwalk::RootTypes;
pub use split::SplitHugePages;
pub use store::Store;
pub use tables::{ExistingLeaf, Limits, Tables};
pub use walk::{Found, Violation};
pub use zap::{FastZap, Passes, ZapAll, ZapInvalidated, ZapLeafs, zap_all_fast};
