//! Host memory by name.

use slat_memslot::Hva;

use crate::scenario::{Area, HOST_AREAS};

/// Where the host areas lie that scenario files name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Areas {
    /// `A`: 1 GiB, writable, aligned to 1 GiB.
    pub writable: Hva,
    /// `UN`: 2 MiB that no access reaches.
    pub unreachable: Hva,
    /// `RO`: 2 MiB that can only be read.
    pub readonly: Hva,
}

impl Areas {
    /// Addresses for machines that never touch memory.
    pub const SYMBOLIC: Self = Self {
        writable: Hva::new(0x7f00_0000_0000),
        unreachable: Hva::new(0x7e00_0000_0000),
        readonly: Hva::new(0x7e00_4000_0000),
    };

    /// Each area with its name in scenario files.
    pub fn list(&self) -> [Area; 3] {
        let [a, un, ro] = HOST_AREAS;
        [
            (a, self.writable),
            (un, self.unreachable),
            (ro, self.readonly),
        ]
        .map(|((name, len), base)| Area::new(name, base, len))
    }
}
