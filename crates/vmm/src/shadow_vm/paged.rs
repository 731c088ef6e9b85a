//! Guests whose own tables are shadowed.

use slat_memslot::{Errno, Gpa, Gva};
use slat_mmu::fault::{Env, Kind, NotTracked, Outcome, Present};
use slat_mmu::role::Cr4;
use slat_mmu::shadow::{
    EmulatedWrite, EntryWritten, GuestWalk, MarkedTrail, ShadowFault, ShadowRoot,
};
use slat_mmu::spte::{Access as Rights, Format};
use slat_mmu::tdp::HardwareAccess;
use slat_mmu::walk::second::FaultPlace;
use slat_mmu::walk::{ErrorCode, GuestCpu, GuestPaging, Mark, Pointers, Privilege, Unnested};

use super::ShadowVm;
use super::execute::Access;
use super::guest::Reached;
use super::log::mark_dirtied;
use super::vcpu::Vcpu;
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
        GuestCpu {
            vendor: self.guest_vendor,
            // The host's own limit binds guests whose tables are shadowed.
            largest_page: self.mmu.codec().host().largest_page,
            ..GuestCpu::of(vcpu.state.phys_bits)
        }
    }

    /// One access of a guest whose tables are shadowed. What has faulted begins again with the instruction.
    pub(super) fn access_shadowed(&mut self, id: u32, access: &Access) -> Reached {
        for attempt in 0..ATTEMPTS {
            if let Some(fetch) = access.fetch_again().filter(|_| attempt > 0) {
                match self.access_shadowed(id, &fetch) {
                    Reached::Done => {}
                    other => return other,
                }
            }
            self.serve_requests(id);
            if !self.load_root(id) {
                return Reached::Failed(Errno::ENOSPC);
            }
            let step = access.step;
            let present = match self.hardware_shadowed(id, access) {
                HardwareAccess::Done { .. } => {
                    self.write_mapped(id, access);
                    return Reached::Done;
                }
                HardwareAccess::Mmio { spte, mmio } => {
                    let place = Gpa::new(step.address);
                    if self.is_known_mmio(id, place, spte, &mmio) {
                        return self.emulate_fault(id, access);
                    }
                    Present::Reserved
                }
                HardwareAccess::NotPresent => Present::No,
                HardwareAccess::NotAllowed => Present::Yes,
            };
            match self.fault_shadowed(id, access, present) {
                Ok(Outcome::Retry | Outcome::Fixed | Outcome::Spurious) => {}
                Ok(Outcome::Emulate | Outcome::WriteProtected) => {
                    return self.emulate_fault(id, access);
                }
                Ok(Outcome::MemoryFault | Outcome::BadPage) => {
                    return Reached::Failed(Errno::EFAULT);
                }
                Ok(Outcome::Interrupted) => return Reached::Failed(Errno::EINTR),
                Ok(Outcome::OutOfTables) => return Reached::Failed(Errno::ENOSPC),
                Err(()) => return Reached::Shutdown,
            }
        }
        Reached::Failed(Errno::EINTR)
    }

    /// What hardware makes of an access.
    fn hardware_shadowed(&mut self, id: u32, access: &Access) -> HardwareAccess<F> {
        let kind = match access.step.kind {
            Kind::Read => Rights::empty(),
            Kind::Write => Rights::WRITE,
            Kind::Execute => Rights::EXECUTE,
        };
        let wanted = match access.privilege {
            Privilege::User => kind | Rights::USER,
            Privilege::Supervisor | Privilege::Implicit => kind,
        };
        let root = self.root_of(id);
        if self.is_barred(id, access, root) {
            return HardwareAccess::NotAllowed;
        }
        self.mmu.hardware_access(root, access.step.address, wanted)
    }

    /// Whether SMEP or SMAP keep a supervisor away from a user's page: hardware has the guest's own bits.
    fn is_barred(&self, id: u32, access: &Access, root: ShadowRoot) -> bool {
        let bit = match access.step.kind {
            Kind::Execute => Cr4::SMEP,
            Kind::Read | Kind::Write => Cr4::SMAP,
        };
        let on = |vcpu: &Vcpu| vcpu.state.cr4.contains(bit);
        access.privilege != Privilege::User
            && self.vcpus.get(&id).is_some_and(on)
            && self
                .mmu
                .rights_at(root, access.step.address)
                .is_some_and(|rights| rights.contains(Rights::USER))
    }

    pub(super) fn root_of(&self, id: u32) -> ShadowRoot {
        let vcpu = self.vcpus.get(&id);
        let root = vcpu.and_then(|vcpu| vcpu.roots.current(&self.mmu));
        root.unwrap_or(ShadowRoot::Dummy)
    }

    /// What hardware writes goes where the leaf leads, whatever the guest's tables say by now.
    fn write_mapped(&mut self, id: u32, access: &Access) {
        if access.step.kind != Kind::Write || access.code.is_none() {
            return;
        }
        let address = access.step.address;
        if let Some(gfn) = self.mmu.frame_at(self.root_of(id), address) {
            let gpa = Gpa::new(gfn.gpa().raw() | address & 0xfff);
            let as_id = self.space_of(id);
            self.write_memory(as_id, gpa, access.data);
        }
    }

    /// The outcome; an error if the guest gets the fault itself.
    fn fault_shadowed(
        &mut self,
        id: u32,
        access: &Access,
        present: Present,
    ) -> Result<Outcome, ()> {
        let step = access.step;
        let settings = self.settings();
        let Some(paging) = self.vcpus.get(&id).map(|vcpu| self.paging_of(vcpu)) else {
            return Err(());
        };
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return Err(());
        };
        let role = vcpu.roots.mmu.role();
        let tables = self.ram.view(&self.memory, role.as_id());
        let mut trail = MarkedTrail::default();
        let wanted = ErrorCode::of(step.kind, access.privilege);
        let address = Gva::new(step.address);
        let found = paging.walk(&tables, &mut Unnested, &mut trail, address, wanted);
        for mark in trail.marks() {
            self.out.events.extend(marked(mark));
        }
        let found = match found {
            Ok(found) => found,
            Err(fault) => {
                self.inject(id, &fault);
                return Err(());
            }
        };
        (self.out.vcpu, self.out.address) = (id, step.address);
        let guest = tables.followed(&paging, settings, role);
        let walk = GuestWalk {
            trail: &trail,
            found: &found,
        };
        let fault = ShadowFault {
            address: step.address,
            kind: step.kind,
            privilege: access.privilege,
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
        Ok(handled.outcome)
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

    /// What the guest's write leaves in memory.
    pub(super) fn store(&mut self, id: u32, gpa: Gpa) {
        if let Some(written) = self.written {
            self.write_memory(self.space_of(id), gpa, written);
        }
    }

    /// KVM carries out a write to a frame that it watches.
    pub(super) fn emulate_write(&mut self, id: u32, gpa: Gpa) {
        // Where it is not said, what is written leaves the tables as they are.
        let (len, value) = self.written.unwrap_or((1, 0));
        let write = EmulatedWrite {
            gpa,
            len,
            present: match (len, value) {
                (8, 1..) => EntryWritten::NotZero,
                _ => EntryWritten::Zero,
            },
        };
        let _ = self.memory.mark_dirty(id, self.space_of(id), gpa.gfn());
        self.store(id, gpa);
        self.mmu.lock(&mut self.out).track_write(&write);
        self.spread_requests();
    }

    /// Brings what is below a vCPU's root into step (`mmu.c:kvm_mmu_sync_roots`).
    pub(super) fn sync_root(&mut self, id: u32) {
        let settings = self.settings();
        let Some(vcpu) = self.vcpus.get(&id) else {
            return;
        };
        let (paging, role) = (self.paging_of(vcpu), vcpu.roots.mmu.role());
        if role.is_direct() || vcpu.roots.current(&self.mmu).is_none() {
            return;
        }
        let tables = self.ram.view(&self.memory, role.as_id());
        let guest = tables.followed(&paging, settings, role);
        let mut locked = self.mmu.lock(&mut self.out);
        locked.sync_roots(&vcpu.roots, &guest);
        let dirtied = locked.take_dirtied();
        mark_dirtied(&mut self.memory, id, dirtied);
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            vcpu.mmio.clear();
        }
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
        // What a new root brings along is brought into step, which begins so.
        if vcpu.roots.current(&self.mmu).is_none() {
            vcpu.mmio.clear();
        }
        let role = vcpu.roots.mmu.role();
        let tables = self.ram.view(&self.memory, role.as_id());
        let pointers = Pointers::default();
        let guest = tables.followed(&paging, settings, role);
        let mut locked = self.mmu.lock(&mut self.out);
        let loaded = locked
            .load_shadow(&mut vcpu.roots, pointers, &guest)
            .is_ok();
        let dirtied = locked.take_dirtied();
        mark_dirtied(&mut self.memory, id, dirtied);
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
