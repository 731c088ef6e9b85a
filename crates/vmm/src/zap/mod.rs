//! What it costs to delete, to move or to re-flag a slot: leaves and tables that go, and the faults that follow.
//!
//! A [`Scene`] says what is there when a slot changes: its size, how much of it is mapped and by which leaves, what other
//! slots have mapped, roots, vCPUs, and what decides how far the zap reaches ([`Policy`]). [`measure`] plays it on a model VM
//! and counts what its page tables went through; `kernel::Kernel` plays it on `/dev/kvm` and counts what the kernel's own
//! statistics say. [`concurrent`] deletes while other threads fault, [`advise`] says which policy is the cheaper one and
//! why, and [`curves`] say how each cost grows.
//!
//! ```
//! use slat_memslot::{PageSize, Pages};
//! use slat_vmm::zap::{Policy, Scene, Subject, measure};
//!
//! let scene = Scene::new(Pages::new(64)).with_others(Pages::new(512));
//! let all = measure(&scene.with_policy(Policy::QuirkOn), &Subject::tdp())?;
//! let leaves = measure(&scene.with_policy(Policy::QuirkOff), &Subject::tdp())?;
//! // One page has the guest's instructions.
//! assert_eq!((all.change.zapped(), all.others_again.faults()), (64 + 512 + 1, 512 + 1));
//! assert_eq!((leaves.change.zapped(), leaves.others_again.faults()), (64, 0));
//! # Ok::<(), slat_vmm::zap::SceneError>(())
//! ```

mod advise;
mod concurrent;
mod cost;
mod counts;
pub mod curves;
mod guest;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kernel;
mod scene;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod steps;
mod subject;

pub use advise::{Advice, Estimate, Goal, Mapped, Prices, Reason, Roots, Zapping, advise};
pub use concurrent::{Concurrent, concurrent};
pub use cost::{Cost, Work, measure};
pub use counts::Counts;
pub use scene::{Operation, Policy, Scene, SceneError, pages};
pub use subject::{Paged, Subject};
