//! What a guest does, access by access.

use slat_memslot::{Errno, Gpa, PageSize, Vendor};
use slat_mmu::fault::{Env, Fault, Kind, NotTracked, Outcome, Present};
use slat_mmu::role::{VcpuMode, VcpuState};
use slat_mmu::shadow::ShadowRoot;
use slat_mmu::spte::{Access as Rights, Format, Mmio, Spte};
use slat_mmu::tdp::HardwareAccess;
use slat_mmu::walk::second::{FaultPlace, SecondExit};

use super::ShadowVm;
use super::execute::Access;
use crate::paged_vm::fault::{MetMmio, reported_kind};
use crate::tdp_vm::{Activity, Ending, Step};
use crate::traces::{Exit, Predicted};

/// What an access came to.
pub(super) enum Reached {
    Done,
    /// Userspace has to do it, at this address.
    Mmio(Gpa),
    /// The run fails.
    Failed(Errno),
    /// KVM has to carry out an instruction that is not there.
    NoInstruction,
    /// The guest gets a fault that it cannot handle, nor what comes of that.
    Shutdown,
    /// L2 is left for L1, which is told why.
    ToL1(SecondExit),
    /// The same for another reason than L1's tables: L2 halts, or shuts down.
    L2Ends,
}

/// Why a guest does not run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// What came of it has been told.
    Stopped,
    /// L2 is left for L1, which is told why.
    ToL1(SecondExit),
    /// The same for another reason than L1's tables.
    L2Ends,
}

/// How often an access is tried: an emulated guest would go on for ever.
const ATTEMPTS: u32 = 64;

impl<F: Format> ShadowVm<F> {
    /// `KVM_RUN` until the guest halts; accesses that userspace has to do are done.
    pub fn run_guest(&mut self, vcpu: u32, activity: &Activity) {
        self.written = activity.written;
        if let Some(mode) = activity.mode_first {
            self.serve_requests(vcpu);
            self.switch_mode(vcpu, mode);
        }
        let ran = match self.run(vcpu, activity) {
            Err(Left::ToL1(exit)) => {
                self.tell(Predicted::ToldToL1(exit));
                self.run_on_l1(vcpu, activity)
            }
            Err(Left::L2Ends) => self.run_on_l1(vcpu, activity),
            Ok(()) if activity.back_in_l1 => self.run_on_l1(vcpu, activity),
            other => other,
        };
        if ran.is_ok() {
            self.tell(Predicted::Exit(activity.ending.exit()));
        }
    }

    fn run(&mut self, vcpu: u32, activity: &Activity) -> Result<(), Left> {
        self.enter(vcpu)?;
        self.steps(vcpu, &activity.steps)?;
        if let Some(mode) = activity.mode_then {
            match &activity.l2_tables {
                Some(tables) if !self.start_l2(vcpu, tables) => return Err(Left::Stopped),
                Some(_) => {}
                None => self.switch_mode(vcpu, mode),
            }
            self.enter(vcpu)?;
        }
        self.steps(vcpu, &activity.steps_then)?;
        match activity.steps_then.last().filter(|_| activity.memory_runs) {
            Some(last) => {
                let reached = self.run_memory_of_l2(vcpu, Gpa::new(last.address));
                self.go_on(vcpu, Kind::Read, reached)
            }
            None => Ok(()),
        }
    }

    /// L1 goes on behind the instruction that started L2.
    fn run_on_l1(&mut self, vcpu: u32, activity: &Activity) -> Result<(), Left> {
        self.switch_mode(vcpu, VcpuMode::Normal);
        self.enter(vcpu)?;
        self.steps(vcpu, &activity.steps_of_l1)
    }

    fn enter(&mut self, vcpu: u32) -> Result<(), Left> {
        self.serve_requests(vcpu);
        match self.load_root(vcpu) {
            true => Ok(()),
            false => Err(Left::Stopped),
        }
    }

    fn steps(&mut self, vcpu: u32, steps: &[Step]) -> Result<(), Left> {
        steps.iter().try_for_each(|step| self.step(vcpu, *step))
    }

