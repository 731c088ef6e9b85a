//! The operations of a recording, done one after the other.

use slat_memslot::{Errno, Gfn, GmemId, Gpa, Pages, Region, RegionVersion, Slot, VmType, cap};
use slat_mmu::role::VcpuMode;
use slat_mmu::spte::{Codec, NxHugePages};

use super::activity::activity;
use super::addresses::{Addresses, key_of, unmapped, until_exit};
use super::{Machine, Verdict, inputs};
use crate::paged_vm::{ControlBits, PagedVm};
use crate::tdp_vm::{EagerSplit, HvaRange, Paging, Supplied};
use crate::traces::{
    self, Comparer, GuestAct, Item, Note, Op, Predicted, Recording, Ret, SetRegion, Sregs, Traced,
    What,
};

/// Where the recorded program puts its guest's page tables.
const GUEST_TABLES: Gpa = Gpa::new(0x4000);

/// A recording being predicted.
struct Run<'m, V: PagedVm> {
    machine: &'m Machine,
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
pub(super) fn run<V: PagedVm>(recording: &Recording<'_>, machine: &Machine) -> Verdict {
    let chunks = chunks(&recording.items);
    let mut run = Run::<V> {
        machine,
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
        let memory_call = matches!(op, Op::Madvise { .. } | Op::Mprotect { .. } | Op::Fork);
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
        let answer = Predicted::Returned(Ok(Some(value)));
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

    /// The host addresses of frames, where a slot holds them.
    fn addresses_of(&self, gfn: Gfn, pages: Pages) -> Option<HvaRange> {
        let space = self.vm.as_ref()?.memory().space(slat_memslot::AsId::NORMAL);
        let start = space.by_gfn(gfn)?.hva_of(gfn)?.raw();
        Some(start..start.saturating_add(pages.raw() << 12))
    }

    /// A call on the host's memory, with the notifications before it returns.
    fn host_call(&mut self, op: &Op<'_>, chunk: &[Item<'_>]) {
        let is_ret = |item: &Item<'_>| matches!(item.what, What::Ret(_));
        let ret = chunk.iter().position(is_ret).unwrap_or(chunk.len());
        let (before, after) = chunk.split_at(ret);
        self.change_memory(op);
        for range in unmapped(before) {
            self.unmap(&range, matches!(op, Op::Fork));
        }
        self.answer(0);
        self.unmap_all(after);
    }

    fn change_memory(&mut self, op: &Op<'_>) {
        let range = match op {
            Op::Madvise { gfn, pages, .. } => self.addresses_of(*gfn, *pages),
            Op::Mprotect { range, .. } => {
                self.protected = range.or(self.protected);
                self.protected
                    .and_then(|(gfn, pages)| self.addresses_of(gfn, pages))
            }
            _ => None,
        };
        let (Some(vm), Some(range)) = (&mut self.vm, range) else {
            return;
        };
        match op {
            Op::Madvise { advice, .. } => match *advice {
                "DONTNEED" | "REMOVE" | "FREE" => vm.host_mut().discard(range),
                "COLLAPSE" => vm.host_mut().replace(range),
                _ => {}
            },
            Op::Mprotect { writable: true, .. } => vm.host_mut().unprotect(&range),
            Op::Mprotect { .. } => vm.host_mut().protect(range),
            _ => {}
        }
    }

    fn unmap(&mut self, range: &HvaRange, shared: bool) {
        let ranges = self.addresses.to_model(range);
        let Some(vm) = &mut self.vm else { return };
        for range in ranges {
            if shared {
                vm.host_mut().share(range.clone());
            }
            vm.unmap_hva(range);
        }
    }

    fn unmap_all(&mut self, items: &[Item<'_>]) {
        for range in unmapped(items) {
            self.unmap(&range, false);
        }
    }

    /// Pages are marked as idle, or looked at.
    fn age(&mut self, op: &Op<'_>, chunk: &[Item<'_>]) {
        let mut young = false;
        for item in chunk {
            let What::Event(Traced::AgeHva { start, end }) = item.what else {
                continue;
            };
            for range in self.addresses.to_model(&(start..end)) {
                let vm = self.vm.as_mut();
                young |= vm.is_some_and(|vm| vm.age_hva(range));
            }
        }
        match op {
            Op::MarkIdle { .. } => {
                self.idle = true;
                self.answer(8);
            }
            Op::ReadIdle => {
                self.idle &= !young;
                self.answer(8);
                if let Some(vm) = &mut self.vm {
                    vm.tell(Predicted::Idle(self.idle));
                }
            }
            _ => {}
        }
    }

    fn guest(&mut self, vcpu: u32, act: &GuestAct<'_>, chunk: &[Item<'_>]) {
        if let GuestAct::EnterSmm { handler } = act {
            self.handler = handler.raw();
        }
        let in_guest = until_exit(chunk);
        let copies: Vec<HvaRange> = unmapped(in_guest)
            .flat_map(|range| self.addresses.to_model(&range))
            .collect();
        let activity = activity(act, self.handler, self.machine);
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

    /// What the recorded program found out about its memory.
    fn notes(&mut self, chunk: &[Item<'_>]) {
        for item in chunk {
            match &item.what {
                What::Note(Note::BackingOf(as_id)) => self.notes_of = *as_id,
                What::Note(Note::Backing { gfn, pfn, level }) => {
                    let size = level.and_then(inputs::size_of);
                    self.backing(Supplied {
                        gfn: *gfn,
                        pfn: *pfn,
                        size,
                    });
                }
                What::Note(Note::Leaves(_)) => self.leaves(),
                What::Note(Note::Counts(_)) => self.counts(),
                What::Note(Note::Remark("backing never touched by the host")) => self.untouched(),
                _ => {}
            }
        }
    }

    /// The VM's statistics were read.
    fn leaves(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let leaves = vm.leaves();
        vm.tell(Predicted::Leaves(leaves));
    }

    fn counts(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        if let Some(counts) = vm.counts() {
            vm.tell(Predicted::Counts(counts));
        }
    }

    fn backing(&mut self, page: Supplied) {
        let Some(vm) = &mut self.vm else { return };
        let slot = vm.memory().space(self.notes_of).by_gfn(page.gfn);
        let hva = slot.and_then(|slot| slot.hva_of(page.gfn));
        if let Some(hva) = hva {
            vm.host_mut().know_page(hva.raw(), page);
        }
    }

    /// The memory of the last slot was never written to.
    fn untouched(&mut self) {
        let (Some(vm), Some(key)) = (&mut self.vm, self.last_slot) else {
            return;
        };
        let bytes = |slot: &Slot| slot.pages().raw() << 12;
        let slot = vm.memory().space(key.as_id).by_id(key.id);
        if let Some((start, bytes)) = slot.map(|slot| (slot.hva().raw(), bytes(slot))) {
            vm.host_mut().set_untouched(start..start + bytes);
        }
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
