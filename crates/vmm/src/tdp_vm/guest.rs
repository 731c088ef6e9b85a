//! Guest accesses, one after the other, and how they end.

use slat_memslot::{
    Access as Came, AccessKind, AsId, Attributes, Errno, Gpa, GuestAccess, Outcome as CallOutcome,
    PAGE_SIZE, PmlOrder,
};
use slat_mmu::fault::{Env, Fault, Kind, Outcome, Present};
use slat_mmu::host::SecondStage;
use slat_mmu::role::VcpuMode;
use slat_mmu::roots::RootId;
use slat_mmu::shadow::ShadowBeside;
use slat_mmu::spte::{Access, Format, Mmio, Spte};
use slat_mmu::tdp::{HardwareAccess, Locked, NoCheck, NoExternal, Shared, Unobserved};
use slat_mmu::walk::second::{FaultPlace, SecondExit};

use super::activity::{Activity, Step};
use super::{Sink, TdpVm};
use crate::paged_vm::fault::{MetMmio, reported_kind};
use crate::snp_vm::Behind;
use crate::traces::{Exit, Predicted};
use crate::{CallError, CallResult};

/// Why a guest does not run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// `KVM_RUN` returned with something for userspace to do.
    Exit(Came),
    /// It failed.
    Failed(Errno),
    /// L2 is left for L1, which is told why.
    ToL1(SecondExit),
    /// The same for another reason than L1's tables: L2 halts, or shuts down.
    L2Ends,
}

/// What userspace does with `KVM_EXIT_MMIO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Userspace {
    /// It answers, and runs the guest on. The guest's accesses are of one byte.
    Answers,
    /// It takes it for the end. They are of four.
    Stops,
}

impl Userspace {
    const fn bytes(self) -> u32 {
        match self {
            Self::Answers => 1,
            Self::Stops => 4,
        }
    }
}

/// How often an access is tried: an emulated guest would go on for ever.
const ATTEMPTS: u32 = 64;
/// Places in the log that hardware keeps of modified pages (`PML_ENTITY_NUM`).
const MODIFIED: usize = 512;
/// `KVM_EXIT_INTERNAL_ERROR`: an instruction that lies in no memory cannot be emulated.
const EXIT_INTERNAL_ERROR: u32 = 17;
/// `KVM_EXIT_DIRTY_RING_FULL`.
const EXIT_RING_FULL: u32 = 31;

impl<F: Format> TdpVm<F> {
    /// `KVM_RUN` until the guest halts; accesses that userspace has to do are done.
    pub fn run_guest(&mut self, vcpu: u32, activity: &Activity) {
        // How it ended is among the events.
        let _ = self.run(vcpu, activity, Userspace::Answers);
        self.leave(vcpu);
    }

    /// One access of a guest, with what `KVM_RUN` says about it.
    pub(super) fn guest_access(&mut self, access: &GuestAccess) -> CallResult {
        if self.snp.is_some() {
            return Err(CallError::NotTried {
                why: "nobody outside can set an SNP guest's registers: snp_read and its like",
            });
        }
        if let Err(refusal) = self.memory.check_guest_access(access) {
            self.answer(Err(refusal.errno()));
            return Err(refusal.into());
        }
        let Some(id) = self.id_of(access.vcpu) else {
            return Err(CallError::errno(Errno::EBADF));
        };
        self.prepare(id, access.as_id);
        let fetch = Activity::halt(Gpa::new(access.instruction()));
        let activity = match access.kind {
            AccessKind::Execute => fetch,
            AccessKind::Read => fetch.step(Kind::Read, access.gpa),
            AccessKind::Write => fetch.step(Kind::Write, access.gpa),
        };
        let run = self.run(id, &activity, Userspace::Stops);
        self.leave(id);
        match run {
            Ok(()) => Ok(CallOutcome::Access(Came::Done)),
            Err(Stop::Exit(came)) => Ok(CallOutcome::Access(came)),
            Err(Stop::Failed(errno)) => Err(CallError::errno(errno)),
            // Guests of single accesses start no L2.
            Err(Stop::ToL1(_) | Stop::L2Ends) => Err(CallError::errno(Errno::EINVAL)),
        }
    }

