//! L2 on tables of L1's: shadow pages beside the TDP MMU's tables.

use std::collections::{BTreeMap, BTreeSet};

use slat_memslot::{AsId, Errno, Gpa, Vendor};
use slat_mmu::fault::{Kind, Outcome, Present};
use slat_mmu::host::Host;
use slat_mmu::role::VcpuMode;
use slat_mmu::roots::{Request, RootSet, TdpMmu};
use slat_mmu::shadow::{EmulatedWrite, EntryWritten, ShadowMmu};
use slat_mmu::spte::Format;
use slat_mmu::tdp::{HardwareAccess, Tables};
use slat_mmu::walk::second::FaultPlace;
use slat_mmu::walk::{GuestCpu, GuestVendor};

use super::guest::{Reached, Stop};
use super::{SecondStageOfL2, Sink, TdpVm};
use crate::shadow_vm::{Code, EmulatedAccess, L2, L2Access, Ram};

/// The shadow pages of a VM, and the MMUs of vCPUs that run L2 on them.
#[derive(Debug)]
pub(super) struct Nested<F: Format> {
    pub(super) mmu: ShadowMmu<F>,
    ram: Ram,
    running: BTreeMap<u32, L2>,
    /// The vCPUs that are asked to give up their obsolete roots.
    asked: BTreeSet<u32>,
}

impl<F: Format> Nested<F> {
    pub(super) fn new(host: &Host) -> Self {
        Self {
            mmu: ShadowMmu::new(host, TdpMmu::On),
            ram: Ram::default(),
            running: BTreeMap::new(),
            asked: BTreeSet::new(),
        }
    }

    /// All vCPUs leave their roots, when the VM ends.
    pub(super) fn unload(&mut self, id: u32, out: &mut Sink) {
        if let Some(l2) = self.running.get_mut(&id) {
            self.mmu.lock(out).free_roots(&mut l2.roots, RootSet::all());
        }
    }
}

/// How often an access is tried: an emulated guest would go on for ever.
const ATTEMPTS: u32 = 64;

