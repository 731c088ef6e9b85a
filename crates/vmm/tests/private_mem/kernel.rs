//! What only a kernel has: descriptors that outlive others, and guests that run meanwhile.
#![expect(unsafe_code, reason = "slots give the kernel host addresses")]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

use kvm_bindings::{
    KVM_MEM_GUEST_MEMFD, kvm_create_guest_memfd, kvm_memory_attributes, kvm_regs, kvm_segment,
    kvm_userspace_memory_region2,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use slat_coco::migration::Status;
use slat_memslot::VmType;
use slat_vmm::{Machine, convert, kvm};

use super::setting::{DATA, PAGE, PER_VCPU};

/// The kernel, if it has what is needed.
pub(crate) fn machine() -> Result<kvm::Machine, String> {
    let machine = kvm::Machine::open().map_err(|error| error.to_string())?;
    match machine.profile().supports(VmType::SwProtected) {
        true => Ok(machine.with_mapped_guests()),
        false => Err("it has no software-protected VMs".to_owned()),
    }
}

fn vm() -> Option<VmFd> {
    if let Err(why) = machine() {
        println!("skipped on the kernel: {why}");
        return None;
    }
    Some(Kvm::new().unwrap().create_vm_with_type(1).unwrap())
}

fn file(vm: &VmFd, size: u64) -> File {
    let request = kvm_create_guest_memfd {
        size,
        ..Default::default()
    };
    let fd = vm.create_guest_memfd(request).unwrap();
    // SAFETY: the descriptor is new, and nobody else owns it.
    unsafe { File::from_raw_fd(fd) }
}

/// Property 11: after the VM is gone, its file can be punched and filled.
pub(crate) fn file_of_a_closed_vm() {
    let Some(vm) = vm() else { return };
    let file = file(&vm, PER_VCPU);
    drop(vm);
    let len = i64::try_from(PER_VCPU).unwrap();
    for mode in [
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        libc::FALLOC_FL_KEEP_SIZE,
    ] {
        // SAFETY: a system call on an open file, without pointers.
        let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, len) };
        assert_eq!(done, 0);
    }
}

/// Memory of this process for two slots.
struct Pages(Vec<u8>);

impl Pages {
    fn new() -> Self {
        Self(vec![0; 3 << 12])
    }

    fn address(&self, page: usize) -> u64 {
        (self.0.as_ptr() as u64).next_multiple_of(PAGE) + (page as u64) * PAGE
    }
}

/// `again: mov al, [ebx]; jmp again`
const LOOP: &[u8] = &[0x8a, 0x03, 0xeb, 0xfc];

fn run_flat(vcpu: &VcpuFd) {
    let mut sregs = vcpu.get_sregs().unwrap();
    let data = kvm_segment {
        limit: u32::MAX,
        type_: 3,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        selector: 16,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        type_: 11,
        selector: 8,
        ..data
    };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs).unwrap();
    let regs = kvm_regs {
        rip: PAGE,
        rbx: DATA,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).unwrap();
}

/// Property 12 as the selftest has it: a guest reads a private page for ever, and its slot is deleted.
pub(crate) fn slot_deleted_under_a_running_guest() {
    let Some(vm) = vm() else { return };
    let mut memory = Pages::new();
    let code = usize::try_from(memory.address(0) - memory.0.as_ptr() as u64).unwrap();
    memory.0[code..code + LOOP.len()].copy_from_slice(LOOP);
    let file = file(&vm, PAGE);
    let slot = |slot, gpa, page, flags| kvm_userspace_memory_region2 {
        slot,
        flags,
        guest_phys_addr: gpa,
        memory_size: PAGE,
        userspace_addr: memory.address(page),
        guest_memfd: u32::try_from(file.as_raw_fd()).unwrap(),
        ..Default::default()
    };
    let data = slot(10, DATA, 1, KVM_MEM_GUEST_MEMFD);
    for slot in [slot(0, PAGE, 0, 0), data] {
        // SAFETY: the memory lives until the end of this function, behind the VM.
        unsafe { vm.set_user_memory_region2(slot) }.unwrap();
    }
    let attributes = kvm_memory_attributes {
        address: DATA,
        size: PAGE,
        attributes: 8,
        flags: 0,
    };
    vm.set_memory_attributes(attributes).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    run_flat(&vcpu);
    let guest = std::thread::spawn(move || {
        let exit = vcpu.run().unwrap();
        let request = convert::decode(&exit);
        let fields = match exit {
            VcpuExit::MemoryFault { flags, gpa, size } => (flags, gpa, size),
            other => panic!("{other:?}"),
        };
        (fields, request)
    });
    std::thread::sleep(Duration::from_millis(50));
    assert!(!guest.is_finished());
    let gone = kvm_userspace_memory_region2 {
        memory_size: 0,
        ..data
    };
    // SAFETY: the slot goes; the kernel keeps no address of it.
    unsafe { vm.set_user_memory_region2(gone) }.unwrap();
    let (fields, request) = guest.join().unwrap();
    assert_eq!(fields, (8, DATA, PAGE));
    assert_eq!(request.unwrap().unwrap().to, Status::Private);
    drop(vm);
    drop(memory);
}
