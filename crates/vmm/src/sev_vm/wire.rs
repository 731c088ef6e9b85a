//! What goes from one VM of a machine to another.

use std::sync::{Arc, Mutex, PoisonError};

use slat_coco::sev::{HALVES, Packet, Session, Stored};

/// Everything that was sent, by number.
#[derive(Debug, Default)]
struct Sent {
    sessions: Vec<Session>,
    packets: Vec<Parcel>,
}

/// A page on its way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Parcel {
    /// Encrypted for its way.
    Encrypted(Packet),
    /// As it was.
    Plain([Stored; HALVES]),
}

/// The way between the VMs of a machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wire(Arc<Mutex<Sent>>);

impl Wire {
    fn with<T>(&self, f: impl FnOnce(&mut Sent) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives the session's number.
    pub(super) fn open(&self, session: Session) -> u64 {
        self.with(|sent| {
            sent.sessions.push(session);
            sent.sessions.len() as u64 - 1
        })
    }

    pub(super) fn session(&self, number: u64) -> Option<Session> {
        let index = usize::try_from(number).ok()?;
        self.with(|sent| sent.sessions.get(index).copied())
    }

    /// Gives the packet's number.
    pub(super) fn send(&self, parcel: Parcel) -> u64 {
        self.with(|sent| {
            sent.packets.push(parcel);
            sent.packets.len() as u64 - 1
        })
    }

    pub(super) fn parcel(&self, number: u64) -> Option<Parcel> {
        let index = usize::try_from(number).ok()?;
        self.with(|sent| sent.packets.get(index).copied())
    }
}
