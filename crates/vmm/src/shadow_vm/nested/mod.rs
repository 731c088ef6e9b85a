//! L2 on tables of L1's: the second MMU of a vCPU (`guest_mmu`), which shadows them.

mod emulate;
mod run;

use slat_memslot::{Gpa, Gva, Memory};
use slat_mmu::fault::{
    Env, Invalidation, Kind, MmioAccess, MmioCache, NotTracked, Outcome, Present, Settings,
};
use slat_mmu::host::{ExecuteOnly, SecondStage};
use slat_mmu::role::{
    CpuRole, NestedEpt, RoleLayout, TdpHost, VcpuMode, VcpuState, nested_ept_root_role,
    nested_npt_root_role, tdp_level,
};
use slat_mmu::roots::{FlushOnReuse, Pgd};
use slat_mmu::shadow::{
    GuestWalk, MarkedTrail, Roots, ShadowFault, ShadowLocked, ShadowMmu, ShadowRoot, TdpBeside,
};
use slat_mmu::spte::{Access, Format, Mmio, Spte};
use slat_mmu::tdp::{HardwareAccess, Observer};
use slat_mmu::walk::second::{FaultPlace, SecondExit};
use slat_mmu::walk::{
    ErrorCode, GuestCpu, GuestPaging, NestedEptRoot, PagingMode, Pointers, Privilege, TableMemory,
    Translation, Unnested, WalkFault,
};

use super::log::mark_dirtied;
use super::paged::marked;
use super::ram::Ram;
use crate::paged_vm::fault::MetMmio;
use crate::tdp_vm::{HostMemory, SecondStageOfL2};
use crate::traces::Predicted;

pub(crate) use emulate::{Code, EmulatedAccess};

/// What a vCPU has while L2 runs on tables of L1's.
#[derive(Debug)]
pub(crate) struct L2 {
    pub(crate) roots: Roots,
    paging: GuestPaging,
    /// L1 has started it: what is out of step is brought into it before it runs.
    sync: bool,
    /// Whether the vCPU is in it: L1 may have started one without tables since.
    pub(crate) runs: bool,
}

impl L2 {
    /// L1, in this state, gives tables to its guest (`mmu.c:kvm_init_shadow_npt_mmu`, `mmu.c:kvm_init_shadow_ept_mmu`).
    /// `None` if it does not page itself, which NPT demands.
    pub(crate) fn new(
        l1: &VcpuState,
        tables: &SecondStageOfL2,
        tdp: &TdpHost,
        cpu: &GuestCpu,
    ) -> Option<Self> {
        match tables {
            SecondStageOfL2::Npt { cr3 } => {
                let state = VcpuState {
                    mode: VcpuMode::Guest,
                    cr3: cr3.raw(),
                    ..*l1
                };
                let role = CpuRole::of(&state, RoleLayout::Baseline);
                let role = nested_npt_root_role(role, tdp_level(tdp, l1.phys_bits)).ok()?;
                Some(Self {
                    roots: Roots::new(role),
                    paging: GuestPaging::new(&state, cpu),
                    sync: true,
                    runs: true,
                })
            }
            SecondStageOfL2::Ept { pointer } => {
                let root = NestedEptRoot::of(*pointer, ExecuteOnly::Unsupported);
                let ept = NestedEpt {
                    depth: root.depth,
                    access_dirty: root.access_dirty,
                };
                Some(Self {
                    roots: Roots::new(nested_ept_root_role(ept, RoleLayout::Baseline)),
                    paging: GuestPaging::nested_ept(&root, cpu),
                    sync: false,
                    runs: true,
                })
            }
        }
    }
}

impl L2 {
    /// L1 starts L2 again, perhaps on other tables: roles first, then the switch, which may find a root of before
    /// (`mmu.c:kvm_init_shadow_npt_mmu`, `mmu.c:kvm_init_shadow_ept_mmu`).
    pub(crate) fn restart<F: Format>(
        &mut self,
        anew: &Self,
        locked: &mut ShadowLocked<'_, F, impl Observer<F>>,
    ) {
        self.paging = anew.paging;
        (self.sync, self.runs) = (anew.sync, anew.runs);
        self.roots.mmu.init(anew.roots.mmu.role());
        let pgd = Pgd::new(self.paging.root());
        locked.new_pgd(&mut self.roots, pgd, FlushOnReuse::Off);
    }
}

