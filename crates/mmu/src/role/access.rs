//! What a page table inherits from the entries above it.

use core::fmt;

use super::RoleLayout;

bitflags::bitflags! {
    /// The access that the entries above a page table leave to it (`ACC_*_MASK`).
    ///
    /// The bits are KVM's without MBEC; [`Access::READ`] exists only in the layout with MBEC.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Access: u8 {
        /// Instruction fetches.
        const EXEC = 1;
        /// Writes.
        const WRITE = 2;
        /// User accesses; in EPT tables without MBEC, reads.
        const USER = 4;
        /// Reads, where the layout tells them from user accesses.
        const READ = 8;
    }
}

impl Access {
    /// Everything that a layout knows (`ACC_ALL`): what a root starts from.
    #[inline]
    pub const fn all_in(layout: RoleLayout) -> Self {
        match layout {
            RoleLayout::Baseline | RoleLayout::Mirror => {
                Self::EXEC.union(Self::WRITE).union(Self::USER)
            }
            RoleLayout::Mbec => Self::all(),
        }
    }

    /// The bits as the layout with MBEC orders them: read 1, write 2, user 4, execute 8.
    pub(super) const fn mbec_bits(self) -> u32 {
        swap_ends(self.bits()) as u32
    }

    /// The access that the layout with MBEC writes as `bits`, of which only the low four count.
    pub(super) const fn from_mbec_bits(bits: u32) -> Self {
        Self::from_bits_truncate(swap_ends(bits.to_le_bytes()[0] & 0xf))
    }
}

/// Exchanges bits 0 and 3.
const fn swap_ends(bits: u8) -> u8 {
    (bits & 0b0110) | ((bits & 1) << 3) | ((bits >> 3) & 1)
}

/// As in the tracepoints: `wux`, with `-` for what is missing.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(Self::WRITE, "w"), (Self::USER, "u"), (Self::EXEC, "x")] {
            f.write_str(if self.contains(bit) { letter } else { "-" })?;
        }
        Ok(())
    }
}
