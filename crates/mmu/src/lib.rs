//! What KVM's MMU adds to the rules of memory slots.
//!
//! The first thing is the limit of shadow pages, which follows the size of all slots unless userspace has set
//! it ([`ShadowPageLimit`]). It decides whether deleting a slot evicts page tables that have nothing to do with the
//! slot.
//!
//! [`role`] says what a page table depends on, [`roots`] which page tables a vCPU starts from.
//!
//! Walks are to come here; they are not here yet.
#![forbid(unsafe_code)]

mod limits;
pub mod role;
pub mod roots;

pub use limits::{Eviction, ShadowPageLimit, Tuning};
