//! Guests in long mode, which have tables of their own and execute one instruction at a time.

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use slat_memslot::{Errno, Gpa, Hva, PAGE_SIZE, Vendor};
use slat_mmu::walk::Privilege;

use super::areas::{Areas, TRAPS};
use crate::kvm::{errno, vendor};
use crate::shadow_vm::place_of;
use crate::traces::{Control, Exit, Instruction, Note};

/// What stops user mode; a halt stops the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// `int3`: a breakpoint of the VMM's, or an exception that cannot be delivered. A paravirtual backend keeps no right to
    /// ports.
    Breakpoint,
    /// `out 0x80, al`, which user mode may do by its IOPL. An emulated processor takes a breakpoint past KVM.
    Port,
}

impl Stop {
    /// What this kernel's guests stop by.
    pub(super) fn here() -> Self {
        match vendor() {
            Vendor::Paravirtual => Self::Breakpoint,
            Vendor::Intel | Vendor::Amd => Self::Port,
        }
    }

    const fn code(self) -> &'static [u8] {
        match self {
            Self::Breakpoint => &[0xcc],
            Self::Port => &[0xe6, 0x80],
        }
    }

    /// RFLAGS of user mode.
    const fn flags(self) -> u64 {
        match self {
            Self::Breakpoint => 1 << 1,
            Self::Port => 3 << 12 | 1 << 1,
        }
    }
}

const HALT: u8 = 0xf4;

/// The page of the guest's memory that has the instructions, for whatever address they are mapped at.
const CODE_PAGE: u64 = 0x1000;

/// Each instruction, with any operands.
const INSTRUCTIONS: [(Instruction, &[u8]); 11] = [
    (Instruction::Load { gva: 0 }, &[0x48, 0x8b, 0x03]),
    (store(8), &[0x48, 0x89, 0x03]),
    (store(4), &[0x89, 0x03]),
    (store(2), &[0x66, 0x89, 0x03]),
    (store(1), &[0x88, 0x03]),
    (Instruction::Jump { gva: 0 }, &[0xff, 0xe3]),
    (to_cr(0), &[0x0f, 0x22, 0xc0]),
    (to_cr(3), &[0x0f, 0x22, 0xd8]),
    (to_cr(4), &[0x0f, 0x22, 0xe0]),
    (Instruction::Invlpg { gva: 0 }, &[0x0f, 0x01, 0x3b]),
    // again: mov [rbx], rax; add rbx, 0x1000; dec rcx; jnz again
    (
        Instruction::Touch { gva: 0, pages: 0 },
        &[
            0x48, 0x89, 0x03, 0x48, 0x81, 0xc3, 0x00, 0x10, 0x00, 0x00, 0x48, 0xff, 0xc9, 0x75,
            0xf1,
        ],
    ),
];

const fn store(len: u8) -> Instruction {
    let (gva, value) = (0, 0);
    Instruction::Store { gva, len, value }
}

const fn to_cr(number: u8) -> Instruction {
    let value = 0;
    Instruction::MoveToCr { number, value }
}

/// Writes the instructions into the page for them, for both privileges, and what stops a jump into all pages.
pub(super) fn write_code(areas: &mut Areas, first: Hva, stop: Stop) {
    for area in areas.list().to_vec() {
        for page in 0..area.pages.raw() {
            let at = Hva::new(area.start.raw() + page * PAGE_SIZE + TRAPS);
            areas.write(at, &stop.code().repeat(16 / stop.code().len()));
        }
    }
    for (instruction, bytes) in INSTRUCTIONS {
        let privileges = [
            (Privilege::User, stop.code()),
            (Privilege::Supervisor, &[HALT][..]),
        ];
        for (privilege, stop) in privileges {
            let (place, _) = place_of(&instruction, privilege);
            let at = first.raw() + CODE_PAGE + (place & 0xfff);
            areas.write(Hva::new(at), bytes);
            areas.write(Hva::new(at + bytes.len() as u64), stop);
        }
    }
}

/// `KVM_SET_SREGS` with these control registers.
pub(super) fn set_control(vcpu: &VcpuFd, control: &Control) -> Result<(), Errno> {
    let mut sregs = vcpu.get_sregs().map_err(errno)?;
    (sregs.cr0, sregs.cr3) = (control.cr0, control.cr3);
    (sregs.cr4, sregs.efer) = (control.cr4, control.efer);
    set_segments(&mut sregs, Privilege::User);
    vcpu.set_sregs(&sregs).map_err(errno)
}

/// The control registers of a vCPU.
fn control_of(sregs: &kvm_sregs) -> Control {
    Control {
        cr0: sregs.cr0,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
    }
}

