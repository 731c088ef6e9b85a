//! What goes from one machine to another.

use super::memory::HALVES;

/// The keys that sender and receiver agreed on when sending began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    pub(super) number: u64,
    pub(super) policy: super::Policy,
}

/// A page on its way, encrypted with a session's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    pub(super) session: u64,
    /// What the sender's firmware read with the guest's key.
    pub(super) halves: [Option<u64>; HALVES],
}
