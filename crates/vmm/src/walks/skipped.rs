//! What a kernel does not run, and how that is known.

use std::fmt;

use slat_memslot::Errno;
use slat_mmu::role::Cr4;
use slat_mmu::walk::PagingMode;

/// A mode or a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A mode.
    Mode(PagingMode),
    /// CR4.SMEP.
    Smep,
    /// CR4.SMAP.
    Smap,
    /// CR4.PKE and PKRU.
    ProtectionKeys,
    /// CR4.PCIDE.
    Pcid,
}

impl Part {
    /// The features, each with its bit of CR4.
    pub(super) const BITS: [(Self, Cr4); 4] = [
        (Self::Smep, Cr4::SMEP),
        (Self::Smap, Cr4::SMAP),
        (Self::ProtectionKeys, Cr4::PKE),
        (Self::Pcid, Cr4::PCIDE),
    ];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode(mode) => write!(f, "{mode}"),
            Self::Smep => f.write_str("CR4.SMEP"),
            Self::Smap => f.write_str("CR4.SMAP"),
            Self::ProtectionKeys => f.write_str("CR4.PKE"),
            Self::Pcid => f.write_str("CR4.PCIDE"),
        }
    }
}

/// A mode or feature that the kernel does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// What.
    pub part: Part,
    /// What the kernel did when it was asked for.
    pub why: SkipReason,
}

/// What a kernel does with what it cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// It refuses the registers.
    Refused(Errno),
    /// It takes them, and shows others afterwards.
    Dropped,
    /// It takes them, and does not offer the feature in CPUID.
    Absent,
}

impl SkipReason {
    /// From what came of setting registers: nothing if they are set.
    pub(crate) const fn of(set: Result<bool, Errno>) -> Option<Self> {
        match set {
            Ok(true) => None,
            Ok(false) => Some(Self::Dropped),
            Err(errno) => Some(Self::Refused(errno)),
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = self.part;
        match self.why {
            SkipReason::Refused(errno) => {
                write!(f, "{part}: KVM_SET_SREGS refuses it with {errno}")
            }
            SkipReason::Dropped => write!(
                f,
                "{part}: KVM_SET_SREGS takes it, KVM_GET_SREGS does not show it"
            ),
            SkipReason::Absent => write!(f, "{part}: KVM_GET_SUPPORTED_CPUID does not have it"),
        }
    }
}
