//! vCPUs: a few bytes of guest code, and dirty rings.

use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use slat_memslot::{
    Access, AccessKind, AsId, Attributes, Errno, Gpa, GuestAccess, Hva, Outcome, PAGE_SIZE, Vendor,
};

use super::Vm;
use super::ioctl::errno;
use super::region::Placed;
use super::ring::Ring;
use crate::{CallError, CallResult};

/// `hlt`.
pub(super) const HALT: u8 = 0xf4;
/// Where every vCPU has its local APIC at first.
const APIC_PAGE: u64 = 0xfee0_0000;
/// `KVM_EXIT_DIRTY_RING_FULL`.
pub(super) const EXIT_RING_FULL: u32 = 31;

/// `KVM_SET_SREGS`: 32-bit protected mode, flat, no paging.
pub(crate) fn make_flat(vcpu: &VcpuFd) -> Result<(), Errno> {
    let mut sregs = vcpu.get_sregs().map_err(errno)?;
    flatten(&mut sregs, false);
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs).map_err(errno)
}

/// Makes all segments flat, that of code a long one if wanted.
pub(crate) fn flatten(sregs: &mut kvm_sregs, long: bool) {
    let data = kvm_segment {
        limit: u32::MAX,
        type_: 3,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        selector: 16,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        type_: 11,
        selector: 8,
        l: u8::from(long),
        db: u8::from(!long),
        ..data
    };
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
}

/// A vCPU.
#[derive(Debug)]
pub(super) struct Vcpu {
    // Declared before the descriptor: the ring is unmapped first.
    ring: Option<Ring>,
    fd: VcpuFd,
    flat: bool,
    as_id: AsId,
    /// It waits for what its hypercall returns.
    asked: bool,
}

impl Vcpu {
    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    pub(super) fn fd_mut(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }

    /// Whether it waits for what its hypercall returns.
    pub(super) fn is_asking(&self) -> bool {
        self.asked
    }

    pub(super) fn set_asking(&mut self, asked: bool) {
        self.asked = asked;
    }

    /// What its hypercall returns when it runs on.
    pub(super) fn set_hypercall_ret(&mut self, ret: u64) {
        let run = self.fd.get_kvm_run();
        run.__bindgen_anon_1.hypercall.ret = ret;
    }

    /// Protected mode without paging, all segments flat: guest-physical addresses are what instructions see.
    pub(super) fn make_flat(&mut self) -> Result<(), Errno> {
        if std::mem::replace(&mut self.flat, true) {
            return Ok(());
        }
        make_flat(&self.fd)
    }

    /// Enters or leaves SMM (`KVM_SET_VCPU_EVENTS`).
    pub(super) fn enter_space(&mut self, as_id: AsId) -> Result<(), Errno> {
        if core::mem::replace(&mut self.as_id, as_id) == as_id {
            return Ok(());
        }
        let mut events = self.fd.get_vcpu_events().map_err(errno)?;
        events.smi.smm = u8::from(as_id == AsId::SMM);
        events.flags |= kvm_bindings::KVM_VCPUEVENT_VALID_SMM;
        let entered = self.fd.set_vcpu_events(&events).map_err(errno);
        if entered.is_err() {
            self.as_id = AsId::NORMAL;
        }
        entered
    }

    /// Runs the instruction of an access.
    fn run(&mut self, access: &GuestAccess) -> CallResult {
        self.make_flat().map_err(CallError::errno)?;
        self.enter_space(access.as_id).map_err(CallError::errno)?;
        let regs = kvm_regs {
            rip: access.instruction(),
            rbx: access.gpa,
            rax: 0x5_1a7,
            rflags: 2,
            ..Default::default()
        };
        self.fd
            .set_regs(&regs)
            .map_err(|e| CallError::errno(errno(e)))?;
        let read = access.kind == AccessKind::Read;
        let outcome = match self.fd.run() {
            Ok(VcpuExit::Hlt) => Access::Done,
            Ok(VcpuExit::MmioWrite(..)) => Access::Mmio,
            Ok(VcpuExit::MmioRead(gpa, _)) if read && gpa == access.gpa => Access::Mmio,
            Ok(VcpuExit::InternalError | VcpuExit::MmioRead(..)) => Access::NoMemory,
            Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
                Access::MemoryFault { flags, gpa, size }
            }
            Ok(VcpuExit::Unsupported(EXIT_RING_FULL)) => Access::RingFull,
            Ok(_) => {
                return Err(CallError::NotTried {
                    why: "the guest stopped for another reason",
                });
            }
            Err(e) => return Err(CallError::errno(errno(e))),
        };
        if outcome == Access::Mmio {
            self.finish_mmio();
        }
        Ok(Outcome::Access(outcome))
    }

    /// Lets KVM complete an access that exited, so that it does not resume later.
    pub(super) fn finish_mmio(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // Gives EINTR at once, which is what was asked for.
        let _interrupted = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }
}

