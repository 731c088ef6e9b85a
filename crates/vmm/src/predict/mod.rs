//! The calls of a real VMM put to the model: what it would have answered, against what the kernel answered.
//!
//! ```
//! use slat_memslot::Profile;
//! use slat_vmm::predict;
//! let log = "\
//! ioctl(3, KVM_CREATE_VM, 0) = 4
//! ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=65536, \
//! userspace_addr=0x7f0000000000}) = 0
//! ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=131072, \
//! userspace_addr=0x7f0000000000}) = -1 EINVAL (Invalid argument)
//! ";
//! let predictions = predict::strace(log, Profile::latest());
//! assert_eq!((predictions.right(), predictions.wrong.len()), (3, 0));
//! assert_eq!(predictions.refusals[0].reason().unwrap().code(), "size-changed");
//! ```
//!
//! Where the model is wrong, it follows the log as far as it can, so that one error does not cause the next: a call
//! that failed in truth changes nothing in the model, and a region that was set in truth displaces what stands in
//! its way there.

mod predictor;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use slat_memslot::{Call, Errno, Outcome, Profile, Reason};

use crate::strace::{EventKind, Events, MemoryIoctl, ParseError, Returned};
use crate::{CallError, CallResult};
use predictor::Predictor;

/// How often the model was right about one kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Tally {
    /// Calls that ended as predicted.
    pub right: u64,
    /// Calls that ended otherwise.
    pub wrong: u64,
    /// Calls whose arguments the log does not show.
    pub undecoded: u64,
    /// Calls that could not be compared: the log does not say how they ended, or they concern something that the
    /// model does not have.
    pub open: u64,
}

/// One call with its real and its predicted end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The line of the log, or the number of the recorded event, from 1.
    pub at: u32,
    /// The VM, by order of creation from 0.
    pub vm: Option<u32>,
    /// The call as a line of a scenario.
    pub text: String,
    /// How it ended.
    pub actual: Result<i64, Errno>,
    /// What the model answered.
    pub predicted: CallResult,
}

impl Prediction {
    /// The reason that the model gives for a refusal.
    pub fn reason(&self) -> Option<&Reason> {
        match &self.predicted {
            Err(CallError::Refused { reason, .. }) => reason.as_ref(),
            _ => None,
        }
    }
}

/// A point from which on the model may not know all of a VM's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The line of the log, or the number of the recorded event, from 1.
    pub at: u32,
    /// What the model does not know.
    pub what: String,
}

/// What a log says about the model.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Predictions {
    /// By the name of the ioctl, or of the operation on a guest_memfd.
    pub calls: BTreeMap<&'static str, Tally>,
    /// Every wrong prediction, in order.
    pub wrong: Vec<Prediction>,
    /// Every call that failed as predicted, with the model's reason, in order.
    pub refusals: Vec<Prediction>,
    /// Lines with a KVM ioctl that could not be read.
    pub unread: Vec<ParseError>,
    /// Calls about capabilities that are no matter of memory.
    pub other_capabilities: u64,
    /// The first point from which on the model's state may be incomplete.
    pub gap: Option<Gap>,
}

impl Predictions {
    /// How many calls ended as predicted.
    pub fn right(&self) -> u64 {
        self.calls.values().map(|tally| tally.right).sum()
    }

    /// How many calls had no visible arguments.
    pub fn undecoded(&self) -> u64 {
        self.calls.values().map(|tally| tally.undecoded).sum()
    }

    /// How many calls could not be compared.
    pub fn open(&self) -> u64 {
        self.calls.values().map(|tally| tally.open).sum()
    }
}

/// Puts the calls of a log of `strace` to the model.
pub fn strace(log: &str, profile: Profile) -> Predictions {
    let mut predictor = Predictor::new(profile);
    for event in Events::new(log) {
        match event {
            Ok(event) => strace_event(&mut predictor, &event),
            Err(error) => predictor.done.unread.push(error),
        }
    }
    predictor.done
}

fn strace_event(predictor: &mut Predictor, event: &crate::strace::Event) {
    match (&event.kind, event.vm) {
        (EventKind::CreateVm { vm_type }, vm) => {
            predictor.create_vm(event.line, vm, *vm_type, event.returned);
        }
        (EventKind::Call(call), Some(vm)) => {
            predictor.call(event.line, vm, call, event.returned);
        }
        (
            EventKind::Undecoded {
                memory: Some(memory),
                ..
            },
            _,
        ) => predictor.undecoded(event.line, *memory, event.returned),
        _ => {}
    }
}

/// Puts recorded calls to the model.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub fn recording(recording: &crate::record::Recording, profile: Profile) -> Predictions {
    let mut predictor = Predictor::new(profile);
    for (at, event) in (1..).zip(&recording.events) {
        recorded_event(&mut predictor, at, event);
    }
    predictor.done
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn recorded_event(predictor: &mut Predictor, at: u32, event: &crate::record::Recorded) {
    use crate::record::RecordedCall;
    let returned = match event.result {
        Ok(value) => Returned::Value(value),
        Err(errno) => Returned::Failed(errno),
    };
    match &event.call {
        RecordedCall::CreateVm { vm_type } => {
            predictor.create_vm(at, Some(event.vm), *vm_type, returned);
        }
        RecordedCall::CloseVm => {}
        RecordedCall::Call(call) => predictor.call(at, event.vm, call, returned),
        RecordedCall::Unknown { request } => {
            if let Some(memory) = MemoryIoctl::from_number(u64::from(*request)) {
                predictor.undecoded(at, memory, returned);
            }
        }
    }
}

/// Whether a call ended as predicted; `None` when that cannot be said.
fn compare(
    call: Option<&Call>,
    actual: Result<i64, Errno>,
    predicted: &CallResult,
) -> Option<bool> {
    match (actual, predicted) {
        (Err(Errno::EINTR), _) | (_, Err(CallError::NotTried { .. })) => None,
        (Ok(value), Ok(Outcome::Value(predicted))) => {
            let is_value = matches!(call, Some(Call::CheckExtension { .. }));
            Some(!is_value || u64::try_from(value) == Ok(*predicted))
        }
        (Err(actual), Err(error)) => Some(error.number() == Some(actual)),
        (actual, predicted) => Some(actual.is_ok() == predicted.is_ok()),
    }
}
