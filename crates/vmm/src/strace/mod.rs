//! What a VMM asked KVM for, from the output of `strace`.
//!
//! ```text
//! strace -f -e trace=ioctl,openat,close,dup,dup2,dup3,fcntl,clone,clone3,fork,vfork -o trace.txt qemu-system-x86_64 ...
//! ```
//!
//! [`Events`] walks over the lines: it removes process ids, times and descriptors' decorations (`-f`, `-r`, `-t`, `-tt`,
//! `-ttt`, `-T`, `-y`, `-yy`), joins calls that were interrupted (`<unfinished ...>`), and follows which descriptor is which VM.
//! strace 6.1 shows the arguments of `KVM_SET_USER_MEMORY_REGION` and of the ioctls that take a number. Of all
//! others it shows an address, and they come out as [`EventKind::Undecoded`], to be counted apart.
//!
//! ```
//! use slat_vmm::strace::{EventKind, Events, Returned};
//!
//! let trace = "\
//! openat(AT_FDCWD, \"/dev/kvm\", O_RDWR|O_CLOEXEC) = 3
//! ioctl(3, KVM_CREATE_VM, 0)              = 4
//! ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=KVM_MEM_READONLY, guest_phys_addr=0x1000, \
//! memory_size=65536, userspace_addr=0x7f0000000000}) = -1 EINVAL (Invalid argument)
//! ";
//! let events = Events::new(trace).collect::<Result<Vec<_>, _>>()?;
//! let last = events.last().expect("two events");
//! assert!(matches!(last.call(), Some(slat_memslot::Call::SetRegion(region)) if region.size == 65536));
//! assert_eq!(last.vm, Some(0));
//! assert_eq!(last.returned, Returned::Failed(slat_memslot::Errno::EINVAL));
//! # Ok::<(), slat_vmm::strace::ParseError>(())
//! ```
#![warn(clippy::indexing_slicing)]

mod fds;
mod ioctl;
mod line;
mod parse;
#[cfg(test)]
mod tests;

pub use crate::parse_error::ParseError;
pub use ioctl::{IoctlRequest, MemoryIoctl};
pub use parse::Events;

use slat_memslot::{Call, Errno};

/// One system call that KVM or one of its descriptors took part in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The line on which the call began, from 1.
    pub line: u32,
    /// The thread, where strace says it.
    pub pid: Option<u32>,
    /// The descriptor that the call was made on.
    pub fd: i32,
    /// The VM of that descriptor, numbered from 0 in the order in which the trace shows them; `None` for `/dev/kvm` itself.
    pub vm: Option<u32>,
    /// What was asked.
    pub kind: EventKind,
    /// What came back.
    pub returned: Returned,
}

impl Event {
    /// The call, when its arguments are visible and it is one on a VM.
    pub fn call(&self) -> Option<&Call> {
        match (&self.kind, self.vm) {
            (EventKind::Call(call), Some(_)) => Some(call),
            _ => None,
        }
    }

    /// Which ioctl of the memory interface this is, whether or not its arguments are visible.
    pub fn memory(&self) -> Option<MemoryIoctl> {
        match &self.kind {
            EventKind::CreateVm { .. } => Some(MemoryIoctl::CreateVm),
            EventKind::Call(call) => MemoryIoctl::of(call),
            EventKind::Undecoded { memory, .. } => *memory,
            EventKind::Dup { .. } | EventKind::Close => None,
        }
    }
}

/// What a system call asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// `KVM_CREATE_VM`; the VM is that of the new descriptor.
    CreateVm {
        /// `KVM_X86_*_VM`.
        vm_type: u64,
    },
    /// An ioctl with visible arguments: `KVM_SET_USER_MEMORY_REGION` and those that take a number. Of these `/dev/kvm`
    /// itself takes only `KVM_CHECK_EXTENSION`.
    Call(Call),
    /// An ioctl whose arguments strace does not show.
    Undecoded {
        /// As strace prints it.
        request: IoctlRequest,
        /// Which ioctl of the memory interface it is, if it is one.
        memory: Option<MemoryIoctl>,
    },
    /// `dup`, `dup2`, `dup3` or `fcntl` gave a descriptor of KVM a second number.
    Dup {
        /// The new descriptor.
        to: i32,
    },
    /// `close` of a descriptor of KVM, or its number's reuse by `dup2` or `dup3`.
    Close,
}

/// What a system call returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returned {
    /// A value.
    Value(i64),
    /// An error.
    Failed(Errno),
    /// The trace does not say: `= ?`, or the call never ended.
    Unknown,
}

impl Returned {
    /// The result, where the trace says it.
    pub fn result(self) -> Option<Result<i64, Errno>> {
        match self {
            Self::Value(value) => Some(Ok(value)),
            Self::Failed(errno) => Some(Err(errno)),
            Self::Unknown => None,
        }
    }

    /// The descriptor that a successful call gave.
    pub(super) fn descriptor(self) -> Option<i32> {
        match self {
            Self::Value(value) => i32::try_from(value).ok().filter(|fd| *fd >= 0),
            _ => None,
        }
    }
}
