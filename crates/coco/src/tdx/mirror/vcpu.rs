//! A vCPU as KVM runs it.

use slat_memslot::{Gfn, Gpa, Level};
use slat_mmu::table::Reader;

use super::fault::PrivateFault;
use super::vm::TdxMmu;
use crate::sync::read;
use crate::tdx::{
    Accept, Entry, GpaMapping, GuestAccess, GuestFault, Interrupt, Refusal, Violation,
    ViolationCause, VpId,
};

/// A vCPU with its place among those who walk the tables.
#[derive(Debug)]
pub struct Vcpu {
    pub(super) id: VpId,
    pub(super) reader: Reader,
}

/// What one access of the guest came to, with the fault that it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// The page was reached; this was there.
    Value(Option<u64>),
    /// The guest has to accept the page first.
    Ve,
    /// KVM ends the VM: the guest touched a page that it has not accepted, and wants no #VE.
    Pending,
    /// A fault that KVM handled, or not; the guest goes on trying if it is a retry.
    Fault(PrivateFault),
    /// The vCPU could not enter.
    NotEntered(Refusal),
}

impl TdxMmu {
    /// A vCPU; `None` if there is no such one, or too many work on the tables.
    pub fn vcpu(&self, number: u16) -> Option<Vcpu> {
        let exists = number < self.module().vcpus(self.td());
        let reader = read(&self.tables).reader()?;
        exists.then_some(Vcpu {
            id: VpId(number),
            reader,
        })
    }

    /// Enters, if the vCPU is outside. Waits while somebody wants all of them outside.
    ///
    /// # Errors
    /// What the module says.
    pub fn enter(&self, vcpu: &Vcpu) -> Result<Entry, Refusal> {
        if self.module().is_inside(self.td(), vcpu.id) {
            return Ok(Entry::Inside);
        }
        self.backend.is_entering(vcpu.id);
        let entry = self.module().tdh_vp_enter(self.td(), vcpu.id);
        self.backend.has_left(vcpu.id);
        entry
    }

    /// The same, and the guest gets on to an instruction.
    fn enter_at(&self, vcpu: &Vcpu, rip: u64) -> Result<Entry, Refusal> {
        let entry = self.enter(vcpu)?;
        // If it was made to leave at once, the access will say so.
        let _inside = self.module().vp_advance(self.td(), vcpu.id, rip);
        Ok(entry)
    }

    /// The guest reads or writes a private page; a fault is handled once.
    pub fn touch(&self, vcpu: &mut Vcpu, gfn: Gfn, access: GuestAccess) -> Touch {
        match self.enter_at(vcpu, instruction(gfn, 1)) {
            Ok(Entry::Inside) => {}
            Ok(Entry::StillUnmapped(gpa)) => {
                return Touch::Fault(self.fault_private(vcpu, gpa.gfn()));
            }
            Err(refusal) => return Touch::NotEntered(refusal),
        }
        let accessed = self
            .module()
            .vp_access(self.td(), vcpu.id, gfn.gpa(), access);
        self.backend.has_left(vcpu.id);
        match accessed {
            Ok(value) => Touch::Value(value),
            Err(GuestFault::Ve(_)) => Touch::Ve,
            Err(GuestFault::Exit(Violation {
                cause: ViolationCause::Pending,
                ..
            })) => Touch::Pending,
            Err(GuestFault::Exit(violation)) => {
                Touch::Fault(self.fault_private(vcpu, violation.gpa.gfn()))
            }
            // Somebody has made it leave; it comes back.
            Err(GuestFault::NotRunning | GuestFault::Shared) => {
                Touch::Fault(PrivateFault::Invalidated)
            }
        }
    }

    /// The guest accepts a page; a fault is handled once.
    ///
    /// # Errors
    /// What the guest is told, or why the vCPU could not enter.
    pub fn accept(&self, vcpu: &mut Vcpu, gfn: Gfn, level: Level) -> Result<Accept, Refusal> {
        self.accept_once(vcpu, gfn, level).map(|(accept, _)| accept)
    }

    /// The same, with what became of the fault if there was one.
    ///
    /// # Errors
    /// What the guest is told, or why the vCPU could not enter.
    pub fn accept_once(
        &self,
        vcpu: &mut Vcpu,
        gfn: Gfn,
        level: Level,
    ) -> Result<(Accept, Option<PrivateFault>), Refusal> {
        if let Entry::StillUnmapped(gpa) = self.enter_at(vcpu, instruction(gfn, 2))? {
            let fault = self.fault_private(vcpu, gpa.gfn());
            let cause = ViolationCause::Access;
            return Ok((Accept::Exit(Violation { gpa, cause }), Some(fault)));
        }
        let at = GpaMapping::new(Gpa::new(gfn.gpa().raw()), level);
        let accepted = self
            .module()
            .tdg_mem_page_accept(self.td(), vcpu.id, at, Interrupt::Never);
        self.backend.has_left(vcpu.id);
        let accepted = accepted?;
        let fault = match accepted {
            Accept::Exit(violation) => Some(self.fault_private(vcpu, violation.gpa.gfn())),
            _ => None,
        };
        Ok((accepted, fault))
    }

    /// The vCPU leaves, if it is inside.
    pub fn leave(&self, vcpu: &Vcpu) {
        let _outside = self.module().vp_exit(self.td(), vcpu.id);
        self.backend.has_left(vcpu.id);
    }
}

/// Where the guest is: trying the same access again is the same instruction.
const fn instruction(gfn: Gfn, kind: u64) -> u64 {
    gfn.raw() << 4 | kind
}