/// What an access of L2 needs of its VM.
pub(crate) struct L2Access<'w, F: Format, O, T> {
    /// By index, as dirty rings are.
    pub(crate) vcpu: u32,
    pub(crate) mmu: &'w mut ShadowMmu<F>,
    /// The TDP MMU's tables, where L1 runs on such.
    pub(crate) tdp: T,
    pub(crate) l2: &'w mut L2,
    pub(crate) memory: &'w mut Memory,
    pub(crate) ram: &'w Ram,
    pub(crate) host: &'w mut HostMemory,
    pub(crate) invalidation: &'w Invalidation,
    pub(crate) settings: Settings,
    pub(crate) mmio: &'w mut MmioCache,
    pub(crate) out: &'w mut O,
}

impl<F: Format, O: Observer<F> + Extend<Predicted>, T: TdpBeside<F>> L2Access<'_, F, O, T> {
    /// Loads L2's root; says whether there is room for it.
    pub(crate) fn load(&mut self) -> bool {
        let role = self.l2.roots.mmu.role();
        let tables = self.ram.view(self.memory, role.as_id());
        let guest = tables.followed(&self.l2.paging, self.settings, role);
        let pointers = pointers_of(&self.l2.paging, &tables);
        let mut locked = self.mmu.lock_beside(&mut *self.out, &mut self.tdp);
        let roots = &mut self.l2.roots;
        // `svm/nested.c:nested_svm_transition_tlb_flush`
        if core::mem::take(&mut self.l2.sync) {
            locked.sync_roots(roots, &guest);
        }
        let loaded = locked.load_shadow(roots, pointers, &guest).is_ok();
        let dirtied = locked.take_dirtied();
        mark_dirtied(self.memory, self.vcpu, dirtied);
        loaded
    }

    /// What hardware makes of an access: each is one of user mode.
    pub(crate) fn hardware(&self, kind: Kind, gpa: Gpa) -> HardwareAccess<F> {
        let access = match kind {
            Kind::Read => Access::USER,
            Kind::Write => Access::USER | Access::WRITE,
            // EPT has entries that allow nothing else.
            Kind::Execute if F::EXECUTE != 0 => Access::EXECUTE,
            Kind::Execute => Access::USER | Access::EXECUTE,
        };
        let root = self.l2.roots.current(self.mmu);
        let root = root.unwrap_or(ShadowRoot::Dummy);
        self.mmu.hardware_access(root, gpa.raw(), access)
    }

    /// Where L1 has what hardware has reached.
    pub(crate) fn mapped(&self, gpa: Gpa) -> Option<Gpa> {
        let root = self.l2.roots.current(self.mmu)?;
        let gfn = self.mmu.frame_at(root, gpa.raw())?;
        Some(Gpa::new(gfn.gpa().raw() | gpa.raw() & 0xfff))
    }

    /// Whether an MMIO entry still holds, and KVM carries out the access.
    pub(crate) fn is_known_mmio(&mut self, spte: Spte<F>, mmio: Mmio) -> bool {
        let as_id = self.l2.roots.mmu.role().as_id();
        let met = MetMmio {
            spte,
            mmio,
            as_id,
            gfn: mmio.gfn,
        };
        // L2's addresses are not those of the cache.
        let mut none = MmioCache::default();
        let known = met.is_known(self.memory, self.mmu.codec(), &mut none, &mut *self.out);
        let generation = self.memory.space(as_id).generation();
        if let Some(found) = none.at(mmio.gfn, generation).filter(|_| known) {
            self.mmio.remember_at(found, generation);
        }
        known
    }

    /// The outcome and L1's address.
    ///
    /// # Errors
    /// L1's tables do not allow the access: what L1 is told.
    pub(crate) fn fault(
        &mut self,
        (kind, present): (Kind, Present),
        gpa: Gpa,
        place: FaultPlace,
    ) -> Result<(Outcome, Gpa), SecondExit> {
        let wanted = self.error_code(kind);
        let (trail, found) = self
            .walk(wanted, gpa)
            .map_err(|fault| self.told_to_l1(&fault, wanted, place))?;
        let role = self.l2.roots.mmu.role();
        let tables = self.ram.view(self.memory, role.as_id());
        let guest = tables.followed(&self.l2.paging, self.settings, role);
        let walk = GuestWalk {
            trail: &trail,
            found: &found,
        };
        let fault = ShadowFault {
            address: gpa.raw(),
            kind,
            privilege: Privilege::User,
            present,
        };
        // L2's addresses are not those that are remembered (`x86.h:vcpu_cache_mmio_info`).
        let mut met = MmioCache::default();
        let mut env = Env {
            memory: self.memory,
            backing: &mut *self.host,
            invalidation: self.invalidation,
            settings: self.settings,
            mmio: &mut met,
            shadow: NotTracked,
        };
        let (roots, out) = (&mut self.l2.roots, &mut *self.out);
        let of = (&walk, &guest);
        let (mmu, tdp) = (&mut *self.mmu, &mut self.tdp);
        let handled = mmu.shadow_page_fault_beside(roots, &fault, of, &mut env, out, tdp);
        let generation = self.memory.space(role.as_id()).generation();
        if let Some(met) = met.at(gpa.gfn(), generation) {
            let place = met.gfn;
            self.mmio
                .remember_at(MmioAccess { place, ..met }, generation);
        }
        if let Some((slot, gfn)) = handled.mark_dirty {
            let _ = self.memory.mark_dirty(self.vcpu, slot.as_id, gfn);
        }
        Ok((handled.outcome, found.gpa))
    }

    /// Walks L1's tables for an address of L2's, which leaves marks.
    fn walk(
        &mut self,
        wanted: ErrorCode,
        gpa: Gpa,
    ) -> Result<(MarkedTrail, Translation), WalkFault> {
        let as_id = self.l2.roots.mmu.role().as_id();
        let tables = self.ram.view(self.memory, as_id);
        let mut trail = MarkedTrail::default();
        let pointers = pointers_of(&self.l2.paging, &tables);
        let paging = self.l2.paging.with_pointers(pointers);
        let paging = paging.without_canonical_check();
        let address = Gva::new(gpa.raw());
        let found = paging.walk(&tables, &mut Unnested, &mut trail, address, wanted);
        self.out.extend(trail.marks().iter().flat_map(marked));
        for mark in trail.marks().iter().filter(|mark| mark.written) {
            let _ = self.memory.mark_dirty(self.vcpu, as_id, mark.place.gfn());
        }
        found.map(|found| (trail, found))
    }

    /// What an exit of hardware asks L1's tables for: one thing with EPT, where only reading counts as user mode
    /// (`vmx/common.h:__vmx_handle_ept_violation`).
    fn error_code(&self, kind: Kind) -> ErrorCode {
        match (self.mmu.codec().host().second_stage, kind) {
            (SecondStage::Ept, Kind::Write) => ErrorCode::WRITE,
            (SecondStage::Ept, Kind::Execute) => ErrorCode::FETCH,
            _ => ErrorCode::of(kind, Privilege::User),
        }
    }

    /// What KVM makes of a walk through L1's tables that has failed (`paging_tmpl.h:walk_addr_generic`,
    /// `nested_ept_inject_page_fault`, `nested_svm_inject_npf_exit`).
    fn told_to_l1(&self, fault: &WalkFault, wanted: ErrorCode, place: FaultPlace) -> SecondExit {
        // A walk without canonical addresses and without a stage of its own ends in nothing else.
        let Some(fault) = fault.page_fault() else {
            return SecondExit::EptMisconfiguration;
        };
        match self.mmu.codec().host().second_stage {
            SecondStage::Ept => {
                // The qualification says what was asked for, whatever the error code leaves out.
                let mut fault = *fault;
                fault.code |= wanted;
                SecondExit::synthesised_ept(&fault, place)
            }
            SecondStage::Npt | SecondStage::Off => SecondExit::synthesised_npt(fault, place),
        }
    }
}

/// The pointers of an L1 that gives its guest tables of three levels: each is read when a root is made
/// (`svm/nested.c:nested_svm_get_tdp_pdptr`).
fn pointers_of(paging: &GuestPaging, tables: &impl TableMemory) -> Pointers {
    if paging.mode() != PagingMode::Pae {
        return Pointers::default();
    }
    let first = paging.root() & POINTERS;
    let read = |part: u64| tables.read_u64(Gpa::new(first + part * 8)).unwrap_or(0);
    Pointers([0, 1, 2, 3].map(read))
}

/// Where the pointers are, in `nCR3`.
const POINTERS: u64 = 0xffff_ffe0;
