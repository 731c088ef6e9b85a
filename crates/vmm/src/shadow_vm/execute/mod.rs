//! Guests in long mode that execute one instruction at a time, in user mode or as supervisor.

mod emulate;
mod registers;
#[cfg(test)]
mod tests;

use slat_memslot::{Errno, PAGE_SHIFT, Vendor};
use slat_mmu::fault::Kind;
use slat_mmu::role::{Cr0, Cr4, Efer, VcpuState};
use slat_mmu::roots::Request;
use slat_mmu::shadow::ShadowRoot;
use slat_mmu::spte::Format;
use slat_mmu::walk::Privilege;

use super::ShadowVm;
use super::guest::Reached;
use crate::tdp_vm::{Ending, Step};
use crate::traces::{Control, Exit, Instruction, Predicted};

/// Where the guest has its instructions, for user mode and for the supervisor.
const USER_CODE: u64 = 0x1000;
const SUPERVISOR_CODE: u64 = 0x5000;

/// Where an instruction is, and how long: behind it comes what stops the guest.
pub(crate) fn place_of(instruction: &Instruction, privilege: Privilege) -> (u64, u64) {
    let (offset, len) = match instruction {
        Instruction::Load { .. } => (0x100, 3),
        Instruction::Store { len: 8, .. } => (0x110, 3),
        Instruction::Store { len: 4, .. } => (0x120, 2),
        Instruction::Store { len: 2, .. } => (0x130, 3),
        Instruction::Store { .. } => (0x140, 2),
        Instruction::Jump { .. } => (0x150, 2),
        Instruction::MoveToCr { number: 0, .. } => (0x160, 3),
        Instruction::MoveToCr { number: 3, .. } => (0x170, 3),
        Instruction::MoveToCr { .. } => (0x180, 3),
        Instruction::Invlpg { .. } => (0x190, 3),
        Instruction::Touch { .. } => (0x1a0, 15),
    };
    match privilege {
        Privilege::User => (USER_CODE + offset, len),
        Privilege::Supervisor | Privilege::Implicit => (SUPERVISOR_CODE + offset + 0x400, len),
    }
}

/// One access of an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) step: Step,
    pub(super) privilege: Privilege,
    /// How many bytes are read or written, and what is written.
    pub(super) data: (u8, u64),
    /// Where the instruction is, for whoever has to carry it out.
    pub(super) code: Option<u64>,
}

impl Access {
    /// The fetch of its instruction, for data: a jump is done when its target is fetched.
    pub(super) fn fetch_again(&self) -> Option<Self> {
        let step = Step {
            kind: Kind::Execute,
            address: self.code?,
        };
        let data = (1, 0);
        (self.step.kind != Kind::Execute).then_some(Self {
            step,
            data,
            ..*self
        })
    }

    /// One of supervisor mode that changes nothing.
    pub(super) const fn plain(step: Step) -> Self {
        Self {
            step,
            privilege: Privilege::Supervisor,
            data: (1, 0),
            code: None,
        }
    }
}

/// The accesses of one instruction.
struct Accesses {
    code: u64,
    behind: u64,
    privilege: Privilege,
}

impl Accesses {
    fn of(instruction: &Instruction, privilege: Privilege) -> Self {
        let (code, len) = place_of(instruction, privilege);
        Self {
            code,
            behind: code + len,
            privilege,
        }
    }

    /// The fetch of the instruction itself.
    fn fetch(&self) -> Access {
        self.of_data(Kind::Execute, self.code, (1, 0))
    }

    /// The fetch of what stands behind it.
    fn fetch_behind(&self) -> Access {
        Access {
            code: Some(self.behind),
            ..self.of_data(Kind::Execute, self.behind, (1, 0))
        }
    }

    /// What the instruction itself reads, writes or jumps to.
    fn of_data(&self, kind: Kind, address: u64, data: (u8, u64)) -> Access {
        Access {
            step: Step { kind, address },
            privilege: self.privilege,
            data,
            code: Some(self.code),
        }
    }
}

