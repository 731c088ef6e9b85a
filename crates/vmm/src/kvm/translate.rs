//! `KVM_TRANSLATE`: a vCPU that never runs, over memory full of tables.
#![expect(
    unsafe_code,
    reason = "slots give the kernel host memory, which is read and written through pointers"
)]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{
    CpuId, KVM_MEM_READONLY, kvm_cpuid_entry2, kvm_regs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use slat_memslot::{Errno, Gpa, Gva, PAGE_SIZE};
use slat_mmu::role::Efer;
use slat_mmu::walk::{AlignmentCheck, GuestVendor};

use super::OpenError;
use super::guest::flatten;
use super::host::Mapping;
use super::ioctl::errno;
use crate::walks::{CpuState, GigabytePages, Memory, RAM_PAGES, ROM_PAGES, ROM_START, Walker};

/// CR0 bits that 64-bit vCPUs have anyway.
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
/// Bit 26 of EDX of leaf `0x8000_0001`.
const GIGABYTE_BIT: u32 = 1 << 26;
/// CPUID bits that let CR4 and EFER be what walks want: PSE, PAE, PGE, PSE-36; SMEP, SMAP; PKU, LA57; NX, long mode.
const LEAF_1_EDX: u32 = 1 << 3 | 1 << 6 | 1 << 13 | 1 << 17;
/// PCID.
const LEAF_1_ECX: u32 = 1 << 17;
const LEAF_7_EBX: u32 = 1 << 7 | 1 << 20;
const LEAF_7_ECX: u32 = 1 << 3 | 1 << 16;
const EXTENDED_EDX: u32 = 1 << 20 | 1 << 29;

/// A vCPU that translates, with memory of its own.
#[derive(Debug)]
pub struct Translator {
    vcpu: VcpuFd,
    vm: VmFd,
    ram: Mapping,
    rom: Mapping,
    gigabyte_pages: GigabytePages,
    cpuid: Option<(u8, GuestVendor, bool)>,
}

impl Translator {
    /// Makes a VM with one vCPU, writable memory, a hole, and read-only memory.
    ///
    /// # Errors
    /// `/dev/kvm` is absent, not permitted, or makes no such VM.
    pub fn open() -> Result<Self, OpenError> {
        let made = Self::with_ram(RAM_PAGES)?;
        set_slot(
            &made.vm,
            1,
            ROM_START,
            ROM_PAGES,
            &made.rom,
            KVM_MEM_READONLY,
        )
        .map_err(OpenError::Probe)?;
        Ok(made)
    }

    /// Makes a VM with one vCPU and a copy of some memory from address 0 on.
    ///
    /// # Errors
    /// `/dev/kvm` is absent, not permitted, or makes no such VM.
    pub fn over(bytes: &[u8]) -> Result<Self, OpenError> {
        let pages = (bytes.len() as u64).div_ceil(PAGE_SIZE).max(1);
        let made = Self::with_ram(pages)?;
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let word = u64::from_le_bytes(word);
            made.ram.word(index).store(word, Ordering::Relaxed);
        }
        Ok(made)
    }

    fn with_ram(pages: u64) -> Result<Self, OpenError> {
        let kvm =
            Kvm::new().map_err(|e| OpenError::Device(io::Error::from_raw_os_error(e.errno())))?;
        let made = |e| OpenError::Probe(errno(e));
        let vm = kvm.create_vm().map_err(made)?;
        let ram = memory(pages).map_err(OpenError::Memory)?;
        let rom = memory(ROM_PAGES).map_err(OpenError::Memory)?;
        set_slot(&vm, 0, 0, pages, &ram, 0).map_err(OpenError::Probe)?;
        Ok(Self {
            vcpu: vm.create_vcpu(0).map_err(made)?,
            vm,
            ram,
            rom,
            gigabyte_pages: gigabyte_pages(&kvm).map_err(OpenError::Probe)?,
            cpuid: None,
        })
    }

    fn set_cpuid(&mut self, state: &CpuState) -> Result<(), Errno> {
        let wanted = (state.maxphyaddr, state.vendor, state.gigabyte_pages);
        if self.cpuid == Some(wanted) {
            return Ok(());
        }
        self.vcpu.set_cpuid2(&cpuid(state)?).map_err(errno)?;
        self.cpuid = Some(wanted);
        Ok(())
    }
}

pub(super) fn memory(pages: u64) -> io::Result<Mapping> {
    let bytes = usize::try_from(pages * PAGE_SIZE).map_err(io::Error::other)?;
    let memory = Mapping::new(bytes, libc::PROT_READ | libc::PROT_WRITE)?;
    memory.keep_small();
    Ok(memory)
}

fn set_slot(
    vm: &VmFd,
    slot: u32,
    page: u64,
    pages: u64,
    memory: &Mapping,
    flags: u32,
) -> Result<(), Errno> {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: page * PAGE_SIZE,
        memory_size: pages * PAGE_SIZE,
        userspace_addr: memory.start(),
    };
    // SAFETY: the mapping has this size, and lives as long as the VM: both are fields of one value, and the kernel keeps
    // its own hold on the pages while it uses them.
    unsafe { vm.set_user_memory_region(region) }.map_err(errno)
}

/// A leaf of CPUID that KVM supports.
pub(super) fn supported(kvm: &Kvm, function: u32) -> Result<Option<kvm_cpuid_entry2>, Errno> {
    let leaves = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(errno)?;
    let mut leaves = leaves.as_slice().iter();
    Ok(leaves.find(|leaf| leaf.function == function).copied())
}

