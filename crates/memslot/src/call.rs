//! The calls of KVM's memory interface, as plain data: what is asked, and what came back.
//!
//! Everything above this crate speaks in these: the model answers a [`Call`], a real kernel executes it, a scenario
//! file writes it down, and a repair is a list of them. Arguments are raw where the kernel takes raw values, since
//! a wrong value is exactly what one wants to ask about.

use crate::{DirtyPages, GmemId, Hva, SlotFlags, SlotKey};

mod contents;
mod sev;
mod tdx;

pub use contents::{ContentsCall, GuestContents};
pub use sev::{SevCall, SevCommand, SevHost, SevQuestion, SevSide};

pub use tdx::{
    MapGpaAnswer, TdOp, TdSide, TdxCall, TdxCommand, TdxConversion, TdxCount, TdxEntry, TdxFinding,
    TdxHost, TdxOutcome, TdxQuestion, TdxSlotZap, WaitingEvent,
};

/// Which of the two structs a set-region call passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RegionVersion {
    /// `KVM_SET_USER_MEMORY_REGION`, 32 bytes.
    #[default]
    V1,
    /// `KVM_SET_USER_MEMORY_REGION2`, 160 bytes, since Linux 6.8.
    V2,
}

/// A file that is open, but no guest_memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum OtherFile {
    /// `/dev/null`.
    #[default]
    Null,
    /// A plain memfd.
    Memfd,
    /// The VM's own file.
    Vm,
    /// `/dev/kvm`.
    Kvm,
}

/// What the `guest_memfd` number of a set-region call names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum FileRef {
    /// No open file has this number.
    NotOpen(i32),
    /// An open file of another kind.
    Other(OtherFile),
    /// A guest_memfd of another VM.
    Foreign,
    /// A guest_memfd of this VM.
    Gmem(GmemId),
}

impl Default for FileRef {
    fn default() -> Self {
        Self::NotOpen(0)
    }
}

/// The arguments of `KVM_SET_USER_MEMORY_REGION` or `KVM_SET_USER_MEMORY_REGION2`, unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Region {
    /// Which struct is passed.
    pub version: RegionVersion,
    /// Address space (upper 16 bits) and slot id (lower 16).
    pub slot: u32,
    /// `KVM_MEM_*` bits; see [`SlotFlags`].
    pub flags: u32,
    /// `guest_phys_addr`, in bytes.
    pub gpa: u64,
    /// `memory_size`, in bytes; 0 deletes the slot.
    pub size: u64,
    /// `userspace_addr`.
    pub hva: u64,
    /// `guest_memfd`, looked at only with `KVM_MEM_GUEST_MEMFD`.
    pub gmem: FileRef,
    /// `guest_memfd_offset`, in bytes, looked at only with `KVM_MEM_GUEST_MEMFD`.
    pub gmem_offset: u64,
    /// What `pad1` and `pad2` hold; the kernel never looks.
    pub padding: u32,
}

impl Region {
    /// A plain slot, without flags, through the older struct.
    pub const fn new(slot: SlotKey, gpa: u64, size: u64, hva: u64) -> Self {
        Self {
            version: RegionVersion::V1,
            slot: slot.raw(),
            flags: 0,
            gpa,
            size,
            hva,
            gmem: FileRef::NotOpen(0),
            gmem_offset: 0,
            padding: 0,
        }
    }

    /// The call that deletes `slot`.
    pub const fn delete(slot: SlotKey) -> Self {
        Self::new(slot, 0, 0, 0)
    }

    /// The same with other flags.
    #[must_use]
    pub const fn with_flags(mut self, flags: SlotFlags) -> Self {
        self.flags = flags.bits();
        self
    }

    /// The same bound to a guest_memfd: the newer struct, with `KVM_MEM_GUEST_MEMFD` set.
    #[must_use]
    pub const fn with_gmem(mut self, file: GmemId, offset: u64) -> Self {
        self.version = RegionVersion::V2;
        self.flags |= SlotFlags::GUEST_MEMFD.bits();
        self.gmem = FileRef::Gmem(file);
        self.gmem_offset = offset;
        self
    }

    /// Whether the request carries `flag`.
    #[inline]
    pub const fn has(&self, flag: SlotFlags) -> bool {
        self.flags & flag.bits() != 0
    }
}

