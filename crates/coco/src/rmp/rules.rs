//! What only one source tells, as switches.
//!
//! Each switch's default is what AMD's manual is understood to say; the other value is what would have to change if
//! hardware turned out to do otherwise.

/// Whether RMPUPDATE takes an operand that contradicts itself: not assigned but with an ASID or immutable, or assigned to
/// nobody (ASID 0) and not immutable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OddOperand {
    /// It does not: `FAIL_INPUT`.
    #[default]
    Refused,
    /// It does.
    Taken,
}

/// Whether RMPUPDATE takes what the guest has established, when nothing that it writes differs from what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SameUpdate {
    /// Validated, VMSA and permissions are reset.
    #[default]
    Resets,
    /// They are kept.
    Keeps,
}

/// What PSMASH says of a frame that is no multiple of 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum UnalignedPsmash {
    /// `FAIL_INPUT`.
    #[default]
    Refused,
    /// Nothing: it works on the 2 MiB around it.
    RoundedDown,
}

/// What PSMASH says where no entry of 2 MiB is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NothingToSmash {
    /// `FAIL_INPUT`.
    #[default]
    Input,
    /// `FAIL_BADADDR`.
    BadAddress,
}

/// What PVALIDATE and RMPADJUST do if guest and RMP say 2 MiB, and the nested tables 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SmallerNested {
    /// `FAIL_SIZEMISMATCH`.
    #[default]
    SizeMismatch,
    /// A nested page fault; the host takes the entry apart, and the guest gets the mismatch the next time.
    NestedFault,
}

/// What RMPADJUST does at VMPL0 for VMPL0, whose permissions nobody can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum AdjustSelf {
    /// It succeeds and changes nothing: the VMSA bit is ignored.
    #[default]
    Ignored,
    /// `FAIL_PERMISSION`, as for any level that is not below.
    Refused,
}

/// What an SNP guest finds that reads a page through a shared mapping (C-bit clear) while the page is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SharedRead {
    /// Ciphertext, and no fault.
    #[default]
    Allowed,
    /// A nested page fault, as for a write.
    Faults,
}

/// All switches.
///
/// ```
/// use slat_coco::rmp::{Rules, SameUpdate};
/// let rules = Rules { same_update: SameUpdate::Keeps, ..Rules::default() };
/// assert_ne!(rules, Rules::default());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Rules {
    /// RMPUPDATE with a contradiction.
    pub odd_operand: OddOperand,
    /// RMPUPDATE that changes nothing.
    pub same_update: SameUpdate,
    /// PSMASH of an odd frame.
    pub unaligned_psmash: UnalignedPsmash,
    /// PSMASH of nothing.
    pub nothing_to_smash: NothingToSmash,
    /// PVALIDATE and RMPADJUST over smaller nested pages.
    pub smaller_nested: SmallerNested,
    /// RMPADJUST of VMPL0 by itself.
    pub adjust_self: AdjustSelf,
    /// Reads of private pages as shared ones.
    pub shared_read: SharedRead,
}
