//! Where implementations differ.

use crate::convert::Contract;

/// How often the header is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeaderReads {
    /// Once an event: the guest cannot move the work back.
    Once,
    /// Before every range, as KVM does: a guest that rewrites it has entries done again, or none. After 253 entries the
    /// engine goes back to the guest, where KVM would go on.
    EveryRange,
}

/// What the frame of a neighbour is compared with, if the first entry of a range is half done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Merge {
    /// With where the range ends.
    ToEnd,
    /// With the first entry's own frame and the pages still to do, as KVM does: the range can come to hold pages at its end
    /// that no entry names, and the guest loses them.
    ToFirstFrame,
}

/// What size an exit tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SizeHint {
    /// That of what is asked for: 2 MiB only if the range begins with whole 2 MiB.
    OfRange,
    /// That of the first entry, as KVM does, also if it is half done.
    OfFirstEntry,
}

/// What becomes of other operations than private and shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OtherOperations {
    /// All count as done, the undefined ones too, as in KVM.
    Ignored,
    /// PSMASH and UNSMASH count as done; undefined ones are invalid entries.
    Known,
    /// PSMASH and UNSMASH are told to the VMM; undefined ones are invalid entries.
    Told,
}

/// What becomes of reserved bits that are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reserved {
    /// The header or the entry is invalid.
    Refused,
    /// They do not count, as in KVM.
    Ignored,
}

/// What a header says whose first entry comes after its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CursorBeyondEnd {
    /// That all is done, as in KVM.
    Done,
    /// That it is invalid.
    Invalid,
}

/// All switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PscQuirks {
    /// Reads of the header.
    pub header: HeaderReads,
    /// Neighbours of a half done entry.
    pub merge: Merge,
    /// Size that an exit tells.
    pub hint: SizeHint,
    /// Other operations.
    pub other: OtherOperations,
    /// Reserved bits.
    pub reserved: Reserved,
    /// Nothing to do.
    pub beyond: CursorBeyondEnd,
    /// Userspace's answers.
    pub returns: Contract,
}

impl PscQuirks {
    /// As KVM does in 6.12.
    pub const fn kvm() -> Self {
        Self {
            header: HeaderReads::EveryRange,
            merge: Merge::ToFirstFrame,
            hint: SizeHint::OfFirstEntry,
            other: OtherOperations::Ignored,
            reserved: Reserved::Ignored,
            beyond: CursorBeyondEnd::Done,
            returns: Contract::Before2026,
        }
    }

    /// As KVM does since 2026, with the stricter contract for userspace.
    pub const fn kvm_2026() -> Self {
        Self {
            returns: Contract::Since2026,
            ..Self::kvm()
        }
    }

    /// As the specification has it, with nothing left to the guest.
    pub const fn strict() -> Self {
        Self {
            header: HeaderReads::Once,
            merge: Merge::ToEnd,
            hint: SizeHint::OfRange,
            other: OtherOperations::Told,
            reserved: Reserved::Refused,
            beyond: CursorBeyondEnd::Invalid,
            returns: Contract::Since2026,
        }
    }
}
