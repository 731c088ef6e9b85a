//! L2 on tables of L1's: the second MMU of a vCPU (`guest_mmu`), which shadows them.

use slat_memslot::{Errno, Gpa, Gva};
use slat_mmu::fault::{Env, Kind, Outcome, Present};
use slat_mmu::host::ExecuteOnly;
use slat_mmu::role::{
    CpuRole, NestedEpt, RoleLayout, TdpHost, VcpuMode, VcpuState, nested_ept_root_role,
    nested_npt_root_role, tdp_level,
};
use slat_mmu::shadow::{GuestWalk, MarkedTrail, Roots, ShadowFault, ShadowRoot, Shadowed};
use slat_mmu::spte::{Access, Format};
use slat_mmu::tdp::HardwareAccess;
use slat_mmu::walk::{
    ErrorCode, GuestCpu, GuestPaging, NestedEptRoot, Pointers, Privilege, Unnested,
};

use super::ShadowVm;
use super::guest::Reached;
use super::paged::marked;
use super::ram::RamView;
use crate::tdp_vm::SecondStageOfL2;

/// What a vCPU has while L2 runs on tables of L1's.
#[derive(Debug)]
pub(super) struct L2 {
    pub(super) roots: Roots,
    paging: GuestPaging,
}

impl L2 {
    /// L1, in this state, gives tables to its guest (`mmu.c:kvm_init_shadow_npt_mmu`, `mmu.c:kvm_init_shadow_ept_mmu`).
    /// `None` if it does not page itself, which NPT demands.
    pub(super) fn new(
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

    /// Loads L2's root; says whether there is room for it.
    pub(super) fn load_l2_root(&mut self, id: u32) -> bool {
        let settings = self.settings();
        let Some(l2) = self.vcpus.get_mut(&id).and_then(|vcpu| vcpu.l2.as_mut()) else {
            return false;
        };
        let role = l2.roots.mmu.role();
        let tables = RamView {
            ram: &self.ram,
            memory: &self.memory,
            as_id: role.as_id(),
        };
        let guest = Shadowed {
            paging: &l2.paging,
            tables: &tables,
            memory: &self.memory,
            settings,
            role,
        };
        let mut locked = self.mmu.lock(&mut self.out);
        let loaded = locked.load_shadow(&mut l2.roots, Pointers::default(), &guest);
        let loaded = loaded.is_ok();
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
            let present = match self.hardware_l2(id, kind, gpa) {
                HardwareAccess::Done { .. } => return Reached::Done,
                HardwareAccess::Mmio { mmio, .. } => {
                    let inside = gpa.raw() & 0xfff;
                    return Reached::Mmio(Gpa::new(mmio.gfn.gpa().raw() | inside));
                }
                HardwareAccess::NotPresent => Present::No,
                HardwareAccess::NotAllowed => Present::Yes,
            };
            match self.fault_l2(id, (kind, present), gpa) {
                Ok((Outcome::Retry | Outcome::Fixed | Outcome::Spurious, _)) => {}
                Ok((Outcome::Emulate | Outcome::WriteProtected, gpa)) => return Reached::Mmio(gpa),
                Ok((Outcome::MemoryFault | Outcome::BadPage, _)) => {
                    return Reached::Failed(Errno::EFAULT);
                }
                Ok((Outcome::Interrupted, _)) => return Reached::Failed(Errno::EINTR),
                Ok((Outcome::OutOfTables, _)) => return Reached::Failed(Errno::ENOSPC),
                // L1 would get the violation; it has no handler.
                Err(()) => return Reached::Shutdown,
            }
        }
        Reached::Failed(Errno::EINTR)
    }

    fn hardware_l2(&mut self, id: u32, kind: Kind, gpa: Gpa) -> HardwareAccess<F> {
        let access = match kind {
            Kind::Read => Access::USER,
            Kind::Write => Access::USER | Access::WRITE,
            Kind::Execute => Access::EXECUTE,
        };
        let l2 = self.vcpus.get(&id).and_then(|vcpu| vcpu.l2.as_ref());
        let root = l2.and_then(|l2| l2.roots.current(&self.mmu));
        let root = root.unwrap_or(ShadowRoot::Dummy);
        self.mmu.hardware_access(root, gpa.raw(), access)
    }

    /// The outcome and L1's address; an error if L1 gets the violation itself.
    fn fault_l2(
        &mut self,
        id: u32,
        (kind, present): (Kind, Present),
        gpa: Gpa,
    ) -> Result<(Outcome, Gpa), ()> {
        let settings = self.settings();
        let vcpu = self.vcpus.get_mut(&id).ok_or(())?;
        let l2 = vcpu.l2.as_mut().ok_or(())?;
        let role = l2.roots.mmu.role();
        let tables = RamView {
            ram: &self.ram,
            memory: &self.memory,
            as_id: role.as_id(),
        };
        let mut trail = MarkedTrail::default();
        // Walks of a second stage are user accesses.
        let wanted = ErrorCode::of(kind, Privilege::User);
        let address = Gva::new(gpa.raw());
        let walked = l2.paging.without_canonical_check();
        let found = walked.walk(&tables, &mut Unnested, &mut trail, address, wanted);
        for mark in trail.marks() {
            self.out.events.extend(marked(mark));
        }
        let found = found.map_err(|_| ())?;
        let guest = Shadowed {
            paging: &l2.paging,
            tables: &tables,
            memory: &self.memory,
            settings,
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
            memory: &self.memory,
            backing: &mut self.host,
            invalidation: &self.invalidation,
            settings,
            mmio: &mut vcpu.mmio,
        };
        let (roots, out) = (&mut l2.roots, &mut self.out);
        let handled = self
            .mmu
            .shadow_page_fault(roots, &fault, (&walk, &guest), &mut env, out);
        for mark in trail.marks().iter().filter(|mark| mark.written) {
            self.memory.mark_dirty(role.as_id(), mark.place.gfn());
        }
        if let Some((slot, gfn)) = handled.mark_dirty {
            self.memory.mark_dirty(slot.as_id, gfn);
        }
        if let Some(moved) = self.host.take_moved() {
            self.unmap_hva(moved);
        }
        self.spread_requests();
        Ok((handled.outcome, found.gpa))
    }
}
