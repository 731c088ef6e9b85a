//! Calls and the kernel's answers as a scenario.

use slat_memslot::{Errno, Profile};

use super::pair::Made;
use crate::scenario::Recorder;
use crate::{CallError, CallResult};

/// A recorder of calls on a machine.
pub(super) fn recorder(profile: &Profile, areas: crate::Areas) -> Recorder {
    let mut recorder = Recorder::new(areas.list());
    recorder.profile(&profile.name);
    recorder
}

/// One VM's calls with the kernel's answers.
pub(super) fn write_case(recorder: &mut Recorder, title: &str, vm_type: u32, made: &[Made]) {
    recorder.case(title);
    if vm_type != 0 {
        recorder.vm("vm", Some(vm_type));
    }
    for (call, answer) in made {
        if let Some(answer) = plain(answer) {
            recorder.call(call, &answer);
        }
    }
}

fn plain(answer: &CallResult) -> Option<Result<slat_memslot::Outcome, Errno>> {
    match answer {
        Ok(outcome) => Some(Ok(outcome.clone())),
        Err(CallError::Refused { errno, .. }) => Some(Err(*errno)),
        Err(CallError::Tdx { why }) => Some(Err(why.errno())),
        Err(CallError::Sev { why }) => Some(Err(why.errno())),
        Err(CallError::NotConverted { .. }) => Some(Err(Errno::EINVAL)),
        Err(CallError::NotTried { .. }) => None,
    }
}
