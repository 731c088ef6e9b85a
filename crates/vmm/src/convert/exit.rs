//! From what `KVM_RUN` came back with to a request.

use kvm_ioctls::VcpuExit;
use slat_coco::convert::{DecodeError, MapGpaRangeExit, MemoryFaultExit, Request};
use slat_memslot::Gpa;

/// What an exit asks for; `None` if it is neither `KVM_EXIT_HYPERCALL` nor `KVM_EXIT_MEMORY_FAULT`.
///
/// `kvm-ioctls` gives `VcpuExit::MemoryFault` only when `KVM_RUN` failed with `EFAULT` or `EHWPOISON`, as it has to be.
///
/// ```
/// use kvm_ioctls::VcpuExit;
/// use slat_coco::migration::Status;
/// let exit = VcpuExit::MemoryFault { flags: 8, gpa: 0x1000, size: 0x1000 };
/// let request = slat_vmm::convert::decode(&exit).unwrap().unwrap();
/// assert_eq!((request.to, request.range.start().raw()), (Status::Private, 1));
/// assert!(slat_vmm::convert::decode(&VcpuExit::Hlt).is_none());
/// ```
pub fn decode(exit: &VcpuExit<'_>) -> Option<Result<Request, DecodeError>> {
    Some(match exit {
        VcpuExit::Hypercall(exit) => {
            let [gpa, pages, attributes, ..] = exit.args;
            Request::from_hypercall(&MapGpaRangeExit {
                nr: exit.nr,
                args: [gpa, pages, attributes],
            })
        }
        VcpuExit::MemoryFault { flags, gpa, size } => {
            Request::from_memory_fault(&MemoryFaultExit {
                flags: *flags,
                gpa: Gpa::new(*gpa),
                size: *size,
            })
        }
        _ => return None,
    })
}
