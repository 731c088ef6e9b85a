//! One load, store or fetch by a guest, and what its page-fault handler sees.
//!
//! The guest runs in long mode. What it needs for itself (code, descriptor tables, stack, handlers) is mapped by the first
//! entry of the top table; all other entries and eight pages of tables are the test's. A halt ends each run: the byte behind
//! the access, every byte of the pages that accesses may reach, and each handler's first are one. In user mode a halt is a
//! general-protection fault.
#![expect(
    unsafe_code,
    reason = "slots give the kernel host memory, which is read and written through pointers"
)]

use std::io;
use std::sync::atomic::Ordering;

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use slat_memslot::{Errno, Gva, PAGE_SIZE};
use slat_mmu::fault::Kind;
use slat_mmu::walk::{AlignmentCheck, Privilege};

use super::OpenError;
use super::host::Mapping;
use super::ioctl::errno;
use super::translate::{cpuid, gigabyte_pages, memory};
use crate::walks::{
    CpuState, DATA, Ended, Executor, GigabytePages, MEMORY_PAGES, TEST_TABLES, Tried,
};

// Pages of the guest's own.
const GDT: u64 = 4 << 12;
const IDT: u64 = 5 << 12;
const TSS: u64 = 6 << 12;
const STACK_TOP: u64 = 8 << 12;
const HANDLERS: u64 = 8 << 12;
const KERNEL_CODE: u64 = 9 << 12;
const USER_CODE: u64 = 16 << 12;

/// `hlt`.
const HALT: u8 = 0xf4;
/// `mov al, [rbx]; hlt` and `mov [rbx], al; hlt`, eight bytes apart.
const CODE: [u8; 11] = [0x8a, 0x03, HALT, 0, 0, 0, 0, 0, 0x88, 0x03, HALT];
const STORE_AT: u64 = 8;
const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;

/// Present, writable, accessed, dirty; and for user mode.
const SUPERVISOR: u64 = 0x63;
const USER: u64 = 0x67;

/// A guest that makes one access at a time.
#[derive(Debug)]
pub struct AccessGuest {
    vcpu: VcpuFd,
    vm: VmFd,
    ram: Mapping,
    dummy: Mapping,
    gigabyte_pages: GigabytePages,
    cpuid: Option<(u8, slat_mmu::walk::GuestVendor, bool)>,
}

impl AccessGuest {
    /// Makes the VM.
    ///
    /// # Errors
    /// `/dev/kvm` is absent, not permitted, or makes no such VM.
    pub fn open() -> Result<Self, OpenError> {
        let kvm =
            Kvm::new().map_err(|e| OpenError::Device(io::Error::from_raw_os_error(e.errno())))?;
        let made = |e| OpenError::Probe(errno(e));
        let vm = kvm.create_vm().map_err(made)?;
        let ram = memory(MEMORY_PAGES).map_err(OpenError::Memory)?;
        let dummy = memory(1).map_err(OpenError::Memory)?;
        let guest = Self {
            vcpu: vm.create_vcpu(0).map_err(made)?,
            vm,
            ram,
            dummy,
            gigabyte_pages: gigabyte_pages(&kvm).map_err(OpenError::Probe)?,
            cpuid: None,
        };
        guest.fill();
        guest
            .slot(0, 0, MEMORY_PAGES, guest.ram.start())
            .map_err(OpenError::Probe)?;
        Ok(guest)
    }

