//! What the guest of a TD does with memory.

use slat_coco::tdx::mirror::{PrivateFault, TdxMmu, Touch, Vcpu as TdVcpu};
use slat_coco::tdx::{Accept, Code, GuestAccess, Refusal as ModuleRefusal};
use slat_memslot::{
    Access, Attributes, Errno, Gfn, Gpa, Level, Outcome, PAGE_SIZE, TdOp, TdSide, TdxFinding,
    TdxOutcome,
};

use super::{TdxError, TdxVm};
use crate::{CallError, CallResult};

/// How often a vCPU tries before it counts as stuck; a module that is busy once needs two.
const TRIES: u32 = 64;

const STUCK: CallError = CallError::NotTried {
    why: "the vCPU gets nowhere: the module is busy all the time",
};

/// What one try came to.
enum Tried {
    Again,
    Done(Outcome),
    Fault(MemoryFault),
}

/// `KVM_EXIT_MEMORY_FAULT`.
struct MemoryFault {
    gfn: Gfn,
    private: bool,
}

impl TdxVm {
    pub(super) fn guest_op(&mut self, vcpu: u32, op: TdOp) -> CallResult {
        let index = usize::try_from(vcpu).unwrap_or(usize::MAX);
        let known = self.vcpus.get(index);
        let known = known.ok_or(CallError::errno(Errno::EBADF))?;
        if known.request.is_some() {
            return Err(CallError::NotTried {
                why: "the vCPU waits for the answer to a hypercall: complete_hypercall",
            });
        }
        let (number, td) = match (known.number, &self.td) {
            (Some(number), Some(td)) if self.is_runnable() => (number, td),
            _ => return Err(TdxError::NotRunnable(vcpu).into()),
        };
        let shared = |gpa: u64, side| match side {
            TdSide::AsGiven => gpa,
            TdSide::Shared => gpa | td.gpaw().shared_bit(),
        };
        match op {
            TdOp::Read { gpa, side } => {
                let gpa = shared(gpa, side);
                self.access(vcpu, number, gpa, GuestAccess::Read)
            }
            TdOp::Write { gpa, side, value } => {
                let gpa = shared(gpa, side);
                self.access(vcpu, number, gpa, GuestAccess::Write(value))
            }
            TdOp::Accept { gpa, level } => self.accept(vcpu, number, gpa, level),
            TdOp::MapGpa { gpa, side, size } => {
                let gpa = shared(gpa, side);
                self.convert(vcpu, gpa, size)
            }
        }
    }

    fn is_runnable(&self) -> bool {
        self.stages.state() == slat_coco::tdx::ioctl::TdState::Runnable
    }

    /// The guest reads or writes; the SHARED bit says on which side.
    fn access(&mut self, vcpu: u32, number: u16, gpa: u64, access: GuestAccess) -> CallResult {
        let gpa = Gpa::new(gpa);
        let gpaw = self.td.as_ref().map(TdxMmu::gpaw).unwrap_or_default();
        if gpaw.is_shared(gpa) {
            let gfn = gpaw.without_shared(gpa).gfn();
            return self.run(vcpu, number, gfn, |vm, td| vm.try_shared(td, gfn, access));
        }
        if !gpaw.is_private(gpa) {
            // Beyond what either side can translate.
            return Ok(Outcome::Tdx(TdxOutcome::Ve));
        }
        let gfn = gpa.gfn();
        self.run(vcpu, number, gfn, |vm, td| vm.try_private(td, gfn, access))
    }

    /// Lets the vCPU try until it is done or has to exit.
    fn run(
        &mut self,
        vcpu: u32,
        number: u16,
        gfn: Gfn,
        mut attempt: impl FnMut(&mut Self, &mut TdVcpu) -> Result<Tried, TdxError>,
    ) -> CallResult {
        for _ in 0..TRIES {
            let Some(mut td_vcpu) = self.td.as_ref().and_then(|td| td.vcpu(number)) else {
                return Err(STUCK);
            };
            let tried = attempt(self, &mut td_vcpu);
            self.check_alive()?;
            match tried? {
                Tried::Again => {}
                Tried::Done(outcome) => {
                    self.watch_reached(vcpu, gfn);
                    return Ok(outcome);
                }
                Tried::Fault(fault) => {
                    self.counts.memory_faults += 1;
                    self.watch_fault(vcpu, fault.gfn, fault.private);
                    return Ok(Outcome::Access(exit(&fault)));
                }
            }
        }
        Err(STUCK)
    }

    /// One try on the private side.
    fn try_private(
        &mut self,
        vcpu: &mut TdVcpu,
        gfn: Gfn,
        access: GuestAccess,
    ) -> Result<Tried, TdxError> {
        let Some(td) = &self.td else {
            return Ok(Tried::Again);
        };
        Ok(match td.touch(vcpu, gfn, access) {
            Touch::Value(value) => {
                let value = value.unwrap_or(0);
                Tried::Done(match access {
                    GuestAccess::Read => Outcome::Value(value),
                    GuestAccess::Write(_) => Outcome::Done,
                })
            }
            Touch::Ve => Tried::Done(Outcome::Tdx(TdxOutcome::Ve)),
            Touch::Pending => {
                self.watch.found(TdxFinding::TouchedUnaccepted);
                self.memory.set_gate(slat_memslot::Gate::Dead);
                return Err(TdxError::Unaccepted(gfn.gpa()));
            }
            Touch::Fault(fault) => self.faulted(gfn, fault),
            Touch::NotEntered(refusal) => return again_if_busy(refusal),
        })
    }

