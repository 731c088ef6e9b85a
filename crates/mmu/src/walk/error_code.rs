//! Page-fault error codes, which also say what an access wants.

use core::fmt;

use crate::fault::Kind;

bitflags::bitflags! {
    /// A page-fault error code (`PFERR_*_MASK`).
    ///
    /// As KVM does, a walk takes one as well: [`ErrorCode::WRITE`], [`ErrorCode::USER`], [`ErrorCode::FETCH`] and
    /// [`ErrorCode::IMPLICIT_ACCESS`] say what the access is, none of them a read in supervisor mode.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct ErrorCode: u64 {
        /// Bit 0: the entries are present, and the access is not allowed.
        const PRESENT = 1 << 0;
        /// Bit 1: a write.
        const WRITE = 1 << 1;
        /// Bit 2: user mode.
        const USER = 1 << 2;
        /// Bit 3: a reserved bit is set.
        const RSVD = 1 << 3;
        /// Bit 4: an instruction fetch.
        const FETCH = 1 << 4;
        /// Bit 5: a protection key.
        const PK = 1 << 5;
        /// Bit 15: a rule of SGX.
        const SGX = 1 << 15;
        /// Bit 31 (NPT): the reverse map.
        const GUEST_RMP = 1 << 31;
        /// Bit 32 (NPT): the second stage failed at the final page.
        const GUEST_FINAL = 1 << 32;
        /// Bit 33 (NPT): the second stage failed at a table of the guest.
        const GUEST_PAGE = 1 << 33;
        /// Bit 34 (NPT): the access was to encrypted memory.
        const GUEST_ENC = 1 << 34;
        /// Bit 35 (NPT): the sizes of the page and of its entry in the reverse map differ.
        const GUEST_SIZEM = 1 << 35;
        /// Bit 36 (NPT): the privilege level of the VM.
        const GUEST_VMPL = 1 << 36;
        /// Bit 48 (KVM's own): the CPU accesses by itself, such as a descriptor table; SMAP cannot be overridden.
        const IMPLICIT_ACCESS = 1 << 48;
        /// Bit 49 (KVM's own): private memory.
        const PRIVATE_ACCESS = 1 << 49;
    }
}

impl ErrorCode {
    /// A read in supervisor mode, which sets no bit.
    pub const READ: Self = Self::empty();

    /// The bits that say what an access is.
    pub const ACCESS: Self = Self::WRITE
        .union(Self::USER)
        .union(Self::FETCH)
        .union(Self::IMPLICIT_ACCESS);

    /// The code of an access.
    ///
    /// ```
    /// use slat_mmu::fault::Kind;
    /// use slat_mmu::walk::{ErrorCode, Privilege};
    /// let write = ErrorCode::of(Kind::Write, Privilege::User);
    /// assert_eq!(write, ErrorCode::WRITE | ErrorCode::USER);
    /// assert_eq!(ErrorCode::of(Kind::Read, Privilege::Supervisor), ErrorCode::READ);
    /// ```
    pub const fn of(kind: Kind, privilege: Privilege) -> Self {
        let kind = match kind {
            Kind::Read => Self::READ,
            Kind::Write => Self::WRITE,
            Kind::Execute => Self::FETCH,
        };
        kind.union(match privilege {
            Privilege::User => Self::USER,
            Privilege::Supervisor => Self::READ,
            Privilege::Implicit => Self::IMPLICIT_ACCESS,
        })
    }

    /// What the access is: a fetch, a write, or else a read.
    pub const fn kind(self) -> Kind {
        if self.contains(Self::FETCH) {
            Kind::Execute
        } else if self.contains(Self::WRITE) {
            Kind::Write
        } else {
            Kind::Read
        }
    }

    /// What a fault pushes on the guest's stack: bits 15 to 0.
    pub const fn pushed(self) -> u16 {
        let [low, high, ..] = self.bits().to_le_bytes();
        u16::from_le_bytes([low, high])
    }
}

/// In whose name an access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// User mode: CPL 3.
    User,
    /// Supervisor mode: CPL 0 to 2.
    Supervisor,
    /// The CPU itself, whatever the CPL: descriptor tables, the TSS, stacks of interrupts.
    Implicit,
}

/// The names of the bits, lowest first: `PRESENT|WRITE`; `-` for none.
impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (index, (name, _)) in self.iter_names().enumerate() {
            let separator = if index == 0 { "" } else { "|" };
            write!(f, "{separator}{name}")?;
        }
        Ok(())
    }
}
