//! What memory holds: a guest that fills and compares it and asks for conversions, and its userspace.

use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuExit;
use slat_memslot::{
    Access, AsId, Attributes, ContentsCall, Errno, GfnRange, Gpa, GuestContents, Hva, Outcome,
    PAGE_SIZE, Pages, Vendor,
};

use super::Vm;
use super::guest::Vcpu;
use super::ioctl::errno;
use crate::{CallError, CallResult};

/// `rep stosd; hlt`, at 0.
const FILL: (u64, &[u8]) = (0, &[0xf3, 0xab, 0xf4]);
/// `repe scasd; hlt`: ZF says whether all was the same.
const CHECK: (u64, &[u8]) = (0x10, &[0xf3, 0xaf, 0xf4]);
/// Where the hypercall is, and a `hlt` behind it.
const HYPERCALL: u64 = 0x20;
const VMCALL: &[u8] = &[0x0f, 0x01, 0xc1, 0xf4];
const VMMCALL: &[u8] = &[0x0f, 0x01, 0xd9, 0xf4];
/// RFLAGS.ZF.
const ZERO: u64 = 1 << 6;

impl Vm {
    pub(super) fn contents_call(&mut self, call: &ContentsCall) -> CallResult {
        match *call {
            ContentsCall::Guest { vcpu, code, act } => self.contents_act(vcpu, code, &act),
            ContentsCall::ReturnHypercall { vcpu, ret } => {
                self.known_vcpu(vcpu)?.return_hypercall(ret)
            }
            ContentsCall::HostFill { hva, size, byte } => {
                let filled = self.host.fill(Hva::new(hva), size, byte);
                filled.map(|()| Outcome::Done).ok_or(NOT_IN_A)
            }
            ContentsCall::HostCheck { hva, size, byte } => {
                let holds = self.host.holds(Hva::new(hva), size, byte);
                let holds = holds.ok_or(NOT_IN_A)?;
                Ok(Outcome::Value(u64::from(holds)))
            }
            ContentsCall::Discard { hva, size } => {
                let discarded = self.host.discard(Hva::new(hva), size);
                let discarded = discarded.ok_or(NOT_IN_A)?;
                discarded.map(|()| Outcome::Done).map_err(CallError::errno)
            }
        }
    }

    fn known_vcpu(&mut self, vcpu: u32) -> Result<&mut Vcpu, CallError> {
        let index = usize::try_from(vcpu).ok();
        let known = index.and_then(|index| self.vcpus.get_mut(index));
        known.ok_or(CallError::errno(Errno::EBADF))
    }

    fn contents_act(&mut self, vcpu: u32, code: u64, act: &GuestContents) -> CallResult {
        if self.known_vcpu(vcpu)?.is_asking() {
            return Err(STILL_ASKING);
        }
        self.can_act(code, act)
            .map_err(|why| CallError::NotTried { why })?;
        let hypercall = match self.profile.vendor.get() {
            Vendor::Amd => VMMCALL,
            _ => VMCALL,
        };
        let slot = self.placed_at(AsId::NORMAL, code).ok_or(NOT_IN_A)?;
        let page = slot.hva + (code - slot.gpa);
        for (at, bytes) in [FILL, CHECK, (HYPERCALL, hypercall)] {
            if !self.host.write(Hva::new(page + at), bytes) {
                return Err(NOT_IN_A);
            }
        }
        self.known_vcpu(vcpu)?.act(code, act)
    }

    /// Whether everything that the guest reaches is memory that is there for it, or none.
    fn can_act(&self, code: u64, act: &GuestContents) -> Result<(), &'static str> {
        let (gpa, size) = match *act {
            GuestContents::Fill { gpa, size, .. } | GuestContents::Check { gpa, size, .. } => {
                (gpa, size)
            }
            GuestContents::MapGpaRange { .. } => (code, PAGE_SIZE),
        };
        let end = gpa.checked_add(size).filter(|end| *end <= 1 << 32);
        let (Some(end), 0, false) = (end, (gpa | size | code) % PAGE_SIZE, size == 0) else {
            return Err("guests fill whole pages below 4 GiB, and not none");
        };
        if self.irqchip {
            return Err("with an interrupt controller in the kernel, a halt does not end the run");
        }
        let instructions = GfnRange::new(Gpa::new(code).gfn(), Pages::new(1));
        let shared = |range| self.attributes.uniform(range) == Some(Attributes::empty());
        if !instructions.is_some_and(shared) {
            return Err("the guest's instructions have to be in shared memory");
        }
        let [writable, ..] = self.host.areas().list();
        let reached = self.placed.values();
        let mut reached = reached.filter(|p| p.gpa < end && gpa < p.gpa.saturating_add(p.size));
        let inside = reached.all(|p| {
            let offset = writable.offset_of(p.hva);
            offset.is_some_and(|offset| p.size <= writable.len - offset)
        });
        match inside {
            true => Ok(()),
            false => Err("a slot is not in the host area A"),
        }
    }
}

