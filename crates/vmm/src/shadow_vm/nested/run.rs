//! L2 runs, where L1 is on shadow pages itself.

use slat_memslot::{Errno, Gpa};
use slat_mmu::fault::{Kind, Outcome, Present};
use slat_mmu::shadow::NoTdp;
use slat_mmu::spte::Format;
use slat_mmu::tdp::HardwareAccess;
use slat_mmu::walk::second::FaultPlace;

use super::{Code, EmulatedAccess, L2, L2Access};
use crate::shadow_vm::ShadowVm;
use crate::shadow_vm::guest::Reached;
use crate::tdp_vm::SecondStageOfL2;

/// How often an access is tried: an emulated guest would go on for ever.
const ATTEMPTS: u32 = 64;

impl<F: Format> ShadowVm<F> {
    /// L1 starts an L2 that has tables of L1's.
    pub(in crate::shadow_vm) fn start_l2(&mut self, id: u32, tables: &SecondStageOfL2) -> bool {
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
        match (&mut vcpu.l2, l2) {
            (Some(before), Some(anew)) => {
                before.restart(&anew, &mut self.mmu.lock(&mut self.out));
            }
            (before, anew) => *before = anew,
        }
        vcpu.pause_l1();
        true
    }

    fn l2_access(&mut self, id: u32) -> Option<L2Access<'_, F, crate::tdp_vm::Sink, NoTdp>> {
        let settings = self.settings();
        let vcpu = self.vcpus.get_mut(&id)?;
        Some(L2Access {
            vcpu: id,
            mmu: &mut self.mmu,
            tdp: NoTdp,
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
    pub(in crate::shadow_vm) fn load_l2_root(&mut self, id: u32) -> bool {
        let loaded = self.l2_access(id).is_some_and(|mut access| access.load());
        self.spread_requests();
        loaded
    }

    /// One access of L2 to an address that L1's tables translate.
    pub(in crate::shadow_vm) fn access_l2(&mut self, id: u32, kind: Kind, gpa: Gpa) -> Reached {
        for attempt in 0..ATTEMPTS {
            // The instruction begins anew, and a fault may have zapped the page that it is in.
            if let (1.., Some(instruction), Kind::Read | Kind::Write) =
                (attempt, self.instruction, kind)
            {
                match self.access_l2(id, Kind::Execute, instruction) {
                    Reached::Done => {}
                    other => return other,
                }
            }
            self.serve_requests(id);
            if !self.load_root(id) {
                return Reached::Failed(Errno::ENOSPC);
            }
            let Some(mut access) = self.l2_access(id) else {
                return Reached::Shutdown;
            };
            let present = match access.hardware(kind, gpa) {
                HardwareAccess::Done { .. } => {
                    if let (Some(gpa), Kind::Write) = (access.mapped(gpa), kind) {
                        self.store(id, gpa);
                    }
                    return Reached::Done;
                }
                HardwareAccess::Mmio { spte, mmio } => match access.is_known_mmio(spte, mmio) {
                    true => return self.emulate_l2(id, kind, gpa),
                    false => Present::Reserved,
                },
                HardwareAccess::NotPresent => Present::No,
                HardwareAccess::NotAllowed => Present::Yes,
            };
            let fault = access.fault((kind, present), gpa, FaultPlace::Final);
            while let Some(moved) = self.host.take_moved() {
                self.unmap_hva(moved);
            }
            self.spread_requests();
            match fault {
                Ok((Outcome::Retry | Outcome::Fixed | Outcome::Spurious, _)) => {}
                Ok((Outcome::Emulate | Outcome::WriteProtected, _)) => {
                    return self.emulate_l2(id, kind, gpa);
                }
                Ok((Outcome::MemoryFault | Outcome::BadPage, _)) => {
                    return Reached::Failed(Errno::EFAULT);
                }
                Ok((Outcome::Interrupted, _)) => return Reached::Failed(Errno::EINTR),
                Ok((Outcome::OutOfTables, _)) => return Reached::Failed(Errno::ENOSPC),
                Err(exit) => return Reached::ToL1(exit),
            }
        }
        Reached::Failed(Errno::EINTR)
    }

    /// KVM carries out L2's instruction itself.
    fn emulate_l2(&mut self, id: u32, kind: Kind, gpa: Gpa) -> Reached {
        let instruction = self.instruction;
        let Some(mut access) = self.l2_access(id) else {
            return Reached::Shutdown;
        };
        if kind == Kind::Execute {
            let ran = access.emulate_code(gpa, FaultPlace::Final);
            return ran.map_or_else(Reached::ToL1, |()| Reached::L2Ends);
        }
        let gpa = match access.emulate(instruction, (kind, gpa), FaultPlace::Final) {
            Ok(gpa) => gpa,
            Err(exit) => return Reached::ToL1(exit),
        };
        match access.emulated_access(kind, gpa) {
            EmulatedAccess::Userspace => return Reached::Mmio(gpa),
            EmulatedAccess::Write => self.emulate_write(id, gpa),
            EmulatedAccess::Read => {}
        }
        Reached::Done
    }

    /// L2 goes on with what memory has there.
    pub(in crate::shadow_vm) fn run_memory_of_l2(&mut self, id: u32, gpa: Gpa) -> Reached {
        let found = self
            .l2_access(id)
            .and_then(|access| access.code_at(access.mapped(gpa)?));
        match found {
            Some(Code::Zeros) => self.access_l2(id, Kind::Read, Gpa::new(0)),
            Some(Code::Halt) | None => Reached::Done,
        }
    }
}
