//! What a guest does, access by access, and how it ends.

use slat_memslot::{Errno, Gpa};
use slat_mmu::fault::{Env, Fault, Kind, Outcome, Present};
use slat_mmu::role::VcpuMode;
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
    fn walk(&self, address: u64) -> Vec<Gpa> {
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

    fn translate(&self, address: u64) -> Gpa {
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
    const fn exit(self) -> Exit {
        match self {
            Self::Halt => Exit::Halt,
            Self::TripleFault => Exit::Other { reason: 8 },
        }
    }
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
enum Reached {
    Done,
    /// Userspace has to do it.
    Mmio,
    /// The run fails.
    Failed(Errno, Option<Exit>),
}

/// `KVM_EXIT_INTERNAL_ERROR`.
const INTERNAL_ERROR: u32 = 17;

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
            self.switch_mode(vcpu, mode);
            well = self.enter(vcpu);
        }
        if well && self.steps(vcpu, &activity.steps_then) {
            self.out
                .events
                .push(Predicted::Exit(activity.ending.exit()));
        }
    }

    fn enter(&mut self, vcpu: u32) -> bool {
        self.serve_requests(vcpu);
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
        // Hardware reads the guest's tables as if it wrote them, where it keeps accessed and dirty bits.
        let kind = if self.tables.codec().host().ad_enabled() {
            Kind::Write
        } else {
            Kind::Read
        };
        walk.into_iter().all(|entry| self.reach(id, kind, entry))
            && self.reach(id, step.kind, target)
    }

    fn reach(&mut self, id: u32, kind: Kind, gpa: Gpa) -> bool {
        match self.access(id, kind, gpa) {
            Reached::Done => true,
            Reached::Mmio if kind == Kind::Execute => {
                // Instructions are fetched from memory only (`x86.c:handle_emulation_failure`).
                self.out.events.push(Predicted::Exit(Exit::Other {
                    reason: INTERNAL_ERROR,
                }));
                false
            }
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
                Outcome::MemoryFault => return self.memory_fault(gpa, present),
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
            if let Some(vcpu) = self.vcpus.get(&id) {
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
        let private = self.wants_private(gpa, present);
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

    /// Whether an access is to private memory: the VM's attributes say so, but for one that finds an MMIO entry, which is
    /// always shared (`mmu.c:kvm_mmu_page_fault`).
    fn wants_private(&self, gpa: Gpa, present: Present) -> bool {
        present != Present::Reserved && self.memory.is_private(gpa.gfn())
    }

    /// `KVM_EXIT_MEMORY_FAULT`, which says what was wanted.
    fn memory_fault(&self, gpa: Gpa, present: Present) -> Reached {
        const PRIVATE: u64 = 1 << 3;
        let private = self.wants_private(gpa, present);
        let exit = Exit::MemoryFault {
            flags: if private { PRIVATE } else { 0 },
            gpa: gpa.gfn().gpa(),
            size: 1 << 12,
        };
        Reached::Failed(Errno::EFAULT, Some(exit))
    }
}
