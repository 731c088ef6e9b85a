//! The words in which hardware tells a fault of the second stage.

use core::fmt;

use crate::access::Access;
use crate::tdp::{SecondCause, SecondFault};
use crate::walk::{Cause, ErrorCode, PageFault};

bitflags::bitflags! {
    /// The exit qualification of an EPT violation (SDM volume 3, table 28-7).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct EptQualification: u64 {
        /// Bit 0: the access was a read. Both this and [`EptQualification::WRITE`] for tables of a guest whose entries
        /// the CPU marks.
        const READ = 1 << 0;
        /// Bit 1: the access was a write.
        const WRITE = 1 << 1;
        /// Bit 2: the access was a fetch.
        const FETCH = 1 << 2;
        /// Bit 3: the address could be read.
        const READABLE = 1 << 3;
        /// Bit 4: the address could be written to.
        const WRITABLE = 1 << 4;
        /// Bit 5: the address could be executed.
        const EXECUTABLE = 1 << 5;
        /// Bit 7: there is a guest-virtual address.
        const GVA_VALID = 1 << 7;
        /// Bit 8: the access was to what that translates to, not to a table on the way.
        const TRANSLATED = 1 << 8;
    }
}

/// Which access of a walk the second stage refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultPlace {
    /// To a table of the guest.
    Table,
    /// To the page at the end.
    Final,
}

/// How a fault of the second stage is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecondExit {
    /// Exit reason 48.
    EptViolation(EptQualification),
    /// Exit reason 49: the qualification is undefined, KVM gives L1 a zero.
    EptMisconfiguration,
    /// Exit code 0x400, with `EXITINFO1`.
    NestedPageFault(ErrorCode),
}

impl FaultPlace {
    /// The bit of an NPT error code.
    const fn code(self) -> ErrorCode {
        match self {
            Self::Table => ErrorCode::GUEST_PAGE,
            Self::Final => ErrorCode::GUEST_FINAL,
        }
    }

    const fn qualification(self) -> EptQualification {
        match self {
            Self::Table => EptQualification::GVA_VALID,
            Self::Final => EptQualification::GVA_VALID.union(EptQualification::TRANSLATED),
        }
    }
}

impl SecondExit {
    /// What a CPU with EPT says.
    pub fn ept<D>(fault: &SecondFault<D>, place: FaultPlace) -> Self {
        if let SecondCause::Misconfigured { .. } = fault.cause {
            return Self::EptMisconfiguration;
        }
        let asked = rwx(fault.wanted);
        let found = rwx(fault.rights) << 3;
        let bits = EptQualification::from_bits_truncate(asked | found);
        Self::EptViolation(bits | place.qualification())
    }

    /// What a CPU with NPT says: all walks of the second stage are made in user mode, those for tables as writes.
    pub fn npt<D>(fault: &SecondFault<D>, place: FaultPlace) -> Self {
        let mut code = place.code() | ErrorCode::USER;
        code.set(ErrorCode::WRITE, fault.wanted.contains(Access::WRITE));
        code.set(ErrorCode::FETCH, fault.wanted.contains(Access::EXECUTE));
        match fault.cause {
            SecondCause::NotPresent => {}
            SecondCause::Misconfigured { .. } => code |= ErrorCode::PRESENT | ErrorCode::RSVD,
            SecondCause::NotAllowed { .. } => code |= ErrorCode::PRESENT,
            SecondCause::Denied(_) => code |= ErrorCode::PRESENT | ErrorCode::GUEST_RMP,
        }
        Self::NestedPageFault(code)
    }

    /// What KVM makes up for L1 when its own walk of L1's EPT fails (`paging_tmpl.h`, `nested_ept_inject_page_fault`).
    pub fn synthesised_ept(fault: &PageFault, place: FaultPlace) -> Self {
        if let Cause::Reserved { .. } = fault.cause {
            return Self::EptMisconfiguration;
        }
        let mut asked = EptQualification::empty();
        asked.set(EptQualification::READ, fault.code.contains(ErrorCode::USER));
        asked.set(
            EptQualification::WRITE,
            fault.code.contains(ErrorCode::WRITE),
        );
        asked.set(
            EptQualification::FETCH,
            fault.code.contains(ErrorCode::FETCH),
        );
        let found = EptQualification::from_bits_truncate(rwx(fault.rights) << 3);
        Self::EptViolation(asked | found | place.qualification())
    }

    /// What KVM makes up for L1 when its own walk of L1's NPT fails: the low half of the error code is that of the walk, the
    /// high half, which says where, that of the exit from hardware (`svm/nested.c:nested_svm_inject_npf_exit`). Where there
    /// was no such exit, it is as if at the final page.
    pub fn synthesised_npt(fault: &PageFault, place: FaultPlace) -> Self {
        let low = ErrorCode::from_bits_truncate(fault.code.bits() & 0xffff_ffff);
        Self::NestedPageFault(low | place.code())
    }

    /// The error code that KVM goes on with (`vmx/common.h:__vmx_handle_ept_violation`, `svm.c:npf_interception`).
    pub fn error_code(self) -> ErrorCode {
        let qualification = match self {
            Self::EptMisconfiguration => return ErrorCode::RSVD,
            Self::NestedPageFault(code) => return code,
            Self::EptViolation(qualification) => qualification,
        };
        let found =
            EptQualification::READABLE | EptQualification::WRITABLE | EptQualification::EXECUTABLE;
        let mut code = ErrorCode::empty();
        code.set(
            ErrorCode::USER,
            qualification.contains(EptQualification::READ),
        );
        code.set(
            ErrorCode::WRITE,
            qualification.contains(EptQualification::WRITE),
        );
        code.set(
            ErrorCode::FETCH,
            qualification.contains(EptQualification::FETCH),
        );
        code.set(ErrorCode::PRESENT, qualification.intersects(found));
        if qualification.contains(EptQualification::GVA_VALID) {
            let translated = qualification.contains(EptQualification::TRANSLATED);
            code |= match translated {
                true => ErrorCode::GUEST_FINAL,
                false => ErrorCode::GUEST_PAGE,
            };
        }
        code
    }
}

/// Read, write, execute as bits 0 to 2.
fn rwx(access: Access) -> u64 {
    u64::from(access.contains(Access::USER))
        | u64::from(access.contains(Access::WRITE)) << 1
        | u64::from(access.contains(Access::EXECUTE)) << 2
}

impl fmt::Display for SecondExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EptViolation(bits) => {
                write!(f, "EPT violation, qualification {:#x}", bits.bits())
            }
            Self::EptMisconfiguration => f.write_str("EPT misconfiguration"),
            Self::NestedPageFault(code) => write!(f, "#NPF({:#x} {code})", code.bits()),
        }
    }
}