/// A call on a guest_memfd file itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum FileCall {
    /// Closes the last descriptor.
    Close,
    /// `read` of one page.
    Read,
    /// `write` of one page.
    Write,
    /// `pread` of one page at 0.
    Pread,
    /// `pwrite` of one page at 0.
    Pwrite,
    /// `lseek` to 0.
    Lseek,
    /// `fchmod` to 0600.
    Chmod,
    /// `ftruncate`.
    Truncate {
        /// The new length in bytes.
        len: u64,
    },
    /// `fstat`, giving `st_size`.
    Size,
    /// `fstat`, giving `st_blocks`.
    Blocks,
    /// `fallocate`.
    Fallocate {
        /// `FALLOC_FL_*` bits.
        mode: u32,
        /// Start in bytes, signed in the system call.
        offset: u64,
        /// Length in bytes, signed in the system call.
        len: u64,
    },
    /// `mmap` of the file, at an address that the kernel chooses.
    Mmap {
        /// Length in bytes.
        len: u64,
        /// `PROT_*` bits.
        prot: u32,
        /// `MAP_*` bits.
        flags: u32,
        /// Offset into the file in bytes.
        offset: u64,
    },
}

/// A mapping of a guest_memfd, numbered in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct MapId(u32);

impl MapId {
    /// The mapping made as the `index`-th of its VM, from 0.
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The number in the order of creation, from 0.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A call on a mapping of a guest_memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum MapCall {
    /// Writes one byte; gives the number of the signal that this raises, or 0.
    Touch {
        /// Offset into the mapping in bytes.
        offset: u64,
    },
    /// `madvise` over the whole mapping.
    Madvise {
        /// `MADV_*` value.
        advice: u32,
    },
    /// `mprotect` over the whole mapping.
    Mprotect {
        /// `PROT_*` bits.
        prot: u32,
    },
    /// `munmap` of the whole mapping.
    Unmap,
}

/// Where a call's result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Buffer {
    /// Memory of the right size.
    #[default]
    Good,
    /// A null pointer.
    Null,
}

/// The bitmap that `KVM_CLEAR_DIRTY_LOG` passes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ClearBits {
    /// Every bit set.
    All,
    /// These 64-bit words, the first one for `first_page`; missing words count as 0.
    Words(Vec<u64>),
    /// A null pointer.
    Null,
}

/// One call of KVM's memory interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Call {
    /// `KVM_SET_USER_MEMORY_REGION` or `KVM_SET_USER_MEMORY_REGION2`.
    SetRegion(Region),
    /// `KVM_CREATE_GUEST_MEMFD`.
    CreateGmem {
        /// File size in bytes.
        size: u64,
        /// `GUEST_MEMFD_FLAG_*` bits.
        flags: u64,
        /// What the reserved words hold; the kernel never looks.
        reserved: u64,
    },
    /// A system call on a guest_memfd.
    File(GmemId, FileCall),
    /// A system call on a mapping of a guest_memfd.
    Map(MapId, MapCall),
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    SetAttributes {
        /// First byte.
        address: u64,
        /// Length in bytes.
        size: u64,
        /// `KVM_MEMORY_ATTRIBUTE_*` bits.
        attributes: u64,
        /// Must be 0.
        flags: u64,
    },
    /// `KVM_GET_DIRTY_LOG`.
    GetDirtyLog {
        /// Address space and slot id.
        slot: u32,
        /// Where the bitmap goes.
        buffer: Buffer,
    },
    /// `KVM_CLEAR_DIRTY_LOG`.
    ClearDirtyLog {
        /// Address space and slot id.
        slot: u32,
        /// First page of the range, relative to the slot.
        first_page: u64,
        /// Pages in the range.
        num_pages: u32,
        /// The bits to clear.
        bits: ClearBits,
    },
    /// `KVM_RESET_DIRTY_RINGS`.
    ResetDirtyRings,
    /// Takes every published entry out of a vCPU's dirty ring, marking it harvested.
    HarvestDirtyRing {
        /// Index of the vCPU.
        vcpu: u32,
    },
    /// `KVM_ENABLE_CAP` on the VM.
    EnableCap {
        /// Capability number.
        cap: u32,
        /// Must be 0 for most capabilities.
        flags: u32,
        /// The arguments.
        args: [u64; 4],
    },
    /// `KVM_CHECK_EXTENSION` on the VM.
    CheckExtension {
        /// Capability number.
        cap: u32,
    },
    /// `KVM_CREATE_VCPU` with the next free id.
    CreateVcpu,
    /// `KVM_PRE_FAULT_MEMORY`.
    PreFault {
        /// Index of the vCPU.
        vcpu: u32,
        /// First byte.
        gpa: u64,
        /// Length in bytes.
        size: u64,
        /// Must be 0.
        flags: u64,
    },
    /// `KVM_SET_NR_MMU_PAGES`.
    SetNrMmuPages {
        /// The limit of shadow pages.
        pages: u64,
    },
    /// `KVM_SET_TSS_ADDR`.
    SetTssAddr {
        /// Guest-physical address of the three pages.
        gpa: u64,
    },
    /// `KVM_SET_IDENTITY_MAP_ADDR`.
    SetIdentityMapAddr {
        /// Guest-physical address of the page.
        gpa: u64,
    },
    /// `KVM_CREATE_IRQCHIP`.
    CreateIrqchip,
    /// A vCPU runs until one access of its guest is done, or cannot be.
    Guest(GuestAccess),
    /// Something that only a VM of type TDX knows.
    Tdx(TdxCall),
    /// Something that is done with what memory holds.
    Contents(ContentsCall),
    /// Something that only a VM of type SEV or SEV-ES knows.
    Sev(SevCall),
}

