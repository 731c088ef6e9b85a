//! One load, store or fetch by a guest, and what its page-fault handler sees.
//!
//! The guest runs in any mode with paging. What it needs for itself (code, descriptor tables, stack, handlers) is mapped by
//! the first entry of the top table ([`layout`]); all other entries and eight pages of tables are the test's. A halt ends
//! each run: the byte behind the access, every byte of the pages that accesses may reach, and each handler's first are one.
//! In user mode a halt is a general-protection fault. Where an access is expected, a byte is changed before it, so that it
//! is known to have been made there and nowhere else.
#![expect(
    unsafe_code,
    reason = "slots give the kernel host memory, which is read and written through pointers"
)]

mod layout;
mod scene;

use std::io;
use std::sync::atomic::Ordering;

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use slat_memslot::{Errno, Gpa, Gva, PAGE_SIZE, Vendor};
use slat_mmu::fault::Kind;
use slat_mmu::role::Cr4;
use slat_mmu::walk::{AlignmentCheck, GuestVendor, PagingMode, Privilege};

use super::OpenError;
use super::host::Mapping;
use super::ioctl::errno;
use super::probe::vendor;
use super::translate::{cpuid, gigabyte_pages, maps_for_guests, memory, supported};
use crate::walks::{
    CpuState, DATA, Ended, Executor, GigabytePages, HIGH, MEMORY_PAGES, ProtectionKeys,
    TABLE_PAGES, Tried, UserHalf, WalkedBy, data_offset, mode_state, place_of,
};
use layout::{
    GDT, GDT_LIMIT, HALT, HANDLERS, IDT, KERNEL_CODE, PIECE, STACK_TOP, TSS, USER_CODE, is_long,
};

const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;

/// A guest that makes one access at a time.
#[derive(Debug)]
pub struct AccessGuest {
    host: Host,
    kvm: Kvm,
    /// Declared before the memory: the VM goes first.
    machine: Machine,
    ram: Mapping,
    dummy: Mapping,
    mode: PagingMode,
    /// The byte of the last access.
    byte: u8,
}

/// What all guests of a host have in common.
#[derive(Clone, Copy, Debug)]
struct Host {
    vendor: Vendor,
    gigabyte_pages: GigabytePages,
    walked_by: WalkedBy,
    user_half: UserHalf,
    protection_keys: ProtectionKeys,
}

/// A VM with one vCPU.
#[derive(Debug)]
struct Machine {
    vcpu: VcpuFd,
    vm: VmFd,
    /// The registers that a new vCPU has.
    fresh: kvm_sregs,
}

impl Machine {
    fn new(kvm: &Kvm) -> Result<Self, Errno> {
        let vm = kvm.create_vm().map_err(errno)?;
        let vcpu = vm.create_vcpu(0).map_err(errno)?;
        let fresh = vcpu.get_sregs().map_err(errno)?;
        Ok(Self { vcpu, vm, fresh })
    }
}

impl Host {
    fn of(kvm: &Kvm) -> Result<Self, Errno> {
        let kind = vendor();
        let leaf = |function| supported(kvm, function);
        let keys = leaf(7)?.is_some_and(|leaf| leaf.ecx & 1 << 3 != 0);
        let width = leaf(0x8000_0008)?.map_or(36, |leaf| leaf.eax.to_le_bytes()[0]);
        Ok(Self {
            vendor: kind,
            gigabyte_pages: gigabyte_pages(kvm)?,
            walked_by: match maps_for_guests(kvm) {
                false => WalkedBy::Kvm,
                true => WalkedBy::Hardware {
                    maxphyaddr: width,
                    vendor: match kind {
                        Vendor::Amd => GuestVendor::Amd,
                        _ => GuestVendor::Intel,
                    },
                },
            },
            user_half: match kind {
                Vendor::Paravirtual => UserHalf::Lower,
                _ => UserHalf::Both,
            },
            protection_keys: match keys {
                true => ProtectionKeys::Work,
                false => ProtectionKeys::Absent,
            },
        })
    }
}

impl Host {
    /// Busy, as VMX wants it. QEMU's processor gives up (`invalid tss type`) when it looks for the stack of a handler in a
    /// busy one of 32 bits; SVM takes one that is not.
    const fn tss_type(self, long: bool) -> u8 {
        match (self.vendor, long) {
            (Vendor::Amd, false) => 9,
            _ => 11,
        }
    }
}

impl AccessGuest {
    /// Makes the VM.
    ///
    /// # Errors
    /// `/dev/kvm` is absent, not permitted, or makes no such VM.
    pub fn open() -> Result<Self, OpenError> {
        let kvm =
            Kvm::new().map_err(|e| OpenError::Device(io::Error::from_raw_os_error(e.errno())))?;
        let guest = Self {
            host: Host::of(&kvm).map_err(OpenError::Probe)?,
            machine: Machine::new(&kvm).map_err(OpenError::Probe)?,
            kvm,
            ram: memory(MEMORY_PAGES).map_err(OpenError::Memory)?,
            dummy: memory(1).map_err(OpenError::Memory)?,
            mode: PagingMode::Level4,
            byte: 0,
        };
        let halts = u64::from_le_bytes([HALT; 8]);
        (DATA..MEMORY_PAGES << 12)
            .step_by(8)
            .for_each(|at| guest.write(at, halts));
        guest.fill();
        guest.place().map_err(OpenError::Probe)?;
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
        unsafe { self.machine.vm.set_user_memory_region(region) }.map_err(errno)
    }

