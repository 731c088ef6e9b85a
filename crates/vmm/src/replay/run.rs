//! The operations of a recording, done one after the other.

mod host;

use slat_memslot::{Errno, Gfn, GmemId, Gpa, Pages, Region, RegionVersion, VmType, cap};
use slat_mmu::role::VcpuMode;
use slat_mmu::spte::{Codec, NxHugePages};

use super::activity::activity;
use super::addresses::{Addresses, key_of, unmapped, until_exit};
use super::{Machine, Planted, Verdict, inputs};
use crate::paged_vm::{ControlBits, PagedVm};
use crate::tdp_vm::{EagerSplit, HvaRange, Paging};
use crate::traces::{
    self, Comparer, GuestAct, Item, Op, Predicted, Recording, Ret, SetRegion, Sregs, What,
};

/// Where the recorded program puts its guest's page tables.
const GUEST_TABLES: Gpa = Gpa::new(0x4000);

/// A recording being predicted.
struct Run<'m, V: PagedVm> {
    machine: &'m Machine,
    /// The rule that is made wrong.
    planted: Option<Planted>,
    addresses: Addresses,
    vm: Option<V>,
    eager_split: EagerSplit,
    nx_huge_pages: NxHugePages,
    /// What happened while there is no VM.
    outside: Vec<Predicted>,
    /// The guest_memfd that was made last.
    file: Option<GmemId>,
    /// The slot that was set last.
    last_slot: Option<slat_memslot::SlotKey>,
    /// The address space of the backing notes that follow.
    notes_of: slat_memslot::AsId,
    /// What was protected last.
    protected: Option<(Gfn, Pages)>,
    /// Where the SMI handler is.
    handler: u64,
    /// Whether the page that was marked as idle still is.
    idle: bool,
}

/// Predicts a recording.
pub(super) fn run<V: PagedVm>(
    recording: &Recording<'_>,
    machine: &Machine,
    planted: Option<Planted>,
) -> Verdict {
    let chunks = chunks(&recording.items);
    let mut run = Run::<V> {
        machine,
        planted,
        addresses: if inputs::are_complete(recording) {
            Addresses::as_said()
        } else {
            Addresses::learn(&chunks)
        },
        vm: None,
        eager_split: EagerSplit::On,
        nx_huge_pages: machine.nx_huge_pages,
        outside: Vec::new(),
        file: None,
        last_slot: None,
        notes_of: slat_memslot::AsId::NORMAL,
        protected: None,
        handler: 0,
        idle: false,
    };
    let codec = Codec::<V::Format>::new(&machine.host);
    let mut comparer = Comparer::new(codec).with_kinds(inputs::kinds_of(recording));
    let (mut compared, mut adopted) = (0, 0);
    for (at, chunk) in chunks.iter().enumerate() {
        let mut predicted = run.chunk(chunk, recording);
        if recording.truncated && at + 1 == chunks.len() {
            predicted.truncate(recorded(chunk));
        }
        match comparer.compare(&predicted, chunk) {
            Ok(agreement) => {
                compared += agreement.compared;
                adopted += agreement.adopted.len();
            }
            Err(difference) => {
                return Verdict::Differs {
                    compared,
                    difference: Box::new(difference),
                };
            }
        }
    }
    Verdict::Agrees { compared, adopted }
}

/// How many lines of a part are compared.
fn recorded(chunk: &[Item<'_>]) -> usize {
    let role_word = |what: &What<'_>| matches!(what, What::Probe(traces::Probe::SpRole { .. }));
    let counts =
        |item: &&Item<'_>| traces::Kind::of(&item.what).is_some() && !role_word(&item.what);
    chunk.iter().filter(counts).count()
}

/// A recording, cut before each operation.
fn chunks<'i, 'a>(items: &'i [Item<'a>]) -> Vec<&'i [Item<'a>]> {
    let mut chunks = Vec::new();
    let mut rest = items;
    while !rest.is_empty() {
        let is_op = |item: &Item<'_>| matches!(item.what, What::Op(_));
        let next = rest.iter().skip(1).position(is_op);
        let (chunk, after) = rest.split_at(next.map_or(rest.len(), |at| at + 1));
        chunks.push(chunk);
        rest = after;
    }
    chunks
}

