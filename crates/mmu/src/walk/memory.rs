//! Where tables are read: guest memory behind a small trait.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use slat_memslot::{Gpa, Hpa};

#[cfg(feature = "vm-memory")]
mod iommu;
#[cfg(feature = "vm-memory")]
mod vm_memory;

#[cfg(feature = "vm-memory")]
pub use iommu::{GuestVirtual, Marks};
#[cfg(feature = "vm-memory")]
pub use vm_memory::VmMemory;

/// What became of an entry that a walk wanted to mark as accessed or dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exchange {
    /// It is marked.
    Done,
    /// It has changed since it was read; the walk starts again.
    Changed,
    /// Its memory can only be read: the mark is left out and the walk goes on (a read-only slot).
    ReadOnly,
    /// Its memory cannot be reached any more; the walk fails.
    Failed,
}

/// Memory that holds page tables, by addresses of type `A`.
///
/// A walk only asks for aligned entries. Whatever the memory holds is allowed.
///
/// ```
/// use slat_memslot::Gpa;
/// use slat_mmu::walk::TableMemory;
///
/// /// A VMM's own memory: one region from 1 MiB on.
/// struct Region(Vec<u8>);
///
/// impl TableMemory for Region {
///     fn read_u64(&self, at: Gpa) -> Option<u64> {
///         TableMemory::<Gpa>::read_u64(self.0.as_slice(), Gpa::new(at.raw().checked_sub(0x10_0000)?))
///     }
/// }
/// assert_eq!(Region(vec![7; 16]).read_u64(Gpa::new(0x10_0008)), Some(0x0707_0707_0707_0707));
/// ```
pub trait TableMemory<A: TableAddress = Gpa> {
    /// Reads an eight-byte entry at once; nothing where there is no memory.
    fn read_u64(&self, at: A) -> Option<u64>;

    /// Reads a four-byte entry at once; nothing where there is no memory.
    #[inline]
    fn read_u32(&self, at: A) -> Option<u32> {
        let word = self.read_u64(at.aligned_to_8())?;
        Some(half(word, at.is_upper_half()))
    }

    /// Replaces an eight-byte entry if it is still `current`.
    ///
    /// Memory that does not provide it is never written to: walks leave accessed and dirty bits alone.
    #[inline]
    fn compare_exchange_u64(&self, at: A, current: u64, new: u64) -> Exchange {
        let _ = (at, current, new);
        Exchange::ReadOnly
    }

    /// Replaces a four-byte entry if it is still `current`.
    #[inline]
    fn compare_exchange_u32(&self, at: A, current: u32, new: u32) -> Exchange {
        let Some(word) = self.read_u64(at.aligned_to_8()) else {
            return Exchange::Failed;
        };
        if half(word, at.is_upper_half()) != current {
            return Exchange::Changed;
        }
        let new = with_half(word, at.is_upper_half(), new);
        self.compare_exchange_u64(at.aligned_to_8(), word, new)
    }
}

/// An address of memory that holds page tables: [`Gpa`] or [`Hpa`].
pub trait TableAddress: Copy + Default + core::fmt::Debug {
    /// The address in bytes.
    fn bytes(self) -> u64;

    /// The address of a byte.
    fn at(bytes: u64) -> Self;

    /// The address of the eight bytes around it.
    #[inline]
    #[must_use]
    fn aligned_to_8(self) -> Self {
        Self::at(self.bytes() & !7)
    }

    /// Whether it is in the upper four of these eight bytes.
    #[inline]
    fn is_upper_half(self) -> bool {
        self.bytes() & 4 != 0
    }
}

macro_rules! table_address {
    ($name:ident) => {
        impl TableAddress for $name {
            #[inline]
            fn bytes(self) -> u64 {
                self.raw()
            }

            #[inline]
            fn at(bytes: u64) -> Self {
                Self::new(bytes)
            }
        }
    };
}

table_address!(Gpa);
table_address!(Hpa);

#[inline]
fn half(word: u64, upper: bool) -> u32 {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    match upper {
        false => u32::from_le_bytes([a, b, c, d]),
        true => u32::from_le_bytes([e, f, g, h]),
    }
}

#[inline]
fn with_half(word: u64, upper: bool, new: u32) -> u64 {
    match upper {
        false => word & !0xffff_ffff | u64::from(new),
        true => word & 0xffff_ffff | u64::from(new) << 32,
    }
}

#[inline]
fn word_index(at: impl TableAddress) -> Option<usize> {
    usize::try_from(at.bytes() >> 3).ok()
}

/// A dump of memory from address 0 on: walks leave accessed and dirty bits alone.
impl<A: TableAddress> TableMemory<A> for [u8] {
    #[inline]
    fn read_u64(&self, at: A) -> Option<u64> {
        let start = usize::try_from(at.bytes()).ok()?;
        let bytes = self.get(start..start.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}

/// A dump of memory in words of eight bytes, from address 0 on: walks leave accessed and dirty bits alone.
impl<A: TableAddress> TableMemory<A> for [u64] {
    #[inline]
    fn read_u64(&self, at: A) -> Option<u64> {
        self.get(word_index(at)?).copied()
    }
}

/// Memory of one thread, from address 0 on.
impl<A: TableAddress> TableMemory<A> for [Cell<u64>] {
    #[inline]
    fn read_u64(&self, at: A) -> Option<u64> {
        Some(self.get(word_index(at)?)?.get())
    }

    #[inline]
    fn compare_exchange_u64(&self, at: A, current: u64, new: u64) -> Exchange {
        let Some(word) = word_index(at).and_then(|index| self.get(index)) else {
            return Exchange::Failed;
        };
        if word.get() != current {
            return Exchange::Changed;
        }
        word.set(new);
        Exchange::Done
    }
}

/// Memory that threads share, from address 0 on.
impl<A: TableAddress> TableMemory<A> for [AtomicU64] {
    #[inline]
    fn read_u64(&self, at: A) -> Option<u64> {
        Some(self.get(word_index(at)?)?.load(Ordering::Acquire))
    }

    #[inline]
    fn compare_exchange_u64(&self, at: A, current: u64, new: u64) -> Exchange {
        let Some(word) = word_index(at).and_then(|index| self.get(index)) else {
            return Exchange::Failed;
        };
        match word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Exchange::Done,
            Err(_) => Exchange::Changed,
        }
    }
}

/// Memory that is only read, whatever it is: walks leave accessed and dirty bits alone.
#[derive(Clone, Copy, Debug)]
pub struct ReadOnly<'m, M: ?Sized>(pub &'m M);

impl<A: TableAddress, M: TableMemory<A> + ?Sized> TableMemory<A> for ReadOnly<'_, M> {
    #[inline]
    fn read_u64(&self, at: A) -> Option<u64> {
        self.0.read_u64(at)
    }

    #[inline]
    fn read_u32(&self, at: A) -> Option<u32> {
        self.0.read_u32(at)
    }

    #[inline]
    fn compare_exchange_u32(&self, _: A, _: u32, _: u32) -> Exchange {
        Exchange::ReadOnly
    }
}
