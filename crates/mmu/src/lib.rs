//! What KVM's MMU says in its page tables.
//!
//! - [`spte`]: entries of EPT and NPT, bit for bit as KVM makes and reads them on a [`host`].
//! - [`role`]: what a page table depends on, packed as KVM packs it; [`roots`]: which page tables a vCPU starts from,
//!   and the cache of those it had before.
//! - [`shadow`]: the pages of KVM's older MMU, which follow a guest's tables or map frames in a line.
//! - [`table`]: where page tables live, and when a removed one may be used again.
//! - [`walk`]: how a guest's own page tables are walked, with the fault that each access gets.
//! - [`Access`]: what an entry or a table allows.
//! - [`tdp`]: the tables of the TDP MMU; [`fault`]: what becomes of an access that they do not allow.
//! - [`ShadowPageLimit`]: how many shadow pages KVM allows itself; deleting a slot lowers it.
#![forbid(unsafe_code)]

mod access;
mod audit_codes;
pub mod fault;
pub mod host;
mod limits;
pub mod role;
pub mod roots;
pub mod shadow;
pub mod spte;
mod sync;
pub mod table;
pub mod tdp;
pub mod walk;

pub use access::Access;
pub use limits::{Eviction, ShadowPageLimit, Tuning};
