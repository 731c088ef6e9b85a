//! What hardware raises when the reverse map does not allow something.

use core::fmt;

use slat_mmu::fault::Kind;

use super::access::{Touch, Visibility};

bitflags::bitflags! {
    /// EXITINFO1 of a nested page fault (`PFERR_*`), and the same bits of the host's own page faults.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ErrorCode: u64 {
        /// The translation is there (bit 0).
        const PRESENT = 1;
        /// A write (bit 1).
        const WRITE = 1 << 1;
        /// User mode; set in every nested fault, since nested tables are walked as for user mode (bit 2).
        const USER = 1 << 2;
        /// Instruction fetch (bit 4).
        const FETCH = 1 << 4;
        /// The reverse map forbids it (bit 31, `X86_PF_RMP`, `PFERR_GUEST_RMP_MASK`).
        const RMP = 1 << 31;
        /// The final translation (bit 32, `PFERR_GUEST_FINAL_MASK`).
        const FINAL = 1 << 32;
        /// A table of the guest's own (bit 33, `PFERR_GUEST_PAGE_MASK`).
        const GUEST_TABLE = 1 << 33;
        /// The effective C-bit: the access was to private memory (bit 34, `PFERR_GUEST_ENC_MASK`).
        const ENCRYPTED = 1 << 34;
        /// The instruction asks for another size than the reverse map has (bit 35, `PFERR_GUEST_SIZEM_MASK`).
        const SIZE = 1 << 35;
        /// The privilege level is not permitted (bit 36, `PFERR_GUEST_VMPL_MASK`).
        const VMPL = 1 << 36;
        /// KVM's own: an access by KVM for the guest (bit 48).
        const IMPLICIT = 1 << 48;
        /// KVM's own: the access is to private memory (bit 49, `PFERR_PRIVATE_ACCESS`).
        const PRIVATE = 1 << 49;
    }
}

impl ErrorCode {
    /// The bits that KVM makes itself. Hardware must not set them; KVM warns and masks (`PFERR_SYNTHETIC_MASK`).
    pub const SYNTHETIC: Self = Self::IMPLICIT.union(Self::PRIVATE);

    /// That of a nested fault which an access takes where the final translation is missing.
    pub fn of_access(visibility: Visibility, touch: Touch) -> Self {
        let mut code = Self::USER | Self::FINAL;
        code.set(Self::ENCRYPTED, visibility == Visibility::Private);
        let write = matches!(touch, Touch::Write | Touch::TableWrite);
        code.set(Self::WRITE, write);
        code.set(Self::FETCH, matches!(touch, Touch::Fetch { .. }));
        code
    }

    /// What the access was.
    pub const fn kind(self) -> Kind {
        if self.contains(Self::WRITE) {
            Kind::Write
        } else if self.contains(Self::FETCH) {
            Kind::Execute
        } else {
            Kind::Read
        }
    }

    /// What memory the access was to.
    pub const fn visibility(self) -> Visibility {
        match self.contains(Self::ENCRYPTED) {
            true => Visibility::Private,
            false => Visibility::Shared,
        }
    }
}

/// Error code of #VC for a page that is not validated (`PAGE_NOT_VALIDATED`).
pub const VC_NOT_VALIDATED: u32 = 0x404;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// #PF in the host: an oops in the kernel, SIGBUS for a process.
    Host(ErrorCode),
    /// The IOMMU stops a device's write.
    Device,
    /// The guest exits with a nested page fault.
    Nested(ErrorCode),
    /// #VC in the guest, without an exit.
    Vc(u32),
    /// #GP in the guest.
    Gp,
}

impl Fault {
    /// The error code of a nested page fault.
    pub const fn nested(self) -> Option<ErrorCode> {
        match self {
            Self::Nested(code) => Some(code),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(code) => write!(f, "#PF {:#x}", code.bits()),
            Self::Device => f.write_str("IOMMU fault"),
            Self::Nested(code) => write!(f, "#NPF {:#x}", code.bits()),
            Self::Vc(code) => write!(f, "#VC {code:#x}"),
            Self::Gp => f.write_str("#GP"),
        }
    }
}
