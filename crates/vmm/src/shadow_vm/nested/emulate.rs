//! Instructions of L2's that KVM carries out itself, through L1's tables of that moment.

use slat_memslot::Gpa;
use slat_mmu::fault::Kind;
use slat_mmu::shadow::TdpBeside;
use slat_mmu::spte::Format;
use slat_mmu::tdp::Observer;
use slat_mmu::walk::second::{FaultPlace, SecondExit};
use slat_mmu::walk::{ErrorCode, Privilege, TableMemory, WalkFault};

use super::L2Access;
use crate::shadow_vm::log::mark_dirtied;
use crate::traces::Predicted;

/// What an access that KVM carries out itself comes to.
pub(crate) enum EmulatedAccess {
    Read,
    Write,
    /// There is no memory for it: `KVM_EXIT_MMIO`.
    Userspace,
}

/// What memory has where L2 executes it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Halt,
    /// `add [eax], al`, with nothing in EAX.
    Zeros,
}

/// The instruction that halts.
const HALT: u8 = 0xf4;

impl<F: Format, O: Observer<F> + Extend<Predicted>, T: TdpBeside<F>> L2Access<'_, F, O, T> {
    /// KVM carries out an instruction of L2's for an access that has faulted: it fetches the instruction and walks for the
    /// address once more, through tables that L1 or the host may have changed since hardware saw them
    /// (`x86.c:x86_emulate_instruction`). Processors that hand over the instruction's bytes (SVM's decode assists) save KVM
    /// the fetch; the emulated machine's does not.
    ///
    /// # Errors
    /// L1's tables do not allow it any more: what L1 is told.
    pub(crate) fn emulate(
        &mut self,
        instruction: Option<Gpa>,
        (kind, gpa): (Kind, Gpa),
        place: FaultPlace,
    ) -> Result<Gpa, SecondExit> {
        if let (Some(instruction), Kind::Read | Kind::Write) = (instruction, kind) {
            self.emulated_walk(Kind::Execute, instruction, place)?;
        }
        self.emulated_walk(kind, gpa, place)
    }

    /// KVM carries out what memory has at an address of L2's: where no memory is there, L2 gets an exception, for which it has
    /// no handler, and shuts down (`x86.c:handle_emulation_failure`).
    ///
    /// # Errors
    /// L1's tables do not allow it: what L1 is told.
    pub(crate) fn emulate_code(&mut self, gpa: Gpa, place: FaultPlace) -> Result<(), SecondExit> {
        let gpa = self.emulated_walk(Kind::Execute, gpa, place)?;
        if self.code_at(gpa) == Some(Code::Zeros) {
            // What is read is to be written, says the error code (`emulate.c:x86_emulate_insn`).
            let read = self.emulated_walk(Kind::Read, Gpa::new(0), place);
            read.map_err(|exit| match exit {
                SecondExit::NestedPageFault(code) => {
                    SecondExit::NestedPageFault(code | ErrorCode::WRITE)
                }
                other => other,
            })?;
        }
        Ok(())
    }

    /// What memory has at an address of L1's, if anything: a halt, or nothing that anybody wrote.
    pub(crate) fn code_at(&self, gpa: Gpa) -> Option<Code> {
        let tables = self.ram.view(self.memory, self.l2.roots.mmu.role().as_id());
        let word = tables.read_u64(Gpa::new(gpa.raw() & !7))?;
        let [byte, ..] = (word >> ((gpa.raw() & 7) * 8)).to_le_bytes();
        Some(match byte {
            HALT => Code::Halt,
            _ => Code::Zeros,
        })
    }

    /// What an access of KVM's own, at an address of L1's, comes to.
    pub(crate) fn emulated_access(&self, kind: Kind, gpa: Gpa) -> EmulatedAccess {
        let space = self.memory.space(self.l2.roots.mmu.role().as_id());
        match (space.by_gfn(gpa.gfn()), kind) {
            (None, _) => EmulatedAccess::Userspace,
            (Some(slot), Kind::Write) if slot.is_readonly() => EmulatedAccess::Userspace,
            (Some(_), Kind::Write) => EmulatedAccess::Write,
            (Some(_), Kind::Read | Kind::Execute) => EmulatedAccess::Read,
        }
    }

    fn emulated_walk(
        &mut self,
        kind: Kind,
        gpa: Gpa,
        place: FaultPlace,
    ) -> Result<Gpa, SecondExit> {
        let wanted = ErrorCode::of(kind, Privilege::User);
        let walked = self.walk(wanted, gpa);
        walked.map(|(_, found)| found.gpa).map_err(|fault| {
            self.forget(&fault);
            self.told_to_l1(&fault, wanted, place)
        })
    }

    /// A fault that KVM itself has found: what shadow pages still have for the address is looked at again
    /// (`x86.c:__kvm_inject_emulated_page_fault`).
    fn forget(&mut self, fault: &WalkFault) {
        let stale =
            |code: ErrorCode| code.contains(ErrorCode::PRESENT) && !code.contains(ErrorCode::RSVD);
        let Some(fault) = fault.page_fault().filter(|fault| stale(fault.code)) else {
            return;
        };
        let Some(root) = self.l2.roots.current(self.mmu) else {
            return;
        };
        let role = self.l2.roots.mmu.role();
        let tables = self.ram.view(self.memory, role.as_id());
        let guest = tables.followed(&self.l2.paging, self.settings, role);
        let mut locked = self.mmu.lock_beside(&mut *self.out, &mut self.tdp);
        locked.invalidate_address(root, fault.address.raw(), &guest);
        let dirtied = locked.take_dirtied();
        mark_dirtied(self.memory, self.vcpu, dirtied);
    }
}