    /// One access with the guest's own walk before it, which hardware makes.
    fn step(&mut self, id: u32, step: Step) -> Result<(), Left> {
        let Some(vcpu) = self.vcpus.get(&id) else {
            return Err(Left::Stopped);
        };
        if self.is_emulated(&vcpu.state) {
            return self.emulate(id, step);
        }
        if vcpu.runs_on_l1_tables() {
            let gpa = Gpa::new(step.address);
            if step.kind == Kind::Execute {
                self.instruction = Some(gpa);
            }
            let reached = self.access_l2(id, step.kind, gpa);
            return self.go_on(id, step.kind, reached);
        }
        if !vcpu.roots.mmu.role().is_direct() {
            let reached = self.access_shadowed(id, &Access::plain(step));
            return self.go_on(id, step.kind, reached);
        }
        let (walk, target) = (
            vcpu.paging.walk(step.address),
            vcpu.paging.translate(step.address),
        );
        // Hardware reads the guest's tables as if it wrote them, where it keeps accessed and dirty bits.
        let kind = match self.mmu.codec().host().ad_enabled() {
            true => Kind::Write,
            false => Kind::Read,
        };
        for entry in walk {
            let reached = self.access(id, kind, (entry, FaultPlace::Table));
            self.go_on(id, kind, reached)?;
        }
        let reached = self.access(id, step.kind, (target, FaultPlace::Final));
        self.go_on(id, step.kind, reached)
    }

    /// Whether KVM carries out the guest's instructions itself: an Intel CPU runs real mode, in which SMM begins, only on a
    /// second stage (`vmx.c:vmx_emulation_required`).
    fn is_emulated(&self, state: &VcpuState) -> bool {
        let intel = self.memory.profile().vendor.get() == Vendor::Intel;
        intel && self.tdp.is_none() && state.mode == VcpuMode::Smm
    }

    /// One access of an emulated instruction, which goes past all page tables.
    fn emulate(&mut self, id: u32, step: Step) -> Result<(), Left> {
        let Some(vcpu) = self.vcpus.get(&id) else {
            return Err(Left::Stopped);
        };
        let (as_id, gpa) = (vcpu.roots.mmu.role().as_id(), Gpa::new(step.address));
        if self.memory.space(as_id).by_gfn(gpa.gfn()).is_none() {
            let write = step.kind == Kind::Write;
            self.tell(Predicted::Exit(Exit::Mmio { gpa, len: 1, write }));
            return self.enter(id);
        }
        if step.kind == Kind::Write {
            let _ = self.memory.mark_dirty(id, as_id, gpa.gfn());
        }
        Ok(())
    }

    /// Whether the guest goes on after an access.
    fn go_on(&mut self, id: u32, kind: Kind, reached: Reached) -> Result<(), Left> {
        match reached {
            Reached::Done => Ok(()),
            Reached::ToL1(exit) => Err(Left::ToL1(exit)),
            Reached::L2Ends => Err(Left::L2Ends),
            Reached::Mmio(gpa) => {
                self.tell(Predicted::Exit(Exit::Mmio {
                    gpa,
                    len: 1,
                    write: kind == Kind::Write,
                }));
                // Userspace answers, and the guest is entered again.
                self.enter(id)
            }
            Reached::Failed(errno) => {
                self.tell(Predicted::RunFailed { errno });
                Err(Left::Stopped)
            }
            Reached::NoInstruction | Reached::Shutdown => {
                self.tell(Predicted::Exit(Ending::TripleFault.exit()));
                Err(Left::Stopped)
            }
        }
    }

