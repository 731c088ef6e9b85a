//! Guests whose own tables are shadowed.

use slat_memslot::{Errno, Gpa, Gva, Vendor};
use slat_mmu::fault::{Env, Kind, NotTracked, Outcome, Present};
use slat_mmu::roots::Request;
use slat_mmu::shadow::{GuestWalk, MarkedTrail, ShadowFault, ShadowRoot, Shadowed};
use slat_mmu::spte::{Access, Format};
use slat_mmu::tdp::HardwareAccess;
use slat_mmu::walk::second::FaultPlace;
use slat_mmu::walk::{
    ErrorCode, GuestCpu, GuestPaging, GuestVendor, Mark, Pointers, Privilege, Unnested,
};

use super::ShadowVm;
use super::guest::Reached;
use super::ram::RamView;
use super::vcpu::Vcpu;
use crate::tdp_vm::Step;
use crate::traces::Predicted;

/// How often an access is tried: an emulated guest would go on for ever.
const ATTEMPTS: u32 = 64;

impl<F: Format> ShadowVm<F> {
    /// How a vCPU's own tables are read.
    pub(super) fn paging_of(&self, vcpu: &Vcpu) -> GuestPaging {
        GuestPaging::new(&vcpu.state, &self.cpu_of(vcpu))
    }

    /// What a vCPU's CPUID says about its walks.
    pub(super) fn cpu_of(&self, vcpu: &Vcpu) -> GuestCpu {
        let vendor = match self.memory.profile().vendor.get() {
            Vendor::Intel => GuestVendor::Intel,
            Vendor::Amd | Vendor::Paravirtual => GuestVendor::Amd,
        };
        GuestCpu {
            vendor,
            ..GuestCpu::of(vcpu.state.phys_bits)
        }
    }

    /// One access of a guest whose tables are shadowed.
    pub(super) fn access_shadowed(&mut self, id: u32, step: Step) -> Reached {
        for _ in 0..ATTEMPTS {
            self.serve_requests(id);
            if !self.load_root(id) {
                return Reached::Failed(Errno::ENOSPC);
            }
            let present = match self.hardware_shadowed(id, step) {
                HardwareAccess::Done { .. } => return Reached::Done,
                HardwareAccess::Mmio { spte, mmio } => {
                    let place = Gpa::new(step.address);
                    if self.is_known_mmio(id, place, spte, &mmio) {
                        let inside = step.address & 0xfff;
                        return Reached::Mmio(Gpa::new(mmio.gfn.gpa().raw() | inside));
                    }
                    Present::Reserved
                }
                HardwareAccess::NotPresent => Present::No,
                HardwareAccess::NotAllowed => Present::Yes,
            };
            match self.fault_shadowed(id, step, present) {
                Ok((Outcome::Retry | Outcome::Fixed | Outcome::Spurious, _)) => {}
                Ok((Outcome::Emulate, gpa)) => return Reached::Mmio(gpa),
                Ok((Outcome::WriteProtected, gpa)) => {
                    self.emulate_write(id, gpa);
                    return Reached::Done;
                }
                Ok((Outcome::MemoryFault | Outcome::BadPage, _)) => {
                    return Reached::Failed(Errno::EFAULT);
                }
                Ok((Outcome::Interrupted, _)) => return Reached::Failed(Errno::EINTR),
                Ok((Outcome::OutOfTables, _)) => return Reached::Failed(Errno::ENOSPC),
                Err(()) => return Reached::Shutdown,
            }
        }
        Reached::Failed(Errno::EINTR)
    }

    /// What hardware makes of an access in supervisor mode.
    fn hardware_shadowed(&mut self, id: u32, step: Step) -> HardwareAccess<F> {
        let access = match step.kind {
            Kind::Read => Access::empty(),
            Kind::Write => Access::WRITE,
            Kind::Execute => Access::EXECUTE,
        };
        let root = self
            .vcpus
            .get(&id)
            .and_then(|vcpu| vcpu.roots.current(&self.mmu));
        let root = root.unwrap_or(ShadowRoot::Dummy);
        self.mmu.hardware_access(root, step.address, access)
    }

