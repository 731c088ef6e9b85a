//! The model as a machine.
//!
//! A machine without a host answers from what userspace has set up: which calls are refused and why, what logs say of
//! writes that KVM emulates. A machine with a host that has EPT or NPT ([`Machine::with_host`]) gives each VM page tables,
//! vCPUs and host memory as well ([`TdpVm`]): guest accesses run through the tables, calls zap,
//! split and protect what they have to, logs and rings tell what faults and hardware leave in them.
//!
//! # Beside a real VM
//!
//! Whoever makes the same calls on a real VM and wants to know whether the model does as the kernel does, needs two things:
//!
//! - [`Vm::watch`] and [`Vm::take`]: what KVM would trace and answer during the calls since the last time, in order. System
//!   calls' results are among it ([`Predicted::Returned`]), as is how `KVM_RUN` ended; the trace alone is what has no such
//!   [kind](Predicted::kind).
//! - [`Vm::host_memory_mut`]: the model is told which page is behind an address, and how large it is mapped
//!   ([`HostMemory::tell`]), before the guest gets there, and nothing else. What the kernel's memory management does to the
//!   process is told when it happens: [`Vm::paging_mut`] has `unmap_hva` and `age_hva`.
//!
//! ```
//! use slat_memslot::{Call, GuestAccess, Hva, PageSize, Profile, Region, SlotKey};
//! use slat_mmu::host::Host;
//! use slat_vmm::{Machine, MemoryVm, model, traces::Predicted};
//!
//! let profile = Profile::named("debian-6.12.117").unwrap();
//! let mut vm = model::Machine::with_host(profile, Host::npt(40)).create_vm(0).unwrap();
//! vm.watch(true);
//! vm.set_user_memory_region(&Region::new(SlotKey::normal(0), 0, 4 << 20, 0x7f00_0000_0000)).unwrap();
//! vm.call(&Call::CreateVcpu).unwrap();
//! let page = Hva::new(0x7f00_0020_0000);
//! vm.host_memory_mut().unwrap().tell(page, 0x40_0000, PageSize::Size2M);
//!
//! let _ = vm.take();
//! vm.call(&Call::Guest(GuestAccess::write(0x20_1000))).unwrap();
//! let leaf = vm.take().into_iter().find_map(|what| match what {
//!     Predicted::SpteSet { gfn, level, spte, .. } => Some((gfn.raw(), level, spte & 0xff_ffff_f000)),
//!     _ => None,
//! });
//! assert_eq!(leaf, Some((0x200, PageSize::Size2M.level(), 0x4_0000_0000)));
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use slat_coco::migration::StatusList;
use slat_coco::snp::SnpViolation;
use slat_memslot::{
    Access, AsId, Call, ChangeKind, ContentsCall, Gpa, GuestAccess, Memory, Outcome, PAGE_SIZE,
    Pages, Profile, Refusal, SevCall, SevHost, Vendor, VmError, VmType,
};
use slat_mmu::ShadowPageLimit;
use slat_mmu::host::{Host, SecondStage};
use slat_mmu::spte::Npt;

use crate::scenario::{Scenario, StepKind};
use crate::sev_vm::{SevGuest, Taken, Wire};
use crate::snp_vm::{EncryptOp, Snp, SnpAnswer, SnpOp};
use crate::tdp_vm::{AnyTdpVm, HostMemory, TdpVm};
use crate::tdx_vm::{TdxSettings, TdxVm};
use crate::traces::Predicted;
use crate::{Areas, CallError, CallResult, MemoryVm};

/// Makes model VMs of one profile.
#[derive(Clone, Debug)]
pub struct Machine {
    profile: Arc<Profile>,
    host: Option<Host>,
    areas: Areas,
    tdx: TdxSettings,
    wire: Wire,
}

impl Machine {
    /// A machine of this profile, whose VMs have no page tables.
    pub fn new(profile: impl Into<Arc<Profile>>) -> Self {
        Self {
            profile: profile.into(),
            host: None,
            areas: Areas::SYMBOLIC,
            tdx: TdxSettings::default(),
            wire: Wire::default(),
        }
    }