impl Vm {
    pub(super) fn create_vcpu(&mut self) -> Result<Outcome, Errno> {
        let fd = self
            .vm
            .create_vcpu(self.vcpus.len() as u64)
            .map_err(errno)?;
        let ring = match self.ring_bytes {
            0 => None,
            bytes => Some(Ring::map(fd.as_raw_fd(), bytes)?),
        };
        self.vcpus.push(Vcpu {
            ring,
            fd,
            flat: false,
            as_id: AsId::NORMAL,
            asked: false,
        });
        Ok(Outcome::Done)
    }

    pub(super) fn harvest(&mut self, vcpu: u32) -> Result<Outcome, Errno> {
        let vcpu = usize::try_from(vcpu)
            .ok()
            .and_then(|index| self.vcpus.get_mut(index));
        let ring = vcpu
            .and_then(|vcpu| vcpu.ring.as_mut())
            .ok_or(Errno::EINVAL)?;
        Ok(Outcome::Ring(ring.harvest()))
    }

    /// An access by an instruction that is put where it says.
    pub(super) fn guest_access(&mut self, access: &GuestAccess) -> CallResult {
        let vcpu = usize::try_from(access.vcpu).unwrap_or(usize::MAX);
        if vcpu >= self.vcpus.len() {
            return Err(CallError::errno(Errno::EBADF));
        }
        self.can_run(access)
            .map_err(|why| CallError::NotTried { why })?;
        let code = access.instruction();
        if let Some(slot) = self.placed_at(access.as_id, code) {
            let at = Hva::new(slot.hva + (code - slot.gpa));
            // An instruction in private memory is what the guest put there itself: zeros.
            if !self.host.write(at, instruction(access.kind)) {
                return Err(CallError::NotTried {
                    why: "the instruction is not in the host area A",
                });
            }
        }
        match self.vcpus.get_mut(vcpu) {
            Some(vcpu) if vcpu.asked => Err(CallError::NotTried {
                why: "the vCPU waits for what its hypercall returns",
            }),
            Some(vcpu) => vcpu.run(access),
            None => Err(CallError::errno(Errno::EBADF)),
        }
    }

    /// The slot that holds an address.
    pub(super) fn placed_at(&self, as_id: AsId, gpa: u64) -> Option<Placed> {
        let space = as_id.index();
        let holds = |slot: u32, p: &Placed| {
            usize::try_from(slot >> 16) == Ok(space) && p.gpa <= gpa && gpa - p.gpa < p.size
        };
        let found = self.placed.iter().find(|(slot, p)| holds(**slot, p));
        found.map(|(_, placed)| *placed)
    }

    /// Whether an access stays within what the model knows, and within memory that is there for it.
    fn can_run(&self, access: &GuestAccess) -> Result<(), &'static str> {
        let paravirtual = self.profile.vendor.get() == Vendor::Paravirtual;
        if !paravirtual && !self.maps_for_guests {
            return Err(
                "where the host maps pages, only a model with page tables can follow a guest",
            );
        }
        if self.irqchip {
            return Err("with an interrupt controller in the kernel, a halt does not end the run");
        }
        let code = Gpa::new(access.instruction()).gfn();
        if self.attributes.get(code).contains(Attributes::PRIVATE) {
            return Err("an instruction in private memory is what the guest itself put there");
        }
        for at in [access.gpa, access.instruction()] {
            let page = at & !(PAGE_SIZE - 1);
            if at > u64::from(u32::MAX) - 4 || at - page > PAGE_SIZE - 4 {
                return Err("guest accesses lie below 4 GiB and inside a page");
            }
            if page == APIC_PAGE {
                return Err("the local APIC's page is MMIO whatever slot holds it");
            }
            let Some(slot) = self.placed_at(access.as_id, at) else {
                continue;
            };
            let hva = slot.hva + (at - slot.gpa);
            let [writable, unreachable, readonly] = self.host.areas().list();
            let inside = |area: &crate::scenario::Area| area.offset_of(hva).is_some();
            let known =
                inside(&writable) || (!paravirtual && (inside(&unreachable) || inside(&readonly)));
            if !known {
                return Err("the page is not in the host area A");
            }
        }
        Ok(())
    }
}

/// The instruction of an access: a move between `eax` and what `ebx` points to, then a halt.
const fn instruction(kind: AccessKind) -> &'static [u8] {
    match kind {
        AccessKind::Read => &[0x8b, 0x03, HALT],
        AccessKind::Write => &[0x89, 0x03, HALT],
        AccessKind::Execute => &[HALT],
    }
}
