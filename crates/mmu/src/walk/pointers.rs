//! The page-directory pointers of PAE paging, which are registers.

use slat_memslot::{Gpa, Gva};
use thiserror::Error;

use super::GuestCpu;
use super::memory::TableMemory;

/// The four page-directory pointers, as `mov cr3` loads them (`struct kvm_mmu.pdptrs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pointers(pub [u64; 4]);

/// Why the pointers cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum PointerError {
    /// There is no memory where CR3 points to.
    #[error("there is no memory at {at}, where CR3 points to")]
    NoMemory {
        /// Where.
        at: Gpa,
    },
    /// A present pointer has reserved bits.
    #[error("pointer {index}, {value:#x}, has reserved bits: {bits:#x}")]
    Reserved {
        /// Which pointer.
        index: u8,
        /// The pointer.
        value: u64,
        /// Its reserved bits.
        bits: u64,
    },
}

impl Pointers {
    /// The pointer for an address: bits 31 and 30 choose.
    #[inline]
    pub const fn select(&self, address: Gva) -> u64 {
        let [_, _, _, high, ..] = address.raw().to_le_bytes();
        self.0[(high >> 6) as usize]
    }

    /// Loads the pointers from the 32 bytes that CR3 points to (`x86.c:load_pdptrs`).
    ///
    /// # Errors
    /// There is no memory, or a present pointer has reserved bits; the instruction raises a general-protection fault then.
    pub fn load<M: TableMemory + ?Sized>(
        memory: &M,
        cr3: u64,
        cpu: &GuestCpu,
    ) -> Result<Self, PointerError> {
        let base = cr3 & !0x1f;
        let mut pointers = [0; 4];
        for (index, pointer) in (0_u8..).zip(&mut pointers) {
            let at = Gpa::new(base + 8 * u64::from(index));
            *pointer = memory.read_u64(at).ok_or(PointerError::NoMemory { at })?;
            let bits = *pointer & cpu.reserved_pointer_bits();
            if *pointer & 1 != 0 && bits != 0 {
                return Err(PointerError::Reserved {
                    index,
                    value: *pointer,
                    bits,
                });
            }
        }
        Ok(Self(pointers))
    }
}
