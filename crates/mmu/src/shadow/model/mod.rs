//! Shadow pages among everything that takes pages away from under them.
//!
//! Under `--cfg shuttle`: vCPUs that fault in KVM's three parts, with the lock held for writing in the last one only, against the
//! host's memory management, the deletion of the slot by its leaves or by zaps of all pages that give way, and a dirty log that
//! is switched on and off and read. A second kind of guest has tables of its own, which it changes while others walk them. Each
//! schedule ends with an audit, with a look at every leaf, and with a copy of the memory by its dirty log.
#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod guest;
mod host;
mod schedules;
mod userspace;
mod vcpu;
mod world;
