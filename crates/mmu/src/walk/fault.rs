//! Why a walk does not reach a page.

use core::convert::Infallible;
use core::fmt;

use slat_memslot::{Gpa, Gva, Level};
use thiserror::Error;

use crate::access::Access;

use super::ErrorCode;

/// The first check that an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Cause {
    /// The entry is not present.
    #[error("the entry is not present")]
    NotPresent,
    /// No memory is where the table should be, or it cannot be read.
    #[error("no memory is where the table should be")]
    NoMemory,
    /// The entry has reserved bits.
    #[error("the entry has reserved bits: {bits:#x}")]
    Reserved {
        /// The bits.
        bits: u64,
    },
    /// User mode on a supervisor page; in EPT, reading what cannot be read.
    #[error("user mode may not use the page")]
    User,
    /// Writing to a read-only page.
    #[error("the page is read-only")]
    Write,
    /// Executing what must not be executed.
    #[error("the page is not executable")]
    Fetch,
    /// Executing a user page in supervisor mode (CR4.SMEP).
    #[error("supervisor mode may not execute user pages (SMEP)")]
    Smep,
    /// Accessing a user page in supervisor mode (CR4.SMAP).
    #[error("supervisor mode may not use user pages (SMAP)")]
    Smap,
    /// The page's protection key.
    #[error("protection key {key} forbids it")]
    ProtectionKey {
        /// The key.
        key: u8,
    },
}

/// A page fault, as the guest's handler sees it; for a nested hypervisor's EPT a violation or a misconfiguration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageFault {
    /// The error code.
    pub code: ErrorCode,
    /// CR2: the address that was accessed.
    pub address: Gva,
    /// The level of the entry that the walk ended at.
    pub level: Level,
    /// What the entries down to that one allow together.
    pub rights: Access,
    /// The first check that failed.
    pub cause: Cause,
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            code,
            address,
            level,
            cause,
            ..
        } = self;
        write!(
            f,
            "#PF({:#x} {code}) at {address}, level {}: {cause}",
            code.bits(),
            *level as u8
        )
    }
}

/// Why a walk fails. `S` is what the second stage says, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WalkFault<S = Infallible> {
    /// A page fault of the guest (vector 14).
    Page(PageFault),
    /// The address is not canonical: a general-protection fault, or a stack fault for accesses through SS.
    NonCanonical {
        /// The address.
        address: Gva,
    },
    /// The second stage does not translate an address that the walk needs.
    Second {
        /// What it says.
        fault: S,
        /// The address.
        gpa: Gpa,
        /// The level of the guest's table that the address is in; nothing for the final page.
        table: Option<Level>,
    },
}

impl<S> WalkFault<S> {
    /// The page fault, if it is one.
    pub const fn page_fault(&self) -> Option<&PageFault> {
        match self {
            Self::Page(fault) => Some(fault),
            Self::NonCanonical { .. } | Self::Second { .. } => None,
        }
    }
}

impl<S: fmt::Display> fmt::Display for WalkFault<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(fault) => fault.fmt(f),
            Self::NonCanonical { address } => write!(f, "#GP: {address} is not canonical"),
            Self::Second {
                fault,
                gpa,
                table: Some(level),
            } => write!(
                f,
                "second stage at {gpa}, a table of level {}: {fault}",
                *level as u8
            ),
            Self::Second {
                fault,
                gpa,
                table: None,
            } => write!(f, "second stage at {gpa}, the final page: {fault}"),
        }
    }
}

impl<S: fmt::Debug + fmt::Display> core::error::Error for WalkFault<S> {}
