//! A VM belongs to the process that made it: the one refusal that takes two processes to see.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(
    unsafe_code,
    reason = "a descriptor is handed to another process by number"
)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use slat_memslot::{Call, Errno, Gate, Profile};
use slat_vmm::{CallError, Machine, MemoryVm, model};

/// Tells the second process which descriptor is the VM.
const DESCRIPTOR: &str = "SLAT_TEST_VM_DESCRIPTOR";
/// `KVM_CHECK_EXTENSION` and the capability `KVM_CAP_NR_MEMSLOTS`.
const CHECK_EXTENSION: (u64, u64) = (0xae03, 10);

#[test]
fn another_process_is_turned_away() {
    if let Ok(number) = std::env::var(DESCRIPTOR) {
        return as_the_second_process(number.parse().unwrap());
    }
    let kvm = match kvm_ioctls::Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return println!("skipped: /dev/kvm: {error}"),
    };
    let vm = kvm.create_vm().unwrap();
    // SAFETY: the descriptor is open; the call takes no pointer. The copy outlives `exec`, unlike the original.
    let copy = unsafe { OwnedFd::from_raw_fd(libc::dup(vm.as_raw_fd())) };
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "another_process_is_turned_away", "--nocapture"])
        .env(DESCRIPTOR, copy.as_raw_fd().to_string())
        .status()
        .unwrap();
    assert!(status.success());
}

fn as_the_second_process(descriptor: i32) {
    let (request, capability) = CHECK_EXTENSION;
    // SAFETY: the ioctl's argument is a number.
    let result = unsafe { libc::ioctl(descriptor, request, capability) };
    let error = std::io::Error::last_os_error();
    assert_eq!((result, error.raw_os_error()), (-1, Some(Errno::EIO.raw())));
}

#[test]
fn the_model_turns_another_process_away_too() {
    let mut vm = model::Machine::new(Profile::latest()).create_vm(0).unwrap();
    vm.memory_mut().set_gate(Gate::OtherProcess);
    match vm.call(&Call::CheckExtension { cap: 10 }) {
        Err(CallError::Refused {
            errno: Errno::EIO,
            reason: Some(reason),
        }) => {
            assert_eq!(reason.code(), "other-process");
        }
        other => panic!("{other:?}"),
    }
}