impl<F: Format> TdpVm<F> {
    /// L1 starts an L2 that has tables of L1's.
    pub(super) fn start_l2(&mut self, id: u32, tables: &SecondStageOfL2) -> bool {
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return false;
        };
        let vendor = match self.memory.profile().vendor.get() {
            Vendor::Intel => GuestVendor::Intel,
            Vendor::Amd | Vendor::Paravirtual => GuestVendor::Amd,
        };
        let cpu = GuestCpu {
            vendor,
            ..GuestCpu::of(vcpu.state.phys_bits)
        };
        let state = vcpu.paging.registers(&vcpu.state);
        let Some(l2) = L2::new(&state, tables, &self.tdp, &cpu) else {
            return false;
        };
        self.nested.ram.make_l2_tables(tables);
        match self.nested.running.get_mut(&id) {
            Some(before) => before.restart(&l2, &mut self.nested.mmu.lock(&mut self.out)),
            None => drop(self.nested.running.insert(id, l2)),
        }
        // L1's roots are another MMU's, and stay.
        let paging = vcpu.paging.clone();
        vcpu.pause_l1();
        if let SecondStageOfL2::Ept { .. } = tables {
            // VMX demands it of old guests.
            vcpu.paging = paging;
        }
        true
    }

    /// Whether a vCPU runs L2 on tables of L1's.
    pub(super) fn runs_on_l1_tables(&self, id: u32) -> bool {
        let in_l2 = |vcpu: &super::Vcpu| vcpu.state.mode == VcpuMode::Guest;
        self.nested.running.get(&id).is_some_and(|l2| l2.runs)
            && self.vcpus.get(&id).is_some_and(in_l2)
    }

    /// A vCPU leaves the tables that L1 gave to L2, if it is on such.
    pub(super) fn pause_l2(&mut self, id: u32) {
        if let Some(l2) = self.nested.running.get_mut(&id) {
            l2.runs = false;
        }
    }

    fn l2_access(&mut self, id: u32) -> Option<L2Access<'_, F, Sink, &mut Tables<F>>> {
        let settings = self.settings();
        let vcpu = self.vcpus.get_mut(&id)?;
        Some(L2Access {
            vcpu: vcpu.index,
            mmu: &mut self.nested.mmu,
            tdp: &mut self.tables,
            l2: self.nested.running.get_mut(&id)?,
            memory: &mut self.memory,
            ram: &self.nested.ram,
            host: &mut self.host,
            invalidation: &self.invalidation,
            settings,
            mmio: &mut vcpu.mmio,
            out: &mut self.out,
        })
    }

    /// Serves L2's requests and loads its root; says whether there is room for it.
    pub(super) fn load_l2_root(&mut self, id: u32) -> bool {
        self.free_obsolete_of_l2(id);
        self.l2_access(id).is_some_and(|mut access| access.load())
    }

    /// Asks all vCPUs to give up their obsolete roots, if that is wanted, and lets this one do so.
    pub(super) fn free_obsolete_of_l2(&mut self, id: u32) {
        let Nested {
            mmu,
            running,
            asked,
            ..
        } = &mut self.nested;
        if mmu.take_requests().contains(Request::FreeObsoleteRoots) {
            asked.extend(running.keys());
        }
        if asked.remove(&id) {
            if let Some(l2) = running.get_mut(&id) {
                mmu.lock(&mut self.out).free_obsolete_roots(&mut l2.roots);
            }
        }
    }

    /// The program writes into the memory behind a slot.
    pub fn poke(&mut self, hva: u64, value: u64) {
        self.nested.ram.write_host(hva, (8, value));
    }

    /// What is done to the shadow pages of L2s.
    pub(crate) fn shadow_stats(&self) -> &slat_mmu::shadow::ShadowStats {
        self.nested.mmu.stats()
    }

    /// What a guest's write leaves in memory.
    pub(super) fn write_memory(&mut self, gpa: Gpa) {
        let Some(written) = self.written else { return };
        let slot = self.memory.space(AsId::NORMAL).by_gfn(gpa.gfn());
        if let Some(hva) = slot.and_then(|slot| slot.hva_of(gpa.gfn())) {
            let at = hva.raw() | gpa.raw() & 0xfff;
            self.nested.ram.write_host(at, written);
        }
    }

    /// A write to a frame that shadow pages watch. Where hardware marks an entry of the guest's own tables, these pages go and
    /// the guest tries again; other writes KVM carries out (`mmu.c:kvm_mmu_write_protect_fault`). Says whether it is done.
    pub(super) fn write_watched(&mut self, id: u32, gpa: Gpa, place: FaultPlace) -> bool {
        let mut locked = self.nested.mmu.lock_beside(&mut self.out, &mut self.tables);
        if place == FaultPlace::Table && locked.unprotect(gpa.gfn()) {
            return false;
        }
        self.emulate_write(id, gpa);
        true
    }

    /// KVM carries out a write to a frame that it watches.
    fn emulate_write(&mut self, id: u32, gpa: Gpa) {
        let Some(vcpu) = self.vcpus.get(&id) else {
            return;
        };
        let (index, as_id) = (vcpu.index, vcpu.mmu.role().as_id());
        let _ = self.memory.mark_dirty(index, as_id, gpa.gfn());
        self.write_memory(gpa);
        let write = match self.written {
            Some((8, value)) if value != 0 => EmulatedWrite {
                gpa,
                len: 8,
                present: EntryWritten::NotZero,
            },
            written => EmulatedWrite {
                gpa,
                len: written.map_or(1, |(len, _)| len),
                present: EntryWritten::Zero,
            },
        };
        let mut locked = self.nested.mmu.lock_beside(&mut self.out, &mut self.tables);
        locked.track_write(&write);
    }

    /// One access of L2 to an address that L1's tables translate.
    pub(super) fn access_l2(
        &mut self,
        id: u32,
        kind: Kind,
        (gpa, place): (Gpa, FaultPlace),
    ) -> Result<Reached, Stop> {
        for attempt in 0..ATTEMPTS {
            // The instruction begins anew, and a fault may have zapped the page that it is in.
            if let (1.., Some(instruction), Kind::Read | Kind::Write) =
                (attempt, self.instruction, kind)
            {
                self.access_l2(id, Kind::Execute, (instruction, FaultPlace::Final))?;
            }
            self.serve_requests(id);
            if !self.load_l2_root(id) {
                return Err(self.fail(Errno::ENOSPC));
            }
            let Some(mut access) = self.l2_access(id) else {
                return Err(self.fail(Errno::EFAULT));
            };
            let present = match access.hardware(kind, gpa) {
                HardwareAccess::Done { .. } => {
                    if let (Some(gpa), Kind::Write) = (access.mapped(gpa), kind) {
                        self.write_memory(gpa);
                    }
                    return Ok(Reached::Memory);
                }
                HardwareAccess::Mmio { spte, mmio } => match access.is_known_mmio(spte, mmio) {
                    true => return self.emulate_l2(id, kind, (gpa, place)),
                    false => Present::Reserved,
                },
                HardwareAccess::NotPresent => Present::No,
                HardwareAccess::NotAllowed => Present::Yes,
            };
            let fault = access.fault((kind, present), gpa, place);
            while let Some(moved) = self.host.take_moved() {
                self.unmap_hva(moved);
            }
            match fault {
                Ok((Outcome::Retry | Outcome::Fixed | Outcome::Spurious, _)) => {}
                Ok((Outcome::Emulate | Outcome::WriteProtected, _)) => {
                    return self.emulate_l2(id, kind, (gpa, place));
                }
                Ok((Outcome::Interrupted, _)) => return Err(self.fail(Errno::EINTR)),
                Ok((Outcome::OutOfTables, _)) => return Err(self.fail(Errno::ENOSPC)),
                Ok((Outcome::MemoryFault | Outcome::BadPage, _)) => {
                    return Err(self.fail(Errno::EFAULT));
                }
                Err(exit) => return Err(Stop::ToL1(exit)),
            }
        }
        Err(self.fail(Errno::EINTR))
    }

    /// KVM carries out L2's instruction itself.
    fn emulate_l2(
        &mut self,
        id: u32,
        kind: Kind,
        (gpa, place): (Gpa, FaultPlace),
    ) -> Result<Reached, Stop> {
        let instruction = self.instruction;
        let Some(mut access) = self.l2_access(id) else {
            return Err(self.fail(Errno::EFAULT));
        };
        if kind == Kind::Execute {
            let ran = access.emulate_code(gpa, place);
            return Err(ran.map_or_else(Stop::ToL1, |()| Stop::L2Ends));
        }
        let gpa = access.emulate(instruction, (kind, gpa), place);
        let gpa = gpa.map_err(Stop::ToL1)?;
        match access.emulated_access(kind, gpa) {
            EmulatedAccess::Userspace => return Ok(Reached::Nothing(gpa)),
            EmulatedAccess::Write => self.emulate_write(id, gpa),
            EmulatedAccess::Read => {}
        }
        Ok(Reached::Memory)
    }

    /// L2 goes on with what memory has there.
    pub(super) fn run_memory_of_l2(&mut self, id: u32, gpa: Gpa) -> Result<(), Stop> {
        let found = self
            .l2_access(id)
            .and_then(|access| access.code_at(access.mapped(gpa)?));
        if found == Some(Code::Zeros) {
            self.access_l2(id, Kind::Read, (Gpa::new(0), FaultPlace::Final))?;
        }
        Ok(())
    }
}