    /// The memory, and its upper half once more at high addresses, as far as there are any.
    fn place(&self) -> Result<(), Errno> {
        self.slot(0, 0, MEMORY_PAGES, self.ram.start())?;
        for (slot, base) in (2..).zip(HIGH) {
            let (page, pages) = ((base | DATA) >> 12, MEMORY_PAGES - (DATA >> 12));
            self.slot(slot, page, pages, self.ram.start() + DATA)?;
        }
        Ok(())
    }

    fn word(&self, gpa: u64) -> &std::sync::atomic::AtomicU64 {
        self.ram
            .word(usize::try_from(gpa >> 3).unwrap_or(usize::MAX))
    }

    fn write(&self, gpa: u64, word: u64) {
        self.word(gpa).store(word, Ordering::Relaxed);
    }

    fn read(&self, gpa: u64) -> u64 {
        self.word(gpa).load(Ordering::Relaxed)
    }

    /// Writes some bytes, one by one.
    fn write_bytes(&self, gpa: u64, bytes: &[u8]) {
        for (at, byte) in (gpa..).zip(bytes) {
            let shift = 8 * (at & 7);
            let rest = self.read(at) & !(0xff << shift);
            self.write(at, rest | u64::from(*byte) << shift);
        }
    }

    fn read_byte(&self, gpa: u64) -> u8 {
        self.read(gpa).to_le_bytes()[usize::from(gpa.to_le_bytes()[0] & 7)]
    }

    /// What the guest has for itself in its mode.
    fn fill(&self) {
        for page in layout::own_pages() {
            (page..page + PAGE_SIZE)
                .step_by(8)
                .for_each(|at| self.write(at, 0));
        }
        for (at, word) in layout::own_words(self.mode) {
            self.write(at, word);
        }
    }

    /// The shadow of tables that the host writes to is not kept in step, nor is what a CPU remembers: all of it is thrown
    /// away.
    fn flush(&self) -> Result<(), Errno> {
        self.slot(1, MEMORY_PAGES + 16, 1, self.dummy.start())?;
        self.slot(1, MEMORY_PAGES + 16, 0, self.dummy.start())
    }

    fn sregs(&self, state: &CpuState, privilege: Privilege) -> kvm_sregs {
        let long = is_long(state.mode);
        let user = privilege == Privilege::User;
        let ring = u8::from(user) * 3;
        let segment = |selector: u16, type_| kvm_segment {
            limit: u32::MAX,
            type_,
            present: 1,
            s: 1,
            g: 1,
            db: 1,
            selector: selector | u16::from(ring),
            dpl: ring,
            ..Default::default()
        };
        let data = segment(layout::DATA_SELECTOR + u16::from(user) * 0x10, 3);
        let table = |base, limit| kvm_dtable {
            base,
            limit,
            ..Default::default()
        };
        kvm_sregs {
            cs: kvm_segment {
                l: u8::from(long),
                db: u8::from(!long),
                ..segment(layout::code_selector(long, user), 11)
            },
            ds: data,
            es: data,
            ss: data,
            fs: data,
            gs: data,
            tr: kvm_segment {
                base: TSS,
                limit: 0x67,
                selector: layout::TSS_SELECTOR,
                type_: self.host.tss_type(long),
                present: 1,
                ..Default::default()
            },
            gdt: table(GDT, GDT_LIMIT),
            idt: table(IDT, layout::idt_limit(state.mode)),
            cr0: state.cr0.bits() | 1 << 4,
            cr2: 0,
            cr3: state.cr3,
            cr4: state.cr4.bits(),
            efer: state.efer.bits(),
            ..self.machine.fresh
        }
    }

    fn regs(&self, state: &CpuState, tried: &Tried) -> kvm_regs {
        let code = match tried.privilege {
            Privilege::User => USER_CODE,
            Privilege::Supervisor | Privilege::Implicit => KERNEL_CODE,
        };
        let keys =
            state.cr4.contains(Cr4::PKE) && self.host.protection_keys == ProtectionKeys::Work;
        let stored = match tried.kind {
            Kind::Write => u64::from(self.byte),
            Kind::Read | Kind::Execute => 0,
        };
        kvm_regs {
            rip: match (keys, tried.kind) {
                (false, Kind::Read) => code,
                (false, Kind::Write) => code + PIECE,
                (false, Kind::Execute) => tried.address.raw(),
                (true, Kind::Read) => code + 2 * PIECE,
                (true, Kind::Write) => code + 3 * PIECE,
                (true, Kind::Execute) => code + 4 * PIECE,
            },
            rax: if keys { tried.pkru.into() } else { stored },
            rbx: tried.address.raw(),
            rbp: stored,
            rsp: STACK_TOP - 256,
            rflags: 2 | match state.ac {
                AlignmentCheck::Clear => 0,
                AlignmentCheck::Set => 1 << 18,
            },
            ..Default::default()
        }
    }

