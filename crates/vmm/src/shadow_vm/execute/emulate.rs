//! Instructions that KVM carries out itself, going past all shadow pages.

use slat_memslot::{AsId, Gpa, Gva};
use slat_mmu::fault::Kind;
use slat_mmu::shadow::{EmulatedWrite, EntryWritten, MarkedTrail};
use slat_mmu::spte::Format;
use slat_mmu::walk::{ErrorCode, Privilege, TableMemory, Unnested, WalkFault};

use super::{Access, Accesses, Executed};
use crate::shadow_vm::ShadowVm;
use crate::shadow_vm::guest::Reached;
use crate::shadow_vm::paged::marked;
use crate::tdp_vm::Step;
use crate::traces::Instruction;

impl<F: Format> ShadowVm<F> {
    /// An instruction that KVM carries out, and the halt behind it.
    pub(super) fn emulate_instruction(
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
        let fetched = self.emulate_access(id, &fetch);
        if !self.goes_on(id, &fetch, fetched) {
            return Executed::Ended;
        }
        let done = match *instruction {
            Instruction::Load { gva } => {
                let load = accesses.of_data(Kind::Read, gva, (8, 0));
                let reached = self.emulate_access(id, &load);
                self.goes_on(id, &load, reached)
            }
            Instruction::Store { gva, len, value } => {
                let store = accesses.of_data(Kind::Write, gva, (len, value));
                let reached = self.emulate_access(id, &store);
                self.goes_on(id, &store, reached)
            }
            // The emulator is never given these.
            Instruction::Jump { .. } | Instruction::Touch { .. } => false,
            Instruction::MoveToCr { number, value } => {
                self.move_to_cr(id, number, value);
                true
            }
            Instruction::Invlpg { gva } => {
                self.invlpg(id, gva);
                true
            }
        };
        if !done || !self.stay(id) {
            return Executed::Ended;
        }
        let halt = accesses.fetch_behind();
        let fetched = self.emulate_access(id, &halt);
        match self.goes_on(id, &halt, fetched) {
            true => Executed::Done,
            false => Executed::Ended,
        }
    }

    /// Walks the guest's tables as the emulator does, which leaves marks; an error if the guest gets a fault.
    fn emulated_walk(&mut self, id: u32, access: &Access) -> Result<Gpa, ()> {
        let Some(vcpu) = self.vcpus.get(&id) else {
            return Err(());
        };
        let paging = self.paging_of(vcpu);
        let as_id = vcpu.roots.mmu.role().as_id();
        let tables = self.ram.view(&self.memory, as_id);
        let mut trail = MarkedTrail::default();
        let (address, wanted) = (
            Gva::new(access.step.address),
            ErrorCode::of(access.step.kind, access.privilege),
        );
        let found = paging.walk(&tables, &mut Unnested, &mut trail, address, wanted);
        self.tell_marks(id, as_id, &trail);
        found.map(|found| found.gpa).map_err(|fault| {
            self.inject(id, &fault);
        })
    }

    /// What KVM traces of marks in the guest's tables, and what the log says.
    pub(in crate::shadow_vm) fn tell_marks(&mut self, id: u32, as_id: AsId, trail: &MarkedTrail) {
        for mark in trail.marks() {
            self.out.events.extend(marked(mark));
            if mark.written {
                let _ = self.memory.mark_dirty(id, as_id, mark.place.gfn());
            }
        }
    }

    /// The guest gets a page fault: what a shadow page still has for the address is looked at again
    /// (`mmu.c:kvm_inject_emulated_page_fault`).
    pub(in crate::shadow_vm) fn inject(&mut self, id: u32, fault: &WalkFault) {
        let Some(fault) = fault.page_fault() else {
            return;
        };
        if fault.code.contains(ErrorCode::PRESENT) && !fault.code.contains(ErrorCode::RSVD) {
            self.invalidate(id, fault.address.raw(), false);
        }
    }

