//! Where in the GHCB the buffer may be.

use slat_memslot::{Gpa, PAGE_SIZE};
use thiserror::Error;

use super::buffer::{MAX_ENTRIES, WORD};

/// The first byte of the GHCB's shared buffer.
pub const SCRATCH_START: u64 = 0x800;
/// The first byte behind it.
pub const SCRATCH_END: u64 = 0xff0;

/// What is wrong with a VMGEXIT itself: SW_EXITINFO1 is 2, SW_EXITINFO2 the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Malformed {
    /// 1: the GHCB is not registered.
    #[error("the GHCB is not registered")]
    NotRegistered,
    /// 2: the usage field is not 0.
    #[error("the GHCB's usage is not 0")]
    InvalidUsage,
    /// 3: the scratch area is not where it may be.
    #[error("the scratch area is outside of the GHCB's shared buffer")]
    InvalidScratchArea,
    /// 4: a field that the event needs is not valid.
    #[error("a field is missing")]
    MissingInput,
    /// 5: a field has a value that it must not have.
    #[error("a field is invalid")]
    InvalidInput,
    /// 6: there is no such event.
    #[error("there is no such event")]
    InvalidEvent,
}

impl Malformed {
    /// The low half of SW_EXITINFO1.
    pub const SW_EXIT_INFO_1: u64 = 2;

    /// The value of SW_EXITINFO2.
    pub const fn sw_exit_info_2(self) -> u64 {
        match self {
            Self::NotRegistered => 1,
            Self::InvalidUsage => 2,
            Self::InvalidScratchArea => 3,
            Self::MissingInput => 4,
            Self::InvalidInput => 5,
            Self::InvalidEvent => 6,
        }
    }
}

/// A part of the GHCB's shared buffer, up to its end: what remains is derived from where it begins, not from a length that
/// the guest tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scratch {
    offset: u64,
}

impl Scratch {
    /// The scratch area of a GHCB (`setup_vmgexit_scratch`; version 2 demands that it is inside).
    ///
    /// ```
    /// use slat_coco::psc::{Malformed, Scratch};
    /// use slat_memslot::Gpa;
    /// let ghcb = Gpa::new(0x7000);
    /// let whole = Scratch::in_ghcb(ghcb, Gpa::new(0x7800)).unwrap();
    /// assert_eq!(whole.entries(), 253);
    /// let short = Scratch::in_ghcb(ghcb, Gpa::new(0x7fe0)).unwrap();
    /// assert_eq!(short.entries(), 1);
    /// let beside = Scratch::in_ghcb(ghcb, Gpa::new(0x8000));
    /// assert_eq!(beside, Err(Malformed::InvalidScratchArea));
    /// ```
    ///
    /// # Errors
    /// It is not inside, has no room for a header, or is not aligned to 8 bytes.
    pub const fn in_ghcb(ghcb: Gpa, scratch: Gpa) -> Result<Self, Malformed> {
        let offset = scratch.raw() % PAGE_SIZE;
        let inside = scratch.raw() - offset == ghcb.raw()
            && offset >= SCRATCH_START
            && offset + WORD as u64 <= SCRATCH_END;
        // KVM would go on with one that is not aligned; the words would not be read in one access.
        if inside && offset % WORD as u64 == 0 {
            Ok(Self { offset })
        } else {
            Err(Malformed::InvalidScratchArea)
        }
    }

    /// Where it begins in the GHCB's page.
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// How many entries it has room for, at most [`MAX_ENTRIES`].
    pub const fn entries(self) -> u16 {
        let words = (SCRATCH_END - self.offset) / WORD as u64 - 1;
        let [low, high, ..] = words.to_le_bytes();
        let entries = u16::from_le_bytes([low, high]);
        debug_assert!(entries <= MAX_ENTRIES);
        entries
    }
}
