//! vCPUs: their registers as far as roots depend on them, and the roots they hold.

use slat_memslot::{Gfn, Outcome, Refusal};
use slat_mmu::fault::MmioCache;
use slat_mmu::host::SecondStage;
use slat_mmu::role::{PhysBits, TdpHost, VcpuMode, VcpuState, root_role_for_tdp};
use slat_mmu::roots::{Request, Root, RootId, VcpuMmu};
use slat_mmu::spte::Format;
use slat_mmu::table::Reader;
use slat_mmu::tdp::{Tables, Unobserved};

use super::TdpVm;
use super::activity::Paging;
use crate::paged_vm::ControlBits;

/// One vCPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    /// The number in the order of creation, from 0: whose ring it has.
    pub(super) index: u32,
    pub(super) mmu: VcpuMmu,
    pub(super) mmio: MmioCache,
    pub(super) state: VcpuState,
    pub(super) paging: Paging,
    /// L1's paging, while L2 runs.
    pub(super) l1_paging: Option<Paging>,
    /// Frames that hardware has logged as modified and KVM has not taken yet (PML).
    pub(super) modified: Vec<Gfn>,
    /// Its segments were set up to run in guest-physical addresses.
    pub(super) flat: bool,
}

impl Vcpu {
    /// Gives up all roots and wants those of the present state (`mmu.c:kvm_mmu_reset_context`).
    pub(super) fn reset_context<F: Format>(
        &mut self,
        tables: &Tables<F>,
        reader: &mut Reader,
        tdp: &TdpHost,
    ) {
        let role = root_role_for_tdp(&self.state, tdp);
        let dropped = self.mmu.reset_context(tables.roots(), role);
        let mut locked = tables.shared(reader, Unobserved);
        locked.free_roots(dropped);
    }

    pub(super) fn unload<F: Format>(&mut self, tables: &Tables<F>, reader: &mut Reader) {
        let role = self.mmu.role();
        let dropped = self.mmu.reset_context(tables.roots(), role);
        let mut locked = tables.shared(reader, Unobserved);
        locked.free_roots(dropped);
    }

    /// L2 starts, and does not page.
    pub(super) fn pause_l1(&mut self) {
        self.l1_paging = Some(core::mem::take(&mut self.paging));
        self.state.mode = VcpuMode::Guest;
    }

    fn serve_requests<F: Format>(&mut self, tables: &Tables<F>, reader: &mut Reader) {
        while let Some((_, dropped)) = self.mmu.serve(tables.roots()) {
            let mut locked = tables.shared(reader, Unobserved);
            locked.free_roots(dropped);
        }
    }
}

impl<F: Format> TdpVm<F> {
    /// `KVM_CREATE_VCPU`; answered with a descriptor.
    pub fn create_vcpu(&mut self, id: u32) {
        let made = self.add_vcpu(id).map_err(|refusal| refusal.errno());
        let answer = crate::traces::Predicted::Returned(made.map(|_| None));
        self.out.events.push(answer);
    }

    pub(super) fn add_vcpu(&mut self, id: u32) -> Result<Outcome, Refusal> {
        let index = self.memory.vcpus();
        let made = self.memory.create_vcpu()?;
        let state = VcpuState::default();
        let vcpu = Vcpu {
            index,
            mmu: VcpuMmu::new(root_role_for_tdp(&state, &self.tdp)),
            mmio: MmioCache::default(),
            state,
            paging: Paging::Off,
            l1_paging: None,
            modified: Vec::new(),
            flat: false,
        };
        self.vcpus.insert(id, vcpu);
        Ok(made)
    }

    /// `KVM_SET_CPUID2`, with this MAXPHYADDR.
    pub fn set_max_phys_addr(&mut self, id: u32, bits: u8) {
        self.change_vcpu(id, |vcpu| {
            vcpu.state.phys_bits = PhysBits {
                physical: bits,
                guest_physical: 0,
            };
        });
    }

    /// `KVM_SET_SREGS`: the guest's paging changes, or registers on which no root depends.
    pub fn set_paging(&mut self, id: u32, paging: Paging) {
        self.change_vcpu(id, |vcpu| vcpu.paging = paging);
    }

    /// `KVM_SET_SREGS` of some bits: of the roots only those depend on them that follow L1's tables for L2.
    pub fn set_registers(&mut self, id: u32, bits: Option<ControlBits<'_>>) {
        self.change_vcpu(id, |vcpu| {
            bits.iter().for_each(|bits| bits.change(&mut vcpu.state));
        });
    }

    /// `KVM_SET_VCPU_EVENTS`: the vCPU is put into a mode.
    pub fn set_mode(&mut self, id: u32, mode: VcpuMode) {
        self.change_vcpu(id, |vcpu| vcpu.state.mode = mode);
    }

    fn change_vcpu(&mut self, id: u32, change: impl FnOnce(&mut Vcpu)) {
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            change(vcpu);
            vcpu.reset_context(&self.tables, &mut self.reader, &self.tdp);
            self.nested.unload(id, &mut self.out);
        }
        self.answer(Ok(0));
    }

    /// The guest itself changes its mode: it takes an SMI or returns from one, or starts L2 or leaves it.
    ///
    /// L2 is taken to page as L1 does under VMX, which demands it of old guests, and not at all under SVM.
    pub(super) fn switch_mode(&mut self, id: u32, mode: VcpuMode) {
        self.pause_l2(id);
        let svm = self.tables.codec().host().second_stage == SecondStage::Npt;
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            if mode == VcpuMode::Guest && svm {
                vcpu.l1_paging = Some(core::mem::take(&mut vcpu.paging));
            } else if let Some(paging) = vcpu.l1_paging.take() {
                vcpu.paging = paging;
            }
            vcpu.state.mode = mode;
            vcpu.reset_context(&self.tables, &mut self.reader, &self.tdp);
        }
    }

    /// Serves what a vCPU was asked for, as every entry into the guest begins.
    pub(crate) fn serve_requests(&mut self, id: u32) {
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            vcpu.serve_requests(&self.tables, &mut self.reader);
        }
    }

    /// The root that a vCPU runs on, loaded if there is none (`mmu.c:kvm_mmu_reload`).
    pub(crate) fn load_root(&mut self, id: u32) -> Option<RootId> {
        let vcpu = self.vcpus.get_mut(&id)?;
        let mut locked = self.tables.shared(&mut self.reader, &mut self.out);
        locked.load(&mut vcpu.mmu).ok()?;
        match vcpu.mmu.cache().current() {
            Root::Page(root) => Some(root),
            Root::None | Root::Special(_) => None,
        }
    }

    /// The id of the vCPU that was created as this one, from 0.
    pub(crate) fn id_of(&self, index: u32) -> Option<u32> {
        let mut vcpus = self.vcpus.iter();
        vcpus
            .find(|(_, vcpu)| vcpu.index == index)
            .map(|(id, _)| *id)
    }

    /// How many vCPUs have a request that is not served yet.
    pub(crate) fn waiting(&self, request: Request) -> usize {
        let vcpus = self.vcpus.values();
        vcpus
            .filter(|vcpu| vcpu.mmu.requests().contains(request))
            .count()
    }

    pub(super) fn request_all(&mut self, request: Request) {
        for vcpu in self.vcpus.values_mut() {
            vcpu.mmu.request(request);
        }
    }
}
