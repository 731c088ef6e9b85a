//! The word that a kernel makes of a role.

use slat_memslot::Level;
use thiserror::Error;

use super::{Access, PageRole, RoleFlag};

/// Where a kernel keeps the fields of a role (`union kvm_mmu_page_role` in its `kvm_host.h`).
///
/// The layout does not follow from the kernel's release alone: the one with MBEC has been backported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RoleLayout {
    /// Linux 6.12.
    #[default]
    Baseline,
    /// The same with `is_mirror`, for TDX.
    Mirror,
    /// With a fourth access bit, which moves some fields; `smep_andnot_wp` is gone and `cr4_smep` has come.
    Mbec,
}

/// Why a word is no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum WordError {
    /// A level that no page table has.
    #[error("role word {word:#010x}: no page table has level {level}")]
    Level {
        /// The word.
        word: u32,
        /// The level in it.
        level: u32,
    },
    /// Bits that no field of the layout has.
    #[error("role word {word:#010x}: bits {unknown:#010x} belong to no field")]
    Unknown {
        /// The word.
        word: u32,
        /// The bits.
        unknown: u32,
    },
}

/// Level, width of the guest's entries, quadrant and direct: the same everywhere.
const LOW: u32 = 0xff;
/// What moves up by one bit in the layout with MBEC, in [`PageRole`]'s places.
const MOVED: u32 = RoleFlag::Invalid.bit() | RoleFlag::EferNx.bit() | RoleFlag::Cr0Wp.bit();
/// What is in the same place in all layouts, besides [`LOW`].
const HIGH: u32 = RoleFlag::SmapAndNotWp.bit()
    | RoleFlag::AdDisabled.bit()
    | RoleFlag::GuestMode.bit()
    | RoleFlag::Passthrough.bit()
    | RoleFlag::Smm.bit();
/// Every bit of a 6.12 word.
const BASELINE: u32 = LOW | 7 << 8 | MOVED | RoleFlag::SmepAndNotWp.bit() | HIGH;
/// Every bit that only the layout with MBEC has in a place of [`PageRole`].
const MBEC_HIGH: u32 = HIGH | RoleFlag::IsMirror.bit() | RoleFlag::Cr4Smep.bit();
/// The access bits of the layout with MBEC.
const MBEC_ACCESS: u32 = 0xf << 8;

impl RoleLayout {
    /// All layouts, oldest first.
    pub const ALL: [Self; 3] = [Self::Baseline, Self::Mirror, Self::Mbec];

    /// Every bit that a word can have.
    const fn mask(self) -> u32 {
        match self {
            Self::Baseline => BASELINE,
            Self::Mirror => BASELINE | RoleFlag::IsMirror.bit(),
            Self::Mbec => LOW | MBEC_ACCESS | MOVED << 1 | MBEC_HIGH,
        }
    }

    /// The word of a role that has `bits`.
    pub(super) const fn encode(self, bits: u32) -> u32 {
        match self {
            Self::Baseline | Self::Mirror => bits & self.mask(),
            Self::Mbec => {
                let access = PageRole::from_bits(bits).access().mbec_bits() << 8;
                bits & (LOW | MBEC_HIGH) | access | (bits & MOVED) << 1
            }
        }
    }

    /// The bits of the role whose word this is.
    const fn decode(self, word: u32) -> u32 {
        match self {
            Self::Baseline | Self::Mirror => word,
            Self::Mbec => {
                let access = Access::from_mbec_bits(word >> 8);
                let rest = word & (LOW | MBEC_HIGH) | (word >> 1) & MOVED;
                PageRole::from_bits(rest).with_access(access).bits()
            }
        }
    }
}

impl PageRole {
    /// KVM's word for the role. A field that the layout lacks is left out; see [`PageRole::fits`].
    ///
    /// ```
    /// use slat_mmu::role::{PageRole, RoleFlag, RoleLayout};
    /// let root = PageRole::from_word(RoleLayout::Mirror, 0x3784)?;
    /// assert_eq!(root.with(RoleFlag::IsMirror).word(RoleLayout::Mirror), 0x83784);
    /// assert_eq!(root.with(RoleFlag::IsMirror).word(RoleLayout::Baseline), 0x3784);
    /// # Ok::<(), slat_mmu::role::WordError>(())
    /// ```
    pub const fn word(self, layout: RoleLayout) -> u32 {
        layout.encode(self.bits())
    }

    /// Whether a layout has room for every field that is set.
    pub const fn fits(self, layout: RoleLayout) -> bool {
        layout.decode(self.word(layout)) == self.bits()
    }

    /// The role whose word this is.
    ///
    /// # Errors
    /// No such level, or bits that no field has; `smm` is a byte in KVM but only ever 0 or 1.
    pub const fn from_word(layout: RoleLayout, word: u32) -> Result<Self, WordError> {
        let unknown = word & !layout.mask();
        if unknown != 0 {
            return Err(WordError::Unknown { word, unknown });
        }
        let level = word & 0xf;
        if level < Level::L1 as u32 || level > Level::L5 as u32 {
            return Err(WordError::Level { word, level });
        }
        Ok(Self::from_bits(layout.decode(word)))
    }
}