    /// A machine of this profile on a host. Where the host has a second stage, VMs have page tables, and what the profile
    /// says of its host gives way: vendor, two-dimensional paging, address bits, PML.
    ///
    /// Where it has none, it is a machine as of [`Machine::new`].
    pub fn with_host(profile: impl Into<Arc<Profile>>, host: Host) -> Self {
        let machine = Self::new(profile);
        let vendor = match host.second_stage {
            SecondStage::Off => return machine,
            SecondStage::Ept => Vendor::Intel,
            SecondStage::Npt => Vendor::Amd,
        };
        let mut profile = Arc::unwrap_or_clone(machine.profile);
        let p = &mut profile;
        // A fact that holds keeps its evidence.
        set(&mut p.vendor, vendor);
        set(&mut p.tdp, true);
        set(&mut p.tdp_mmu, true);
        set(&mut p.maxphyaddr, host.maxphyaddr);
        set(&mut p.pml, host.pml());
        Self {
            profile: Arc::new(profile),
            host: Some(host),
            ..machine
        }
    }

    /// With host memory that lies elsewhere: of another machine, beside which this one runs.
    #[must_use]
    pub fn with_areas(self, areas: Areas) -> Self {
        Self { areas, ..self }
    }

    /// With VMs of type TDX ([`TdxVm`]) on a host like this; the profile has to have the type.
    #[must_use]
    pub fn with_tdx(self, tdx: TdxSettings) -> Self {
        Self { tdx, ..self }
    }

    /// A machine whose host has SEV-SNP as well: VMs of this type can be made. It takes NPT.
    #[must_use]
    pub fn with_snp(self) -> Self {
        let mut profile = Arc::unwrap_or_clone(self.profile);
        let types = profile.vm_types.get() | VmType::Snp.mask();
        set(&mut profile.vm_types, types);
        Self {
            profile: Arc::new(profile),
            ..self
        }
    }

    /// A machine whose host has SEV and SEV-ES as well: VMs of these types can be made.
    #[must_use]
    pub fn with_sev(self) -> Self {
        let mut profile = Arc::unwrap_or_clone(self.profile);
        let types = profile.vm_types.get() | VmType::Sev.mask() | VmType::SevEs.mask();
        set(&mut profile.vm_types, types);
        Self {
            profile: Arc::new(profile),
            ..self
        }
    }

    /// A machine that has what a scenario's VMs need: an NPT host with SEV-SNP if some are SNP guests, SEV if some are SEV guests, else
    /// none.
    pub fn for_scenario(profile: impl Into<Arc<Profile>>, scenario: &Scenario) -> Self {
        let snp = scenario.steps.iter().any(|step| {
            let snp = VmType::Snp.raw();
            matches!(step.kind, StepKind::Vm { vm_type: Some(raw), .. } if raw == snp)
        });
        let sev = scenario.steps.iter().any(|step| {
            let types = [VmType::Sev.raw(), VmType::SevEs.raw()];
            matches!(step.kind, StepKind::Vm { vm_type: Some(raw), .. } if types.contains(&raw))
        });
        match snp {
            _ if sev => Self::with_host(profile, Host::npt(48)).with_sev(),
            true => Self::with_host(profile, Host::npt(48)).with_snp(),
            false => Self::new(profile),
        }
    }

    /// The host, if its VMs have page tables.
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    fn paging(&self, vm_type: VmType) -> Option<AnyTdpVm> {
        let mut vm = AnyTdpVm::new(self.profile.clone(), vm_type, self.host.as_ref()?)?;
        let [_, unreachable, readonly] = self.areas.list();
        let range = |area: crate::scenario::Area| area.base.raw()..area.base.raw() + area.len;
        vm.host_mut().set_absent(range(unreachable));
        vm.host_mut().protect(range(readonly));
        Some(vm)
    }
}