const NOT_IN_A: CallError = CallError::NotTried {
    why: "the memory is not in the host area A",
};
const STILL_ASKING: CallError = CallError::NotTried {
    why: "the vCPU waits for what its hypercall returns",
};

impl Vcpu {
    /// Runs the instructions of an act.
    fn act(&mut self, code: u64, act: &GuestContents) -> CallResult {
        self.make_flat().map_err(CallError::errno)?;
        self.enter_space(AsId::NORMAL).map_err(CallError::errno)?;
        let word = |byte: u8| u64::from(u32::from_ne_bytes([byte; 4]));
        let at = |offset| code + offset;
        let regs = match *act {
            GuestContents::Fill { gpa, size, byte } => kvm_regs {
                rip: at(FILL.0),
                rdi: gpa,
                rcx: size / 4,
                rax: word(byte),
                ..Default::default()
            },
            GuestContents::Check { gpa, size, byte } => kvm_regs {
                rip: at(CHECK.0),
                rdi: gpa,
                rcx: size / 4,
                rax: word(byte),
                ..Default::default()
            },
            GuestContents::MapGpaRange {
                gpa,
                pages,
                attributes,
            } => kvm_regs {
                rip: at(HYPERCALL),
                rax: GuestContents::MAP_GPA_RANGE,
                rbx: gpa,
                rcx: pages,
                rdx: attributes,
                ..Default::default()
            },
        };
        let regs = kvm_regs { rflags: 2, ..regs };
        self.fd_mut().set_regs(&regs).map_err(refused)?;
        self.go_on(act)
    }

    fn go_on(&mut self, act: &GuestContents) -> CallResult {
        let access = match self.fd_mut().run() {
            Ok(VcpuExit::Hlt) => return self.halted(act),
            Ok(VcpuExit::Hypercall(exit)) => {
                let [gpa, pages, attributes, ..] = exit.args;
                if exit.nr != GuestContents::MAP_GPA_RANGE {
                    return Err(OTHER_EXIT);
                }
                self.set_asking(true);
                return Ok(Outcome::MapGpaRange {
                    gpa,
                    pages,
                    attributes,
                });
            }
            Ok(VcpuExit::MmioWrite(..) | VcpuExit::MmioRead(..)) => Access::Mmio,
            Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
                Access::MemoryFault { flags, gpa, size }
            }
            Ok(VcpuExit::Unsupported(super::guest::EXIT_RING_FULL)) => Access::RingFull,
            Ok(_) => return Err(OTHER_EXIT),
            Err(e) => return Err(refused(e)),
        };
        if access == Access::Mmio {
            self.give_up_string()?;
        }
        Ok(Outcome::Access(access))
    }

    /// Lets KVM complete a string instruction that exited: with nothing left to do, since it would go on with what lies behind.
    fn give_up_string(&mut self) -> Result<(), CallError> {
        let regs = self.fd_mut().get_regs().map_err(refused)?;
        let done = kvm_regs { rcx: 0, ..regs };
        self.fd_mut().set_regs(&done).map_err(refused)?;
        self.finish_mmio();
        Ok(())
    }

    fn halted(&mut self, act: &GuestContents) -> CallResult {
        let regs = self.fd_mut().get_regs().map_err(refused)?;
        Ok(match act {
            GuestContents::Fill { .. } => Outcome::Done,
            GuestContents::Check { .. } => Outcome::Value(u64::from(regs.rflags & ZERO != 0)),
            GuestContents::MapGpaRange { .. } => Outcome::Value(regs.rax),
        })
    }

    /// `KVM_RUN` after the exit, with what the guest is to find.
    fn return_hypercall(&mut self, ret: u64) -> CallResult {
        if !self.is_asking() {
            return Err(CallError::NotTried {
                why: "the vCPU has asked for nothing",
            });
        }
        self.set_asking(false);
        // The exit's place in `kvm_run` is where KVM takes the value from.
        self.set_hypercall_ret(ret);
        let act = GuestContents::MapGpaRange {
            gpa: 0,
            pages: 0,
            attributes: 0,
        };
        self.go_on(&act)
    }
}

const OTHER_EXIT: CallError = CallError::NotTried {
    why: "the guest stopped for another reason",
};

fn refused(error: kvm_ioctls::Error) -> CallError {
    CallError::errno(errno(error))
}
