//! Host memory by name.

/// Where the host areas lie that scenario files name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Areas {
    /// `A`: 1 GiB, writable, aligned to 1 GiB.
    pub writable: u64,
    /// `UN`: 2 MiB that no access reaches.
    pub unreachable: u64,
    /// `RO`: 2 MiB that can only be read.
    pub readonly: u64,
}

impl Areas {
    /// Addresses for machines that never touch memory.
    pub const SYMBOLIC: Self = Self {
        writable: 0x7f00_0000_0000,
        unreachable: 0x7e00_0000_0000,
        readonly: 0x7e00_4000_0000,
    };

    /// Name, start and length of each area.
    pub const fn list(&self) -> [(&'static str, u64, u64); 3] {
        [
            ("A", self.writable, 1 << 30),
            ("UN", self.unreachable, 2 << 20),
            ("RO", self.readonly, 2 << 20),
        ]
    }

    /// Where the area of this name starts.
    pub fn start(&self, name: &str) -> Option<u64> {
        self.list()
            .into_iter()
            .find(|(n, ..)| *n == name)
            .map(|(_, start, _)| start)
    }
}
