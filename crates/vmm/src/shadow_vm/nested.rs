//! L2 on tables of L1's: the second MMU of a vCPU (`guest_mmu`), which shadows them.

use slat_memslot::{Errno, Gpa, Gva, Memory};
use slat_mmu::fault::{Env, Invalidation, Kind, MmioCache, Outcome, Present, Settings};
use slat_mmu::host::ExecuteOnly;
use slat_mmu::role::{
    CpuRole, NestedEpt, RoleLayout, TdpHost, VcpuMode, VcpuState, nested_ept_root_role,
    nested_npt_root_role, tdp_level,
};
use slat_mmu::shadow::{
    GuestWalk, MarkedTrail, Roots, ShadowFault, ShadowMmu, ShadowRoot, Shadowed,
};
use slat_mmu::spte::{Access, Format};
use slat_mmu::tdp::{HardwareAccess, Observer};
use slat_mmu::walk::{
    ErrorCode, GuestCpu, GuestPaging, NestedEptRoot, Pointers, Privilege, Unnested,
};

use super::ShadowVm;
use super::guest::Reached;
use super::paged::marked;
use super::ram::{Ram, RamView};
use crate::tdp_vm::{HostMemory, SecondStageOfL2};
use crate::traces::Predicted;

/// What a vCPU has while L2 runs on tables of L1's.
#[derive(Debug)]
pub(crate) struct L2 {
    pub(crate) roots: Roots,
    paging: GuestPaging,
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
                })
            }
        }
    }
}

/// What an access of L2 needs of its VM.
pub(crate) struct L2Access<'w, F: Format, O> {
    /// By index, as dirty rings are.
    pub(crate) vcpu: u32,
    pub(crate) mmu: &'w mut ShadowMmu<F>,
    pub(crate) l2: &'w mut L2,
    pub(crate) memory: &'w mut Memory,
    pub(crate) ram: &'w Ram,
    pub(crate) host: &'w mut HostMemory,
    pub(crate) invalidation: &'w Invalidation,
    pub(crate) settings: Settings,
    pub(crate) mmio: &'w mut MmioCache,
    pub(crate) out: &'w mut O,
}

impl<F: Format, O: Observer<F> + Extend<Predicted>> L2Access<'_, F, O> {
    /// Loads L2's root; says whether there is room for it.
    pub(crate) fn load(&mut self) -> bool {
        let role = self.l2.roots.mmu.role();
        let tables = RamView {
            ram: self.ram,
            memory: self.memory,
            as_id: role.as_id(),
        };
        let guest = Shadowed {
            paging: &self.l2.paging,
            tables: &tables,
            memory: self.memory,
            settings: self.settings,
            role,
        };
        let mut locked = self.mmu.lock(&mut *self.out);
        let roots = &mut self.l2.roots;
        locked
            .load_shadow(roots, Pointers::default(), &guest)
            .is_ok()
    }

    /// What hardware makes of an access: each is one of user mode.
    pub(crate) fn hardware(&self, kind: Kind, gpa: Gpa) -> HardwareAccess<F> {
        let access = match kind {
            Kind::Read => Access::USER,
            Kind::Write => Access::USER | Access::WRITE,
            Kind::Execute => Access::EXECUTE,
        };
        let root = self.l2.roots.current(self.mmu);
        let root = root.unwrap_or(ShadowRoot::Dummy);
        self.mmu.hardware_access(root, gpa.raw(), access)
    }

    /// The outcome and L1's address; `None` if L1 gets the violation itself.
    pub(crate) fn fault(
        &mut self,
        (kind, present): (Kind, Present),
        gpa: Gpa,
    ) -> Option<(Outcome, Gpa)> {
        let role = self.l2.roots.mmu.role();
        let tables = RamView {
            ram: self.ram,
            memory: self.memory,
            as_id: role.as_id(),
        };
        let mut trail = MarkedTrail::default();
        let wanted = ErrorCode::of(kind, Privilege::User);
        let address = Gva::new(gpa.raw());
        let walked = self.l2.paging.without_canonical_check();
        let found = walked.walk(&tables, &mut Unnested, &mut trail, address, wanted);
        self.out.extend(trail.marks().iter().flat_map(marked));
        let found = found.ok()?;
        let guest = Shadowed {
            paging: &self.l2.paging,
            tables: &tables,
            memory: self.memory,
            settings: self.settings,
            role,
        };
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
        let mut env = Env {
            memory: self.memory,
            backing: &mut *self.host,
            invalidation: self.invalidation,
            settings: self.settings,
            mmio: &mut *self.mmio,
        };
        let (roots, out) = (&mut self.l2.roots, &mut *self.out);
        let handled = self
            .mmu
            .shadow_page_fault(roots, &fault, (&walk, &guest), &mut env, out);
        for mark in trail.marks().iter().filter(|mark| mark.written) {
            let _ = self
                .memory
                .mark_dirty(self.vcpu, role.as_id(), mark.place.gfn());
        }
        if let Some((slot, gfn)) = handled.mark_dirty {
            let _ = self.memory.mark_dirty(self.vcpu, slot.as_id, gfn);
        }
        Some((handled.outcome, found.gpa))
    }
}

