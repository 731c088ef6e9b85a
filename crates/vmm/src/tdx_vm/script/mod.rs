//! Guests of a TD that follow a script, and a VMM to serve them.
//!
//! A [`Guest`] does what firmware and kernel of a TD do with memory: it accepts pages eagerly or when it needs them, converts
//! them, writes and reads them. Whenever a vCPU exits to userspace, a [`Vmm`] decides. [`CarefulVmm`] is one that does
//! everything in the right order; whoever has a handler of their own implements the trait for it and runs the same guests.
//!
//! ```
//! use slat_memslot::{Gfn, GfnRange, Pages, Profile, TdxCount, VmType};
//! use slat_vmm::tdx_vm::script::{AcceptHow, CarefulVmm, Guest, Plan, Step};
//! use slat_vmm::{Machine, model};
//!
//! let mut machine = model::Machine::new(Profile::named("linux-6.18-tdx").unwrap());
//! let mut vm = machine.create_vm(VmType::Tdx.raw()).unwrap();
//! let plan = Plan::new(Pages::new(1024));
//! let mut vmm = CarefulVmm::boot(&mut vm, &plan).unwrap();
//! let ram = GfnRange::new(Gfn::new(512), Pages::new(512)).unwrap();
//! let script = [Step::Accept(ram, AcceptHow::Largest), Step::Write(Gfn::new(700), 7)];
//! let mut guest = Guest::new(0);
//! let ran = guest.follow(&mut vm, &mut vmm, &script).unwrap();
//! assert_eq!((ran.accepts, ran.mismatches), (512, 1));
//! assert_eq!(vm.td().unwrap().count(TdxCount::Violations), 0);
//! ```

mod boot;
mod guest;
mod vmm;

pub use boot::{BootError, Plan};
pub use guest::{AcceptHow, Guest, GuestError, Ran, Step};
pub use vmm::{CarefulVmm, Conversions, MapGpaExit, MemoryFaultExit, Vmm};
