//! The guest: a few instructions in a page of their own, run with flat segments and without paging.

use kvm_bindings::{KVM_VCPUEVENT_VALID_SMM, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use slat_memslot::{Errno, Gfn, Gpa, PAGE_SHIFT};

use crate::kvm::errno;
use crate::traces::{Exit, GuestAct, Note};

/// Where the instructions are, from the begin of the guest's memory.
pub(super) const CODE: &[(u64, &[u8])] = &[
    // hlt
    (0x1000, &[0xf4]),
    // mov al, [ebx]; hlt
    (0x1010, &[0x8a, 0x03, 0xf4]),
    // mov byte [ebx], 0xf4; hlt: what is written halts when it is executed.
    (0x1020, &[0xc6, 0x03, 0xf4, 0xf4]),
    // jmp ebx
    (0x1030, &[0xff, 0xe3]),
    // again: mov byte [ebx], 0xf4; add ebx, 0x1000; dec ecx; jnz again; hlt
    (
        0x1050,
        &[
            0xc6, 0x03, 0xf4, 0x81, 0xc3, 0x00, 0x10, 0x00, 0x00, 0x49, 0x75, 0xf4, 0xf4,
        ],
    ),
    // The handler of SMIs, in 16-bit mode: hlt
    (HANDLER, &[0xf4]),
    // mov al, [ebx]; hlt
    (HANDLER + 1, &[0x67, 0x8a, 0x03, 0xf4]),
    // mov byte [ebx], 0xf4; hlt
    (HANDLER + 0x10, &[0x67, 0xc6, 0x03, 0xf4, 0xf4]),
    // rsm
    (HANDLER + 0x20, &[0x0f, 0xaa]),
];

/// Where vCPUs enter SMM, as long as nobody moves SMBASE.
pub(super) const HANDLER: u64 = 0x3_8000;
/// The same as an offset of the code segment in SMM.
const IN_SMM: u64 = HANDLER - 0x3_0000;
/// The pages of both.
pub(super) const CODE_PAGE: Gfn = Gfn::new(1);
pub(super) const HANDLER_PAGE: Gfn = Gfn::new(HANDLER >> PAGE_SHIFT);

/// How often a guest may leave for userspace before it halts.
const MOST_EXITS: u32 = 4096;

/// `KVM_SET_CPUID2` with what is supported, but for MAXPHYADDR where it is given.
pub(super) fn set_cpuid(kvm: &Kvm, vcpu: &VcpuFd, max_phys_addr: Option<u8>) -> Result<(), Errno> {
    const ADDRESS_SIZES: u32 = 0x8000_0008;
    let mut cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(errno)?;
    let sizes = cpuid.as_mut_slice().iter_mut();
    for entry in sizes.filter(|entry| entry.function == ADDRESS_SIZES) {
        let bits = max_phys_addr.map_or(entry.eax & 0xff, u32::from);
        entry.eax = entry.eax & !0xff | bits;
    }
    vcpu.set_cpuid2(&cpuid).map_err(errno)
}

/// `KVM_SET_VCPU_EVENTS`, to put the vCPU into SMM or take it out.
pub(super) fn set_smm(vcpu: &VcpuFd, inside: bool) -> Result<(), Errno> {
    let mut events = vcpu.get_vcpu_events().map_err(errno)?;
    events.smi.smm = u8::from(inside);
    events.flags |= KVM_VCPUEVENT_VALID_SMM;
    vcpu.set_vcpu_events(&events).map_err(errno)
}

/// Where a guest starts for what it is to do, what RBX and RCX have, and which pages it reaches.
pub(super) struct Start {
    rip: u64,
    rbx: u64,
    rcx: u64,
}

impl Start {
    /// `None` if this guest cannot do that.
    pub(super) fn of(act: &GuestAct<'_>) -> Option<Self> {
        let (rip, rbx, rcx) = match act {
            GuestAct::Halt { at } => (at.map_or(0x1000, Gpa::raw), 0, 0),
            GuestAct::Read(gpa) => (0x1010, gpa.raw(), 0),
            GuestAct::Write(gpa) => (0x1020, gpa.raw(), 0),
            GuestAct::Execute(gpa) => (0x1030, gpa.raw(), 0),
            GuestAct::WritePages { pages, from } => (0x1050, from.raw(), *pages),
            // What an SMI interrupts is a halt.
            GuestAct::EnterSmm { .. } => (0x1012, 0, 0),
            GuestAct::SmmRead(gpa) => (IN_SMM + 1, gpa.raw(), 0),
            GuestAct::SmmWrite(gpa) => (IN_SMM + 0x10, gpa.raw(), 0),
            GuestAct::LeaveSmm => (IN_SMM + 0x20, 0, 0),
            _ => return None,
        };
        Some(Self { rip, rbx, rcx })
    }

    /// The first address that it reaches besides its instructions, and how many pages follow each other there.
    pub(super) fn reaches(&self) -> (Gpa, u64) {
        match self.rip {
            _ if self.rbx == 0 => (Gpa::new(0x1000), 1),
            0x1010 | 0x1020 | 0x1030 => (Gpa::new(self.rbx), 1),
            0x1050 => (Gpa::new(self.rbx), self.rcx),
            at if at < 0x2000 => (Gpa::new(at), 1),
            _ => (Gpa::new(self.rbx), 1),
        }
    }
}

/// Runs a guest until it halts or cannot go on. `tell` takes what is seen, in order.
pub(super) fn run<E>(
    vcpu: &mut VcpuFd,
    start: &Start,
    tell: impl FnMut(&Note<'_>) -> Result<(), E>,
) -> Result<Result<(), E>, Errno> {
    let regs = kvm_regs {
        rip: start.rip,
        rbx: start.rbx,
        rcx: start.rcx,
        rflags: 2,
        ..Default::default()
    };
    run_from(vcpu, &regs, tell)
}

/// The same with these registers.
pub(super) fn run_from<E>(
    vcpu: &mut VcpuFd,
    regs: &kvm_regs,
    mut tell: impl FnMut(&Note<'_>) -> Result<(), E>,
) -> Result<Result<(), E>, Errno> {
    vcpu.set_regs(regs).map_err(errno)?;
    for _ in 0..MOST_EXITS {
        let (note, ended) = step(vcpu);
        let told = note.iter().try_for_each(&mut tell);
        if ended || told.is_err() {
            return Ok(told);
        }
    }
    Ok(tell(&Note::Fatal("the guest does not come to an end")))
}

/// Enters the guest once. Says what was seen, and whether that was the end.
fn step(vcpu: &mut VcpuFd) -> (Vec<Note<'static>>, bool) {
    let mmio = |gpa, len, write| Exit::Mmio {
        gpa: Gpa::new(gpa),
        len: u32::try_from(len).unwrap_or(u32::MAX),
        write,
    };
    let (exit, ended) = match vcpu.run() {
        Ok(VcpuExit::Hlt) => (Exit::Halt, true),
        Ok(VcpuExit::MmioRead(gpa, data)) => (mmio(gpa, data.len(), false), false),
        Ok(VcpuExit::MmioWrite(gpa, data)) => (mmio(gpa, data.len(), true), false),
        Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
            let failed = Note::RunFailed {
                errno: Errno::EFAULT,
                exit_reason: kvm_bindings::KVM_EXIT_MEMORY_FAULT,
            };
            let gpa = Gpa::new(gpa);
            let fault = Note::Exit(Exit::MemoryFault { flags, gpa, size });
            return (vec![failed, fault], true);
        }
        Ok(_) => {
            let reason = vcpu.get_kvm_run().exit_reason;
            (Exit::Other { reason }, true)
        }
        Err(error) => {
            let failed = Note::RunFailed {
                errno: errno(error),
                exit_reason: vcpu.get_kvm_run().exit_reason,
            };
            return (vec![failed], true);
        }
    };
    (vec![Note::Exit(exit)], ended)
}
