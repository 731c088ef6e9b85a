//! What the model says about a call.

use slat_memslot::{Call, Change, Effects, Evidence, Reason};
use slat_vmm::{CallError, CallResult, model};

use super::facts;
use super::repair::Way;
use super::situation::Situation;
use crate::kernel::Choice;

/// A fact of the profile: name, value, evidence.
pub(super) type Fact = (&'static str, String, Evidence);

/// The answer to a question.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) choice: Choice,
    pub(super) notes: Vec<String>,
    /// The call as a line of a scenario.
    pub(super) line: String,
    pub(super) result: CallResult,
    /// The plan of an accepted region.
    pub(super) plan: Option<Change>,
    /// What a refused call leaves behind.
    pub(super) effects: Option<Effects>,
    /// The facts that decided.
    pub(super) facts: Vec<Fact>,
    /// What would make a refused call succeed.
    pub(super) way: Option<Way>,
}

impl Answer {
    pub(super) fn new(situation: Situation) -> Self {
        let (vm, call) = (&situation.vm, &situation.call);
        let result = vm.preview(call);
        let plan = plan(vm, call).filter(|_| result.is_ok());
        let deciding = match (reason(&result), &plan) {
            (Some(reason), _) => facts::behind_reason(reason.code()),
            (None, Some(plan)) => facts::behind_plan(plan),
            _ => &[],
        };
        Self {
            effects: vm.memory().check(call).err().and_then(|r| r.effects),
            way: result.is_err().then(|| Way::new(&situation)),
            line: situation.request.to_string(),
            facts: facts::of(&situation.choice.profile, deciding),
            choice: situation.choice,
            notes: situation.notes,
            result,
            plan,
        }
    }

    /// Why the call is refused.
    pub(super) fn reason(&self) -> Option<&Reason> {
        reason(&self.result)
    }
}

fn plan(vm: &model::Vm, call: &Call) -> Option<Change> {
    match call {
        Call::SetRegion(region) => vm.memory().check_region(region).ok(),
        _ => None,
    }
}

fn reason(result: &CallResult) -> Option<&Reason> {
    match result {
        Err(CallError::Refused { reason, .. }) => reason.as_ref(),
        _ => None,
    }
}
