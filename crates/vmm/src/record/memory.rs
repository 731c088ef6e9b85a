//! Reads the recorded program's registers and memory.

use std::io::IoSliceMut;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// Reads exactly `length` bytes at `address`; `None` if any of them cannot be read.
pub(super) fn read(pid: Pid, address: u64, length: usize) -> Option<Vec<u8>> {
    let base = usize::try_from(address).ok()?;
    let mut bytes = vec![0; length];
    let remote = [RemoteIoVec { base, len: length }];
    let got = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &remote).ok()?;
    (got == length).then_some(bytes)
}

/// The lower half of a register: how the kernel takes an `int` argument.
pub(super) const fn low_half(register: u64) -> u32 {
    let [a, b, c, d, ..] = register.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// A descriptor number in a register.
pub(super) const fn descriptor(register: u64) -> i32 {
    i32::from_ne_bytes(low_half(register).to_ne_bytes())
}

/// A signed number in a register.
pub(super) const fn signed(register: u64) -> i64 {
    i64::from_ne_bytes(register.to_ne_bytes())
}
