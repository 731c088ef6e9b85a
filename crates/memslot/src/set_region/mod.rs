//! Setting a memory region: check, plan, commit.
//!
//! [`Memory::check_region`] tests a request in the kernel's order and gives a [`Change`], the plan, or a
//! [`Refusal`]. Neither touches the VM. [`Memory::commit_region`] carries a plan out and reports its [`Effects`].
//! A refusal can have effects as well: KVM zaps a slot that is to move before it finds out that it cannot move.
//!
//! Follows `virt/kvm/kvm_main.c`: `kvm_vm_ioctl`, `kvm_vm_ioctl_set_memory_region`, `kvm_set_memory_region`,
//! `kvm_set_memslot`, and `arch/x86/kvm/x86.c:kvm_arch_prepare_memory_region`.

mod change;
mod check;
mod commit;

pub use change::{Change, ChangeKind, Effects, LogSwitch, Requests, Zap, ZapReach, ZapRule};
pub(crate) use check::{MAX_PAGES, high_half, low_half};
pub use commit::StalePlan;

#[cfg(test)]
mod tests;