    fn slot(&self, slot: u32, page: u64, pages: u64, hva: u64) -> Result<(), Errno> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: page * PAGE_SIZE,
            memory_size: pages * PAGE_SIZE,
            userspace_addr: hva,
        };
        // SAFETY: both mappings have at least this size and live as long as the VM, being fields of the same value.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(errno)
    }

    fn write(&self, gpa: u64, word: u64) {
        let index = usize::try_from(gpa >> 3).unwrap_or(usize::MAX);
        self.ram.word(index).store(word, Ordering::Relaxed);
    }

    fn read(&self, gpa: u64) -> u64 {
        let index = usize::try_from(gpa >> 3).unwrap_or(usize::MAX);
        self.ram.word(index).load(Ordering::Relaxed)
    }

    /// Everything that stays the same.
    fn fill(&self) {
        let halts = u64::from_le_bytes([HALT; 8]);
        (DATA..MEMORY_PAGES << 12)
            .step_by(8)
            .for_each(|at| self.write(at, halts));
        (HANDLERS..HANDLERS + PAGE_SIZE)
            .step_by(8)
            .for_each(|at| self.write(at, halts));
        for (at, entry) in [(0, 1), (1, 2), (2, 3)] {
            self.write(at << 12, entry << 12 | USER);
        }
        for page in 4..10 {
            self.write(3 << 12 | page << 3, page << 12 | SUPERVISOR);
        }
        self.write(3 << 12 | (USER_CODE >> 9), USER_CODE | USER);
        for code in [KERNEL_CODE, USER_CODE] {
            for (word, bytes) in CODE.chunks(8).enumerate() {
                let mut padded = [HALT; 8];
                padded[..bytes.len()].copy_from_slice(bytes);
                self.write(code + 8 * word as u64, u64::from_le_bytes(padded));
            }
        }
        for (index, descriptor) in [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x0000_8b00_0000_0067 | TSS << 16,
            0,
        ]
        .into_iter()
        .enumerate()
        {
            self.write(GDT + 8 * index as u64, descriptor);
        }
        // RSP0, which is not aligned to words.
        self.write(TSS, STACK_TOP << 32);
        for vector in 0..32 {
            let handler = HANDLERS + 16 * vector;
            // A 64-bit interrupt gate to selector 8.
            let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
            self.write(IDT + 16 * vector, gate);
            self.write(IDT + 16 * vector + 8, 0);
        }
    }

    fn set_registers(&self, state: &CpuState, tried: &Tried) -> Result<(), Errno> {
        let user = tried.privilege == Privilege::User;
        let ring = u8::from(user) * 3;
        let segment = |selector: u16, type_| kvm_segment {
            limit: u32::MAX,
            type_,
            present: 1,
            s: 1,
            g: 1,
            selector: selector | u16::from(ring),
            dpl: ring,
            ..Default::default()
        };
        let data = kvm_segment {
            db: 1,
            ..segment(if user { 0x20 } else { 0x10 }, 3)
        };
        let mut sregs = self.vcpu.get_sregs().map_err(errno)?;
        sregs.cs = kvm_segment {
            l: 1,
            ..segment(if user { 0x18 } else { 0x08 }, 11)
        };
        (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
        sregs.tr = kvm_segment {
            base: TSS,
            limit: 0x67,
            selector: 0x28,
            type_: 11,
            present: 1,
            ..Default::default()
        };
        let table = |base, limit| kvm_dtable {
            base,
            limit,
            ..Default::default()
        };
        (sregs.gdt, sregs.idt) = (table(GDT, 55), table(IDT, 511));
        sregs.cr0 = state.cr0.bits() | 1 << 4;
        sregs.cr2 = 0;
        sregs.cr3 = 0;
        sregs.cr4 = state.cr4.bits();
        sregs.efer = state.efer.bits();
        self.vcpu.set_sregs(&sregs).map_err(errno)?;
        let code = if user { USER_CODE } else { KERNEL_CODE };
        let regs = kvm_regs {
            rip: match tried.kind {
                Kind::Read => code,
                Kind::Write => code + STORE_AT,
                Kind::Execute => tried.address.raw(),
            },
            rax: u64::from(HALT),
            rbx: tried.address.raw(),
            rsp: STACK_TOP - 256,
            rflags: 2 | match state.ac {
                AlignmentCheck::Clear => 0,
                AlignmentCheck::Set => 1 << 18,
            },
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).map_err(errno)
    }

    /// What the registers say after a halt.
    fn ended(&self) -> Result<Ended, Errno> {
        let regs = self.vcpu.get_regs().map_err(errno)?;
        let handlers = HANDLERS..HANDLERS + PAGE_SIZE;
        if !handlers.contains(&regs.rip) {
            return Ok(Ended::Done);
        }
        match (regs.rip - HANDLERS) / 16 {
            // A halt in user mode, which comes after the access.
            GENERAL_PROTECTION => Ok(Ended::Done),
            PAGE_FAULT => {
                let code = self.read(regs.rsp & ((MEMORY_PAGES << 12) - 8));
                let cr2 = self.vcpu.get_sregs().map_err(errno)?.cr2;
                Ok(Ended::PageFault {
                    code,
                    address: Gva::new(cr2),
                })
            }
            vector => Ok(Ended::Other {
                what: format!("vector {vector}"),
            }),
        }
    }
}

impl Executor for AccessGuest {
    fn gigabyte_pages(&self) -> GigabytePages {
        self.gigabyte_pages
    }

    fn load(&mut self, words: &[u64]) -> Result<(), Errno> {
        let tables = TEST_TABLES << 12;
        for (index, word) in words.iter().enumerate() {
            let at = 8 * index as u64;
            // The first entry of the top table is the guest's own.
            if (8..PAGE_SIZE).contains(&at) || at >= tables {
                self.write(at, *word);
            }
        }
        // The shadow of tables that the host writes to is not kept in step: throw all of it away.
        self.slot(1, MEMORY_PAGES + 16, 1, self.dummy.start())?;
        self.slot(1, MEMORY_PAGES + 16, 0, self.dummy.start())
    }

    fn set_cpuid(&mut self, state: &CpuState) -> Result<(), Errno> {
        let wanted = (state.maxphyaddr, state.vendor, state.gigabyte_pages);
        // Once a vCPU has run, its CPUID cannot change.
        match self.cpuid {
            Some(set) if set == wanted => Ok(()),
            Some(_) => Err(Errno::EINVAL),
            None => {
                self.vcpu.set_cpuid2(&cpuid(state)?).map_err(errno)?;
                self.cpuid = Some(wanted);
                Ok(())
            }
        }
    }

    fn access(&mut self, state: &CpuState, tried: &Tried) -> Result<Ended, Errno> {
        self.set_registers(state, tried)?;
        match self.vcpu.run() {
            Ok(VcpuExit::Hlt) => {}
            Ok(exit) => {
                return Ok(Ended::Other {
                    what: format!("{exit:?}"),
                });
            }
            Err(e) => return Err(errno(e)),
        }
        self.ended()
    }

    fn words(&self) -> Vec<u64> {
        let end = (TEST_TABLES + 8) << 12;
        (0..end).step_by(8).map(|at| self.read(at)).collect()
    }
}
