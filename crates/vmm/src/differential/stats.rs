//! Counts of a comparison.

use std::collections::BTreeMap;

use slat_memslot::{Call, Errno};

use crate::scenario::Request;
use crate::{CallError, CallResult};

/// What was called and what came of it.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Calls made on both sides.
    pub calls: u64,
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Pairs of VMs.
    pub vms: u64,
    /// Calls by operation and result; `None` is success.
    pub by_operation: BTreeMap<(&'static str, Option<Errno>), u64>,
    /// Refusals by the model's reason.
    pub by_reason: BTreeMap<&'static str, u64>,
    /// Reasons that the repair oracle has confirmed on the kernel, and how often.
    pub confirmed: BTreeMap<&'static str, u64>,
    /// Refusals that no repair helps, or whose repair is too dear to try; not confirmed.
    pub unconfirmed: u64,
    /// Calls that this machine could not make, by what is missing.
    pub not_tried: BTreeMap<&'static str, u64>,
}

impl Stats {
    pub(super) fn count(&mut self, call: &Call, answer: &CallResult) {
        self.calls += 1;
        let errno = match answer {
            Ok(_) => {
                self.succeeded += 1;
                None
            }
            Err(CallError::Refused { errno, reason }) => {
                if let Some(reason) = reason {
                    *self.by_reason.entry(reason.code()).or_default() += 1;
                }
                Some(*errno)
            }
            Err(CallError::NotConverted { .. } | CallError::Sev { .. }) => None,
            Err(CallError::Tdx { why }) => {
                *self.by_reason.entry(why.code()).or_default() += 1;
                Some(why.errno())
            }
            Err(CallError::NotTried { .. }) => return,
        };
        *self
            .by_operation
            .entry((Request::operation(call), errno))
            .or_default() += 1;
    }
}
