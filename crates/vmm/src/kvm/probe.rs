//! Asking a live kernel what it can do.
#![expect(
    unsafe_code,
    reason = "slots give the kernel host addresses, which are never used"
)]

use std::fs;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use slat_memslot::{
    Capabilities, Errno, FileRef, PAGE_SIZE, Region, SlotFlags, SlotKey, Vendor, VmType, cap,
};

use super::file;
use super::ioctl::errno;

/// The end of user space with 4-level paging, with 5-level paging, and with linear address masking.
const USER_ENDS: [u64; 3] = [
    (1 << 47) - PAGE_SIZE,
    (1 << 56) - PAGE_SIZE,
    (1 << 63) - PAGE_SIZE,
];

/// Asks a kernel for everything that a [`Profile`](slat_memslot::Profile) needs. A VM is made and dropped.
///
/// # Errors
/// The VM cannot be made.
pub fn probe(kvm: &Kvm) -> Result<Capabilities, Errno> {
    let vm = kvm.create_vm().map_err(errno)?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned();
    let vendor = vendor();
    // Older kernels bind guest_memfds to VMs with private memory only.
    let protected = kvm
        .create_vm_with_type(u64::from(VmType::SwProtected.raw()))
        .ok();
    let binder = protected.as_ref().unwrap_or(&vm);
    Ok(Capabilities {
        system: ask(|cap| kvm.check_extension_raw(u64::from(cap))),
        vm: ask(|cap| vm.check_extension_raw(u64::from(cap))),
        address_bits: address_bits(&vm),
        user_end: user_end(&vm),
        vendor,
        tdp_mmu: parameter("kvm", "tdp_mmu"),
        pml: vendor == Vendor::Intel && parameter("kvm_intel", "pml"),
        apic_access_page: match vendor {
            Vendor::Intel => {
                parameter("kvm_intel", "enable_apicv") || parameter("kvm_intel", "flexpriority")
            }
            Vendor::Amd => parameter("kvm_amd", "avic"),
            Vendor::Paravirtual => false,
        },
        gmem_on_default_vm: set_gmem(&vm, -1, 0) == Err(Errno::EBADF),
        gmem_bind_conflict: bind_conflict(binder),
        gmem_noexec: file::is_noexec(&vm),
        gmem_signed_offsets: signed_offsets(binder),
        release,
    })
}

fn ask(check: impl Fn(u32) -> i32) -> Vec<(u32, u32)> {
    cap::ALL
        .iter()
        .map(|(number, _)| (*number, u32::try_from(check(*number)).unwrap_or(0)))
        .collect()
}

/// The kind of virtualisation in use. Parameters alone do not tell: a module that is built in has them even on the
/// other vendor's processors, where it never started.
pub(crate) fn vendor() -> Vendor {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let in_use = |module: &str, flag: &str| {
        has_flag(&processors, flag)
            && fs::exists(format!("/sys/module/{module}/parameters")).unwrap_or(false)
    };
    if in_use("kvm_intel", "vmx") {
        Vendor::Intel
    } else if in_use("kvm_amd", "svm") {
        Vendor::Amd
    } else {
        Vendor::Paravirtual
    }
}

/// Whether the first processor of `/proc/cpuinfo` has a feature.
fn has_flag(processors: &str, flag: &str) -> bool {
    processors
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.trim_start().strip_prefix(':'))
        .is_some_and(|flags| flags.split_whitespace().any(|own| own == flag))
}

fn parameter(module: &str, name: &str) -> bool {
    let value = fs::read_to_string(format!("/sys/module/{module}/parameters/{name}"));
    value.is_ok_and(|v| matches!(v.trim(), "Y" | "1"))
}

/// Sets a page as slot 0 and takes it away again; gives whether that worked.
fn accepts(vm: &VmFd, gpa: u64, hva: u64) -> bool {
    let region = Region::new(SlotKey::normal(0), gpa, PAGE_SIZE, hva);
    let set = |region: &Region| {
        let raw = kvm_userspace_memory_region::from(region);
        // SAFETY: no vCPU exists, so nothing ever uses the host address.
        unsafe { vm.set_user_memory_region(raw) }
    };
    let accepted = set(&region).is_ok();
    if accepted {
        let _gone = set(&Region::delete(SlotKey::normal(0)));
    }
    accepted
}

/// How many bits the highest guest-physical address of a slot may have.
fn address_bits(vm: &VmFd) -> u8 {
    let highest = (32..=52u8)
        .rev()
        .find(|bits| accepts(vm, (1 << bits) - PAGE_SIZE, 0));
    highest.unwrap_or(36)
}

fn user_end(vm: &VmFd) -> u64 {
    let highest = USER_ENDS
        .into_iter()
        .rev()
        .find(|end| accepts(vm, 0, end - PAGE_SIZE));
    highest.unwrap_or((1 << 47) - PAGE_SIZE)
}

/// Binds a page of a guest_memfd as slot `slot`.
fn set_gmem(vm: &VmFd, descriptor: i32, slot: u16) -> Result<(), Errno> {
    bind(vm, descriptor, slot, 0, PAGE_SIZE)
}

fn bind(vm: &VmFd, descriptor: i32, slot: u16, offset: u64, size: u64) -> Result<(), Errno> {
    let region = Region {
        gmem: FileRef::NotOpen(descriptor),
        version: slat_memslot::RegionVersion::V2,
        gmem_offset: offset,
        ..Region::new(
            SlotKey::normal(slot),
            u64::from(slot) * 16 * PAGE_SIZE,
            size,
            0,
        )
    }
    .with_flags(SlotFlags::GUEST_MEMFD);
    // SAFETY: no vCPU exists, so nothing ever uses the host address.
    unsafe { vm.set_user_memory_region2(region.to_region2(|_| descriptor)) }.map_err(errno)
}

/// What binding one page twice gives, where guest_memfds can be had.
fn bind_conflict(vm: &VmFd) -> Option<Errno> {
    use std::os::fd::AsRawFd;
    let file = file::create(vm, PAGE_SIZE, 0, 0).ok()?;
    set_gmem(vm, file.as_raw_fd(), 0).ok()?;
    set_gmem(vm, file.as_raw_fd(), 1).err()
}

/// Whether a range across 2^63 can be bound to a one-page file, where guest_memfds can be had.
fn signed_offsets(vm: &VmFd) -> Option<bool> {
    use std::os::fd::AsRawFd;
    let file = file::create(vm, PAGE_SIZE, 0, 0).ok()?;
    set_gmem(vm, file.as_raw_fd(), 2).ok()?;
    let across = (1 << 63) - PAGE_SIZE;
    Some(bind(vm, file.as_raw_fd(), 3, across, 2 * PAGE_SIZE).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.12 shows AMD's processors: the line of `vmx flags` is not that of the flags.
    #[test]
    fn flags_of_processors() {
        let amd = "processor\t: 0\nflags\t\t: fpu svm npt\nvmx flags\t: ept\nbugs\t\t: vmx";
        assert!(has_flag(amd, "svm"));
        assert!(!has_flag(amd, "vmx"));
        assert!(!has_flag(amd, "sv"));
        assert!(!has_flag("", "svm"));
    }
}