/// What the recorded call returned.
fn returned(chunk: &[Item<'_>]) -> Option<Ret> {
    chunk.iter().find_map(|item| match item.what {
        What::Ret(ret) => Some(ret),
        _ => None,
    })
}

impl<V: PagedVm> Run<'_, V> {
    /// Does one operation and what follows it, and gives what is predicted of it.
    fn chunk(&mut self, chunk: &[Item<'_>], recording: &Recording<'_>) -> Vec<Predicted> {
        let Some(What::Op(op)) = chunk.first().map(|item| &item.what) else {
            return Vec::new();
        };
        if let Some(vm) = &mut self.vm {
            inputs::supply(vm.host_mut(), chunk);
            if self.addresses.are_said() {
                self.sizes(chunk);
            }
        }
        self.operation(op, chunk, recording);
        self.notes(chunk);
        let mut all = core::mem::take(&mut self.outside);
        if let Some(vm) = &mut self.vm {
            all.extend(vm.take());
        }
        all
    }

    fn operation(&mut self, op: &Op<'_>, chunk: &[Item<'_>], recording: &Recording<'_>) {
        match op {
            Op::CreateVm { vm_type } => self.create_vm(*vm_type, recording),
            Op::ModuleParameter { name, value } => self.parameter(name, value),
            _ => {}
        }
        let memory_call = matches!(
            op,
            Op::Madvise { .. }
                | Op::Mprotect { .. }
                | Op::Fork
                | Op::ChildEnds
                | Op::HostWork(_)
                | Op::Userfault { .. }
        );
        if memory_call {
            self.host_call(op, chunk);
        } else if let Op::Poke { hva, value } = op {
            if let Some(vm) = &mut self.vm {
                vm.poke(hva.raw(), *value);
            }
        } else if let Op::Guest { vcpu, act } = op {
            self.guest(*vcpu, act, chunk);
        } else {
            self.call(op, chunk);
            self.age(op, chunk);
            self.unmap_all(chunk);
        }
    }

    fn create_vm(&mut self, vm_type: u64, recording: &Recording<'_>) {
        let raw = u32::try_from(vm_type).unwrap_or(u32::MAX);
        let supported = VmType::from_raw(raw).filter(|t| self.machine.profile.supports(*t));
        let made = supported.and_then(|vm_type| V::on(self.machine, vm_type, self.nx_huge_pages));
        let answer = made.as_ref().map(|_| None).ok_or(Errno::EINVAL);
        self.outside.push(Predicted::Returned(answer));
        self.vm = made;
        if let Some(vm) = &mut self.vm {
            inputs::prepare(vm, recording);
            vm.set_eager_split(self.eager_split);
        }
    }

    fn parameter(&mut self, name: &str, value: &str) {
        let on = ["Y", "1", "force"].contains(&value);
        match name {
            "eager_page_split" if on => self.eager_split = EagerSplit::On,
            "eager_page_split" => self.eager_split = EagerSplit::Off,
            _ if on => self.nx_huge_pages = NxHugePages::On,
            _ => self.nx_huge_pages = NxHugePages::Off,
        }
        if let Some(vm) = &mut self.vm {
            vm.set_eager_split(self.eager_split);
            vm.set_nx_huge_pages(self.nx_huge_pages);
        }
    }

    fn answer(&mut self, value: i64) {
        self.outcome(Ok(Some(value)));
    }

    fn outcome(&mut self, outcome: Result<Option<i64>, Errno>) {
        let answer = Predicted::Returned(outcome);
        match &mut self.vm {
            Some(vm) => vm.tell(answer),
            None => self.outside.push(answer),
        }
    }

    /// A call of KVM.
    fn call(&mut self, op: &Op<'_>, chunk: &[Item<'_>]) {
        match op {
            Op::SetRegion(region) => self.set_region(region, returned(chunk)),
            Op::SetMsr { .. } => self.answer(1),
            Op::Smi => self.answer(0),
            Op::CreateGmem { .. } | Op::CloseGmem | Op::PunchHole { .. } => self.file_call(op),
            _ => {
                let machine = self.machine;
                let Some(vm) = &mut self.vm else { return };
                if self.planted == Some(Planted::RingsWatchNothing) && *op == Op::ResetRings {
                    vm.forget_rings();
                    return;
                }
                vcpu_call(vm, op, machine);
                vm_call(vm, op, returned(chunk));
            }
        }
    }

    /// A call about the guest_memfd.
    fn file_call(&mut self, op: &Op<'_>) {
        let Some(vm) = &mut self.vm else { return };
        match (op, self.file) {
            (Op::CreateGmem { size }, _) => self.file = vm.create_gmem(*size),
            (Op::PunchHole { .. }, Some(_)) if self.planted == Some(Planted::HolesZapNothing) => {
                vm.tell(Predicted::Returned(Ok(Some(0))));
            }
            (Op::PunchHole { offset, len }, Some(file)) => vm.punch_hole(file, *offset, *len),
            (Op::CloseGmem, Some(file)) => {
                // Closing a descriptor that is open cannot fail.
                let _ = vm.close_gmem(file);
            }
            _ => {}
        }
    }

    fn set_region(&mut self, region: &SetRegion, recorded: Option<Ret>) {
        let (key, file) = (key_of(region), self.file);
        let hva = self.addresses.address_for(region);
        let Some(vm) = &mut self.vm else { return };
        let (gpa, size) = (region.gfn.gpa().raw(), region.pages.raw() << 12);
        let mut request = Region::new(key, gpa, size, hva);
        match (region.gmem_offset, file) {
            (Some(offset), Some(file)) => request = request.with_gmem(file, offset),
            (Some(_), None) => request.version = RegionVersion::V2,
            (None, _) => {}
        }
        request.flags = region.flags;
        let refused = region.hva.is_none() && recorded == Some(Ret::Failed(Errno::EINVAL));
        if refused && vm.memory().check_region(&request).is_ok() {
            // The address in the host, which is not recorded, was another one.
            request.hva += 0x1000;
        }
        vm.set_region(&request);
        self.last_slot = Some(key);
    }

    fn guest(&mut self, vcpu: u32, act: &GuestAct<'_>, chunk: &[Item<'_>]) {
        if let GuestAct::EnterSmm { handler } = act {
            self.handler = handler.raw();
        }
        let in_guest = until_exit(chunk);
        let copies: Vec<HvaRange> = unmapped(in_guest)
            .flat_map(|range| self.addresses.to_model(&range))
            .collect();
        let mut activity = activity(act, self.handler, self.machine);
        match self.planted {
            Some(Planted::SmiKeepsRoot) => activity.mode_first = None,
            Some(Planted::RsmKeepsRoot) => activity.mode_then = None,
            Some(Planted::StoresOfL1Unread) if matches!(act, GuestAct::StoreOfL1 { .. }) => {
                activity.written = None;
            }
            Some(Planted::L2KeepsRoot) if activity.l2_tables.is_none() => activity.mode_then = None,
            Some(Planted::ZerosHalt) => activity.memory_runs = false,
            _ => {}
        }
        let Some(vm) = &mut self.vm else { return };
        vm.host_mut().expect_copies(copies);
        match act {
            GuestAct::Execution {
                privilege,
                instruction,
            } => vm.execute(vcpu, instruction, *privilege),
            _ => vm.run_guest(vcpu, &activity),
        }
        for range in vm.host_mut().take_copies() {
            vm.unmap_hva(range);
        }
        let (_, after) = chunk.split_at(in_guest.len());
        self.unmap_all(after);
    }
}

