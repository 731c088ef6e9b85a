//! Requests to make memory private or shared, as they reach a VMM, and what it answers.
//!
//! Two exits ask for a conversion: `KVM_EXIT_HYPERCALL` with `KVM_HC_MAP_GPA_RANGE`, in which the guest says so, and
//! `KVM_EXIT_MEMORY_FAULT`, in which it has accessed memory as what it is not. Both are decoded to a [`Request`]; everything that has
//! no meaning is refused, since it comes from a guest that need not be a friend.
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
mod decode;
#[cfg(test)]
mod tests;

pub use answer::{Contract, Outcome, Path, UnknownReturn};
pub use decode::{Cause, DecodeError, MapGpaRangeExit, MemoryFaultExit, Request};
