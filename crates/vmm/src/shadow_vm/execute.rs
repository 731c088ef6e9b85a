//! Guests in long mode that execute one instruction at a time, in user mode or as supervisor.

use slat_memslot::{AsId, Errno, Gpa, Gva, PAGE_SHIFT, Vendor};
use slat_mmu::fault::Kind;
use slat_mmu::role::{Cr0, Cr4, Efer, VcpuState};
use slat_mmu::roots::{FlushOnReuse, Pgd, Request};
use slat_mmu::shadow::{EmulatedWrite, EntryWritten, MarkedTrail, ShadowRoot, Shadowed};
use slat_mmu::spte::Format;
use slat_mmu::walk::{ErrorCode, Privilege, TableMemory, Unnested, WalkFault};

use super::ShadowVm;
use super::guest::Reached;
use super::paged::marked;
use super::ram::RamView;
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
        let (code, len) = place_of(instruction, privilege);
        if !self.enter_or_fail(id) {
            return Executed::Ended;
        }
        let access = |kind, address, data| Access {
            step: Step { kind, address },
            privilege,
            data,
            code: Some(code),
        };
        let fetch = access(Kind::Execute, code, (1, 0));
        // Behind the instruction is what stops the guest; a jump leads there by itself.
        let behind = match instruction {
            Instruction::Jump { .. } => None,
            _ => Some(Access {
                code: Some(code + len),
                ..access(Kind::Execute, code + len, (1, 0))
            }),
        };
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

    // --- What KVM carries out itself ---------------------------------------------------------------------------------

    /// An instruction that KVM carries out, and the halt behind it.
    fn emulate_instruction(
        &mut self,
        id: u32,
        instruction: &Instruction,
        privilege: Privilege,
    ) -> Executed {
        let (code, len) = place_of(instruction, privilege);
        if !self.enter_or_fail(id) {
            return Executed::Ended;
        }
        let access = |kind, address, data| Access {
            step: Step { kind, address },
            privilege,
            data,
            code: Some(code),
        };
        let fetch = |code| access(Kind::Execute, code, (1, 0));
        let fetched = self.emulate_access(id, &fetch(code));
        if !self.goes_on(id, &fetch(code), fetched) {
            return Executed::Ended;
        }
        let done = match *instruction {
            Instruction::Load { gva } => {
                let load = access(Kind::Read, gva, (8, 0));
                let reached = self.emulate_access(id, &load);
                self.goes_on(id, &load, reached)
            }
            Instruction::Store { gva, len, value } => {
                let store = access(Kind::Write, gva, (len, value));
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
        let halt = fetch(code + len);
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
        let tables = RamView {
            ram: &self.ram,
            memory: &self.memory,
            as_id,
        };
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
    pub(super) fn tell_marks(&mut self, id: u32, as_id: AsId, trail: &MarkedTrail) {
        for mark in trail.marks() {
            self.out.events.extend(marked(mark));
            if mark.written {
                let _ = self.memory.mark_dirty(id, as_id, mark.place.gfn());
            }
        }
    }

    /// The guest gets a page fault: what a shadow page still has for the address is looked at again
    /// (`mmu.c:kvm_inject_emulated_page_fault`).
    pub(super) fn inject(&mut self, id: u32, fault: &WalkFault) {
        let Some(fault) = fault.page_fault() else {
            return;
        };
        if fault.code.contains(ErrorCode::PRESENT) && !fault.code.contains(ErrorCode::RSVD) {
            self.invalidate(id, fault.address.raw(), false);
        }
    }

    /// An access of the emulator, which goes past all shadow pages.
    pub(super) fn emulate_access(&mut self, id: u32, access: &Access) -> Reached {
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
        let tables = RamView {
            ram: &self.ram,
            memory: &self.memory,
            as_id,
        };
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

    /// KVM carries out an instruction whose access has faulted.
    pub(super) fn emulate_fault(&mut self, id: u32, access: &Access) -> Reached {
        if let Some(code) = access.code.filter(|_| access.step.kind != Kind::Execute) {
            let step = Step {
                kind: Kind::Execute,
                address: code,
            };
            let fetch = Access { step, ..*access };
            if self.emulated_walk(id, &fetch).is_err() {
                return Reached::Shutdown;
            }
        }
        self.emulate_access(id, access)
    }

    pub(super) fn space_of(&self, id: u32) -> AsId {
        let vcpu = self.vcpus.get(&id);
        vcpu.map_or(AsId::NORMAL, |vcpu| vcpu.roots.mmu.role().as_id())
    }

    /// The memory itself.
    pub(super) fn write_memory(&mut self, as_id: AsId, gpa: Gpa, data: (u8, u64)) {
        let slot = self.memory.space(as_id).by_gfn(gpa.gfn());
        if let Some(hva) = slot.and_then(|slot| slot.hva_of(gpa.gfn())) {
            self.ram.write_host(hva.raw() | gpa.raw() & 0xfff, data);
        }
    }

    /// `mov` to CR0, CR3 or CR4.
    fn move_to_cr(&mut self, id: u32, number: u8, value: u64) {
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return;
        };
        let before = vcpu.state;
        match number {
            0 => vcpu.state.cr0 = Cr0::from_bits_retain(value),
            3 => vcpu.state.cr3 = value,
            _ => vcpu.state.cr4 = Cr4::from_bits_retain(value),
        }
        let state = vcpu.state;
        if state.cr3 != before.cr3 {
            let pgd = Pgd::new(state.cr3);
            let mut locked = self.mmu.lock(&mut self.out);
            let reused = locked.new_pgd(&mut vcpu.roots, pgd, FlushOnReuse::Off);
            if reused {
                vcpu.mmio.clear();
            }
        }
        if number == 3 {
            self.request(id, Request::MmuSync);
        }
        let roles0 = Cr0::PG | Cr0::WP;
        let roles4 = Cr4::PSE | Cr4::PAE | Cr4::LA57 | Cr4::SMEP | Cr4::SMAP | Cr4::PKE;
        if (state.cr0 ^ before.cr0).intersects(roles0)
            || (state.cr4 ^ before.cr4).intersects(roles4)
        {
            self.reset_context(id);
        }
        if (state.cr4 ^ before.cr4).contains(Cr4::PGE) {
            self.request(id, Request::TlbFlushGuest);
        }
    }

    /// `invlpg` (`mmu.c:kvm_mmu_invlpg`).
    fn invlpg(&mut self, id: u32, address: u64) {
        self.invalidate(id, address, true);
    }

    /// Looks again at what shadow pages have for an address, below the root in use and, for the guest's own `invlpg`, below
    /// earlier ones.
    fn invalidate(&mut self, id: u32, address: u64, previous: bool) {
        let settings = self.settings();
        let Some(vcpu) = self.vcpus.get(&id) else {
            return;
        };
        let (paging, role) = (self.paging_of(vcpu), vcpu.roots.mmu.role());
        if role.is_direct() {
            return;
        }
        let mut roots: Vec<_> = vcpu.roots.current(&self.mmu).into_iter().collect();
        if previous {
            roots.extend(vcpu.roots.previous(&self.mmu));
        }
        let tables = RamView {
            ram: &self.ram,
            memory: &self.memory,
            as_id: role.as_id(),
        };
        let guest = Shadowed {
            paging: &paging,
            tables: &tables,
            memory: &self.memory,
            settings,
            role,
        };
        let mut locked = self.mmu.lock(&mut self.out);
        for root in roots {
            locked.invalidate_address(root, address, &guest);
        }
        let dirtied = locked.take_dirtied();
        for (as_id, gfn) in dirtied {
            let _ = self.memory.mark_dirty(id, as_id, gfn);
        }
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            vcpu.mmio.clear_at(Gpa::new(address).gfn());
        }
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