/// A call about a vCPU.
fn vcpu_call(vm: &mut impl PagedVm, op: &Op<'_>, machine: &Machine) {
    let supported = machine.host.maxphyaddr;
    match op {
        Op::CreateVcpu { id } => vm.create_vcpu(*id),
        Op::SetCpuid {
            vcpu,
            max_phys_addr,
        } => vm.set_max_phys_addr(*vcpu, max_phys_addr.unwrap_or(supported)),
        Op::SetSregs { vcpu, sregs } => set_sregs(vm, vcpu.unwrap_or(0), sregs, machine),
        Op::SetSmm(true) => vm.set_mode(0, VcpuMode::Smm),
        Op::SetSmm(false) => vm.set_mode(0, VcpuMode::Normal),
        _ => {}
    }
}

/// A call about the VM, or its end.
fn vm_call(vm: &mut impl PagedVm, op: &Op<'_>, returned: Option<Ret>) {
    match op {
        Op::EnableCap { cap, arg, .. } => enable_cap(vm, cap, *arg),
        Op::SetAttributes {
            gfn,
            pages,
            attributes,
        } => vm.set_attributes(*gfn, *pages, *attributes),
        Op::PreFault {
            vcpu,
            gfn,
            pages,
            flags,
        } => {
            let flags = flags.unwrap_or_else(|| hidden_flags(returned, *pages));
            vm.pre_fault(*vcpu, *gfn, *pages, flags);
        }
        Op::SetMmuPages { pages } => vm.set_mmu_pages(*pages),
        Op::GetDirtyLog { slot } => vm.get_dirty_log(u32::from(*slot)),
        Op::ClearDirtyLog { slot, first, pages } => {
            vm.clear_dirty_log(u32::from(*slot), *first, *pages);
        }
        Op::ResetRings => vm.reset_rings(),
        Op::HarvestRing { vcpu } => vm.harvest_ring(*vcpu),
        Op::CloseVm => vm.close(),
        _ => {}
    }
}

