//! Whole VMs.

mod capability;
mod parse_error;
pub mod recordings;
pub mod scenario;
pub mod strace;
