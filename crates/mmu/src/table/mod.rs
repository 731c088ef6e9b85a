//! Where page tables live: an arena of tables of atomic entries, and epochs that keep a removed table from being used
//! again while somebody may still walk through it.
//!
//! KVM allocates tables from the kernel and frees them through RCU. Here tables are numbered ([`TableId`]) and recycled,
//! so that all of it is safe Rust: a stale number reaches a table that is there, and [`Epochs`] see to it that it is not
//! one that has become somebody else's.

mod arena;
mod epoch;
mod geometry;

pub(crate) use arena::Finder;
pub use arena::{Arena, ENTRIES, Note, Table, TableId};
pub use epoch::{Epochs, Pin, Reader};
pub(crate) use geometry::{first, index, span};
