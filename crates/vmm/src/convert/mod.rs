//! Conversions between private and shared memory on any VM, and the exits that ask for them.
//!
//! What an exit asks for and what has to be done about it are values ([`slat_coco::convert`]); here is what carries that out on
//! whatever answers KVM's calls ([`MemoryVm`](crate::MemoryVm)): the model, `/dev/kvm`, both.
//!
//! ```
//! use slat_coco::convert::{Ended, MapGpaRangeExit, Policy, Request};
//! use slat_memslot::{Profile, Region, SlotKey};
//! use slat_vmm::{Machine, MemoryVm, convert, model};
//!
//! let mut vm = model::Machine::new(Profile::latest()).create_vm(1).unwrap();
//! let file = vm.create_guest_memfd(1 << 30, 0).unwrap();
//! vm.set_user_memory_region(&Region::new(SlotKey::normal(0), 0, 1 << 30, 0x7f00_0000_0000).with_gmem(file, 0)).unwrap();
//!
//! let exit = MapGpaRangeExit { nr: 12, args: [0x20_0000, 512, 0x11] };
//! let request = Request::from_hypercall(&exit).unwrap();
//! let run = convert::convert(&mut vm, &request, &Policy::default()).unwrap();
//! assert_eq!(run.ended(), Some(Ended::Converted));
//! assert_eq!(vm.memory().attributes().private_pages(request.range), request.range.pages());
//! ```

mod execute;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod exit;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod live;
mod op;
#[cfg(test)]
mod tests;

pub use execute::{ConvertError, DeviceMaps, NoDevices, VmExecutor, convert};
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use exit::decode;
pub use op::ConvertOp;
