//! What a fault is about (`struct kvm_page_fault`, before anything is decided).

use slat_memslot::Gfn;

use crate::access::Access;

/// What the guest wanted to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Execute.
    Execute,
}

impl Kind {
    /// As an access to tables of one meaning: neither of the two bits is reading.
    pub const fn access(self) -> Access {
        match self {
            Self::Read => Access::empty(),
            Self::Write => Access::WRITE,
            Self::Execute => Access::EXECUTE,
        }
    }
}

/// What hardware found (`PFERR_PRESENT_MASK`, `PFERR_RSVD_MASK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Present {
    /// Nothing, or an entry that allows nothing.
    No,
    /// An entry that does not allow this.
    Yes,
    /// An MMIO entry, which was made when other slots were there.
    Reserved,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// The frame.
    pub gfn: Gfn,
    /// What the guest wanted.
    pub kind: Kind,
    /// What hardware found.
    pub present: Present,
    /// Whether the access was to private memory (`PFERR_PRIVATE_ACCESS`).
    pub private: bool,
    /// Whether nobody has asked yet (`KVM_PRE_FAULT_MEMORY`).
    pub prefetch: bool,
}

impl Fault {
    /// An access of the guest to a frame that nothing maps, to shared memory.
    pub const fn new(gfn: Gfn, kind: Kind) -> Self {
        Self {
            gfn,
            kind,
            present: Present::No,
            private: false,
            prefetch: false,
        }
    }
}