fn set<T: Copy + PartialEq>(fact: &mut slat_memslot::Fact<T>, value: T) {
    if fact.get() != value {
        fact.set(value);
    }
}

impl crate::Machine for Machine {
    type Vm = Vm;

    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn areas(&self) -> Areas {
        self.areas
    }

    fn create_vm(&mut self, vm_type: u32) -> Result<Vm, CallError> {
        let supported = VmType::from_raw(vm_type).filter(|t| self.profile.supports(*t));
        let vm_type = supported
            .ok_or(VmError::VmType { vm_type })
            .map_err(Refusal::from)?;
        let tdx = || TdxVm::new(self.profile.clone(), self.tdx);
        let slots = match self.paging(vm_type) {
            _ if vm_type == VmType::Tdx => Slots::Td(Box::new(tdx())),
            Some(vm) => Slots::Mapped(Box::new(vm)),
            None => Slots::Alone(Box::new(Memory::new(self.profile.clone(), vm_type))),
        };
        Ok(Vm {
            slots,
            shadow_pages: ShadowPageLimit::new(),
            sev: SevGuest::of(vm_type, &self.wire),
            watched: false,
            asking: BTreeSet::new(),
        })
    }
}

/// What a VM's userspace has set up, with page tables or without.
#[derive(Debug)]
enum Slots {
    Alone(Box<Memory>),
    Mapped(Box<AnyTdpVm>),
    Td(Box<TdxVm>),
}

/// A model VM.
#[derive(Debug)]
pub struct Vm {
    slots: Slots,
    shadow_pages: ShadowPageLimit,
    /// Somebody takes what happens.
    watched: bool,
    /// What a SEV guest has beside.
    sev: Option<Box<SevGuest>>,
    /// vCPUs that wait for what their hypercalls return.
    asking: BTreeSet<u32>,
}

impl Vm {
    /// What its userspace has set up.
    pub fn memory(&self) -> &Memory {
        match &self.slots {
            Slots::Alone(memory) => memory,
            Slots::Mapped(vm) => vm.memory(),
            Slots::Td(vm) => vm.memory(),
        }
    }

    /// The same, to be changed by what no call can say, such as who calls ([`slat_memslot::Gate`]). Page tables do not
    /// follow changes of slots that are made here.
    pub fn memory_mut(&mut self) -> &mut Memory {
        match &mut self.slots {
            Slots::Alone(memory) => memory,
            Slots::Mapped(vm) => vm.memory_mut(),
            Slots::Td(vm) => vm.memory_mut(),
        }
    }

    /// How many shadow pages KVM allows itself for this VM.
    pub fn shadow_page_limit(&self) -> Pages {
        self.shadow_pages.pages()
    }

    /// What a call would come to, without making it. Page tables are not asked: where they decide, as for guest accesses
    /// and pre-faults, the answer is that of a VM without.
    pub fn preview(&self, call: &Call) -> CallResult {
        if let (Slots::Td(_), Call::Tdx(_)) = (&self.slots, call) {
            return Err(CallError::NotTried {
                why: "a TD says what a call comes to when it is made",
            });
        }
        let mut copy = Self {
            slots: Slots::Alone(Box::new(self.memory().clone())),
            shadow_pages: self.shadow_pages,
            sev: self.sev.clone(),
            watched: false,
            asking: self.asking.clone(),
        };
        copy.call(call)
    }

    /// The VM with its page tables, if its machine has a host.
    pub fn paging(&self) -> Option<&AnyTdpVm> {
        match &self.slots {
            Slots::Alone(_) | Slots::Td(_) => None,
            Slots::Mapped(vm) => Some(vm),
        }
    }

    /// The TD, if it is one.
    pub fn td(&self) -> Option<&TdxVm> {
        match &self.slots {
            Slots::Td(vm) => Some(vm),
            Slots::Alone(_) | Slots::Mapped(_) => None,
        }
    }

    /// The same, for what is no call: notifiers, module parameters, a vCPU's registers.
    pub fn paging_mut(&mut self) -> Option<&mut AnyTdpVm> {
        match &mut self.slots {
            Slots::Alone(_) | Slots::Td(_) => None,
            Slots::Mapped(vm) => Some(vm),
        }
    }

