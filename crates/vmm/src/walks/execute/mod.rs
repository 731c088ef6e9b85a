//! Accesses that a guest executes, held against walks: outcome, where they go, error code, CR2, accessed and dirty bits.

mod compare;
mod departure;
mod tables;
#[cfg(test)]
mod tests;

use std::fmt;

use slat_memslot::{Errno, Gpa, Gva};
use slat_mmu::fault::Kind;
use slat_mmu::walk::{GuestVendor, PagingMode, Privilege};

use super::{CpuState, GigabytePages};

pub use compare::{AccessConfig, AccessDifference, AccessEnd, AccessOutcome, compare_accesses};
pub use departure::Departure;
pub use tables::{DATA, HIGH, MEMORY_PAGES, TABLE_PAGES, TEST_TABLES, data_offset, place_of};

/// One access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    /// What it is.
    pub kind: Kind,
    /// In whose name.
    pub privilege: Privilege,
    /// Where.
    pub address: Gva,
    /// PKRU, which counts with CR4.PKE only.
    pub pkru: u32,
}

/// What came of an access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was made, in the page where it was expected.
    Done,
    /// It was made, but not there.
    Elsewhere,
    /// The guest's handler was called.
    PageFault {
        /// The error code on its stack.
        code: u64,
        /// CR2.
        address: Gva,
    },
    /// Anything else.
    Other {
        /// In words.
        what: String,
    },
}

/// Who walks a guest's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkedBy {
    /// KVM: for shadow page tables and in its emulator.
    Kvm,
    /// The CPU, which knows no other MAXPHYADDR than its own.
    Hardware {
        /// That one.
        maxphyaddr: u8,
        /// Whose it is.
        vendor: GuestVendor,
    },
}

impl fmt::Display for WalkedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kvm => f.write_str("KVM"),
            Self::Hardware { maxphyaddr, .. } => {
                write!(f, "hardware, by {maxphyaddr} bits of addresses")
            }
        }
    }
}

/// Which addresses a guest in user mode can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserHalf {
    /// The lower half: a paravirtual backend keeps parts of the upper one for itself, and user mode gets a fault there
    /// without a walk of the guest's tables (the first entry of that half showed it).
    Lower,
    /// Both.
    Both,
}

/// Whether a guest's protection keys do anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectionKeys {
    /// They do.
    Work,
    /// KVM offers none.
    Absent,
}

/// A guest that makes accesses.
pub trait Executor {
    /// When its guests have pages of 1 GiB.
    fn gigabyte_pages(&self) -> GigabytePages;

    /// Whose walks its accesses are.
    fn walked_by(&self) -> WalkedBy;

    /// Where user mode can be.
    fn user_half(&self) -> UserHalf;

    /// Whether there are protection keys.
    fn protection_keys(&self) -> ProtectionKeys;

    /// Begins anew with a state's CPUID.
    ///
    /// # Errors
    /// It refuses.
    fn renew(&mut self, state: &CpuState) -> Result<(), Errno>;

    /// Makes the tables that the guest needs for itself in a mode. Those of the test have to be loaded after it.
    ///
    /// # Errors
    /// The tables cannot be made known.
    fn enter(&mut self, mode: PagingMode) -> Result<(), Errno>;

    /// Sets registers; whether they are what was asked for then.
    ///
    /// # Errors
    /// It refuses.
    fn takes(&mut self, state: &CpuState) -> Result<bool, Errno>;

    /// Fills the top table, but for its first word, and the test's tables ([`place_of`]).
    ///
    /// # Errors
    /// The tables cannot be made known.
    fn load(&mut self, words: &[u64]) -> Result<(), Errno>;

    /// Makes an access, which is expected to reach `to`, or nothing.
    ///
    /// # Errors
    /// The call fails.
    fn access(&mut self, state: &CpuState, tried: &Tried, to: Option<Gpa>) -> Result<Ended, Errno>;

    /// The top table and the test's ([`place_of`]).
    fn words(&self) -> Vec<u64>;
}

/// No guest, where there is no KVM.
impl Executor for std::convert::Infallible {
    fn gigabyte_pages(&self) -> GigabytePages {
        match *self {}
    }

    fn walked_by(&self) -> WalkedBy {
        match *self {}
    }

    fn user_half(&self) -> UserHalf {
        match *self {}
    }

    fn protection_keys(&self) -> ProtectionKeys {
        match *self {}
    }

    fn renew(&mut self, _: &CpuState) -> Result<(), Errno> {
        match *self {}
    }

    fn enter(&mut self, _: PagingMode) -> Result<(), Errno> {
        match *self {}
    }

    fn takes(&mut self, _: &CpuState) -> Result<bool, Errno> {
        match *self {}
    }

    fn load(&mut self, _: &[u64]) -> Result<(), Errno> {
        match *self {}
    }

    fn access(&mut self, _: &CpuState, _: &Tried, _: Option<Gpa>) -> Result<Ended, Errno> {
        match *self {}
    }

    fn words(&self) -> Vec<u64> {
        match *self {}
    }
}
