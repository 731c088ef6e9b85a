//! What one entry of a guest's tables says, without a walk: for who shadows tables or explains them.

use slat_memslot::{Gfn, Gpa, Level};

use crate::access::Access;

use super::format::{GuestFormat, Paging32, Paging64, PagingEpt};
use super::guest::{LeafSize, is_leaf, leaf_size, page_address};
use super::mode::PagingMode;
use super::paging::GuestPaging;
use crate::role::AccessDirty;
use slat_memslot::Gva;

/// What an entry of a guest's tables says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestEntry {
    /// Nothing: it is not present.
    Absent,
    /// It is present with bits that are reserved.
    Reserved {
        /// The bits.
        bits: u64,
    },
    /// A table of the level below.
    Table {
        /// The table.
        gfn: Gfn,
        /// What this entry allows (`gpte_access`).
        rights: Access,
        /// Whether it is marked as accessed, or nobody marks it.
        accessed: bool,
    },
    /// A page.
    Leaf {
        /// Its first frame.
        gfn: Gfn,
        /// Its size.
        size: LeafSize,
        /// What this entry allows (`gpte_access`).
        rights: Access,
        /// Whether it is marked as accessed, or nobody marks it.
        accessed: bool,
        /// Whether it is marked as dirty, or nobody marks it.
        dirty: bool,
    },
}

impl GuestPaging {
    /// What an entry of a table of `level` says; a pointer of PAE paging has level 3. Nothing without paging.
    ///
    /// ```
    /// use slat_memslot::{Gfn, Level};
    /// use slat_mmu::role::{Cr0, Cr4, Efer, VcpuState};
    /// use slat_mmu::walk::{GuestCpu, GuestEntry, GuestPaging};
    /// let vcpu = VcpuState { cr0: Cr0::PG | Cr0::PE, cr4: Cr4::PAE, efer: Efer::LMA, ..VcpuState::default() };
    /// let paging = GuestPaging::new(&vcpu, &GuestCpu::new(46));
    /// let reserved = paging.entry(0x8000_0000_0000_0083, Level::L2);
    /// assert_eq!(reserved, GuestEntry::Reserved { bits: 1 << 63 });
    /// assert!(matches!(paging.entry(0x5023, Level::L1), GuestEntry::Leaf { dirty: false, .. }));
    /// ```
    pub fn entry(&self, entry: u64, level: Level) -> GuestEntry {
        match self.mode {
            PagingMode::Unpaged => GuestEntry::Absent,
            PagingMode::Bits32 | PagingMode::Bits32Pse => self.decode::<Paging32>(entry, level),
            PagingMode::Pae if level == Level::L3 => self.pointer(entry),
            PagingMode::Pae | PagingMode::Level4 | PagingMode::Level5 => {
                self.decode::<Paging64>(entry, level)
            }
            PagingMode::Ept4 | PagingMode::Ept5 => self.decode::<PagingEpt>(entry, level),
        }
    }

    fn pointer(&self, pointer: u64) -> GuestEntry {
        if pointer & Paging64::PRESENT == 0 {
            return GuestEntry::Absent;
        }
        GuestEntry::Table {
            gfn: Gpa::new(pointer & Paging64::ADDRESS).gfn(),
            rights: Access::EXECUTE | Access::WRITE | Access::USER,
            accessed: true,
        }
    }

    fn decode<F: GuestFormat>(&self, entry: u64, level: Level) -> GuestEntry {
        let number = level as u8 - 1;
        if entry & F::PRESENT == 0 {
            return GuestEntry::Absent;
        }
        let bits = self.reserved.violations(entry, number);
        if bits != 0 {
            return GuestEntry::Reserved { bits };
        }
        let rights = F::rights(entry ^ F::INVERTED);
        let unmarked = self.access_dirty == AccessDirty::Software;
        let accessed = unmarked || entry & F::ACCESSED != 0;
        match is_leaf(self.mode, entry, number) {
            false => GuestEntry::Table {
                gfn: Gpa::new(entry & F::ADDRESS).gfn(),
                rights,
                accessed,
            },
            true => GuestEntry::Leaf {
                gfn: page_address::<F>(entry, number, Gva::new(0)).gfn(),
                size: leaf_size::<F>(number),
                rights,
                accessed,
                dirty: unmarked || entry & F::DIRTY != 0,
            },
        }
    }
}
