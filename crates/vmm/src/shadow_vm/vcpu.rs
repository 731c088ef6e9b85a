//! vCPUs: their registers as far as roots depend on them, and the roots they hold.

use slat_mmu::fault::MmioCache;
use slat_mmu::role::{
    CpuRole, Cr0, Cr4, Efer, PageRole, PhysBits, RoleLayout, TdpHost, VcpuMode, VcpuState,
    root_role_for_tdp,
};
use slat_mmu::roots::{FlushOnReuse, Pgd, Request, RootSet};
use slat_mmu::shadow::{Roots, ShadowMmu};
use slat_mmu::spte::Format;

use super::ShadowVm;
use super::nested::L2;
use crate::paged_vm::ControlBits;
use crate::tdp_vm::Paging;
use crate::tdp_vm::Sink;
use crate::traces::Predicted;

/// One vCPU.
#[derive(Debug)]
pub(super) struct Vcpu {
    pub(super) roots: Roots,
    pub(super) mmio: MmioCache,
    pub(super) state: VcpuState,
    pub(super) paging: Paging,
    /// L1's registers, while L2 runs.
    l1: Option<(VcpuState, Paging)>,
    /// L2's MMU, if L2 has tables of L1's.
    pub(super) l2: Option<L2>,
}

/// The role that a vCPU wants for its root.
fn root_role(state: &VcpuState, tdp: Option<&TdpHost>) -> PageRole {
    match tdp {
        Some(tdp) => root_role_for_tdp(state, tdp),
        None => CpuRole::of(state, RoleLayout::Baseline).shadow_root_role(),
    }
}

impl Vcpu {
    fn new(tdp: Option<&TdpHost>) -> Self {
        let state = VcpuState::default();
        Self {
            roots: Roots::new(root_role(&state, tdp)),
            mmio: MmioCache::default(),
            state,
            paging: Paging::Off,
            l1: None,
            l2: None,
        }
    }

    /// L1's registers are put away; those of L2 do not page.
    pub(super) fn pause_l1(&mut self) {
        let l2 = VcpuState {
            cr0: Cr0::PE,
            cr3: 0,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            mode: VcpuMode::Guest,
            ..self.state
        };
        let paging = core::mem::take(&mut self.paging);
        self.l1 = Some((core::mem::replace(&mut self.state, l2), paging));
    }

    /// L2 starts or ends, without tables of its own: the role first, then the switch, so that L1's roots stay in the cache
    /// (`svm/nested.c:nested_svm_load_cr3`). L2 does not page.
    fn change_guest<F: Format>(
        &mut self,
        mode: VcpuMode,
        mmu: &mut ShadowMmu<F>,
        tdp: Option<&TdpHost>,
        out: &mut Sink,
    ) {
        if let Some(l2) = &mut self.l2 {
            l2.runs = false;
        }
        match (mode, self.l1.take()) {
            (VcpuMode::Guest, _) => self.pause_l1(),
            (_, Some((state, paging))) => (self.state, self.paging) = (state, paging),
            (_, None) => {}
        }
        self.roots.mmu.init(root_role(&self.state, tdp));
        let pgd = Pgd::new(self.state.cr3);
        let reused = mmu
            .lock(out)
            .new_pgd(&mut self.roots, pgd, FlushOnReuse::Off);
        if reused {
            self.forget_mmio();
        }
    }

    /// Gives up all roots and wants those of the present state (`mmu.c:kvm_mmu_reset_context`).
    fn reset_context<F: Format>(
        &mut self,
        mmu: &mut ShadowMmu<F>,
        tdp: Option<&TdpHost>,
        out: &mut Sink,
    ) {
        let role = root_role(&self.state, tdp);
        mmu.lock(&mut *out).reset_context(&mut self.roots, role);
        if let Some(l2) = &mut self.l2 {
            mmu.lock(out).free_roots(&mut l2.roots, RootSet::all());
        }
        self.forget_mmio();
    }

    /// The guest's own addresses may mean something else from now on (`x86.h:vcpu_clear_mmio_info`). With two-dimensional
    /// paging others are remembered.
    fn forget_mmio(&mut self) {
        if !self.roots.mmu.role().is_direct() {
            self.mmio.clear();
        }
    }

    pub(super) fn unload<F: Format>(&mut self, mmu: &mut ShadowMmu<F>, out: &mut Sink) {
        mmu.lock(&mut *out)
            .free_roots(&mut self.roots, RootSet::all());
        if let Some(l2) = &mut self.l2 {
            mmu.lock(out).free_roots(&mut l2.roots, RootSet::all());
        }
    }

    /// Serves the next request of one of its MMUs: what concerns the guest's tables is for the caller.
    fn serve_one<F: Format>(&mut self, mmu: &mut ShadowMmu<F>, out: &mut Sink) -> Option<Request> {
        let l2 = self.l2.as_mut().map(|l2| &mut l2.roots);
        for roots in core::iter::once(&mut self.roots).chain(l2) {
            if let Some((request, dropped)) = roots.mmu.serve(mmu.roots()) {
                mmu.lock(&mut *out).drop_roots(roots, dropped);
                return Some(request);
            }
        }
        None
    }

