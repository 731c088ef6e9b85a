//! SEV and SEV-ES guests: what a model VM of these types has beside slots and tables.
//!
//! Commands go to [`slat_coco::sev::SevVm`]; a guest's accesses go through slots and page tables like any other's and then to what pages
//! hold, by key. The list of what the guest has announced is here too, as its VMM would keep it: [`crate::convert`] notes there.
//!
//! Two VMs of one machine are source and destination of a migration: sessions and packets have numbers, which
//! `KVM_SEV_SEND_START` and its like give and their counterparts take.
//!
//! ```
//! use slat_memslot::{Call, Outcome, Profile, Region, SevCall, SevCommand, SevSide, SlotKey};
//! use slat_vmm::{Machine, MemoryVm, model};
//!
//! let mut machine = model::Machine::new(Profile::latest()).with_sev();
//! let mut vm = machine.create_vm(2).unwrap();
//! vm.set_user_memory_region(&Region::new(SlotKey::normal(0), 0, 0x10000, 0x7f00_0000_0000)).unwrap();
//! for command in [
//!     SevCommand::Init2,
//!     SevCommand::LaunchStart { policy: 0 },
//!     SevCommand::LaunchMeasure,
//!     SevCommand::LaunchFinish,
//! ] {
//!     vm.call(&Call::Sev(SevCall::Command(command))).unwrap();
//! }
//! vm.call(&Call::CreateVcpu).unwrap();
//! let (vcpu, gpa) = (0, 0x2000);
//! let write = SevCall::Write { vcpu, gpa, side: SevSide::Private, value: 7 };
//! vm.call(&Call::Sev(write)).unwrap();
//! let read = |side| Call::Sev(SevCall::Read { vcpu, gpa, side });
//! assert_eq!(vm.call(&read(SevSide::Private)), Ok(Outcome::Value(7)));
//! assert_eq!(vm.call(&read(SevSide::Shared)), Ok(Outcome::Noise));
//! ```

mod guest;
mod notify;
mod wire;

pub(crate) use guest::SevGuest;
pub(crate) use notify::Taken;
pub(crate) use wire::Wire;
