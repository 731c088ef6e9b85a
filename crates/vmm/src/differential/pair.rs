//! A kernel VM and a model VM, driven together.

use slat_memslot::{Call, Errno};

use super::{Difference, Stats};
use crate::{CallError, CallResult, Divergence, MemoryVm, agree, model};

/// One call and what the kernel answered.
pub(super) type Made = (Call, CallResult);

/// A kernel VM and a model VM that have been called alike, with what was called.
#[derive(Debug)]
pub(super) struct Pair<K> {
    kernel: K,
    model: model::Vm,
    history: Vec<Made>,
}

impl<K: MemoryVm> Pair<K> {
    pub(super) fn new(kernel: K, model: model::Vm) -> Self {
        Self {
            kernel,
            model,
            history: Vec::new(),
        }
    }

    pub(super) fn model(&self) -> &model::Vm {
        &self.model
    }

    pub(super) fn into_history(self) -> Vec<Made> {
        self.history
    }

    /// Makes a call on both sides and gives the model's answer, which has the reason.
    ///
    /// What the kernel could not try is not tried on the model either.
    pub(super) fn call(
        &mut self,
        call: &Call,
        stats: &mut Stats,
    ) -> Result<CallResult, Difference> {
        let kernel = self.call_kernel(call);
        if let Err(CallError::NotTried { why }) = kernel {
            *stats.not_tried.entry(why).or_default() += 1;
            return Ok(kernel);
        }
        let model = self.model.call(call);
        let index = self.history.len() as u64;
        self.history.push((call.clone(), kernel.clone()));
        if !agree(&kernel, &model) {
            return Err(Difference::Answer(Box::new(Divergence {
                index,
                call: call.clone(),
                kernel,
                model,
            })));
        }
        stats.count(call, &model);
        Ok(model)
    }

    /// A signal may interrupt any system call; that says nothing about the call.
    fn call_kernel(&mut self, call: &Call) -> CallResult {
        loop {
            match self.kernel.call(call) {
                Err(CallError::Refused {
                    errno: Errno::EINTR,
                    ..
                }) => {}
                answer => return answer,
            }
        }
    }
}
