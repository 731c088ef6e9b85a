//! The real `/dev/kvm` as a machine. Linux on x86-64 only.

mod executor;
mod file;
mod guest;
mod host;
mod ioctl;
mod machine;
mod probe;
mod region;
mod translate;
mod vm;

pub use executor::AccessGuest;
pub use host::HostMemory;
pub use machine::{Machine, OpenError};
pub use probe::probe;
pub use translate::Translator;
pub use vm::Vm;
