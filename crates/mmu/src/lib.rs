//! What KVM's MMU adds to the rules of memory slots.
//!
//! - [`ShadowPageLimit`]: the limit of shadow pages, which follows the size of all slots unless userspace has set it.
//!   It decides whether deleting a slot evicts page tables that have nothing to do with the slot.
//! - [`spte`]: page-table entries of EPT and NPT, bit for bit as KVM makes and reads them on a [`host`].
//! - [`table`]: where page tables live, and when a removed one may be used again.
#![forbid(unsafe_code)]

pub mod host;
mod limits;
pub mod spte;
mod sync;
pub mod table;

pub use limits::{Eviction, ShadowPageLimit, Tuning};