    /// An access of the emulator, which goes past all shadow pages.
    pub(in crate::shadow_vm) fn emulate_access(&mut self, id: u32, access: &Access) -> Reached {
        if let Some(gpa) = self.remembered_mmio(id, access) {
            return Reached::Mmio(gpa);
        }
        let Ok(gpa) = self.emulated_walk(id, access) else {
            return Reached::Shutdown;
        };
        let as_id = self.space_of(id);
        let Some(slot) = self.memory.space(as_id).by_gfn(gpa.gfn()) else {
            return match access.step.kind {
                // Where there is no memory there is no instruction.
                Kind::Execute => Reached::NoInstruction,
                Kind::Read | Kind::Write => Reached::Mmio(gpa),
            };
        };
        if access.step.kind != Kind::Write {
            return Reached::Done;
        }
        if slot.is_readonly() {
            return Reached::Mmio(gpa);
        }
        self.write_emulated(id, as_id, gpa, access.data);
        Reached::Done
    }

    /// Where the emulator goes without a walk: to where the vCPU has met MMIO before (`x86.c:vcpu_mmio_gva_to_gpa`). It fetches
    /// without looking there.
    fn remembered_mmio(&self, id: u32, access: &Access) -> Option<Gpa> {
        if access.step.kind == Kind::Execute {
            return None;
        }
        let vcpu = self.vcpus.get(&id)?;
        let generation = self.memory.space(self.space_of(id)).generation();
        let address = Gpa::new(access.step.address);
        let met = vcpu.mmio.at(address.gfn(), generation)?;
        let wanted = ErrorCode::of(access.step.kind, access.privilege);
        let allowed = self.paging_of(vcpu).allows(wanted, met.access, 0);
        allowed.then(|| Gpa::new(met.gfn.gpa().raw() | address.raw() & 0xfff))
    }

    /// The emulator writes, and whoever follows tables there sees it (`x86.c:emulator_write_phys`).
    fn write_emulated(&mut self, id: u32, as_id: AsId, gpa: Gpa, data: (u8, u64)) {
        self.write_memory(as_id, gpa, data);
        let _ = self.memory.mark_dirty(id, as_id, gpa.gfn());
        let tables = self.ram.view(&self.memory, as_id);
        // Half of an entry is told as the whole of it, and other sizes as no entry at all.
        let (gpa, len) = match data.0 {
            4 => (Gpa::new(gpa.raw() & !7), 8),
            len => (gpa, len),
        };
        let present = match tables.read_u64(Gpa::new(gpa.raw() & !7)) {
            Some(entry) if len == 8 && entry != 0 => EntryWritten::NotZero,
            _ => EntryWritten::Zero,
        };
        let write = EmulatedWrite { gpa, len, present };
        self.mmu.lock(&mut self.out).track_write(&write);
        self.spread_requests();
    }

    /// KVM carries out an instruction whose access has faulted. It fetches it by the guest's tables as they are now, which shadow
    /// pages that are out of step may not follow; where no memory is there, an access to MMIO fails. A write to a watched table
    /// would be tried again without shadow pages of it (`x86.c:kvm_unprotect_and_retry_on_failure`), which no run has come to.
    pub(in crate::shadow_vm) fn emulate_fault(&mut self, id: u32, access: &Access) -> Reached {
        if let Some(code) = access.code.filter(|_| access.step.kind != Kind::Execute) {
            let step = Step {
                kind: Kind::Execute,
                address: code,
            };
            let fetch = Access { step, ..*access };
            let Ok(code) = self.emulated_walk(id, &fetch) else {
                return Reached::Shutdown;
            };
            let space = self.memory.space(self.space_of(id));
            if space.by_gfn(code.gfn()).is_none() && self.remembered_mmio(id, access).is_some() {
                return Reached::NoInstruction;
            }
        }
        self.emulate_access(id, access)
    }

    pub(in crate::shadow_vm) fn space_of(&self, id: u32) -> AsId {
        let vcpu = self.vcpus.get(&id);
        vcpu.map_or(AsId::NORMAL, |vcpu| vcpu.roots.mmu.role().as_id())
    }

    /// The memory itself.
    pub(in crate::shadow_vm) fn write_memory(&mut self, as_id: AsId, gpa: Gpa, data: (u8, u64)) {
        let slot = self.memory.space(as_id).by_gfn(gpa.gfn());
        if let Some(hva) = slot.and_then(|slot| slot.hva_of(gpa.gfn())) {
            self.ram.write_host(hva.raw() | gpa.raw() & 0xfff, data);
        }
    }
}