    /// The outcome and the address that the guest's tables give; an error if the guest gets the fault itself.
    fn fault_shadowed(
        &mut self,
        id: u32,
        step: Step,
        present: Present,
    ) -> Result<(Outcome, Gpa), ()> {
        let settings = self.settings();
        let Some(paging) = self.vcpus.get(&id).map(|vcpu| self.paging_of(vcpu)) else {
            return Err(());
        };
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return Err(());
        };
        let role = vcpu.roots.mmu.role();
        let tables = RamView {
            ram: &self.ram,
            memory: &self.memory,
            as_id: role.as_id(),
        };
        let mut trail = MarkedTrail::default();
        let wanted = ErrorCode::of(step.kind, Privilege::Supervisor);
        let address = Gva::new(step.address);
        let found = paging.walk(&tables, &mut Unnested, &mut trail, address, wanted);
        for mark in trail.marks() {
            self.out.events.extend(marked(mark));
        }
        let found = found.map_err(|_| ())?;
        (self.out.vcpu, self.out.address) = (id, step.address);
        let guest = Shadowed {
            paging: &paging,
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
            address: step.address,
            kind: step.kind,
            privilege: Privilege::Supervisor,
            present,
        };
        let mut env = Env {
            memory: &self.memory,
            backing: &mut self.host,
            invalidation: &self.invalidation,
            settings,
            mmio: &mut vcpu.mmio,
            shadow: NotTracked,
        };
        let (roots, out) = (&mut vcpu.roots, &mut self.out);
        let handled = self
            .mmu
            .shadow_page_fault(roots, &fault, (&walk, &guest), &mut env, out);
        for mark in trail.marks().iter().filter(|mark| mark.written) {
            let _ = self.memory.mark_dirty(id, role.as_id(), mark.place.gfn());
        }
        if let Some((slot, gfn)) = handled.mark_dirty {
            let _ = self.memory.mark_dirty(id, slot.as_id, gfn);
        }
        while let Some(moved) = self.host.take_moved() {
            self.unmap_hva(moved);
        }
        self.spread_requests();
        Ok((handled.outcome, found.gpa))
    }

    /// A write to a frame that shadow pages watch. Where hardware marks an entry of the guest's own tables, these pages go and
    /// the guest tries again; other writes KVM carries out (`mmu.c:kvm_mmu_write_protect_fault`). Says whether it is done.
    pub(super) fn write_watched(&mut self, id: u32, gpa: Gpa, place: FaultPlace) -> bool {
        let unprotected = place == FaultPlace::Table && {
            let mut locked = self.mmu.lock(&mut self.out);
            locked.unprotect(gpa.gfn())
        };
        if !unprotected {
            self.emulate_write(id, gpa);
        }
        self.spread_requests();
        !unprotected
    }

    /// KVM carries out a write to a frame that it watches; what is written leaves the tables as they are.
    pub(super) fn emulate_write(&mut self, id: u32, gpa: Gpa) {
        let write = slat_mmu::shadow::EmulatedWrite {
            gpa,
            len: 1,
            present: slat_mmu::shadow::EntryWritten::Zero,
        };
        let _ = self
            .memory
            .mark_dirty(id, slat_memslot::AsId::NORMAL, gpa.gfn());
        self.mmu.lock(&mut self.out).track_write(&write);
        self.spread_requests();
    }

    /// Loads a root that follows a vCPU's tables; says whether there is room for it.
    pub(super) fn load_shadow_root(&mut self, id: u32) -> bool {
        let settings = self.settings();
        let Some(paging) = self.vcpus.get(&id).map(|vcpu| self.paging_of(vcpu)) else {
            return false;
        };
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return false;
        };
        let role = vcpu.roots.mmu.role();
        let tables = RamView {
            ram: &self.ram,
            memory: &self.memory,
            as_id: role.as_id(),
        };
        let pointers = Pointers::default();
        let guest = Shadowed {
            paging: &paging,
            tables: &tables,
            memory: &self.memory,
            settings,
            role,
        };
        let mut locked = self.mmu.lock(&mut self.out);
        if vcpu.roots.mmu.requests().contains(Request::MmuSync) {
            locked.sync_roots(&vcpu.roots, &guest);
        }
        let loaded = locked
            .load_shadow(&mut vcpu.roots, pointers, &guest)
            .is_ok();
        let dirtied = locked.take_dirtied();
        for (as_id, gfn) in dirtied {
            let _ = self.memory.mark_dirty(id, as_id, gfn);
        }
        self.spread_requests();
        loaded
    }
}

/// What KVM traces of a mark: accessed first.
pub(super) fn marked(mark: &Mark) -> impl Iterator<Item = Predicted> + use<> {
    let set = mark.new & !mark.old;
    let gpa = mark.place;
    let accessed = (set & ACCESSED != 0).then_some(Predicted::AccessedBitSet { gpa });
    let dirty = (set & DIRTY != 0).then_some(Predicted::DirtyBitSet { gpa });
    accessed.into_iter().chain(dirty)
}

/// The marks of entries, in the tables of ordinary paging and NPT, and in EPT.
const ACCESSED: u64 = 1 << 5 | 1 << 8;
const DIRTY: u64 = 1 << 6 | 1 << 9;