    /// What the registers say after a halt.
    fn ended(&self, tried: &Tried, to: Option<u64>) -> Result<Ended, Errno> {
        let regs = self.machine.vcpu.get_regs().map_err(errno)?;
        let handlers = HANDLERS..HANDLERS + PAGE_SIZE;
        let vector = handlers
            .contains(&regs.rip)
            .then_some((regs.rip.wrapping_sub(HANDLERS)) / 16);
        match vector {
            // A halt in user mode, which comes after the access.
            None | Some(GENERAL_PROTECTION) => {
                let seen = match tried.kind {
                    Kind::Read | Kind::Execute => Some(regs.rax.to_le_bytes()[0]),
                    Kind::Write => to.map(|to| self.read_byte(to)),
                };
                Ok(match seen == Some(self.byte) {
                    true => Ended::Done,
                    false => Ended::Elsewhere,
                })
            }
            Some(PAGE_FAULT) => {
                let pushed = self.read(regs.rsp & ((MEMORY_PAGES << 12) - 8));
                let code = match is_long(self.mode) {
                    true => pushed,
                    false => pushed & 0xffff_ffff,
                };
                let cr2 = self.machine.vcpu.get_sregs().map_err(errno)?.cr2;
                Ok(Ended::PageFault {
                    code,
                    address: Gva::new(cr2),
                })
            }
            Some(vector) => Ok(Ended::Other {
                what: format!("vector {vector}"),
            }),
        }
    }
}

impl Executor for AccessGuest {
    fn gigabyte_pages(&self) -> GigabytePages {
        self.host.gigabyte_pages
    }

    fn walked_by(&self) -> WalkedBy {
        self.host.walked_by
    }

    fn user_half(&self) -> UserHalf {
        self.host.user_half
    }

    fn protection_keys(&self) -> ProtectionKeys {
        self.host.protection_keys
    }

    fn renew(&mut self, state: &CpuState) -> Result<(), Errno> {
        // Once a vCPU has run, its CPUID cannot change.
        self.machine = Machine::new(&self.kvm)?;
        self.machine
            .vcpu
            .set_cpuid2(&cpuid(state)?)
            .map_err(errno)?;
        self.place()
    }

    fn enter(&mut self, mode: PagingMode) -> Result<(), Errno> {
        if self.mode == mode {
            return Ok(());
        }
        self.mode = mode;
        self.fill();
        Ok(())
    }

    fn takes(&mut self, state: &CpuState) -> Result<bool, Errno> {
        self.enter(state.mode)?;
        let sregs = self.sregs(state, Privilege::Supervisor);
        let vcpu = &self.machine.vcpu;
        let set = vcpu.set_sregs(&sregs).map_err(errno);
        let kept = vcpu.get_sregs().map_err(errno)?;
        // Back to what every kernel takes, so that the next one finds no trace of this.
        let plain = self.sregs(&mode_state(PagingMode::Level4), Privilege::Supervisor);
        vcpu.set_sregs(&plain).map_err(errno)?;
        set?;
        Ok((kept.cr0, kept.cr3, kept.cr4, kept.efer)
            == (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer))
    }

    fn load(&mut self, words: &[u64]) -> Result<(), Errno> {
        // The first entry of the top table is the guest's own.
        for (index, word) in words.iter().enumerate().skip(1) {
            self.write(place_of(index), *word);
        }
        self.flush()
    }

    fn access(&mut self, state: &CpuState, tried: &Tried, to: Option<Gpa>) -> Result<Ended, Errno> {
        let to = to.and_then(data_offset);
        // Any byte but 0, which the register holds at first, and a halt.
        self.byte = self.byte % 0xf0 + 1;
        match (to, tried.kind) {
            (Some(to), Kind::Read) => self.write_bytes(to, &[self.byte]),
            // `mov al, byte; hlt`.
            (Some(to), Kind::Execute) => self.write_bytes(to, &[0xb0, self.byte, HALT]),
            _ => {}
        }
        let vcpu = &self.machine.vcpu;
        vcpu.set_sregs(&self.sregs(state, tried.privilege))
            .map_err(errno)?;
        vcpu.set_regs(&self.regs(state, tried)).map_err(errno)?;
        let end = match self.machine.vcpu.run() {
            Ok(VcpuExit::Hlt) => self.ended(tried, to)?,
            Ok(exit) => Ended::Other {
                what: format!("{exit:?}"),
            },
            Err(e) => return Err(errno(e)),
        };
        if let Some(to) = to {
            self.write_bytes(to, &[HALT; 3]);
        }
        Ok(end)
    }

    fn words(&self) -> Vec<u64> {
        let words = usize::try_from((1 + TABLE_PAGES) << 9).unwrap_or(0);
        (0..words).map(|index| self.read(place_of(index))).collect()
    }
}
