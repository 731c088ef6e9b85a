//! The real `/dev/kvm` as a machine. Linux on x86-64 only.

mod contents;
mod executor;
mod file;
mod guest;
mod host;
pub(crate) mod ioctl;
mod machine;
mod probe;
mod region;
mod ring;
mod stats;
mod touch;
mod translate;
mod vm;

pub use executor::AccessGuest;
pub(crate) use file::create as create_gmem;
pub(crate) use guest::{flatten, make_flat};
pub use host::HostMemory;
pub(crate) use ioctl::errno;
pub use machine::{Machine, OpenError};
pub use probe::probe;
pub(crate) use probe::vendor;
pub(crate) use ring::Ring;
pub(crate) use stats::Stats;
pub(crate) use touch::TouchLayout;
pub use translate::Translator;
pub(crate) use translate::{gigabyte_pages, guest_vendor};
pub use vm::Vm;