    /// `KVM_SET_SREGS` once, so that the guest sees guest-physical addresses, and `KVM_SET_VCPU_EVENTS` where it enters or
    /// leaves SMM.
    fn prepare(&mut self, id: u32, as_id: AsId) {
        let mode = if as_id == AsId::SMM {
            VcpuMode::Smm
        } else {
            VcpuMode::Normal
        };
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return;
        };
        let flat = core::mem::replace(&mut vcpu.flat, true);
        let same = core::mem::replace(&mut vcpu.state.mode, mode) == mode;
        if !(flat && same) {
            vcpu.reset_context(&self.tables, &mut self.reader, &self.tdp);
        }
    }

    fn run(&mut self, vcpu: u32, activity: &Activity, userspace: Userspace) -> Result<(), Stop> {
        self.written = activity.written;
        if let Some(mode) = activity.mode_first {
            self.serve_requests(vcpu);
            self.switch_mode(vcpu, mode);
        }
        self.enter(vcpu)?;
        match self.steps(vcpu, &activity.steps, userspace) {
            Err(Stop::ToL1(exit)) => {
                self.leave_l2(vcpu, exit, activity, userspace)?;
                self.exit(activity.ending.exit());
                return Ok(());
            }
            other => other?,
        }
        if let Some(mode) = activity.mode_then {
            self.leave(vcpu);
            match &activity.l2_tables {
                Some(tables) if !self.start_l2(vcpu, tables) => {
                    return Err(self.fail(Errno::EINVAL));
                }
                Some(_) => {}
                None => self.switch_mode(vcpu, mode),
            }
            self.enter(vcpu)?;
        }
        let mut ran = self.steps(vcpu, &activity.steps_then, userspace);
        if let (Ok(()), true, Some(last)) = (ran, activity.memory_runs, activity.steps_then.last())
        {
            ran = self.run_memory_of_l2(vcpu, Gpa::new(last.address));
        }
        match ran {
            Err(Stop::ToL1(exit)) => self.leave_l2(vcpu, exit, activity, userspace)?,
            Err(Stop::L2Ends) => self.run_on_l1(vcpu, activity, userspace)?,
            Ok(()) if activity.back_in_l1 => self.run_on_l1(vcpu, activity, userspace)?,
            other => other?,
        }
        self.exit(activity.ending.exit());
        Ok(())
    }

    /// L2 is left for L1, which is told why, and handles it.
    fn leave_l2(
        &mut self,
        vcpu: u32,
        exit: SecondExit,
        activity: &Activity,
        userspace: Userspace,
    ) -> Result<(), Stop> {
        self.out.events.push(Predicted::ToldToL1(exit));
        self.run_on_l1(vcpu, activity, userspace)
    }

    /// L1 goes on behind the instruction that started L2.
    fn run_on_l1(
        &mut self,
        vcpu: u32,
        activity: &Activity,
        userspace: Userspace,
    ) -> Result<(), Stop> {
        self.leave(vcpu);
        self.switch_mode(vcpu, VcpuMode::Normal);
        self.enter(vcpu)?;
        self.steps(vcpu, &activity.steps_of_l1, userspace)
    }

    fn exit(&mut self, exit: Exit) {
        self.out.events.push(Predicted::Exit(exit));
    }

    /// What every entry begins with (`x86.c:vcpu_enter_guest`).
    fn enter(&mut self, id: u32) -> Result<(), Stop> {
        self.serve(id)?;
        if !self.runs_on_l1_tables(id) {
            return self.root(id).map(drop);
        }
        match self.load_l2_root(id) {
            true => Ok(()),
            false => Err(self.fail(Errno::ENOSPC)),
        }
    }

    /// What comes before a root is needed.
    fn serve(&mut self, id: u32) -> Result<(), Stop> {
        let index = self.vcpus.get(&id).map(|vcpu| vcpu.index);
        if index.is_some_and(|index| self.memory.ring_blocks_entry(index)) {
            self.exit(Exit::Other {
                reason: EXIT_RING_FULL,
            });
            return Err(Stop::Exit(Came::RingFull));
        }
        self.serve_requests(id);
        self.free_obsolete_of_l2(id);
        Ok(())
    }

    fn root(&mut self, id: u32) -> Result<RootId, Stop> {
        let root = self.load_root(id);
        root.ok_or_else(|| self.fail(Errno::ENOMEM))
    }

    pub(super) fn fail(&mut self, errno: Errno) -> Stop {
        self.out.events.push(Predicted::RunFailed { errno });
        Stop::Failed(errno)
    }

    /// What every exit begins with: KVM takes the frames out of the log of modified pages
    /// (`vmx.c:vmx_flush_pml_buffer`).
    fn leave(&mut self, id: u32) {
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return;
        };
        let (index, as_id) = (vcpu.index, vcpu.mmu.role().as_id());
        let modified = &mut vcpu.modified;
        if self.memory.profile().pml_order.get() == PmlOrder::NewestFirst {
            modified.reverse();
        }
        for gfn in modified.drain(..) {
            let _ = self.memory.mark_dirty(index, as_id, gfn);
        }
    }

    fn steps(&mut self, vcpu: u32, steps: &[Step], userspace: Userspace) -> Result<(), Stop> {
        let mut steps = steps.iter();
        steps.try_for_each(|step| self.step(vcpu, *step, userspace))
    }

    /// One access with the guest's own walk before it.
    fn step(&mut self, id: u32, step: Step, userspace: Userspace) -> Result<(), Stop> {
        let Some(vcpu) = self.vcpus.get(&id) else {
            return Err(Stop::Failed(Errno::EBADF));
        };
        let (walk, target) = (
            vcpu.paging.walk(step.address),
            vcpu.paging.translate(step.address),
        );
        // Hardware reads the guest's tables as if it wrote them, where it keeps accessed and dirty bits: in EPT not for L2,
        // unless L1 asks for them.
        let host = self.tables.codec().host();
        let of_l2 = vcpu.state.mode == VcpuMode::Guest && host.second_stage == SecondStage::Ept;
        let kind = if host.ad_enabled() && !of_l2 {
            Kind::Write
        } else {
            Kind::Read
        };
        if step.kind == Kind::Execute {
            self.instruction = None;
        }
        for entry in walk {
            self.reach(id, kind, (entry, FaultPlace::Table), userspace)?;
        }
        if step.kind == Kind::Execute {
            self.instruction = Some(target);
        }
        self.reach(id, step.kind, (target, FaultPlace::Final), userspace)
    }

    fn reach(
        &mut self,
        id: u32,
        kind: Kind,
        (gpa, place): (Gpa, FaultPlace),
        userspace: Userspace,
    ) -> Result<(), Stop> {
        let reached = match self.runs_on_l1_tables(id) {
            true => self.access_l2(id, kind, (gpa, place)),
            false => self.access(id, kind, (gpa, place)),
        };
        match (reached?, kind) {
            (Reached::Memory, _) => return Ok(()),
            (Reached::Nothing(_), Kind::Execute) => {
                self.exit(Exit::Other {
                    reason: EXIT_INTERNAL_ERROR,
                });
                return Err(Stop::Exit(Came::NoMemory));
            }
            (Reached::Nothing(gpa), Kind::Read | Kind::Write) => self.exit(Exit::Mmio {
                gpa,
                len: userspace.bytes(),
                write: kind == Kind::Write,
            }),
        }
        match userspace {
            Userspace::Answers => self.enter(id),
            Userspace::Stops => Err(Stop::Exit(Came::Mmio)),
        }
    }

    /// Tries an access until it is done or cannot be.
    fn access(
        &mut self,
        id: u32,
        kind: Kind,
        (gpa, place): (Gpa, FaultPlace),
    ) -> Result<Reached, Stop> {
        for _ in 0..ATTEMPTS {
            self.make_room_to_log(id);
            self.serve(id)?;
            let root = self.root(id)?;
            let present = match self.hardware(root, kind, gpa) {
                HardwareAccess::Done { became_dirty } => {
                    self.log_modified(id, gpa, became_dirty);
                    if (kind, place) == (Kind::Write, FaultPlace::Final) {
                        self.write_memory(gpa);
                    }
                    return Ok(Reached::Memory);
                }
                HardwareAccess::Mmio { spte, mmio } => {
                    self.leave(id);
                    if self.is_known_mmio(id, gpa, spte, &mmio) {
                        return Ok(Reached::Nothing(gpa));
                    }
                    Present::Reserved
                }
                HardwareAccess::NotPresent => Present::No,
                HardwareAccess::NotAllowed => Present::Yes,
            };
            self.leave(id);
            match self.fault(id, root, (kind, present), gpa) {
                Outcome::Retry | Outcome::Fixed | Outcome::Spurious => {}
                Outcome::Emulate => return Ok(Reached::Nothing(gpa)),
                Outcome::WriteProtected => {
                    if self.write_watched(id, gpa, place) {
                        return Ok(Reached::Memory);
                    }
                }
                Outcome::MemoryFault => return Err(self.memory_fault(gpa, present)),
                Outcome::BadPage => return Err(self.fail(Errno::EFAULT)),
                Outcome::Interrupted => return Err(self.fail(Errno::EINTR)),
                Outcome::OutOfTables => return Err(self.fail(Errno::ENOMEM)),
            }
        }
        Err(self.fail(Errno::EINTR))
    }

    pub(crate) fn hardware(&mut self, root: RootId, kind: Kind, gpa: Gpa) -> HardwareAccess<F> {
        let access = match kind {
            Kind::Read => Access::USER,
            Kind::Write => Access::USER | Access::WRITE,
            Kind::Execute => Access::EXECUTE,
        };
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        match locked.root_table(root) {
            Some(table) => locked.hardware_access(table, gpa.gfn(), access),
            None => HardwareAccess::NotPresent,
        }
    }

    /// Hardware logs a page when it sets its dirty bit.
    fn log_modified(&mut self, id: u32, gpa: Gpa, became_dirty: bool) {
        if became_dirty && self.tables.codec().host().pml() {
            // The log is off while L2 runs.
            let running = self.vcpus.get_mut(&id);
            if let Some(vcpu) = running.filter(|vcpu| vcpu.state.mode != VcpuMode::Guest) {
                vcpu.modified.push(gpa.gfn());
            }
        }
    }

    /// A full log is an exit of its own (`EXIT_REASON_PML_FULL`).
    fn make_room_to_log(&mut self, id: u32) {
        let full = |vcpu: &super::Vcpu| vcpu.modified.len() >= MODIFIED;
        if self.vcpus.get(&id).is_some_and(full) {
            self.leave(id);
        }
    }

    /// Whether an MMIO entry still holds, and the access goes to userspace.
    fn is_known_mmio(&mut self, id: u32, gpa: Gpa, spte: Spte<F>, mmio: &Mmio) -> bool {
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return false;
        };
        let met = MetMmio {
            spte,
            mmio: *mmio,
            as_id: vcpu.mmu.role().as_id(),
            gfn: gpa.gfn(),
        };
        let codec = self.tables.codec();
        met.is_known(&self.memory, codec, &mut vcpu.mmio, &mut self.out)
    }

    fn fault(&mut self, id: u32, root: RootId, what: (Kind, Present), gpa: Gpa) -> Outcome {
        let private = self.wants_private(gpa, what.1);
        self.fault_as(id, root, what, gpa, private)
    }

    /// A fault of an access that was private, or shared, whatever the attributes say.
    pub(crate) fn fault_as(
        &mut self,
        id: u32,
        root: RootId,
        what: (Kind, Present),
        gpa: Gpa,
        private: bool,
    ) -> Outcome {
        let (kind, present) = what;
        let fault = Fault {
            kind: reported_kind(self.tables.codec().host(), kind, present),
            present,
            private,
            ..Fault::new(gpa.gfn(), kind)
        };
        let handled = self.in_tables(id, gpa, |locked, env| locked.page_fault(root, &fault, env));
        let Some((handled, index)) = handled.zip(self.vcpus.get(&id).map(|vcpu| vcpu.index)) else {
            return Outcome::BadPage;
        };
        if let Some((slot, gfn)) = handled.mark_dirty {
            let _ = self.memory.mark_dirty(index, slot.as_id, gfn);
        }
        while let Some(moved) = self.host.take_moved() {
            self.unmap_hva(moved);
        }
        handled.outcome
    }

    /// What a vCPU does in the tables, with all that it depends on outside them; `None` if there is no such vCPU.
    pub(super) fn in_tables<R>(
        &mut self,
        id: u32,
        at: Gpa,
        act: impl FnOnce(
            &mut Locked<Shared<'_, F, NoExternal, NoCheck>, &mut Sink>,
            &mut Env<'_, Behind<'_>, &ShadowBeside<'_, F>>,
        ) -> R,
    ) -> Option<R> {
        self.hear();
        let settings = self.settings();
        (self.out.vcpu, self.out.address) = (id, at.raw());
        let vcpu = self.vcpus.get_mut(&id)?;
        let mut behind = Behind {
            host: &mut self.host,
            snp: self.snp.as_deref_mut(),
        };
        let shadow = self.nested.mmu.beside();
        let mut env = Env {
            memory: &self.memory,
            backing: &mut behind,
            invalidation: &self.invalidation,
            settings,
            mmio: &mut vcpu.mmio,
            shadow: &shadow,
        };
        let mut locked = self.tables.shared(&mut self.reader, &mut self.out);
        Some(act(&mut locked, &mut env))
    }

    /// Whether an access is to private memory: the VM's attributes say so, but for one that finds an MMIO entry, which is
    /// always shared (`mmu.c:kvm_mmu_page_fault`).
    fn wants_private(&self, gpa: Gpa, present: Present) -> bool {
        present != Present::Reserved && self.memory.is_private(gpa.gfn())
    }

    /// `KVM_EXIT_MEMORY_FAULT`, which says what was wanted.
    fn memory_fault(&mut self, gpa: Gpa, present: Present) -> Stop {
        let private = self.wants_private(gpa, present);
        let flags = if private {
            Attributes::PRIVATE.bits()
        } else {
            0
        };
        let (gpa, size) = (gpa.gfn().gpa(), PAGE_SIZE);
        self.out.events.push(Predicted::RunFailed {
            errno: Errno::EFAULT,
        });
        self.exit(Exit::MemoryFault { flags, gpa, size });
        let gpa = gpa.raw();
        Stop::Exit(Came::MemoryFault { flags, gpa, size })
    }
}

/// What an access came to.
pub(super) enum Reached {
    Memory,
    /// No memory that could be used: userspace, or the emulator, has to do it. At this address of L1's.
    Nothing(Gpa),
}