    /// KVM has handled a violation of private memory, or asks userspace.
    fn faulted(&mut self, gfn: Gfn, fault: PrivateFault) -> Tried {
        self.counts.ept_violations += 1;
        match fault {
            PrivateFault::Exit(exit) => Tried::Fault(MemoryFault {
                gfn: exit.gfn,
                private: exit.private,
            }),
            PrivateFault::NoSlot => Tried::Fault(MemoryFault { gfn, private: true }),
            _ => Tried::Again,
        }
    }

    /// One try on the shared side. Without a slot the guest gets a #VE, and asks for MMIO.
    fn try_shared(
        &mut self,
        vcpu: &mut TdVcpu,
        gfn: Gfn,
        access: GuestAccess,
    ) -> Result<Tried, TdxError> {
        let Some((_, hva)) = self.memory.hva_of(Default::default(), gfn.gpa()) else {
            return Ok(if self.memory.is_private(gfn) {
                self.counts.ept_violations += 1;
                Tried::Fault(MemoryFault {
                    gfn,
                    private: false,
                })
            } else {
                Tried::Done(Outcome::Tdx(TdxOutcome::Ve))
            });
        };
        let hva = hva.raw() & !(PAGE_SIZE - 1);
        let Some(td) = &self.td else {
            return Ok(Tried::Again);
        };
        if self.memory.is_private(gfn) {
            self.counts.ept_violations += 1;
            return Ok(Tried::Fault(MemoryFault {
                gfn,
                private: false,
            }));
        }
        let page = self.host.page(gfn, hva);
        Ok(match td.fault_shared(vcpu, gfn, page) {
            PrivateFault::Fixed => {
                self.counts.ept_violations += 1;
                Tried::Done(self.shared_value(hva, access))
            }
            PrivateFault::Spurious => Tried::Done(self.shared_value(hva, access)),
            _ => Tried::Again,
        })
    }

    fn shared_value(&mut self, hva: u64, access: GuestAccess) -> Outcome {
        match access {
            GuestAccess::Read => Outcome::Value(self.host.value(hva)),
            GuestAccess::Write(value) => {
                self.host.set_value(hva, value);
                Outcome::Done
            }
        }
    }

    fn accept(&mut self, vcpu: u32, number: u16, gpa: u64, level: Level) -> CallResult {
        let gfn = Gpa::new(gpa).gfn();
        let aligned = gpa % level.pages().bytes() == 0;
        let private = self
            .td
            .as_ref()
            .is_some_and(|td| td.gpaw().is_private(Gpa::new(gpa)));
        if !aligned || !private || level > Level::L2 {
            return Ok(Outcome::Tdx(TdxOutcome::OperandInvalid));
        }
        self.run(vcpu, number, gfn, |vm, td| vm.try_accept(td, gfn, level))
    }

    fn try_accept(&mut self, vcpu: &mut TdVcpu, gfn: Gfn, level: Level) -> Result<Tried, TdxError> {
        let Some(td) = &self.td else {
            return Ok(Tried::Again);
        };
        let (accept, fault) = match td.accept_once(vcpu, gfn, level) {
            Ok(accepted) => accepted,
            Err(refusal) if refusal.status.code() == Some(Code::PageSizeMismatch) => {
                self.watch.found(TdxFinding::LargeAcceptSplit);
                return Ok(Tried::Done(Outcome::Tdx(TdxOutcome::SizeMismatch(level))));
            }
            Err(refusal) if refusal.status.code() == Some(Code::OperandInvalid) => {
                return Ok(Tried::Done(Outcome::Tdx(TdxOutcome::OperandInvalid)));
            }
            Err(refusal) => return again_if_busy(refusal),
        };
        Ok(match (accept, fault) {
            (Accept::Accepted, _) => Tried::Done(Outcome::Tdx(TdxOutcome::Accepted)),
            (Accept::AlreadyAccepted(level), _) => {
                self.watch.found(TdxFinding::AcceptedBefore);
                Tried::Done(Outcome::Tdx(TdxOutcome::AlreadyAccepted(level)))
            }
            (_, Some(fault)) => self.faulted(gfn, fault),
            (Accept::Interrupted(_) | Accept::Exit(_), None) => Tried::Again,
        })
    }
}

/// A vCPU that found the module busy, or that somebody has made leave, tries again.
fn again_if_busy(refusal: ModuleRefusal) -> Result<Tried, TdxError> {
    let left = refusal.status.code() == Some(Code::VcpuStateIncorrect);
    if refusal.is_busy() || left {
        Ok(Tried::Again)
    } else {
        Err(TdxError::Module(refusal))
    }
}

fn exit(fault: &MemoryFault) -> Access {
    Access::MemoryFault {
        flags: if fault.private {
            Attributes::PRIVATE.bits()
        } else {
            0
        },
        gpa: fault.gfn.gpa().raw(),
        size: PAGE_SIZE,
    }
}
