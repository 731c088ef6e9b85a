//! What a conversion is made of.

use core::fmt;

use slat_memslot::{GfnRange, GmemId, Hva};

use crate::migration::Status;

/// Frames with the host memory that is their shared side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostPart {
    /// The frames.
    pub range: GfnRange,
    /// The host address of the first.
    pub hva: Hva,
}

/// One step. Each is one call of the VMM, however long its range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Devices must not reach the shared side any more: the VMM waits for them and unmaps it (VFIO, vhost, its own back ends).
    UnmapDma(HostPart),
    /// Devices may reach the shared side.
    MapDma(HostPart),
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    SetAttributes {
        /// The frames.
        range: GfnRange,
        /// What they shall be.
        to: Status,
    },
    /// The shared side is given back to the host: `madvise` with `MADV_DONTNEED` or `MADV_REMOVE`, by what it is made of.
    DiscardShared(HostPart),
    /// The private side is given back: `fallocate` with `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`.
    DiscardPrivate {
        /// The frames.
        range: GfnRange,
        /// The guest_memfd behind them.
        file: GmemId,
        /// Where in the file, in bytes.
        offset: u64,
    },
    /// The VMM notes it in its own list ([`StatusList`](crate::migration::StatusList)): SEV and SEV-ES have no call for it.
    Note {
        /// The frames.
        range: GfnRange,
        /// What they are from now on.
        to: Status,
    },
}

impl Step {
    /// The frames that it is about.
    pub const fn range(&self) -> GfnRange {
        match self {
            Self::UnmapDma(part) | Self::MapDma(part) | Self::DiscardShared(part) => part.range,
            Self::SetAttributes { range, .. }
            | Self::DiscardPrivate { range, .. }
            | Self::Note { range, .. } => *range,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnmapDma(part) => write!(f, "unmap {} from devices", part.range),
            Self::MapDma(part) => write!(f, "map {} for devices", part.range),
            Self::SetAttributes { range, to } => write!(f, "make {range} {to}"),
            Self::DiscardShared(part) => {
                let (range, hva) = (part.range, part.hva.raw());
                write!(f, "discard the shared side of {range}, at {hva:#x}")
            }
            Self::DiscardPrivate {
                range,
                file,
                offset,
            } => {
                let file = file.index();
                write!(
                    f,
                    "discard the private side of {range}, at {offset:#x} of file {file}"
                )
            }
            Self::Note { range, to } => write!(f, "note {range} as {to}"),
        }
    }
}

/// Whoever carries steps out: a VMM, a model, a test.
///
/// A step that fails has to leave everything as it was, which is how KVM's call and the host's behave.
pub trait Executor {
    /// Carries one step out.
    ///
    /// # Errors
    /// It could not be done, and nothing was. `EINTR` and `EAGAIN` say that it may be tried again.
    fn carry_out(&mut self, step: &Step) -> Result<(), slat_memslot::Errno>;
}