/// What a guest's instruction does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum AccessKind {
    /// It reads four bytes.
    Read,
    /// It writes four bytes.
    #[default]
    Write,
    /// It is fetched from there itself, and halts.
    Execute,
}

/// One access of a guest, at CPL 0 and without paging: its addresses are guest-physical.
///
/// ```
/// use slat_memslot::{Access, Call, GuestAccess, Memory, Outcome, Profile, Region, SlotKey, VmType};
/// let mut memory = Memory::new(Profile::latest(), VmType::Default);
/// memory.create_vcpu().unwrap();
/// memory.set_region(&Region::new(SlotKey::normal(0), 0, 0x10000, 0x7f00_0000_0000)).unwrap();
/// let read = GuestAccess::read(0x20_0000).by_code_at(0x1000);
/// assert_eq!(memory.call(&Call::Guest(read)), Ok(Outcome::Access(Access::Mmio)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GuestAccess {
    /// Index of the vCPU.
    pub vcpu: u32,
    /// The address space: the vCPU is put into SMM for 1, and out of it for 0. KVM takes no other.
    pub as_id: crate::AsId,
    /// What is done.
    pub kind: AccessKind,
    /// Where, in bytes.
    pub gpa: u64,
    /// Where the instruction lies that reads or writes; `None` if in the same page.
    pub code: Option<u64>,
}

impl GuestAccess {
    /// vCPU 0 reads, by an instruction in the same page.
    pub fn read(gpa: u64) -> Self {
        Self {
            kind: AccessKind::Read,
            gpa,
            ..Self::default()
        }
    }

    /// vCPU 0 writes, by an instruction in the same page.
    pub fn write(gpa: u64) -> Self {
        Self {
            kind: AccessKind::Write,
            ..Self::read(gpa)
        }
    }

    /// vCPU 0 halts there.
    pub fn execute(gpa: u64) -> Self {
        Self {
            kind: AccessKind::Execute,
            ..Self::read(gpa)
        }
    }

    /// The same by an instruction that lies at `code`.
    #[must_use]
    pub fn by_code_at(self, code: u64) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    /// The same by another vCPU.
    #[must_use]
    pub fn by_vcpu(self, vcpu: u32) -> Self {
        Self { vcpu, ..self }
    }

    /// The same in SMM.
    #[must_use]
    pub fn in_smm(self) -> Self {
        Self {
            as_id: crate::AsId::SMM,
            ..self
        }
    }

    /// Where the instruction is fetched: in the other half of the page, if nothing is said.
    pub fn instruction(&self) -> u64 {
        const HALF: u64 = crate::PAGE_SIZE / 2;
        match (self.kind, self.code) {
            (AccessKind::Execute, _) => self.gpa,
            (_, Some(code)) => code,
            (_, None) if self.gpa & HALF == 0 => (self.gpa & !(crate::PAGE_SIZE - 1)) + HALF,
            (_, None) => self.gpa & !(crate::PAGE_SIZE - 1),
        }
    }
}

