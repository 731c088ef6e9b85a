//! What a guest loses, and what it finds instead.

use core::fmt;

use slat_memslot::{GfnRange, VmType};

use crate::migration::Status;

/// What becomes of the contents of the side that a guest leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Left {
    /// They are gone.
    Gone,
    /// They stay, and are there again after a conversion back. What was shared can be read by the host meanwhile.
    Kept,
    /// The bytes stay, and are read by another key, or by none: both sides are one page.
    Scrambled,
    /// Both sides are one page, and the bytes stay what they are.
    Same,
}

/// What the guest reads on the side that it enters, before it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Found {
    /// What that side holds: what was left there by the last conversion, if it was kept, else zeros.
    LastKept,
    /// Zeros, once it has accepted the page (TDX).
    ZerosOnceAccepted,
    /// Nothing to rely on, once it has validated the page (SEV-SNP): other bytes than were ever written under its key, or what was
    /// left there.
    UndefinedOnceValidated,
    /// Noise: the same bytes, read by another key or by none (SEV, SEV-ES).
    Noise,
    /// What it had (a guest_memfd that can be mapped, and is both sides).
    Same,
}

/// What a conversion does to the contents of some frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Loss {
    /// The frames.
    pub range: GfnRange,
    /// What they are afterwards.
    pub to: Status,
    /// What becomes of what was there.
    pub left: Left,
    /// What is there instead.
    pub found: Found,
}

/// Whether the side that is left is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Behind {
    Discarded,
    Stays,
    /// There is no other side.
    OnePage,
}

impl Loss {
    /// What the hardware of this type of VM makes of a conversion.
    pub(super) const fn of(vm_type: VmType, range: GfnRange, to: Status, behind: Behind) -> Self {
        let left = match (vm_type, to, behind) {
            (VmType::Sev | VmType::SevEs, ..) => Left::Scrambled,
            // The page is taken from the TD: added again, it is a new one.
            (VmType::Tdx, Status::Shared, _) | (_, _, Behind::Discarded) => Left::Gone,
            (_, _, Behind::Stays) => Left::Kept,
            (_, _, Behind::OnePage) => Left::Same,
        };
        let found = match (vm_type, to, behind) {
            (VmType::Sev | VmType::SevEs, ..) => Found::Noise,
            (VmType::Tdx, Status::Private, _) => Found::ZerosOnceAccepted,
            (VmType::Snp, Status::Private, _) => Found::UndefinedOnceValidated,
            (_, _, Behind::OnePage) => Found::Same,
            (_, _, Behind::Discarded | Behind::Stays) => Found::LastKept,
        };
        Self {
            range,
            to,
            left,
            found,
        }
    }

    /// Whether the guest cannot have back what it had.
    pub const fn is_final(&self) -> bool {
        matches!(self.left, Left::Gone | Left::Scrambled)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = match self.left {
            Left::Gone => "what was there is gone",
            Left::Kept => "what was there comes back with the next conversion",
            Left::Scrambled => "what was there is read by the wrong key",
            Left::Same => "what was there stays",
        };
        let found = match self.found {
            Found::LastKept => "it finds what was left there last, or zeros",
            Found::ZerosOnceAccepted => "it finds zeros, once it has accepted them",
            Found::UndefinedOnceValidated => "it finds nothing to rely on, once it has validated",
            Found::Noise => "it finds noise",
            Found::Same => "it finds what it had",
        };
        write!(f, "{} becomes {}: {left}; {found}", self.range, self.to)
    }
}