/// Whether KVM has a second stage for its guests, so that hardware walks their tables. Pre-faulting exists with it only.
pub(super) fn maps_for_guests(kvm: &Kvm) -> bool {
    kvm.check_extension_raw(u64::from(slat_memslot::cap::PRE_FAULT_MEMORY)) > 0
}

/// Without TDP a guest has what its CPUID says, out of what KVM supports; with TDP what the host has.
pub(crate) fn gigabyte_pages(kvm: &Kvm) -> Result<GigabytePages, Errno> {
    let extended = supported(kvm, 0x8000_0001)?;
    let has = extended.is_some_and(|leaf| leaf.edx & GIGABYTE_BIT != 0);
    Ok(match (has, maps_for_guests(kvm)) {
        (false, _) => GigabytePages::Never,
        (true, false) => GigabytePages::ByCpuid,
        (true, true) => GigabytePages::Always,
    })
}

/// Whose CPUID guests have that are given what is supported (`cpuid.c:guest_cpuid_is_amd_or_hygon`).
pub(crate) fn guest_vendor(kvm: &Kvm) -> Result<GuestVendor, Errno> {
    let name = supported(kvm, 0)?.map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes));
    Ok(match name.as_ref().map(|name| name.as_flattened()) {
        Some(b"AuthenticAMD" | b"AMDisbetter!" | b"HygonGenuine") => GuestVendor::Amd,
        _ => GuestVendor::Intel,
    })
}

/// A CPUID with all that walks want.
pub(super) fn cpuid(state: &CpuState) -> Result<CpuId, Errno> {
    CpuId::from_entries(&leaves(state)).map_err(|_| Errno::E2BIG)
}

fn leaves(state: &CpuState) -> Vec<kvm_cpuid_entry2> {
    let (b, d, c) = match state.vendor {
        GuestVendor::Intel => (*b"Genu", *b"ineI", *b"ntel"),
        GuestVendor::Amd => (*b"Auth", *b"enti", *b"cAMD"),
    };
    let vendor = |function, eax| kvm_cpuid_entry2 {
        function,
        eax,
        ebx: u32::from_le_bytes(b),
        ecx: u32::from_le_bytes(c),
        edx: u32::from_le_bytes(d),
        ..Default::default()
    };
    let gigabyte = if state.gigabyte_pages {
        GIGABYTE_BIT
    } else {
        0
    };
    vec![
        vendor(0, 7),
        kvm_cpuid_entry2 {
            function: 1,
            ecx: LEAF_1_ECX,
            edx: LEAF_1_EDX,
            ..Default::default()
        },
        kvm_cpuid_entry2 {
            function: 7,
            flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            ebx: LEAF_7_EBX,
            ecx: LEAF_7_ECX,
            ..Default::default()
        },
        vendor(0x8000_0000, 0x8000_0008),
        kvm_cpuid_entry2 {
            function: 0x8000_0001,
            edx: EXTENDED_EDX | gigabyte,
            ..Default::default()
        },
        kvm_cpuid_entry2 {
            function: 0x8000_0008,
            eax: u32::from(state.maxphyaddr) | 48 << 8,
            ..Default::default()
        },
    ]
}

impl Walker for Translator {
    fn gigabyte_pages(&self) -> GigabytePages {
        self.gigabyte_pages
    }

    fn load(&mut self, memory: &Memory) {
        for (index, word) in memory.ram.iter().enumerate() {
            self.ram.word(index).store(word.get(), Ordering::Relaxed);
        }
        for (index, word) in memory.rom.iter().enumerate() {
            self.rom.word(index).store(*word, Ordering::Relaxed);
        }
    }

    fn set(&mut self, state: &CpuState) -> Result<bool, Errno> {
        self.set_cpuid(state)?;
        let mut sregs = self.vcpu.get_sregs().map_err(errno)?;
        flatten(&mut sregs, state.efer.contains(Efer::LMA));
        sregs.cr0 = state.cr0.bits() | CR0_EXTENSION_TYPE;
        sregs.cr3 = state.cr3;
        sregs.cr4 = state.cr4.bits();
        sregs.efer = state.efer.bits();
        self.vcpu.set_sregs(&sregs).map_err(errno)?;
        let ac = match state.ac {
            AlignmentCheck::Clear => 0,
            AlignmentCheck::Set => 1 << 18,
        };
        let regs = kvm_regs {
            rflags: 2 | ac,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).map_err(errno)?;
        let kept = self.vcpu.get_sregs().map_err(errno)?;
        Ok((kept.cr0, kept.cr3, kept.cr4, kept.efer)
            == (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer))
    }

    fn translate(&mut self, address: Gva) -> Result<Option<Gpa>, Errno> {
        let found = self.vcpu.translate_gva(address.raw()).map_err(errno)?;
        Ok((found.valid != 0).then_some(Gpa::new(found.physical_address)))
    }

    fn words(&self) -> Vec<u64> {
        (0..self.ram.len() / 8)
            .map(|index| self.ram.word(index).load(Ordering::Relaxed))
            .collect()
    }
}

impl Mapping {
    /// A word of the memory, which the kernel may change at any time.
    pub(super) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.len() / 8, "inside the mapping");
        // SAFETY: the index is inside the mapping, which is aligned to pages, readable and writable, lives as long as
        // `self`, and is only ever accessed as atomic words or by the kernel.
        unsafe { AtomicU64::from_ptr((self.start() as *mut u64).add(index)) }
    }
}
