//! Guest-virtual memory as ordinary memory: a walk in the place of vm-memory's IOMMU.

use std::sync::Arc;

use slat_memslot::{Gva, PAGE_SIZE};
use vm_memory::iommu::{Error, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, GuestMemory, Iommu, Iotlb, Permissions};

use super::VmMemory;
use crate::fault::Kind;
use crate::walk::{
    ErrorCode, GuestPaging, Privilege, ReadOnly, TableMemory, Translation, WalkFault,
};

/// Whether reading guest-virtual memory leaves marks in the guest's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Marks {
    /// Accessed and dirty bits are set, as by an access of the guest.
    Set,
    /// The tables are left alone, as introspection wants it.
    LeftAlone,
}

/// A guest's own address space, to be put between a VMM and the guest's physical memory by
/// [`IommuMemory`](vm_memory::IommuMemory).
///
/// Each access walks the guest's tables: nothing is kept, so nothing is ever stale. `M` is the physical memory, in which the
/// tables are; it is usually cheap to clone.
///
/// ```
/// use slat_memslot::Gva;
/// use slat_mmu::role::{Cr0, Cr4, Efer, VcpuState};
/// use slat_mmu::walk::{GuestCpu, GuestPaging, GuestVirtual, Marks, Privilege};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, IommuMemory};
///
/// // Four tables, and a page of 4 KiB at 0x5000 that the guest knows as 0x7000.
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x8000)])?;
/// for (at, entry) in [(0, 0x1007_u64), (0x1000, 0x2007), (0x2000, 0x3007), (0x3038, 0x5005)] {
///     memory.write_obj(entry, GuestAddress(at))?;
/// }
/// memory.write_slice(b"hello", GuestAddress(0x5010))?;
///
/// let vcpu = VcpuState {
///     cr0: Cr0::PG | Cr0::PE | Cr0::WP,
///     cr4: Cr4::PAE,
///     efer: Efer::LME | Efer::LMA,
///     ..VcpuState::default()
/// };
/// let paging = GuestPaging::new(&vcpu, &GuestCpu::new(46));
/// let space = GuestVirtual::new(paging, memory.clone(), Privilege::User, Marks::LeftAlone);
/// let guest = IommuMemory::new(memory, space, true, ());
/// let mut text = [0; 5];
/// guest.read_slice(&mut text, GuestAddress(0x7010))?;
/// assert_eq!(&text, b"hello");
/// // The page is read-only.
/// assert!(guest.write_slice(b"x", GuestAddress(0x7010)).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct GuestVirtual<M> {
    paging: GuestPaging,
    memory: M,
    privilege: Privilege,
    marks: Marks,
}

impl<M: GuestMemory> GuestVirtual<M> {
    /// An address space, as a vCPU's registers say, used with a privilege.
    pub const fn new(paging: GuestPaging, memory: M, privilege: Privilege, marks: Marks) -> Self {
        Self {
            paging,
            memory,
            privilege,
            marks,
        }
    }

    fn walk(&self, address: Gva, access: ErrorCode) -> Result<Translation, WalkFault> {
        let tables = VmMemory(&self.memory);
        match self.marks {
            Marks::Set => self.walk_in(&tables, address, access),
            Marks::LeftAlone => self.walk_in(&ReadOnly(&tables), address, access),
        }
    }

    fn walk_in(
        &self,
        tables: &impl TableMemory,
        address: Gva,
        access: ErrorCode,
    ) -> Result<Translation, WalkFault> {
        self.paging.translate(tables, address, access)
    }

    /// Maps the pages of a range.
    fn fill(&self, iova: GuestAddress, length: usize, access: Permissions) -> Result<Iotlb, Error> {
        let refused = |reason: String| Error::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason,
        };
        let end = iova.0.checked_add(length as u64);
        let end = end.ok_or_else(|| refused("the range wraps".into()))?;
        let kind = match access.has_write() {
            true => Kind::Write,
            false => Kind::Read,
        };
        let mut tlb = Iotlb::new();
        let mut page = iova.0 & !(PAGE_SIZE - 1);
        while page < end {
            let found = self.walk(Gva::new(page), ErrorCode::of(kind, self.privilege));
            let found = found.map_err(|fault| refused(fault.to_string()))?;
            let target = GuestAddress(found.address.raw());
            let bytes = usize::try_from(PAGE_SIZE).map_err(|why| refused(why.to_string()))?;
            tlb.set_mapping(GuestAddress(page), target, bytes, access)?;
            match page.checked_add(PAGE_SIZE) {
                Some(next) => page = next,
                None => break,
            }
        }
        Ok(tlb)
    }
}

impl<M: GuestMemory + core::fmt::Debug + Send + Sync> Iommu for GuestVirtual<M> {
    type IotlbGuard<'a>
        = Arc<Iotlb>
    where
        Self: 'a;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Arc<Iotlb>>, Error> {
        // The last page of all ends beyond what an `Iotlb` can say.
        if iova.0 >= u64::MAX - PAGE_SIZE {
            return Err(Error::CannotResolve {
                iova_range: IovaRange { base: iova, length },
                reason: "the last page of the address space".into(),
            });
        }
        let tlb = Arc::new(self.fill(iova, length, access)?);
        Iotlb::lookup(tlb, iova, length, access).map_err(|_| Error::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason: "the range is not mapped".into(),
        })
    }
}
