//! What a VMM decides once, for all conversions.

use slat_memslot::{GfnRange, SlotKey};

/// What becomes of the side that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum LeftBehind {
    /// It is given back to the host: no memory is used twice, and nothing old comes back.
    #[default]
    Discard,
    /// It stays. Memory is used twice, and a conversion back finds what was left, where the hardware lets it.
    Keep,
}

/// What is done about frames that have no private side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unbacked {
    /// Nothing at all is converted, and the guest hears of it.
    Refuse,
    /// They stay as they are.
    Skip,
    /// Their attributes are set like those of the others. Of a hole that is what a slot will begin with that is made there later; a
    /// guest that accesses such frames as private faults until the VMM stops it.
    Set,
}

/// Whether devices reach guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Devices {
    /// None does, or all of them ask for each access.
    #[default]
    None,
    /// Shared memory is mapped for them.
    Mapped,
}

/// What a VMM decides once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// What becomes of the side that is left.
    pub left_behind: LeftBehind,
    /// Frames without a private side that shall be private.
    pub unbacked_to_private: Unbacked,
    /// Such frames that shall be shared, as firmware asks of whole apertures for devices.
    pub unbacked_to_shared: Unbacked,
    /// Whether devices reach shared memory.
    pub devices: Devices,
}

impl Default for Policy {
    /// Discards what is left; refuses to make private what cannot be, and lets it be shared; no devices.
    fn default() -> Self {
        Self {
            left_behind: LeftBehind::Discard,
            unbacked_to_private: Unbacked::Refuse,
            unbacked_to_shared: Unbacked::Set,
            devices: Devices::None,
        }
    }
}

/// Why frames have no private side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoPrivateSide {
    /// No slot holds them: KVM takes them for devices.
    Hole,
    /// Their slot has no guest_memfd.
    NoFile(SlotKey),
    /// Their slot's guest_memfd is closed.
    FileClosed(SlotKey),
}

impl core::fmt::Display for NoPrivateSide {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Hole => f.write_str("no slot holds them"),
            Self::NoFile(slot) => write!(f, "slot {slot} has no guest_memfd"),
            Self::FileClosed(slot) => write!(f, "the guest_memfd of slot {slot} is closed"),
        }
    }
}

impl PlanError {
    /// The stable code of the cause.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NothingPrivate { why, .. } => match why {
                NoPrivateSide::Hole => "no-slot",
                NoPrivateSide::NoFile(_) => "no-guest-memfd",
                NoPrivateSide::FileClosed(_) => "guest-memfd-closed",
            },
            Self::Attributes(reason) => reason.code(),
            Self::NoAttributes(_) => "no-private-memory",
        }
    }
}

/// Why there is no plan. Nothing was changed; the guest should hear `EINVAL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Frames shall be private that cannot be.
    #[error("{range} cannot be private: {why}")]
    NothingPrivate {
        /// The first of them.
        range: GfnRange,
        /// Why.
        why: NoPrivateSide,
    },
    /// KVM would refuse to set the attributes.
    #[error("KVM would refuse: {0}")]
    Attributes(slat_memslot::Reason),
    /// VMs of this type keep no attributes; of SEV and SEV-ES guests [`Plan::noted`](super::Plan::noted) makes a plan.
    #[error("a VM of type {0} has no private memory that KVM knows of")]
    NoAttributes(slat_memslot::VmType),
}
