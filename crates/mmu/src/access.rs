//! What an entry, a table, or the entries above a table allow.

use core::fmt;

use crate::role::RoleLayout;

bitflags::bitflags! {
    /// What an entry allows, or what the entries above a page table leave to it (`ACC_*_MASK`).
    ///
    /// The meaning of a bit depends on whether the kernel knows mode-based execution (MBEC), that is on
    /// [`Layout::P3`](crate::host::Layout::P3) and [`RoleLayout::Mbec`]:
    ///
    /// | | without | in EPT with it | in NPT with it |
    /// |---|---|---|---|
    /// | `EXECUTE` | X; not NX | X, for supervisor mode | not NX |
    /// | `WRITE` | W | W | W |
    /// | `USER` | R in EPT; U in NPT | XU, execution in user mode | U |
    /// | `READ` | does not exist | R | P |
    ///
    /// The numbers are KVM's without MBEC.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Access: u8 {
        /// Execution (`ACC_EXEC_MASK`).
        const EXECUTE = 1;
        /// Writing (`ACC_WRITE_MASK`).
        const WRITE = 2;
        /// User mode; without MBEC, reading in EPT entries (`ACC_USER_MASK`, `ACC_USER_EXEC_MASK`).
        const USER = 4;
        /// Reading, with MBEC only (`ACC_READ_MASK`).
        const READ = 8;
    }
}

impl Access {
    /// Everything that a layout knows (`ACC_ALL`): what a root starts from.
    #[inline]
    pub const fn all_in(layout: RoleLayout) -> Self {
        match layout {
            RoleLayout::Baseline | RoleLayout::Mirror => {
                Self::EXECUTE.union(Self::WRITE).union(Self::USER)
            }
            RoleLayout::Mbec => Self::all(),
        }
    }

    /// The bits as the layout with MBEC orders them: read 1, write 2, user 4, execute 8.
    pub(crate) const fn mbec_bits(self) -> u32 {
        swap_ends(self.bits()) as u32
    }

    /// The access that the layout with MBEC writes as `bits`, of which only the low four count.
    pub(crate) const fn from_mbec_bits(bits: u32) -> Self {
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
        for (bit, letter) in [(Self::WRITE, "w"), (Self::USER, "u"), (Self::EXECUTE, "x")] {
            f.write_str(if self.contains(bit) { letter } else { "-" })?;
        }
        Ok(())
    }
}
