//! Tables in the memory of a VMM that uses vm-memory.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::bitmap::Bitmap;
use vm_memory::{
    AtomicInteger, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions,
    VolatileMemory,
};

use super::{Exchange, TableAddress, TableMemory};

/// Memory of a VMM that uses vm-memory: a [`GuestMemoryBackend`] such as `GuestMemoryMmap`, or any [`GuestMemory`].
///
/// Entries are read and marked as one atomic access each; a marked page is marked as dirty in the region's bitmap too.
/// Regions that cannot be written to belong into a [`ReadOnly`](super::ReadOnly).
///
/// ```
/// use slat_memslot::Gpa;
/// use slat_mmu::walk::{Exchange, TableMemory, VmMemory};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x10_0000), 0x1000)])?;
/// memory.write_obj(0x5067_u64, GuestAddress(0x10_0008))?;
/// let tables = VmMemory(&memory);
/// assert_eq!(tables.read_u64(Gpa::new(0x10_0008)), Some(0x5067));
/// assert_eq!(tables.compare_exchange_u64(Gpa::new(0x10_0008), 0x5067, 0x5007), Exchange::Done);
/// assert_eq!(tables.read_u32(Gpa::new(0x10_0008)), Some(0x5007));
/// assert_eq!(tables.read_u64(Gpa::new(0)), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct VmMemory<'m, M: ?Sized>(pub &'m M);

impl<M: ?Sized> Clone for VmMemory<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: ?Sized> Copy for VmMemory<'_, M> {}

impl<M: GuestMemory + ?Sized> VmMemory<'_, M> {
    #[inline]
    fn read<T: AtomicInteger>(&self, at: u64) -> Option<T::V> {
        let address = GuestAddress(at);
        if let Some(physical) = self.0.physical_memory() {
            let region = physical.find_region(address)?;
            let offset = at - region.start_addr().0;
            let slice = region.get_slice(vm_memory::MemoryRegionAddress(offset), size_of::<T>());
            let slice = slice.ok()?;
            return Some(slice.get_atomic_ref::<T>(0).ok()?.load(Ordering::Acquire));
        }
        let mut slices = self
            .0
            .get_slices(address, size_of::<T>(), Permissions::Read)
            .ok()?;
        let slice = slices.next()?.ok()?;
        Some(slice.get_atomic_ref::<T>(0).ok()?.load(Ordering::Acquire))
    }

    fn exchange<T: AtomicInteger>(&self, at: u64, exchange: impl FnOnce(&T) -> bool) -> Exchange {
        let slices = self
            .0
            .get_slices(GuestAddress(at), size_of::<T>(), Permissions::ReadWrite);
        let Some(Ok(slice)) = slices.ok().and_then(|mut slices| slices.next()) else {
            return Exchange::Failed;
        };
        let Ok(entry) = slice.get_atomic_ref::<T>(0) else {
            return Exchange::Failed;
        };
        if !exchange(entry) {
            return Exchange::Changed;
        }
        slice.bitmap().mark_dirty(0, size_of::<T>());
        Exchange::Done
    }
}

impl<A: TableAddress, M: GuestMemory + ?Sized> TableMemory<A> for VmMemory<'_, M> {
    #[inline]
    fn read_u64(&self, at: A) -> Option<u64> {
        self.read::<AtomicU64>(at.bytes())
    }

    #[inline]
    fn read_u32(&self, at: A) -> Option<u32> {
        self.read::<AtomicU32>(at.bytes())
    }

    fn compare_exchange_u64(&self, at: A, current: u64, new: u64) -> Exchange {
        self.exchange::<AtomicU64>(at.bytes(), |entry| {
            entry
                .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        })
    }

    fn compare_exchange_u32(&self, at: A, current: u32, new: u32) -> Exchange {
        self.exchange::<AtomicU32>(at.bytes(), |entry| {
            entry
                .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        })
    }
}
