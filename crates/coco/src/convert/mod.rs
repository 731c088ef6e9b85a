//! Requests to make memory private or shared, as they reach a VMM, and what it answers.
//!
//! Two exits ask for a conversion: `KVM_EXIT_HYPERCALL` with `KVM_HC_MAP_GPA_RANGE`, in which the guest says so, and
//! `KVM_EXIT_MEMORY_FAULT`, in which it has accessed memory as what it is not. Both are decoded to a [`Request`]; everything that has
//! no meaning is refused, since it comes from a guest that need not be a friend.
//!
//! | part | what it is |
//! |---|---|
//! | [`Request`] | what an exit asks for |
//! | [`Plan`] | the steps that this takes, and what the guest loses by it ([`Loss`]) |
//! | [`Policy`] | what a VMM decides once: whether what is left is discarded, what is done about holes, whether there are devices |
//! | [`Run`] | a plan being carried out by an [`Executor`], to its end or back |
//! | [`Outcome`] | what the guest is told |
//! | [`PrivateMap`] | what is private now |
//!
//! ```
//! use slat_coco::convert::{MapGpaRangeExit, Request};
//! use slat_coco::migration::Status;
//!
//! // 512 pages from 2 MiB on shall be private; the guest would like a page of 2 MiB.
//! let exit = MapGpaRangeExit { nr: 12, args: [0x20_0000, 512, 0x11] };
//! let request = Request::from_hypercall(&exit).unwrap();
//! assert_eq!(request.to, Status::Private);
//! assert_eq!(request.range.pages().raw(), 512);
//!
//! // A word that is not zero is not yet "private": this one asks for shared memory in pages of 2 MiB.
//! let exit = MapGpaRangeExit { nr: 12, args: [0x20_0000, 512, 0x01] };
//! assert_eq!(Request::from_hypercall(&exit).unwrap().to, Status::Shared);
//! ```

mod answer;
mod contents;
mod decode;
mod map;
mod plan;
mod policy;
mod run;
mod step;
#[cfg(test)]
mod tests;

pub use answer::{Contract, Outcome, Path, UnknownReturn};
pub use contents::{Found, Left, Loss};
pub use decode::{Cause, DecodeError, MapGpaRangeExit, MemoryFaultExit, Request};
pub use map::{MapPart, PrivateMap};
pub use plan::Plan;
pub use policy::{Devices, LeftBehind, NoPrivateSide, PlanError, Policy, Unbacked};
pub use run::{Ended, LeftOver, Pause, Run};
pub use step::{Executor, HostPart, Step};