/// What a guest's access came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Access {
    /// Memory was read or written.
    Done,
    /// `KVM_EXIT_MMIO`.
    Mmio,
    /// No memory to fetch the instruction from: `KVM_EXIT_INTERNAL_ERROR`.
    NoMemory,
    /// `KVM_EXIT_DIRTY_RING_FULL`: the guest does not run on.
    RingFull,
    /// `KVM_EXIT_MEMORY_FAULT`, with `EFAULT`: userspace is asked to convert the page, or has no file for it.
    MemoryFault {
        /// `KVM_MEMORY_EXIT_FLAG_*`: [`crate::Attributes::PRIVATE`]'s bit if the access was to private memory.
        flags: u64,
        /// The page.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
    },
}

/// What a call that succeeded gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Outcome {
    /// 0, and nothing else.
    Done,
    /// A number: a capability's value, a count, a size, a signal.
    Value(u64),
    /// The new guest_memfd.
    Gmem(GmemId),
    /// The new mapping and where it lies; the address differs from run to run.
    Mapped(MapId, Hva),
    /// The bits of a dirty log.
    Dirty(DirtyPages),
    /// The entries taken from a dirty ring: `slot` as in the ioctls, and the page's offset in it.
    Ring(Vec<(u32, u64)>),
    /// What `KVM_PRE_FAULT_MEMORY` left to do.
    Remaining {
        /// First byte not done.
        gpa: u64,
        /// Bytes not done.
        size: u64,
    },
    /// A guest access.
    Access(Access),
    /// Something that only a TD gives.
    Tdx(TdxOutcome),
    /// What is read by another key than it was written with, or by none.
    Noise,
    /// `KVM_EXIT_HYPERCALL` with `KVM_HC_MAP_GPA_RANGE`: a guest that is no TD asks for a conversion.
    MapGpaRange {
        /// `args[0]`: the first address.
        gpa: u64,
        /// `args[1]`: how many pages of 4 KiB.
        pages: u64,
        /// `args[2]`: attributes, as the guest gave them.
        attributes: u64,
    },
}

impl Outcome {
    /// Whether two machines gave the same answer; addresses of mappings are each machine's own.
    pub fn agrees_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Mapped(a, _), Self::Mapped(b, _)) => a == b,
            (a, b) => a == b,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_agree_wherever_they_lie() {
        let at = |map, hva| Outcome::Mapped(MapId::new(map), Hva::new(hva));
        assert!(at(1, 0x1000).agrees_with(&at(1, 0x2000)));
        assert!(!at(1, 0x1000).agrees_with(&at(2, 0x1000)));
        assert!(!at(1, 0x1000).agrees_with(&Outcome::Done));
        assert!(Outcome::Value(3).agrees_with(&Outcome::Value(3)));
        assert!(!Outcome::Value(3).agrees_with(&Outcome::Value(4)));
    }

    #[test]
    fn an_access_says_who_does_what_and_by_which_code() {
        let access = GuestAccess::write(0x1234).by_vcpu(3).in_smm();
        let expected = GuestAccess {
            vcpu: 3,
            as_id: crate::AsId::SMM,
            kind: AccessKind::Write,
            gpa: 0x1234,
            code: None,
        };
        assert_eq!(access, expected);
        assert_eq!(access.by_code_at(0x9000).code, Some(0x9000));
        assert_eq!(GuestAccess::read(1).kind, AccessKind::Read);
        assert_eq!(GuestAccess::execute(1).kind, AccessKind::Execute);
    }

    /// An instruction that writes over itself would be another one.
    #[test]
    fn an_instruction_lies_in_the_other_half_of_the_page() {
        for gpa in [0x5000, 0x57ff, 0x5800, 0x5fff] {
            let at = GuestAccess::read(gpa).instruction();
            assert_eq!(at / 0x1000, 5, "{gpa:#x}");
            assert_ne!(at & 0x800, gpa & 0x800, "{gpa:#x}");
            assert_eq!(at % 0x800, 0, "{gpa:#x}");
            assert_eq!(GuestAccess::execute(gpa).instruction(), gpa);
            let far = GuestAccess::write(gpa).by_code_at(0x9000);
            assert_eq!(far.instruction(), 0x9000);
        }
    }
}
