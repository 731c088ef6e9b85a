//! What keeps the runner itself from doing its work; never what the program in the machine did.

use std::fmt;

/// A message for the user, with the status to end with.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    status: u8,
}

/// This host lacks what the work needs, which is no fault of ours: as automake says it.
const LACKING: u8 = 77;
/// The machine could not be prepared, or broke down.
const BROKEN: u8 = 125;
/// The program did not end in time, as `timeout` says it.
const LATE: u8 = 124;

pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            status: BROKEN,
        }
    }

    /// Time ran out.
    pub(crate) fn late(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            status: LATE,
        }
    }

    /// This host lacks something.
    pub(crate) fn lacking(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            status: LACKING,
        }
    }

    /// The same, for what failed since this host lacks something.
    pub(crate) fn for_lack(self) -> Self {
        Self::lacking(self.message)
    }

    pub(crate) fn status(&self) -> u8 {
        self.status
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Says what was being done when something failed.
pub(crate) trait Doing<T> {
    /// `what` completes "cannot ...".
    fn doing(self, what: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("cannot {what}: {error}")))
    }
}
