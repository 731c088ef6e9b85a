//! The measurement of what a TD is built from.

use core::fmt;

use sha2::{Digest, Sha384};
use slat_memslot::Gpa;

/// How many times a page of 4 KiB has to be extended: 256 bytes at a time (`TDX_EXTENDMR_CHUNKSIZE`).
pub const PAGE_CHUNKS: u64 = 16;

/// MRTD while it grows: SHA-384 over the operations that built the TD, in their order.
///
/// Adding a page contributes its address, extending contributes the address and 256 bytes of content. A page that was
/// added and not extended has a measured address and an unmeasured content.
#[derive(Clone, Default)]
pub(crate) struct Measurement {
    hash: Sha384,
    operations: u64,
}

/// MRTD, the measurement of a TD as it was built.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mrtd(pub [u8; 48]);

impl Measurement {
    /// A page was added (`TDH.MEM.PAGE.ADD`).
    pub(crate) fn page_added(&mut self, gpa: Gpa) {
        self.block(b"MEM.PAGE.ADD", gpa);
    }

    /// Content was measured (`TDH.MR.EXTEND`).
    pub(crate) fn extended(&mut self, gpa: Gpa, chunk: &[u8; 256]) {
        self.block(b"MR.EXTEND", gpa);
        self.hash.update(chunk);
    }

    /// 128 bytes: the name of the operation, and at byte 16 the address.
    fn block(&mut self, name: &[u8], gpa: Gpa) {
        let mut block = [0; 128];
        block[..name.len()].copy_from_slice(name);
        block[16..24].copy_from_slice(&gpa.raw().to_le_bytes());
        self.hash.update(block);
        self.operations += 1;
    }

    pub(crate) const fn operations(&self) -> u64 {
        self.operations
    }

    pub(crate) fn finish(&self) -> Mrtd {
        Mrtd(self.hash.clone().finalize().into())
    }
}

impl fmt::Debug for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Measurement({} operations)", self.operations)
    }
}

impl fmt::Display for Mrtd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Mrtd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mrtd({self})")
    }
}