/// How often an access is tried: an emulated guest would go on for ever.
const ATTEMPTS: u32 = 64;

impl<F: Format> ShadowVm<F> {
    /// L1 starts an L2 that has tables of L1's.
    pub(super) fn start_l2(&mut self, id: u32, tables: &SecondStageOfL2) -> bool {
        let Some(tdp) = self.tdp else {
            return false;
        };
        let Some(vcpu) = self.vcpus.get(&id) else {
            return false;
        };
        let l2 = L2::new(&vcpu.state, tables, &tdp, &self.cpu_of(vcpu));
        self.ram.make_l2_tables(tables);
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return false;
        };
        vcpu.l2 = l2;
        vcpu.pause_l1();
        true
    }

    fn l2_access(&mut self, id: u32) -> Option<L2Access<'_, F, crate::tdp_vm::Sink>> {
        let settings = self.settings();
        let vcpu = self.vcpus.get_mut(&id)?;
        Some(L2Access {
            vcpu: id,
            mmu: &mut self.mmu,
            l2: vcpu.l2.as_mut()?,
            memory: &mut self.memory,
            ram: &self.ram,
            host: &mut self.host,
            invalidation: &self.invalidation,
            settings,
            mmio: &mut vcpu.mmio,
            out: &mut self.out,
        })
    }

    /// Loads L2's root; says whether there is room for it.
    pub(super) fn load_l2_root(&mut self, id: u32) -> bool {
        let loaded = self.l2_access(id).is_some_and(|mut access| access.load());
        self.spread_requests();
        loaded
    }

    /// One access of L2 to an address that L1's tables translate.
    pub(super) fn access_l2(&mut self, id: u32, kind: Kind, gpa: Gpa) -> Reached {
        for _ in 0..ATTEMPTS {
            self.serve_requests(id);
            if !self.load_root(id) {
                return Reached::Failed(Errno::ENOSPC);
            }
            let Some(mut access) = self.l2_access(id) else {
                return Reached::Shutdown;
            };
            let present = match access.hardware(kind, gpa) {
                HardwareAccess::Done { .. } => return Reached::Done,
                HardwareAccess::Mmio { mmio, .. } => {
                    let inside = gpa.raw() & 0xfff;
                    return Reached::Mmio(Gpa::new(mmio.gfn.gpa().raw() | inside));
                }
                HardwareAccess::NotPresent => Present::No,
                HardwareAccess::NotAllowed => Present::Yes,
            };
            let fault = access.fault((kind, present), gpa);
            if let Some(moved) = self.host.take_moved() {
                self.unmap_hva(moved);
            }
            self.spread_requests();
            match fault {
                Some((Outcome::Retry | Outcome::Fixed | Outcome::Spurious, _)) => {}
                Some((Outcome::Emulate | Outcome::WriteProtected, gpa)) => {
                    return Reached::Mmio(gpa);
                }
                Some((Outcome::MemoryFault | Outcome::BadPage, _)) => {
                    return Reached::Failed(Errno::EFAULT);
                }
                Some((Outcome::Interrupted, _)) => return Reached::Failed(Errno::EINTR),
                Some((Outcome::OutOfTables, _)) => return Reached::Failed(Errno::ENOSPC),
                // L1 would get the violation; it has no handler.
                None => return Reached::Shutdown,
            }
        }
        Reached::Failed(Errno::EINTR)
    }
}