/// Where the flags of a pre-fault are not recorded: a call that is refused for nothing else had some.
fn hidden_flags(recorded: Option<Ret>, pages: Pages) -> u64 {
    let refused = recorded == Some(Ret::Failed(Errno::EINVAL));
    u64::from(refused && pages.raw() > 0)
}

fn enable_cap(vm: &mut impl PagedVm, name: &str, arg: u64) {
    let known = cap::ALL.iter().find(|(_, known)| *known == name);
    vm.enable_cap(known.map_or(u32::MAX, |(cap, _)| *cap), arg);
}

fn set_sregs(vm: &mut impl PagedVm, vcpu: u32, sregs: &Sregs<'_>, machine: &Machine) {
    let amd = machine.is_amd();
    match sregs {
        // The bit is reserved on other CPUs (`x86.c:kvm_is_valid_sregs`).
        Sregs::LongMode {
            nesting: Some("EFER.SVME"),
            ..
        } if !amd => vm.tell(Predicted::Returned(Err(Errno::EINVAL))),
        Sregs::Flat => vm.set_paging(vcpu, Paging::Off),
        Sregs::LongMode { cr3, .. } => vm.set_paging(
            vcpu,
            Paging::Long {
                cr3: *cr3,
                pages: Vec::new(),
            },
        ),
        Sregs::LongModeWith { pages } => vm.set_paging(
            vcpu,
            Paging::Long {
                cr3: GUEST_TABLES,
                pages: pages.clone(),
            },
        ),
        Sregs::Bits {
            register,
            bits,
            set,
        } => {
            let (register, bits, set) = (*register, *bits, *set);
            let change = ControlBits {
                register,
                bits,
                set,
            };
            vm.set_registers(vcpu, Some(change));
        }
        Sregs::Control(control) => vm.set_control(vcpu, control),
        Sregs::Other(_) => vm.set_registers(vcpu, None),
    }
}