    /// Whether L2 runs on tables of L1's.
    pub(super) fn runs_on_l1_tables(&self) -> bool {
        self.l2.as_ref().is_some_and(|l2| l2.runs) && self.state.mode == VcpuMode::Guest
    }

    /// The registers that long mode needs.
    fn enter_long_mode(&mut self, cr3: u64) {
        self.state.cr0 |= Cr0::PG | Cr0::PE;
        self.state.cr4 |= Cr4::PAE;
        self.state.efer |= Efer::LME | Efer::LMA;
        self.state.cr3 = cr3;
    }
}

impl<F: Format> ShadowVm<F> {
    /// `KVM_CREATE_VCPU`; answered with a descriptor.
    pub fn create_vcpu(&mut self, id: u32) {
        let made = self.memory.create_vcpu().map_err(|r| r.errno());
        if made.is_ok() {
            self.vcpus.insert(id, Vcpu::new(self.tdp.as_ref()));
        }
        self.tell(Predicted::Returned(made.map(|_| None)));
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

    /// `KVM_SET_SREGS`: the guest's paging changes.
    pub fn set_paging(&mut self, id: u32, paging: Paging) {
        self.ram.make_tables(&paging);
        self.change_vcpu(id, |vcpu| {
            match &paging {
                Paging::Off => {
                    vcpu.state.cr0 = Cr0::PE;
                    vcpu.state.cr4 = Cr4::empty();
                    vcpu.state.efer = Efer::empty();
                }
                Paging::Long { cr3, .. } => vcpu.enter_long_mode(cr3.raw()),
            }
            vcpu.paging = paging;
        });
    }

    /// `KVM_SET_SREGS` of some bits, or of what no root depends on.
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
            vcpu.reset_context(&mut self.mmu, self.tdp.as_ref(), &mut self.out);
        }
        self.answer(Ok(0));
    }

    /// The guest itself changes its mode: it takes an SMI, or returns from one.
    pub(super) fn switch_mode(&mut self, id: u32, mode: VcpuMode) {
        let (mmu, tdp, out) = (&mut self.mmu, self.tdp.as_ref(), &mut self.out);
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            if mode == VcpuMode::Guest || vcpu.state.mode == VcpuMode::Guest {
                return vcpu.change_guest(mode, mmu, tdp, out);
            }
            vcpu.state.mode = mode;
            vcpu.reset_context(mmu, tdp, out);
        }
    }

    /// Serves what a vCPU was asked for, as every entry into the guest begins.
    pub(super) fn serve_requests(&mut self, id: u32) {
        loop {
            let vcpu = self.vcpus.get_mut(&id);
            let served = vcpu.and_then(|vcpu| vcpu.serve_one(&mut self.mmu, &mut self.out));
            match served {
                Some(Request::MmuSync) => self.sync_root(id),
                Some(Request::TlbFlushGuest) if self.tdp.is_none() => self.flush_guest(id),
                Some(_) => {}
                None => return,
            }
        }
    }

    /// All that the guest's TLB may hold is forgotten (`x86.c:kvm_vcpu_flush_tlb_guest`).
    fn flush_guest(&mut self, id: u32) {
        self.sync_root(id);
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            self.mmu
                .lock(&mut self.out)
                .free_unsync_previous(&mut vcpu.roots);
        }
    }

    /// Asks a vCPU for something.
    pub(super) fn request(&mut self, id: u32, request: Request) {
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            vcpu.roots.mmu.request(request);
        }
    }

    /// A vCPU gives up its roots and wants those of its present state.
    pub(super) fn reset_context(&mut self, id: u32) {
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            vcpu.reset_context(&mut self.mmu, self.tdp.as_ref(), &mut self.out);
        }
    }

    /// Asks all vCPUs for what the pages want of them.
    pub(super) fn spread_requests(&mut self) {
        let requests = self.mmu.take_requests();
        if requests.contains(Request::FreeObsoleteRoots) {
            for vcpu in self.vcpus.values_mut() {
                vcpu.roots.mmu.request(Request::FreeObsoleteRoots);
                if let Some(l2) = &mut vcpu.l2 {
                    l2.roots.mmu.request(Request::FreeObsoleteRoots);
                }
            }
        }
    }

    /// Sees to it that a vCPU has a root (`mmu.c:kvm_mmu_reload`); says whether it has.
    pub(super) fn load_root(&mut self, id: u32) -> bool {
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return false;
        };
        if vcpu.runs_on_l1_tables() {
            return self.load_l2_root(id);
        }
        if !vcpu.roots.mmu.role().is_direct() {
            return self.load_shadow_root(id);
        }
        let loaded = self.mmu.lock(&mut self.out).load_direct(&mut vcpu.roots);
        self.spread_requests();
        loaded.is_ok()
    }
}
