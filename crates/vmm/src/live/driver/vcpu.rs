//! Calls about vCPUs, and guests that run.
#![expect(unsafe_code, reason = "a child must not have the mappings of vCPUs")]

use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_EXIT_DIRTY_RING_FULL, kvm_pre_fault_memory, kvm_run};
use slat_memslot::{AsId, Errno, Gfn, PAGE_SHIFT, Pages};

use super::vm::Machine;
use super::{Done, DriveError, Driver, Journal, MOST_TOLD, io_error, missing};
use crate::kvm::{Ring, errno, ioctl, make_flat};
use crate::live::guest;
use crate::traces::{GuestAct, MOST_IN_A_NOTE, Note, Op, Sregs};

impl<J: Journal> Driver<J> {
    pub(super) fn vcpu_call(&mut self, op: &Op<'_>) -> Done {
        self.say(&format!("OP {op}"))?;
        if let Op::HarvestRing { vcpu } = op {
            return self.harvest(*vcpu);
        }
        if let Op::SetSregs {
            vcpu,
            sregs: Sregs::Control(control),
        } = op
        {
            return self.set_control(op, vcpu.unwrap_or(0), control);
        }
        match op {
            Op::SetMsr { vcpu, msr, value } => {
                return self.set_msr(op, vcpu.unwrap_or(0), (msr, *value));
            }
            Op::SetSregs {
                vcpu,
                sregs:
                    Sregs::LongMode {
                        cr3,
                        nesting: Some("EFER.SVME"),
                    },
            } => return self.set_long_mode(op, vcpu.unwrap_or(0), *cr3),
            Op::SetSregs {
                vcpu,
                sregs:
                    Sregs::Bits {
                        register: "EFER",
                        bits: "NXE",
                        set,
                    },
            } => return self.set_no_execute(op, vcpu.unwrap_or(0), *set),
            _ => {}
        }
        let machine = self.machine.as_mut().ok_or_else(|| missing(op, "VM"))?;
        let vcpu = |id: &u32| machine.vcpus.get(id).ok_or_else(|| missing(op, "vCPU"));
        let result = match op {
            Op::CreateVcpu { id } => {
                machine.create_vcpu(*id, self.kvm.get_vcpu_mmap_size().map_err(errno))
            }
            Op::CloseVcpu { id } => {
                machine.rings.remove(id);
                machine.vcpus.remove(id);
                return Ok(());
            }
            Op::SetCpuid {
                vcpu: id,
                max_phys_addr,
            } => guest::set_cpuid(&self.kvm, vcpu(id)?, *max_phys_addr).map(|()| 0),
            Op::SetSregs {
                vcpu: id,
                sregs: Sregs::Flat,
            } => make_flat(vcpu(&id.unwrap_or(0))?).map(|()| 0),
            Op::SetSmm(inside) => {
                let result = guest::set_smm(vcpu(&0)?, *inside).map(|()| 0);
                let space = u8::from(*inside && result.is_ok());
                machine.as_id = AsId::new(space).unwrap_or(AsId::NORMAL);
                result
            }
            Op::PreFault {
                vcpu: id,
                gfn,
                pages,
                flags,
            } => {
                let mut range = kvm_pre_fault_memory {
                    gpa: gfn.raw() << PAGE_SHIFT,
                    size: pages.raw() << PAGE_SHIFT,
                    flags: flags.unwrap_or(0),
                    ..Default::default()
                };
                let done = ioctl::pre_fault(vcpu(id)?.as_raw_fd(), &mut range);
                let left = Note::PreFaultLeft {
                    gfn: Gfn::new(range.gpa >> PAGE_SHIFT),
                    pages: Pages::new(range.size >> PAGE_SHIFT),
                };
                self.ret(done.map(i64::from))?;
                self.note(&left)?;
                return self.backing(*gfn, pages.raw().min(MOST_TOLD));
            }
            _ => return Err(DriveError::Unknown { op: op.to_string() }),
        };
        self.ret(result)
    }

    pub(super) fn guest(&mut self, op: &Op<'_>, id: u32, act: &GuestAct<'_>) -> Done {
        self.say(&format!("OP {op}"))?;
        let start =
            guest::Start::of(act).ok_or_else(|| DriveError::Unknown { op: op.to_string() })?;
        let machine = self.machine.as_mut().ok_or_else(|| missing(op, "VM"))?;
        match act {
            GuestAct::EnterSmm { .. } => machine.as_id = AsId::SMM,
            GuestAct::LeaveSmm => machine.as_id = AsId::NORMAL,
            _ => {}
        }
        let vcpu = machine.vcpus.get_mut(&id);
        let vcpu = vcpu.ok_or_else(|| missing(op, "vCPU"))?;
        let journal = &mut self.journal;
        let ran = guest::run(vcpu, &start, |note| journal.say(&format!("NOTE {note}")));
        // One that a full ring keeps out does not look at its root.
        if vcpu.get_kvm_run().exit_reason != KVM_EXIT_DIRTY_RING_FULL {
            machine.stale.remove(&id);
        }
        match ran {
            Ok(told) => told.map_err(|error| io_error("the journal", error))?,
            Err(errno) => return self.ret(Err(errno)),
        }
        let (first, pages) = start.reaches();
        for code in [guest::CODE_PAGE, guest::HANDLER_PAGE] {
            self.backing(code, 1)?;
        }
        self.backing(first.gfn(), pages.min(MOST_TOLD))
    }

    /// Takes the entries out of a ring.
    fn harvest(&mut self, vcpu: u32) -> Done {
        let rings = self.machine.as_mut().map(|machine| &mut machine.rings);
        let ring = rings.and_then(|rings| rings.get_mut(&vcpu));
        let taken = ring.map(Ring::harvest).unwrap_or_default();
        if taken.is_empty() {
            return self.note(&Note::Ring(taken));
        }
        let mut parts = taken.chunks(MOST_IN_A_NOTE);
        parts.try_for_each(|part| self.note(&Note::Ring(part.to_vec())))
    }
}

impl Machine {
    fn create_vcpu(&mut self, id: u32, mapped: Result<usize, Errno>) -> Result<i64, Errno> {
        let mut vcpu = self.vm.create_vcpu(u64::from(id)).map_err(errno)?;
        let run: *mut kvm_run = vcpu.get_kvm_run();
        // SAFETY: the vCPU has mapped so much there. A child must not keep it open.
        unsafe { libc::madvise(run.cast(), mapped?, libc::MADV_DONTFORK) };
        if self.ring_bytes > 0 {
            let ring = Ring::map(vcpu.as_raw_fd(), self.ring_bytes)?;
            self.rings.insert(id, ring);
        }
        let descriptor = i64::from(vcpu.as_raw_fd());
        self.vcpus.insert(id, vcpu);
        Ok(descriptor)
    }
}
