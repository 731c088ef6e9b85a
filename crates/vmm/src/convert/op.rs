//! A conversion as a step of a scenario.

use slat_coco::convert::{Cause, Ended, Executor, Plan, Policy, Request, Run, Step};
use slat_coco::migration::Status;
use slat_memslot::{Errno, Gfn, GfnRange, Outcome, PAGE_SIZE, PageSize, Pages, VmType};

use super::VmExecutor;
use crate::{CallError, CallResult, MemoryVm};

/// A conversion that a VMM makes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertOp {
    /// The first address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// What the memory shall be.
    pub to: Status,
    /// What the VMM has decided.
    pub policy: Policy,
    /// Which step fails with `ENOMEM`, counted from 1; `None` if all are left to the machine.
    pub fails_at: Option<u32>,
}

/// Steps of which one is made to fail.
struct Failing<E> {
    executor: E,
    after: Option<u32>,
}

impl<E: Executor> Executor for Failing<E> {
    fn carry_out(&mut self, step: &Step) -> Result<(), Errno> {
        match &mut self.after {
            Some(0) => {
                self.after = None;
                return Err(Errno::ENOMEM);
            }
            Some(after) => *after -= 1,
            None => {}
        }
        self.executor.carry_out(step)
    }
}

impl ConvertOp {
    /// Plans the conversion and carries it out: done, or taken back with the error of the step that failed.
    ///
    /// # Errors
    /// There is no plan, or it was taken back.
    pub fn run<V: MemoryVm + ?Sized>(&self, vm: &mut V) -> CallResult {
        let request = self.request().ok_or(CallError::errno(Errno::EINVAL))?;
        let memory = vm.known_memory().ok_or(CallError::NotTried {
            why: "the machine does not know what was set up",
        })?;
        let vm_type = memory.vm_type();
        if let VmType::Sev | VmType::SevEs = vm_type {
            return self.note(vm, vm_type, &request);
        }
        let plan = Plan::new(memory, &request, &self.policy);
        let plan = plan.map_err(|why| CallError::NotConverted { why })?;
        let mut executor = Failing {
            executor: VmExecutor::new(vm),
            after: self.fails_at.and_then(|step| step.checked_sub(1)),
        };
        match Run::new(plan).to_end(&mut executor) {
            Ok(Ended::Converted) => Ok(Outcome::Done),
            Ok(Ended::TakenBack { why }) => Err(CallError::errno(why)),
            Err(_) => Err(CallError::NotTried {
                why: "a step has to be tried again",
            }),
        }
    }

    /// Of a SEV guest it is the VMM's own list that changes.
    fn note<V: MemoryVm + ?Sized>(
        &self,
        vm: &mut V,
        vm_type: VmType,
        request: &Request,
    ) -> CallResult {
        let list = vm.status_list().ok_or(CallError::NotTried {
            why: "nobody keeps a list of what the guest announced",
        })?;
        let mut changed = list.clone();
        let mut run = Run::new(Plan::noted(vm_type, list, request));
        let _ended = run.to_end(&mut VmExecutor::new(vm).with_list(&mut changed));
        if let Some(list) = vm.status_list() {
            *list = changed;
        }
        Ok(Outcome::Done)
    }

    fn request(&self) -> Option<Request> {
        let aligned = (self.gpa | self.size) % PAGE_SIZE == 0;
        let range = GfnRange::new(Gfn::new(self.gpa / PAGE_SIZE), Pages::in_bytes(self.size));
        Some(Request {
            range: range.filter(|_| aligned)?,
            to: self.to,
            hint: PageSize::Size4K,
            cause: Cause::Hypercall,
        })
    }
}