    /// Tries an access until it is done or cannot be.
    fn access(&mut self, id: u32, kind: Kind, (gpa, place): (Gpa, FaultPlace)) -> Reached {
        for _ in 0..ATTEMPTS {
            self.serve_requests(id);
            if !self.load_root(id) {
                return Reached::Failed(Errno::ENOSPC);
            }
            let present = match self.hardware(id, kind, gpa) {
                HardwareAccess::Done { became_dirty } => {
                    self.log_modified(id, gpa, became_dirty);
                    if (kind, place) == (Kind::Write, FaultPlace::Final) {
                        self.store(id, gpa);
                    }
                    return Reached::Done;
                }
                HardwareAccess::Mmio { spte, mmio } => {
                    if self.is_known_mmio(id, gpa, spte, &mmio) {
                        return Reached::Mmio(gpa);
                    }
                    Present::Reserved
                }
                HardwareAccess::NotPresent => Present::No,
                HardwareAccess::NotAllowed => Present::Yes,
            };
            match self.fault(id, (kind, present), gpa) {
                Outcome::Retry | Outcome::Fixed | Outcome::Spurious => {}
                Outcome::Emulate => return Reached::Mmio(gpa),
                Outcome::WriteProtected => {
                    if self.write_watched(id, gpa, place) {
                        return Reached::Done;
                    }
                }
                Outcome::MemoryFault | Outcome::BadPage => return Reached::Failed(Errno::EFAULT),
                Outcome::Interrupted => return Reached::Failed(Errno::EINTR),
                Outcome::OutOfTables => return Reached::Failed(Errno::ENOSPC),
            }
        }
        Reached::Failed(Errno::EINTR)
    }

    fn hardware(&mut self, id: u32, kind: Kind, gpa: Gpa) -> HardwareAccess<F> {
        let access = match kind {
            Kind::Read => Rights::USER,
            Kind::Write => Rights::USER | Rights::WRITE,
            Kind::Execute => Rights::EXECUTE,
        };
        let root = self
            .vcpus
            .get(&id)
            .and_then(|vcpu| vcpu.roots.current(&self.mmu));
        let root = root.unwrap_or(ShadowRoot::Dummy);
        self.mmu.hardware_access(root, gpa.raw(), access)
    }

    /// The log of modified pages: KVM empties it at every exit (`vmx.c:vmx_flush_pml_buffer`).
    fn log_modified(&mut self, id: u32, gpa: Gpa, became_dirty: bool) {
        if became_dirty && self.mmu.codec().host().pml() {
            if let Some(vcpu) = self.vcpus.get(&id) {
                let as_id = vcpu.roots.mmu.role().as_id();
                let _ = self.memory.mark_dirty(id, as_id, gpa.gfn());
            }
        }
    }

    /// Whether an MMIO entry still holds, and the access goes to userspace.
    pub(super) fn is_known_mmio(&mut self, id: u32, gpa: Gpa, spte: Spte<F>, mmio: &Mmio) -> bool {
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return false;
        };
        let met = MetMmio {
            spte,
            mmio: *mmio,
            as_id: vcpu.roots.mmu.role().as_id(),
            gfn: gpa.gfn(),
        };
        let codec = self.mmu.codec();
        met.is_known(&self.memory, codec, &mut vcpu.mmio, &mut self.out)
    }

    fn fault(&mut self, id: u32, (kind, present): (Kind, Present), gpa: Gpa) -> Outcome {
        let settings = self.settings();
        let fault = Fault {
            kind: reported_kind(self.mmu.codec().host(), kind, present),
            present,
            ..Fault::new(gpa.gfn(), kind)
        };
        // A guest without paging gets no larger pages from shadow tables.
        let most = match self.tdp {
            Some(_) => PageSize::Size1G,
            None => PageSize::Size2M,
        };
        (self.out.vcpu, self.out.address) = (id, gpa.raw());
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return Outcome::BadPage;
        };
        let mut env = Env {
            memory: &self.memory,
            backing: &mut self.host,
            invalidation: &self.invalidation,
            settings,
            mmio: &mut vcpu.mmio,
            shadow: NotTracked,
        };
        let out = &mut self.out;
        let handled = self
            .mmu
            .direct_page_fault(&vcpu.roots, &fault, most, &mut env, out);
        if let Some((slot, gfn)) = handled.mark_dirty {
            let _ = self.memory.mark_dirty(id, slot.as_id, gfn);
        }
        while let Some(moved) = self.host.take_moved() {
            self.unmap_hva(moved);
        }
        self.spread_requests();
        handled.outcome
    }
}
