//! What a guest does, access by access, and how it ends.

use slat_memslot::{Errno, Gpa};
use slat_mmu::fault::{Env, Fault, Kind, Outcome, Present};
use slat_mmu::host::SecondStage;
use slat_mmu::role::{Cr0, Cr4, Efer, VcpuMode, VcpuState};
use slat_mmu::roots::RootId;
use slat_mmu::spte::{Access, Format, Mmio, Spte};
use slat_mmu::tdp::{HardwareAccess, Unobserved};

use super::TdpVm;
use crate::traces::{Exit, Predicted};

/// How the guest translates its own addresses.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Paging {
    /// It does not.
    #[default]
    Off,
    /// By four levels of tables with pages of 2 MiB. The tables follow each other: the first level at `cr3`, the second,
    /// then one for each GiB.
    Long {
        /// Where the tables begin.
        cr3: Gpa,
        /// Pages that are not where their own address says.
        pages: Vec<(u64, Gpa)>,
    },
}

/// 2 MiB.
const HUGE: u64 = 1 << 21;

impl Paging {
    /// The entries that a walk reads, top down.
    pub(crate) fn walk(&self, address: u64) -> Vec<Gpa> {
        let Self::Long { cr3, .. } = self else {
            return Vec::new();
        };
        let entry = |table: u64, shift: u32| {
            let index = address >> shift & 0x1ff;
            Gpa::new(cr3.raw().wrapping_add((table << 12) + index * 8))
        };
        let gib = address >> 30 & 0x1ff;
        vec![entry(0, 39), entry(1, 30), entry(2 + gib, 21)]
    }

    /// A vCPU's registers with those that this paging needs.
    pub(super) fn registers(&self, state: &VcpuState) -> VcpuState {
        match self {
            Self::Off => *state,
            Self::Long { cr3, .. } => VcpuState {
                cr0: state.cr0 | Cr0::PG | Cr0::PE,
                cr3: cr3.raw(),
                cr4: state.cr4 | Cr4::PAE,
                efer: state.efer | Efer::LME | Efer::LMA,
                ..*state
            },
        }
    }

    pub(crate) fn translate(&self, address: u64) -> Gpa {
        if let Self::Long { pages, .. } = self {
            let page = pages.iter().find(|(gva, _)| *gva == address & !(HUGE - 1));
            if let Some((gva, gpa)) = page {
                return Gpa::new(gpa.raw().wrapping_add(address - gva));
            }
        }
        Gpa::new(address)
    }
}

/// One access, to an address of the guest's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub kind: Kind,
    /// Where.
    pub address: u64,
}

/// How the guest stops when it has done everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Ending {
    /// It halts.
    #[default]
    Halt,
    /// An exception that it cannot handle, nor what comes of that (`KVM_EXIT_SHUTDOWN`).
    TripleFault,
}

impl Ending {
    pub(crate) const fn exit(self) -> Exit {
        match self {
            Self::Halt => Exit::Halt,
            Self::TripleFault => Exit::Other { reason: 8 },
        }
    }
}

/// The tables that L1 gives to L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecondStageOfL2 {
    /// Nested page tables.
    Npt {
        /// `nCR3`.
        cr3: Gpa,
    },
    /// Extended page tables.
    Ept {
        /// `EPTP12`.
        pointer: u64,
    },
}

/// What the guest does from one entry to the exit.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Activity {
    /// A change of mode when it is entered.
    pub mode_first: Option<VcpuMode>,
    /// The accesses, instruction fetches among them.
    pub steps: Vec<Step>,
    /// A change of mode after them.
    pub mode_then: Option<VcpuMode>,
    /// The tables that L2 has of L1's, if the change starts such an L2.
    pub l2_tables: Option<SecondStageOfL2>,
    /// The accesses after that.
    pub steps_then: Vec<Step>,
    /// How it stops.
    pub ending: Ending,
}

impl Activity {
    /// It fetches a halt at an address.
    pub fn halt(at: Gpa) -> Self {
        Self::default().step(Kind::Execute, at.raw())
    }

    /// With one more access.
    #[must_use]
    pub fn step(mut self, kind: Kind, address: u64) -> Self {
        self.steps.push(Step { kind, address });
        self
    }
}

/// What an access came to.
pub(super) enum Reached {
    Done,
    /// Userspace has to do it.
    Mmio,
    /// The run fails.
    Failed(Errno, Option<Exit>),
}

/// How often an access is tried: an emulated guest would go on for ever.
const ATTEMPTS: u32 = 64;