    /// The memory of the process that owns the VM, to be told which pages it has; `None` without page tables.
    pub fn host_memory_mut(&mut self) -> Option<&mut HostMemory> {
        self.paging_mut().map(AnyTdpVm::host_mut)
    }

    /// Says whether what happens is kept until it is taken. At first it is not.
    pub fn watch(&mut self, watched: bool) {
        self.watched = watched;
    }

    /// What happened since this was last asked, in order; nothing without page tables, or if nobody [watches](Vm::watch).
    pub fn take(&mut self) -> Vec<Predicted> {
        self.paging_mut().map(AnyTdpVm::take).unwrap_or_default()
    }

    /// The page tables of a VM that can be an SNP guest.
    fn npt(&mut self) -> Result<&mut TdpVm<Npt>, CallError> {
        match &mut self.slots {
            Slots::Mapped(vm) => match vm.as_mut() {
                AnyTdpVm::Npt(vm) => Ok(vm),
                AnyTdpVm::Ept(_) => Err(NO_NPT),
            },
            Slots::Alone(_) | Slots::Td(_) => Err(NO_NPT),
        }
    }

    /// What an SNP guest has beside its tables; `None` for other VMs.
    pub fn snp_state(&self) -> Option<&Snp> {
        match self.paging()? {
            AnyTdpVm::Npt(vm) => vm.snp(),
            AnyTdpVm::Ept(_) => None,
        }
    }

    /// All violations of SNP's rules.
    pub fn audit_snp(&mut self) -> Vec<SnpViolation> {
        self.npt().map(TdpVm::audit_snp).unwrap_or_default()
    }

    /// What nobody watches is dropped.
    fn drop_unwatched(&mut self) {
        if !self.watched {
            drop(self.take());
        }
    }

    /// Whether a vCPU can do what it is told: one that has asked for a conversion first hears what became of it.
    fn check_asking(&self, call: &Call) -> Result<(), CallError> {
        let why = match call {
            Call::Guest(GuestAccess { vcpu, .. })
            | Call::Contents(ContentsCall::Guest { vcpu, .. })
                if self.asking.contains(vcpu) =>
            {
                "the vCPU waits for what its hypercall returns"
            }
            Call::Contents(ContentsCall::ReturnHypercall { vcpu, .. })
                if !self.asking.contains(vcpu) =>
            {
                "the vCPU has asked for nothing"
            }
            Call::Contents(_) if self.td().is_some() => "what a TD holds is another matter",
            _ => return Ok(()),
        };
        Err(CallError::NotTried { why })
    }

    fn note_asking(&mut self, call: &Call, outcome: &Outcome) {
        match (call, outcome) {
            (Call::Contents(ContentsCall::Guest { vcpu, .. }), Outcome::MapGpaRange { .. }) => {
                self.asking.insert(*vcpu);
            }
            (Call::Contents(ContentsCall::ReturnHypercall { vcpu, .. }), _) => {
                self.asking.remove(vcpu);
            }
            _ => {}
        }
    }

    /// A call about a SEV guest. Its accesses go through slots and tables first.
    fn call_sev(&mut self, call: &SevCall) -> CallResult {
        if self.sev.is_none() {
            return Err(Refusal::from(VmError::NotSev {}).into());
        }
        self.memory().check_gate().map_err(Refusal::from)?;
        let (vcpu, access) = match *call {
            SevCall::Read { vcpu, gpa, .. } => (vcpu, GuestAccess::read(gpa)),
            SevCall::Write { vcpu, gpa, .. } => (vcpu, GuestAccess::write(gpa)),
            _ => {
                let sev = self.sev.as_mut();
                let result = sev.map_or(Ok(Outcome::Done), |sev| sev.call(call));
                if let (SevCall::Host(SevHost::Move { hva }), Ok(Outcome::Value(1))) =
                    (call, &result)
                {
                    self.follow_move(*hva);
                }
                return result;
            }
        };
        let access = access.by_vcpu(vcpu).by_code_at(SevCall::CODE);
        let reached = self.call_slots(&Call::Guest(access))?.0;
        let gpa = Gpa::new(access.gpa);
        let hva = self
            .memory()
            .hva_of(AsId::NORMAL, gpa)
            .map(|(_, hva)| hva.raw());
        match (reached, hva, &mut self.sev) {
            (Outcome::Access(Access::Done), Some(hva), Some(sev)) => sev.access(call, hva),
            (other, ..) => Ok(other),
        }
    }

