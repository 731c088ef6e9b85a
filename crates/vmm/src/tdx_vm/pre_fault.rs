//! `KVM_PRE_FAULT_MEMORY` on a TD.

use slat_coco::tdx::mirror::PrivateFault;
use slat_memslot::{Errno, Gfn, Gpa, Outcome, PAGE_SIZE, PreFaultError, Refusal};

use super::{TdxError, TdxVm};
use crate::{CallError, CallResult};

impl TdxVm {
    /// Maps page by page, on the side that the attribute says, until one cannot be (`kvm_main.c:kvm_vcpu_pre_fault_memory`).
    pub(super) fn pre_fault(&mut self, vcpu: u32, gpa: u64, size: u64, flags: u64) -> CallResult {
        self.memory.check_pre_fault(vcpu, gpa, size, flags)?;
        let known = usize::try_from(vcpu).ok().and_then(|at| self.vcpus.get(at));
        let number = known.and_then(|vcpu| vcpu.number);
        let number = number.ok_or(TdxError::NotRunnable(vcpu))?;
        let mut at = gpa;
        while at < gpa + size {
            if let Err(error) = self.pre_fault_page(number, Gpa::new(at).gfn()) {
                if at == gpa {
                    return Err(error);
                }
                break;
            }
            at += PAGE_SIZE;
        }
        Ok(Outcome::Remaining {
            gpa: at,
            size: gpa + size - at,
        })
    }

    fn pre_fault_page(&mut self, number: u16, gfn: Gfn) -> Result<(), CallError> {
        let gpa = gfn.gpa();
        let private = self.memory.is_private(gfn);
        let hva = self.memory.hva_of(Default::default(), gpa);
        let hva = hva.map(|(_, hva)| hva.raw());
        let td = self.td.as_ref();
        let Some((td, mut vcpu)) = td.and_then(|td| Some((td, td.vcpu(number)?))) else {
            return Err(CallError::errno(Errno::EAGAIN));
        };
        let fault = match (private, hva) {
            (true, _) => td.fault_private(&mut vcpu, gfn),
            (false, Some(hva)) => {
                let page = self.host.page(gfn, hva);
                td.fault_shared(&mut vcpu, gfn, page)
            }
            (false, None) => PrivateFault::NoSlot,
        };
        self.check_alive()?;
        let gpa = gpa.raw();
        match fault {
            PrivateFault::Fixed | PrivateFault::Spurious => Ok(()),
            PrivateFault::NoSlot if !private => Err(refused(PreFaultError::NoSlot { gpa })),
            PrivateFault::NoSlot | PrivateFault::Exit(_) => {
                Err(refused(PreFaultError::NoPrivateMemory { gpa }))
            }
            _ => Err(CallError::errno(Errno::EAGAIN)),
        }
    }
}

fn refused(reason: PreFaultError) -> CallError {
    Refusal::from(reason).into()
}
