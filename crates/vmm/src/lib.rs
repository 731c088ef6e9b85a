//! Whole VMs: one trait for KVM's memory interface ([`MemoryVm`]), answered by the model ([`model`]), by the real
//! `/dev/kvm` (`kvm`, on Linux on x86-64), or by both, compared call by call ([`Checked`]).
//!
//! Around it: the text form of calls and results ([`scenario`]), running one ([`run()`]), random sequences held against
//! a kernel and shrunk when they differ ([`differential`]), the logs of real VMMs ([`strace`], `record`), and what
//! real kernels answered ([`recordings`]) and what their MMUs did ([`traces`]). [`predict`] puts what a real VMM did to the model,
//! [`tables`] runs scripts of operations on page tables, [`tdp_vm`] is a whole VM with them ([`snp_vm`] what it has as an SNP
//! guest), [`tdx_vm`] a TD, [`shadow_vm`] one with shadow pages ([`paged_vm`] is the front of both), and [`replay`] holds them
//! against what the MMUs did. [`walks`] holds walks of guest
//! page tables against `KVM_TRANSLATE`. [`zap`] measures what the deletion of a slot costs.

mod api;
mod areas;
mod capability;
#[cfg(target_os = "linux")]
pub mod capture;
mod checked;
pub mod convert;
pub mod differential;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod live;
pub mod model;
pub mod paged_vm;
mod parse_error;
pub mod predict;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod programs;
pub mod rebuild;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod record;
pub mod recordings;
pub mod replay;
mod run;
pub mod scenario;
pub mod sev_vm;
pub mod shadow_vm;
pub mod snp_vm;
pub mod strace;
pub mod tables;
pub mod tdp_vm;
pub mod tdx_vm;
pub mod traces;
pub mod walks;
pub mod zap;

pub use api::{CallError, CallResult, Machine, MemoryVm};
pub use areas::Areas;
pub use checked::{Checked, CheckedMachine, Divergence, OnDivergence, agree};
pub use run::{Report, RunError, Session, StepReport, Verdict, run};