/// Flat segments of 64-bit mode. No exception can be delivered: there is no table of handlers.
fn set_segments(sregs: &mut kvm_sregs, privilege: Privilege) {
    let cpl = match privilege {
        Privilege::User => 3,
        Privilege::Supervisor | Privilege::Implicit => 0,
    };
    let data = kvm_segment {
        limit: u32::MAX,
        type_: 3,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        dpl: cpl,
        selector: 16 | u16::from(cpl),
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        type_: 11,
        l: 1,
        db: 0,
        selector: 8 | u16::from(cpl),
        ..data
    };
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
}

/// The registers that an instruction needs.
fn registers(instruction: &Instruction, privilege: Privilege, stop: Stop) -> kvm_regs {
    let (rip, _) = place_of(instruction, privilege);
    let (rbx, rax, rcx) = match *instruction {
        Instruction::Load { gva } | Instruction::Jump { gva } | Instruction::Invlpg { gva } => {
            (gva, 0, 0)
        }
        Instruction::Store { gva, value, .. } => (gva, value, 0),
        Instruction::Touch { gva, pages } => (gva, 0, pages),
        Instruction::MoveToCr { value, .. } => (0, value, 0),
    };
    kvm_regs {
        rip,
        rbx,
        rax,
        rcx,
        rflags: stop.flags(),
        ..Default::default()
    }
}

/// How often a guest may leave for userspace before it stops.
const MOST_EXITS: u32 = 16;

/// Executes an instruction. `tell` takes what is seen, in order. Gives the control registers that the vCPU had, if it lost
/// them: hardware leaves nothing of a vCPU that shuts down.
pub(super) fn run<E>(
    vcpu: &mut VcpuFd,
    (instruction, privilege, stop): (&Instruction, Privilege, Stop),
    mut tell: impl FnMut(&Note<'_>) -> Result<(), E>,
) -> Result<(Result<(), E>, Option<Control>), Errno> {
    let mut sregs = vcpu.get_sregs().map_err(errno)?;
    let before = control_of(&sregs);
    set_segments(&mut sregs, privilege);
    vcpu.set_sregs(&sregs).map_err(errno)?;
    let regs = registers(instruction, privilege, stop);
    vcpu.set_regs(&regs).map_err(errno)?;
    let debug = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP,
        ..Default::default()
    };
    vcpu.set_guest_debug(&debug).map_err(errno)?;
    let behind = match instruction {
        Instruction::Jump { gva } => *gva,
        _ => regs.rip + place_of(instruction, privilege).1,
    };
    for _ in 0..MOST_EXITS {
        let (note, ended) = step(vcpu, behind);
        let told = tell(&note);
        if ended || told.is_err() {
            let after = control_of(&vcpu.get_sregs().map_err(errno)?);
            let lost = after.efer & EFER_LMA == 0;
            return Ok((told, lost.then_some(before)));
        }
    }
    Ok((
        tell(&Note::Fatal("the guest does not come to an end")),
        None,
    ))
}

/// Long mode is active.
const EFER_LMA: u64 = 1 << 10;

/// Enters the guest once. Says what was seen, and whether that was the end.
fn step(vcpu: &mut VcpuFd, behind: u64) -> (Note<'static>, bool) {
    let mmio = |gpa, len, write| Exit::Mmio {
        gpa: Gpa::new(gpa),
        len: u32::try_from(len).unwrap_or(u32::MAX),
        write,
    };
    let (exit, ended) = match vcpu.run() {
        Ok(VcpuExit::Hlt) => (Exit::Halt, true),
        Ok(VcpuExit::Debug(_) | VcpuExit::IoOut(..)) => (Exit::Trap, true),
        Ok(VcpuExit::MmioRead(gpa, data)) => {
            data.fill(0);
            (mmio(gpa, data.len(), false), false)
        }
        Ok(VcpuExit::MmioWrite(gpa, data)) => (mmio(gpa, data.len(), true), false),
        Ok(_) => {
            let reason = vcpu.get_kvm_run().exit_reason;
            // Some kernels know no breakpoints: the trap cannot be delivered then, and the guest shuts down behind it.
            let trapped = vcpu.get_regs().is_ok_and(|regs| regs.rip == behind + 1);
            match reason == kvm_bindings::KVM_EXIT_SHUTDOWN && trapped {
                true => (Exit::Trap, true),
                false => (Exit::Other { reason }, true),
            }
        }
        Err(error) => {
            let failed = Note::RunFailed {
                errno: errno(error),
                exit_reason: vcpu.get_kvm_run().exit_reason,
            };
            return (failed, true);
        }
    };
    (Note::Exit(exit), ended)
}