impl<F: Format> TdpVm<F> {
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
            self.out
                .events
                .push(Predicted::Exit(activity.ending.exit()));
        }
    }

    fn enter(&mut self, vcpu: u32) -> bool {
        self.serve_requests(vcpu);
        if self.runs_on_l1_tables(vcpu) {
            return self.load_l2_root(vcpu);
        }
        self.load_root(vcpu).is_some()
    }

    fn steps(&mut self, vcpu: u32, steps: &[Step]) -> bool {
        steps.iter().all(|step| self.step(vcpu, *step))
    }

    /// One access with the guest's own walk before it. Says whether the guest goes on.
    fn step(&mut self, id: u32, step: Step) -> bool {
        let Some(vcpu) = self.vcpus.get(&id) else {
            return false;
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
        walk.into_iter().all(|entry| self.reach(id, kind, entry))
            && self.reach(id, step.kind, target)
    }

    fn reach(&mut self, id: u32, kind: Kind, gpa: Gpa) -> bool {
        let reached = match self.runs_on_l1_tables(id) {
            true => self.access_l2(id, kind, gpa),
            false => self.access(id, kind, gpa),
        };
        match reached {
            Reached::Done => true,
            Reached::Mmio => {
                self.out.events.push(Predicted::Exit(Exit::Mmio {
                    gpa,
                    len: 1,
                    write: kind == Kind::Write,
                }));
                // Userspace answers, and the guest is entered again.
                self.enter(id)
            }
            Reached::Failed(errno, exit) => {
                self.out.events.push(Predicted::RunFailed { errno });
                self.out.events.extend(exit.map(Predicted::Exit));
                false
            }
        }
    }

    /// Tries an access until it is done or cannot be.
    fn access(&mut self, id: u32, kind: Kind, gpa: Gpa) -> Reached {
        for _ in 0..ATTEMPTS {
            self.serve_requests(id);
            let Some(root) = self.load_root(id) else {
                return Reached::Failed(Errno::ENOMEM, None);
            };
            let present = match self.hardware(id, root, kind, gpa) {
                HardwareAccess::Done { became_dirty } => {
                    self.log_modified(id, gpa, became_dirty);
                    return Reached::Done;
                }
                HardwareAccess::Mmio { spte, mmio } => {
                    if self.is_known_mmio(id, gpa, spte, &mmio) {
                        return Reached::Mmio;
                    }
                    Present::Reserved
                }
                HardwareAccess::NotPresent => Present::No,
                HardwareAccess::NotAllowed => Present::Yes,
            };
            match self.fault(id, root, (kind, present), gpa) {
                Outcome::Retry | Outcome::Fixed | Outcome::Spurious => {}
                Outcome::Emulate | Outcome::WriteProtected => return Reached::Mmio,
                Outcome::MemoryFault => return self.memory_fault(gpa),
                Outcome::BadPage => return Reached::Failed(Errno::EFAULT, None),
                Outcome::Interrupted => return Reached::Failed(Errno::EINTR, None),
                Outcome::OutOfTables => return Reached::Failed(Errno::ENOMEM, None),
            }
        }
        Reached::Failed(Errno::EINTR, None)
    }

    fn hardware(&mut self, id: u32, root: RootId, kind: Kind, gpa: Gpa) -> HardwareAccess<F> {
        let access = match kind {
            Kind::Read => Access::USER,
            Kind::Write => Access::USER | Access::WRITE,
            Kind::Execute => Access::EXECUTE,
        };
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return HardwareAccess::NotPresent;
        };
        let mut locked = self.tables.shared(&mut vcpu.reader, Unobserved);
        match locked.root_table(root) {
            Some(table) => locked.hardware_access(table, gpa.gfn(), access),
            None => HardwareAccess::NotPresent,
        }
    }

    /// The log of modified pages: KVM empties it at every exit (`vmx.c:vmx_flush_pml_buffer`).
    fn log_modified(&mut self, id: u32, gpa: Gpa, became_dirty: bool) {
        if became_dirty && self.tables.codec().host().pml() {
            // The log is off while L2 runs.
            let running = self.vcpus.get(&id);
            if let Some(vcpu) = running.filter(|vcpu| vcpu.state.mode != VcpuMode::Guest) {
                let as_id = vcpu.mmu.role().as_id();
                self.memory.mark_dirty(as_id, gpa.gfn());
            }
        }
    }

    /// Whether an MMIO entry still holds, and the access goes to userspace (`mmu.c:handle_mmio_page_fault`).
    fn is_known_mmio(&mut self, id: u32, gpa: Gpa, spte: Spte<F>, mmio: &Mmio) -> bool {
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return false;
        };
        let as_id = vcpu.mmu.role().as_id();
        let generation = self.memory.space(as_id).generation();
        if vcpu.mmio.has(gpa.gfn(), generation) {
            return true;
        }
        let codec = self.tables.codec();
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

    fn fault(&mut self, id: u32, root: RootId, what: (Kind, Present), gpa: Gpa) -> Outcome {
        let settings = self.settings();
        let (kind, present) = what;
        let private = self.memory.is_private(gpa.gfn());
        let fault = Fault {
            kind: self.reported_kind(kind, present),
            present,
            private,
            ..Fault::new(gpa.gfn(), kind)
        };
        (self.out.vcpu, self.out.address) = (id, gpa.raw());
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return Outcome::BadPage;
        };
        let mut locked = self.tables.shared(&mut vcpu.reader, &mut self.out);
        let mut env = Env {
            memory: &self.memory,
            backing: &mut self.host,
            invalidation: &self.invalidation,
            settings,
            mmio: &mut vcpu.mmio,
        };
        let handled = locked.page_fault(root, &fault, &mut env);
        drop(locked);
        if let Some((slot, gfn)) = handled.mark_dirty {
            self.memory.mark_dirty(slot.as_id, gfn);
        }
        if let Some(moved) = self.host.take_moved() {
            self.unmap_hva(moved);
        }
        handled.outcome
    }

    /// An EPT misconfiguration does not say what the access was, and is taken for reading.
    fn reported_kind(&self, kind: Kind, present: Present) -> Kind {
        let ept = slat_mmu::host::SecondStage::Ept;
        let misconfigured = self.tables.codec().host().second_stage == ept;
        if misconfigured && present == Present::Reserved {
            Kind::Read
        } else {
            kind
        }
    }

    /// `KVM_EXIT_MEMORY_FAULT`: the VM's attributes say what was wanted.
    fn memory_fault(&self, gpa: Gpa) -> Reached {
        const PRIVATE: u64 = 1 << 3;
        let private = self.memory.is_private(gpa.gfn());
        let exit = Exit::MemoryFault {
            flags: if private { PRIVATE } else { 0 },
            gpa: gpa.gfn().gpa(),
            size: 1 << 12,
        };
        Reached::Failed(Errno::EFAULT, Some(exit))
    }
}
