//! Whole VMs: one trait for KVM's memory interface ([`MemoryVm`]), answered by the model ([`model`]), by the real
//! `/dev/kvm` (`kvm`, on Linux on x86-64), or by both, compared call by call ([`Checked`]).

mod api;
mod areas;
mod checked;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
pub mod model;

pub use api::{CallError, CallResult, Machine, MemoryVm};
pub use areas::Areas;
pub use checked::{Checked, CheckedMachine, Divergence, OnDivergence, agree};
