//! Walks in two dimensions: each access to a guest's tables, and the one to the page at the end, goes through a second
//! stage.
//!
//! - [`TdpStage`]: the tables of the TDP MMU, as hardware walks them.
//! - [`NestedStage`]: EPT or NPT of a hypervisor in the guest, in front of another stage. With [`TdpStage`] behind it a walk
//!   goes from L2's virtual address over L2's and L1's physical addresses to the host's.
//! - [`SecondExit`]: what hardware says to KVM when the second stage fails, and what KVM says to L1.
//! - [`Resolving`]: mends a fault of the second stage and tries again, as KVM does before the guest goes on.

mod exit;
mod nested;
mod resolve;
mod tdp;
#[cfg(all(test, not(any(loom, shuttle))))]
pub(in crate::walk) mod tests;

pub use exit::{EptQualification, FaultPlace, SecondExit};
pub use nested::{NestedAccess, NestedStage};
pub use resolve::{Resolve, Resolving};
pub use tdp::TdpStage;
pub(super) use tdp::wanted;