/// `KVM_EXIT_INTERNAL_ERROR`.
const INTERNAL_ERROR: u32 = 17;

/// What became of an instruction.
enum Executed {
    Done,
    /// The guest is over.
    Ended,
}

impl<F: Format> ShadowVm<F> {
    /// `KVM_SET_SREGS` with these control registers.
    pub fn set_control(&mut self, id: u32, control: &Control) {
        let changed = self.vcpus.get_mut(&id).is_some_and(|vcpu| {
            let before = vcpu.state;
            vcpu.state = registers(&before, control);
            vcpu.state != before
        });
        if changed {
            self.reset_context(id);
            self.request(id, Request::TlbFlushGuest);
        }
        self.answer(Ok(0));
    }

    /// The program writes into the memory behind a slot.
    pub fn poke(&mut self, hva: u64, value: u64) {
        self.ram.write_host(hva, (8, value));
    }

    /// `KVM_SET_NR_MMU_PAGES`.
    pub fn set_mmu_pages(&mut self, pages: u64) {
        let set = self.mmu.lock(&mut self.out).set_limit(pages);
        self.spread_requests();
        self.answer(set.map(|()| 0).map_err(|error| error.errno()));
    }

    /// `KVM_RUN` until the guest stops behind an instruction, or cannot go on.
    pub fn execute(&mut self, id: u32, instruction: &Instruction, privilege: Privilege) {
        let emulated = privilege != Privilege::User
            && self.memory.profile().vendor.get() == Vendor::Paravirtual;
        let executed = if emulated {
            self.emulate_instruction(id, instruction, privilege)
        } else {
            self.execute_natively(id, instruction, privilege)
        };
        if let Executed::Done = executed {
            let exit = match privilege {
                Privilege::User => Exit::Trap,
                Privilege::Supervisor | Privilege::Implicit => Exit::Halt,
            };
            self.tell(Predicted::Exit(exit));
        }
    }

    fn execute_natively(
        &mut self,
        id: u32,
        instruction: &Instruction,
        privilege: Privilege,
    ) -> Executed {
        let accesses = Accesses::of(instruction, privilege);
        if !self.enter_or_fail(id) {
            return Executed::Ended;
        }
        let fetch = accesses.fetch();
        // Behind the instruction is what stops the guest; a jump leads there by itself.
        let behind = match instruction {
            Instruction::Jump { .. } => None,
            _ => Some(accesses.fetch_behind()),
        };
        let access = |kind, address, data| accesses.of_data(kind, address, data);
        let (pages, other) = match *instruction {
            Instruction::MoveToCr { .. } | Instruction::Invlpg { .. } => {
                return self.intercept(id, instruction, (&fetch, behind.as_ref()));
            }
            Instruction::Load { gva } => (1, access(Kind::Read, gva, (8, 0))),
            Instruction::Store { gva, len, value } => (1, access(Kind::Write, gva, (len, value))),
            Instruction::Touch { gva, pages } => (pages, access(Kind::Write, gva, (8, 0))),
            Instruction::Jump { gva } => (1, access(Kind::Execute, gva, (1, 0))),
        };
        let others = (0..pages).map(|page| {
            let mut next = other;
            next.step.address += page << PAGE_SHIFT;
            next
        });
        for access in core::iter::once(fetch).chain(others).chain(behind) {
            let reached = self.access_shadowed(id, &access);
            if !self.goes_on(id, &access, reached) {
                return Executed::Ended;
            }
        }
        Executed::Done
    }

    /// An instruction that hardware leaves to KVM: it is fetched twice.
    fn intercept(
        &mut self,
        id: u32,
        instruction: &Instruction,
        (fetch, behind): (&Access, Option<&Access>),
    ) -> Executed {
        let reached = self.access_shadowed(id, fetch);
        if !self.goes_on(id, fetch, reached) {
            return Executed::Ended;
        }
        let reached = self.emulate_access(id, fetch);
        if !self.goes_on(id, fetch, reached) {
            return Executed::Ended;
        }
        match *instruction {
            Instruction::MoveToCr { number, value } => self.move_to_cr(id, number, value),
            Instruction::Invlpg { gva } => self.invlpg(id, gva),
            _ => {}
        }
        if !self.enter_or_fail(id) {
            return Executed::Ended;
        }
        if let Some(access) = behind {
            let reached = self.access_shadowed(id, access);
            if !self.goes_on(id, access, reached) {
                return Executed::Ended;
            }
        }
        Executed::Done
    }

