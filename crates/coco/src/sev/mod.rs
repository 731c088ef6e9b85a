//! SEV and SEV-ES guests: what KVM and the firmware do with one from its launch to its migration.
//!
//! [`SevVm`] follows the commands of `KVM_MEMORY_ENCRYPT_OP` that make a guest, send it and receive it. What KVM checks comes first,
//! with its errno; what firmware checks is `EIO` with the firmware's own code beside it. Memory is symbolic: half a page holds a
//! value that was written with a key or without one, and who reads it with another key reads noise.
//!
//! ```
//! use slat_coco::sev::{GuestState, SevVm, SevVmType};
//!
//! let mut vm = SevVm::new(SevVmType::Sev);
//! vm.init().unwrap();
//! vm.launch_start(0).unwrap();
//! vm.host_write(3, 0x11);
//! vm.launch_update_data(3).unwrap();
//! assert_eq!(vm.guest_status().unwrap(), GuestState::Launching);
//! assert_eq!(vm.guest_read(3, true), [Some(0x11); 2], "the guest reads what was launched");
//! assert_eq!(vm.host_read(3), [None; 2], "and nobody else does");
//! ```

mod error;
mod memory;
mod region;
mod state;
#[cfg(test)]
mod tests;
mod transport;
mod vm;

pub use error::{FirmwareError, SevError, SevRule};
pub use memory::{HALVES, Key, Stored};
pub use region::{EncRegion, Regions};
pub use state::{GuestState, Policy, SevVmType};
pub use transport::{Packet, Session};
pub use vm::SevVm;
