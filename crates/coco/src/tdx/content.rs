//! What is in a page.

use std::sync::Arc;

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;

/// The content of a page of 4 KiB, stored no larger than it has to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Content {
    /// Zeroes.
    #[default]
    Zero,
    /// A value in the first eight bytes, zeroes behind.
    Value(u64),
    /// Everything written out.
    Bytes(Arc<[u8; PAGE]>),
    /// Bits that nobody can rely on: what the host finds in a page that the guest had encrypted, or the guest in a page
    /// of the host's.
    Scrambled,
}

impl Content {
    /// The first eight bytes, as a guest reads them.
    pub fn value(&self) -> Option<u64> {
        match self {
            Self::Zero => Some(0),
            Self::Value(value) => Some(*value),
            Self::Bytes(bytes) => bytes.first_chunk().map(|first| u64::from_le_bytes(*first)),
            Self::Scrambled => None,
        }
    }

    /// The same content with another value in the first eight bytes.
    #[must_use]
    pub fn with_value(self, value: u64) -> Self {
        match self {
            Self::Bytes(mut bytes) => {
                Arc::make_mut(&mut bytes)[..8].copy_from_slice(&value.to_le_bytes());
                Self::Bytes(bytes)
            }
            Self::Zero | Self::Value(_) if value == 0 => Self::Zero,
            Self::Zero | Self::Value(_) => Self::Value(value),
            // The rest stays what it is: nothing to rely on.
            Self::Scrambled => Self::Value(value),
        }
    }

    /// 256 bytes from `offset` on.
    pub(crate) fn chunk(&self, offset: usize) -> [u8; 256] {
        let mut chunk = [0; 256];
        match self {
            Self::Zero | Self::Scrambled => {}
            Self::Value(value) if offset == 0 => chunk[..8].copy_from_slice(&value.to_le_bytes()),
            Self::Value(_) => {}
            Self::Bytes(bytes) => chunk.copy_from_slice(&bytes[offset..offset + 256]),
        }
        chunk
    }
}