    /// Says whether the guest goes on after an access.
    fn goes_on(&mut self, id: u32, access: &Access, reached: Reached) -> bool {
        match reached {
            Reached::Done => true,
            Reached::Mmio(gpa) => {
                self.tell(Predicted::Exit(Exit::Mmio {
                    gpa,
                    len: u32::from(access.data.0),
                    write: access.step.kind == Kind::Write,
                }));
                self.enter_or_fail(id)
            }
            Reached::Failed(errno) => {
                self.tell(Predicted::RunFailed { errno });
                false
            }
            Reached::ToL1(exit) => {
                self.tell(Predicted::ToldToL1(exit));
                false
            }
            // Guests of single instructions start no L2.
            Reached::L2Ends => false,
            // An exception, where user mode can have one of its own.
            Reached::NoInstruction if self.tells_user(access) => {
                self.goes_on(id, access, Reached::Shutdown)
            }
            Reached::NoInstruction => {
                let reason = INTERNAL_ERROR;
                self.tell(Predicted::Exit(Exit::Other { reason }));
                false
            }
            Reached::Shutdown => {
                self.shut_down(id);
                self.tell(Predicted::Exit(Ending::TripleFault.exit()));
                false
            }
        }
    }

    /// Whether an instruction that is not there is the guest's own matter (`x86.c:handle_emulation_failure`).
    fn tells_user(&self, access: &Access) -> bool {
        let paravirtual = self.memory.profile().vendor.get() == Vendor::Paravirtual;
        access.privilege == Privilege::User && !paravirtual
    }

    /// Nothing is left of a vCPU in SVM's control block, so that it is reset (`svm.c:shutdown_interception`).
    fn shut_down(&mut self, id: u32) {
        if self.memory.profile().vendor.get() != Vendor::Amd {
            return;
        }
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return;
        };
        let paged = vcpu.state.cr0.contains(Cr0::PG);
        vcpu.state = VcpuState {
            phys_bits: vcpu.state.phys_bits,
            ..VcpuState::default()
        };
        if paged {
            self.reset_context(id);
            self.request(id, Request::TlbFlushGuest);
        }
    }

    /// KVM carries out one instruction after the other without an entry between, unless a root is missing: one that is to be
    /// given up is there still.
    fn stay(&mut self, id: u32) -> bool {
        let vcpu = self.vcpus.get(&id);
        match vcpu.and_then(|vcpu| vcpu.roots.current(&self.mmu)) {
            Some(_) => true,
            None => self.enter_or_fail(id),
        }
    }

    fn enter_or_fail(&mut self, id: u32) -> bool {
        self.serve_requests(id);
        self.load_or_fail(id)
    }

    /// Sees to a root. A paravirtual backend cannot run a guest whose table is in no slot: it shuts down.
    fn load_or_fail(&mut self, id: u32) -> bool {
        if !self.load_root(id) {
            let errno = Errno::ENOSPC;
            self.tell(Predicted::RunFailed { errno });
            return false;
        }
        let paravirtual = self.memory.profile().vendor.get() == Vendor::Paravirtual;
        if paravirtual && self.root_of(id) == ShadowRoot::Dummy {
            self.tell(Predicted::Exit(Ending::TripleFault.exit()));
            return false;
        }
        true
    }
}

/// A vCPU's state with other control registers.
fn registers(before: &VcpuState, control: &Control) -> VcpuState {
    VcpuState {
        cr0: Cr0::from_bits_retain(control.cr0),
        cr3: control.cr3,
        cr4: Cr4::from_bits_retain(control.cr4),
        efer: Efer::from_bits_retain(control.efer),
        ..*before
    }
}
