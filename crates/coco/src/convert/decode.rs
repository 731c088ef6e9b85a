//! From the fields of an exit to a request.

use slat_memslot::{Gfn, GfnRange, Gpa, PAGE_SIZE, PageSize, Pages};
use thiserror::Error;

use crate::migration::Status;
use crate::psc::MapGpaRange;

/// `kvm_run.hypercall`, as far as a conversion needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapGpaRangeExit {
    /// The hypercall's number.
    pub nr: u64,
    /// Address, count of 4 KiB pages, attributes.
    pub args: [u64; 3],
}

/// `kvm_run.memory_fault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryFaultExit {
    /// `KVM_MEMORY_EXIT_FLAG_*`.
    pub flags: u64,
    /// The first address.
    pub gpa: Gpa,
    /// Bytes.
    pub size: u64,
}

/// Which exit asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The guest asked: an explicit conversion.
    Hypercall,
    /// The guest accessed the memory: an implicit conversion. There is nobody to tell of a failure, and the guest does the same
    /// access again.
    MemoryFault,
}

/// What a guest wants of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// The frames.
    pub range: GfnRange,
    /// What they shall be.
    pub to: Status,
    /// The size of page that the guest would like. The range need not be aligned to it.
    pub hint: PageSize,
    /// Which exit asked.
    pub cause: Cause,
}

/// An exit that asks for nothing that could be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum DecodeError {
    /// Another hypercall.
    #[error("hypercall {0} is not KVM_HC_MAP_GPA_RANGE (12)")]
    OtherHypercall(u64),
    /// The address is not that of a page.
    #[error("address {:#x} is not aligned to 4 KiB", .0.raw())]
    Unaligned(Gpa),
    /// No page is named.
    #[error("the range at {:#x} is empty", .0.raw())]
    Empty(Gpa),
    /// The range goes beyond the last address.
    #[error("{pages} pages at {:#x} go beyond the last address", gpa.raw())]
    Wraps {
        /// Where it begins.
        gpa: Gpa,
        /// How long it is.
        pages: u64,
    },
    /// The size is none of 0 (4 KiB), 1 (2 MiB), 2 (1 GiB).
    #[error("page size {0} in the attributes: 0, 1 and 2 are defined")]
    UnknownSize(u64),
    /// Bits that have no meaning.
    #[error("attributes {0:#x} have bits that mean nothing")]
    UnknownAttributes(u64),
    /// Flags that have no meaning.
    #[error("flags {0:#x} of a memory fault: only 0x8 (private) is defined")]
    UnknownFlags(u64),
    /// The size is not that of whole pages.
    #[error("{0:#x} bytes are not whole pages")]
    PartOfAPage(u64),
}

impl MapGpaRangeExit {
    /// Where the size is.
    pub const SIZE: u64 = 0xf;
}

impl MemoryFaultExit {
    /// `KVM_MEMORY_EXIT_FLAG_PRIVATE`. The number 8 is the flag, not the exit.
    pub const PRIVATE: u64 = 1 << 3;
}

impl Request {
    /// What a `KVM_EXIT_HYPERCALL` asks. KVM has checked alignment and length of a plain hypercall
    /// (`x86.c:__kvm_emulate_hypercall`), but passes the attributes on as the guest gave them.
    ///
    /// # Errors
    /// It asks for nothing that could be done; the guest should hear `EINVAL`.
    pub fn from_hypercall(exit: &MapGpaRangeExit) -> Result<Self, DecodeError> {
        if exit.nr != MapGpaRange::NR {
            return Err(DecodeError::OtherHypercall(exit.nr));
        }
        let [gpa, pages, attributes] = exit.args;
        let known = MapGpaRangeExit::SIZE | MapGpaRange::ENCRYPTED;
        if attributes & !known != 0 {
            return Err(DecodeError::UnknownAttributes(attributes));
        }
        let hint = match attributes & MapGpaRangeExit::SIZE {
            0 => PageSize::Size4K,
            1 => PageSize::Size2M,
            2 => PageSize::Size1G,
            size => return Err(DecodeError::UnknownSize(size)),
        };
        let to = match attributes & MapGpaRange::ENCRYPTED {
            0 => Status::Shared,
            _ => Status::Private,
        };
        Ok(Self {
            range: frames(Gpa::new(gpa), pages)?,
            to,
            hint,
            cause: Cause::Hypercall,
        })
    }

    /// What a `KVM_EXIT_MEMORY_FAULT` asks: that memory be what it was accessed as (`kvm_mmu_prepare_memory_fault_exit`). The exit is
    /// valid only when `KVM_RUN` fails with `EFAULT` or `EHWPOISON`.
    ///
    /// # Errors
    /// The fields are none that KVM fills in.
    pub fn from_memory_fault(exit: &MemoryFaultExit) -> Result<Self, DecodeError> {
        if exit.flags & !MemoryFaultExit::PRIVATE != 0 {
            return Err(DecodeError::UnknownFlags(exit.flags));
        }
        let to = match exit.flags {
            0 => Status::Shared,
            _ => Status::Private,
        };
        if exit.size % PAGE_SIZE != 0 {
            return Err(DecodeError::PartOfAPage(exit.size));
        }
        Ok(Self {
            range: frames(exit.gpa, exit.size / PAGE_SIZE)?,
            to,
            hint: PageSize::Size4K,
            cause: Cause::MemoryFault,
        })
    }
}

/// The frames of so many pages; none beyond the last address.
fn frames(gpa: Gpa, pages: u64) -> Result<GfnRange, DecodeError> {
    if gpa.raw() % PAGE_SIZE != 0 {
        return Err(DecodeError::Unaligned(gpa));
    }
    if pages == 0 {
        return Err(DecodeError::Empty(gpa));
    }
    let first = gpa.raw() / PAGE_SIZE;
    let last = first.checked_add(pages - 1);
    let fits = last.is_some_and(|last| last <= u64::MAX / PAGE_SIZE);
    let range = GfnRange::new(Gfn::new(first), Pages::new(pages));
    range
        .filter(|_| fits)
        .ok_or(DecodeError::Wraps { gpa, pages })
}