    /// A page of the process has another frame now.
    fn follow_move(&mut self, hva: u64) {
        let taken = Taken::by_move(hva, self.memory());
        if let Some(paging) = self.paging_mut() {
            let start = hva - hva % PAGE_SIZE;
            let page = start..start.saturating_add(PAGE_SIZE);
            paging.unmap_hva(page.clone());
            paging.host_mut().forget_pages(page);
        }
        if let Some(sev) = &mut self.sev {
            sev.follow(&taken);
        }
        self.drop_unwatched();
    }

    /// Makes a call as far as slots and page tables go. Says how it changed slots, if it did.
    fn call_slots(&mut self, call: &Call) -> Result<(Outcome, Option<ChangeKind>), CallError> {
        match (&mut self.slots, call) {
            (Slots::Alone(memory), Call::SetRegion(request)) => {
                let effects = memory.set_region(request)?;
                Ok((Outcome::Done, Some(effects.kind)))
            }
            (Slots::Alone(memory), _) => Ok((memory.call(call)?, None)),
            (Slots::Td(vm), _) => Ok((vm.call(call)?, None)),
            (Slots::Mapped(vm), _) => {
                let kind = match call {
                    Call::SetRegion(request) => vm.memory().check_region(request).ok(),
                    _ => None,
                };
                let result = vm.call(call);
                if !self.watched {
                    drop(vm.take());
                }
                Ok((result?, kind.map(|change| change.kind)))
            }
        }
    }
}

const NO_NPT: CallError = CallError::NotTried {
    why: "the machine has no NPT host",
};

impl MemoryVm for Vm {
    fn known_memory(&self) -> Option<&Memory> {
        Some(self.memory())
    }

    fn status_list(&mut self) -> Option<&mut StatusList> {
        self.sev.as_mut().map(|sev| sev.list())
    }

    fn memory_encrypt_op(&mut self, op: &EncryptOp) -> CallResult {
        let result = match op {
            EncryptOp::Snp(command) => self.npt()?.memory_encrypt_op(command),
        };
        self.drop_unwatched();
        result
    }

    fn snp(&mut self, op: &SnpOp) -> Result<SnpAnswer, CallError> {
        let result = self.npt()?.snp_op(op);
        self.drop_unwatched();
        result
    }

    fn call(&mut self, call: &Call) -> CallResult {
        self.check_asking(call)?;
        if let Call::Sev(call) = call {
            return self.call_sev(call);
        }
        // The tables of the TDP MMU do not count among shadow pages, so that none has to be evicted.
        let in_use = Pages::new(0);
        let taken = self.sev.as_ref().map(|_| Taken::by(call, self.memory()));
        let result = self.call_slots(call);
        if let (Some(sev), Some(taken)) = (&mut self.sev, taken) {
            sev.follow(&taken);
        }
        let (outcome, kind) = result?;
        if let Some(kind) = kind {
            let pages = self.memory().total_pages();
            self.shadow_pages.commit_region(kind, pages, in_use);
        }
        if let Call::SetNrMmuPages { pages } = call {
            let set = self.shadow_pages.set_by_user(*pages, in_use);
            set.map_err(Refusal::from)?;
        }
        self.note_asking(call, &outcome);
        if let (Call::CreateVcpu, Some(sev)) = (call, &mut self.sev) {
            sev.create_vcpu();
        }
        Ok(outcome)
    }
}
