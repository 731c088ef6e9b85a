//! What a guest does, access by access.

use slat_memslot::{Errno, Gpa, PageSize, Vendor};
use slat_mmu::fault::{Env, Fault, Kind, Outcome, Present};
use slat_mmu::role::{VcpuMode, VcpuState};
use slat_mmu::shadow::ShadowRoot;
use slat_mmu::spte::{Access as Rights, Format, Mmio, Spte};
use slat_mmu::tdp::HardwareAccess;

use super::ShadowVm;
use super::execute::Access;
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
}

/// How often an access is tried: an emulated guest would go on for ever.
const ATTEMPTS: u32 = 64;

impl<F: Format> ShadowVm<F> {
    /// `KVM_RUN` until the guest halts; accesses that userspace has to do are done.
    pub fn run_guest(&mut self, vcpu: u32, activity: &Activity) {
        if let Some(mode) = activity.mode_first {
            self.serve_requests(vcpu);
            self.switch_mode(vcpu, mode);
        }
        let mut well = self.enter(vcpu) && self.steps(vcpu, &activity.steps);
        if let (true, Some(mode)) = (well, activity.mode_then) {
            well = match &activity.l2_tables {
                Some(tables) => self.start_l2(vcpu, tables),
                None => {
                    self.switch_mode(vcpu, mode);
                    true
                }
            };
            well = well && self.enter(vcpu);
        }
        if well && self.steps(vcpu, &activity.steps_then) {
            self.tell(Predicted::Exit(activity.ending.exit()));
        }
    }

    fn enter(&mut self, vcpu: u32) -> bool {
        self.serve_requests(vcpu);
        self.load_root(vcpu)
    }

    fn steps(&mut self, vcpu: u32, steps: &[Step]) -> bool {
        steps.iter().all(|step| self.step(vcpu, *step))
    }

    /// One access with the guest's own walk before it, which hardware makes. Says whether the guest goes on.
    fn step(&mut self, id: u32, step: Step) -> bool {
        let Some(vcpu) = self.vcpus.get(&id) else {
            return false;
        };
        if self.is_emulated(&vcpu.state) {
            return self.emulate(id, step);
        }
        if vcpu.runs_on_l1_tables() {
            let reached = self.access_l2(id, step.kind, Gpa::new(step.address));
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
        walk.into_iter().all(|entry| self.reach(id, kind, entry))
            && self.reach(id, step.kind, target)
    }

    /// Whether KVM carries out the guest's instructions itself: an Intel CPU runs real mode, in which SMM begins, only on a
    /// second stage (`vmx.c:vmx_emulation_required`).
    fn is_emulated(&self, state: &VcpuState) -> bool {
        let intel = self.memory.profile().vendor.get() == Vendor::Intel;
        intel && self.tdp.is_none() && state.mode == VcpuMode::Smm
    }

    /// One access of an emulated instruction, which goes past all page tables.
    fn emulate(&mut self, id: u32, step: Step) -> bool {
        let Some(vcpu) = self.vcpus.get(&id) else {
            return false;
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
        true
    }

    fn reach(&mut self, id: u32, kind: Kind, gpa: Gpa) -> bool {
        let reached = self.access(id, kind, gpa);
        self.go_on(id, kind, reached)
    }

    /// Says whether the guest goes on after an access.
    fn go_on(&mut self, id: u32, kind: Kind, reached: Reached) -> bool {
        match reached {
            Reached::Done => true,
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
                false
            }
            Reached::NoInstruction | Reached::Shutdown => {
                self.tell(Predicted::Exit(Ending::TripleFault.exit()));
                false
            }
        }
    }

    /// Tries an access until it is done or cannot be.
    fn access(&mut self, id: u32, kind: Kind, gpa: Gpa) -> Reached {
        for _ in 0..ATTEMPTS {
            self.serve_requests(id);
            if !self.load_root(id) {
                return Reached::Failed(Errno::ENOSPC);
            }
            let present = match self.hardware(id, kind, gpa) {
                HardwareAccess::Done { became_dirty } => {
                    self.log_modified(id, gpa, became_dirty);
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
                Outcome::Emulate | Outcome::WriteProtected => return Reached::Mmio(gpa),
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

    /// Whether an MMIO entry still holds, and the access goes to userspace (`mmu.c:handle_mmio_page_fault`).
    pub(super) fn is_known_mmio(&mut self, id: u32, gpa: Gpa, spte: Spte<F>, mmio: &Mmio) -> bool {
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return false;
        };
        let as_id = vcpu.roots.mmu.role().as_id();
        let generation = self.memory.space(as_id).generation();
        if vcpu.mmio.has(gpa.gfn(), generation) {
            return true;
        }
        let codec = self.mmu.codec();
        let valid = codec.is_mmio_current(mmio, generation);
        let low = |raw: u64| u32::try_from(raw).unwrap_or(u32::MAX);
        self.out.events.push(Predicted::MmioChecked {
            spte: spte.raw(),
            current: low(codec.mmio_generation(generation).raw()),
            generation: low(mmio.generation.raw()),
            valid,
        });
        if valid {
            vcpu.mmio.remember(gpa.gfn(), generation);
        }
        valid
    }

    fn fault(&mut self, id: u32, (kind, present): (Kind, Present), gpa: Gpa) -> Outcome {
        let settings = self.settings();
        let fault = Fault {
            kind: self.reported_kind(kind, present),
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
        };
        let out = &mut self.out;
        let handled = self
            .mmu
            .direct_page_fault(&vcpu.roots, &fault, most, &mut env, out);
        if let Some((slot, gfn)) = handled.mark_dirty {
            let _ = self.memory.mark_dirty(id, slot.as_id, gfn);
        }
        if let Some(moved) = self.host.take_moved() {
            self.unmap_hva(moved);
        }
        self.spread_requests();
        handled.outcome
    }

    /// An EPT misconfiguration does not say what the access was, and is taken for reading.
    fn reported_kind(&self, kind: Kind, present: Present) -> Kind {
        let ept = slat_mmu::host::SecondStage::Ept;
        match self.mmu.codec().host().second_stage == ept && present == Present::Reserved {
            true => Kind::Read,
            false => kind,
        }
    }
}
