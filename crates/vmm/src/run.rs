//! Running a scenario on a machine.

use std::collections::BTreeMap;

use slat_memslot::{Errno, Outcome};

use crate::convert::ConvertOp;
use crate::scenario::{Expect, Names, Request, Scenario, SnpStep, Step, StepKind, Unbound};
use crate::snp_vm::{EncryptOp, SnpAnswer};
use crate::{CallError, CallResult, Machine, MemoryVm};

/// What became of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The result is the expected one.
    Agrees,
    /// Nothing was expected.
    Unchecked,
    /// The result is another one.
    Differs,
    /// The error number is the expected one, the model's reason is not.
    OtherReason {
        /// The reason that the model gave.
        code: &'static str,
    },
    /// Two machines side by side gave different answers; see [`Checked`](crate::Checked).
    Diverges {
        /// What the second one, the model, answered; the step's result is the first one's.
        model: CallResult,
    },
    /// The step could not be made here.
    NotTried {
        /// What is missing.
        why: String,
    },
}

impl Verdict {
    fn is_failure(&self) -> bool {
        matches!(
            self,
            Self::Differs | Self::OtherReason { .. } | Self::Diverges { .. }
        )
    }
}

/// One step that was run.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// The line of the scenario, from 1.
    pub line: u32,
    /// The step as text.
    pub text: String,
    /// What the machine answered, if the step was made.
    pub result: Option<CallResult>,
    /// What an operation on an SNP guest gave.
    pub snp: Option<SnpAnswer>,
    /// How that compares.
    pub verdict: Verdict,
}

/// A scenario that was run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The steps that make calls or VMs, in order.
    pub steps: Vec<StepReport>,
}

impl Report {
    /// Steps whose result was not the expected one, or not the same on two machines.
    pub fn failures(&self) -> impl Iterator<Item = &StepReport> {
        self.steps.iter().filter(|s| s.verdict.is_failure())
    }

    /// Steps that could not be made.
    pub fn not_tried(&self) -> impl Iterator<Item = &StepReport> {
        self.steps
            .iter()
            .filter(|s| matches!(s.verdict, Verdict::NotTried { .. }))
    }

    /// How many steps had an expectation that was met.
    pub fn agreed(&self) -> usize {
        self.steps
            .iter()
            .filter(|s| s.verdict == Verdict::Agrees)
            .count()
    }
}

/// Why a scenario cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct RunError {
    /// The line, from 1.
    pub line: u32,
    /// What is wrong with it.
    pub what: String,
}

/// Runs a scenario: cases one after the other, each with fresh VMs, each call's result held against what the file
/// expects. A default VM is made when a case's first call comes before any `vm` line.
///
/// ```
/// use slat_memslot::Profile;
/// use slat_vmm::{model, run, scenario};
/// let text = "set_user_memory_region slot=0 gpa=0x800 size=0x1000 hva=A => EINVAL gpa-unaligned";
/// let mut machine = model::Machine::new(Profile::latest());
/// let report = run(&scenario::parse(text).unwrap(), &mut machine).unwrap();
/// assert_eq!((report.agreed(), report.failures().count()), (1, 0));
/// ```
///
/// # Errors
/// A step names something that the scenario never makes.
pub fn run<M: Machine>(scenario: &Scenario, machine: &mut M) -> Result<Report, RunError> {
    let mut session = Session::new(machine);
    for step in &scenario.steps {
        session.step(step)?;
    }
    Ok(session.report)
}

/// A scenario that is being run, step by step; [`run`] makes all steps at once.
#[derive(Debug)]
pub struct Session<'m, M: Machine> {
    machine: &'m mut M,
    names: Names,
    /// VMs of the case; `None` for one that could not be made.
    vms: BTreeMap<String, Option<M::Vm>>,
    report: Report,
}

impl<'m, M: Machine> Session<'m, M> {
    /// No VM and no name yet.
    pub fn new(machine: &'m mut M) -> Self {
        Self {
            names: Names::new(machine.areas().list()),
            machine,
            vms: BTreeMap::new(),
            report: Report::default(),
        }
    }

    /// What has become of the steps so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// What the names stand for at this step.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The current VM, if it exists.
    pub fn vm(&self) -> Option<&M::Vm> {
        self.vms.get(self.names.vm())?.as_ref()
    }

    /// The current VM, if it exists, to be kept when the session ends.
    pub fn into_vm(mut self) -> Option<M::Vm> {
        self.vms.remove(self.names.vm())?
    }

    /// Makes one step.
    ///
    /// # Errors
    /// The step names something that the scenario never makes.
    pub fn step(&mut self, step: &Step) -> Result<(), RunError> {
        match &step.kind {
            StepKind::Profile(_) => {}
            StepKind::Case(_) => {
                self.vms.clear();
                self.names.enter_case();
            }
            StepKind::Vm { name, vm_type } => {
                self.names.enter_vm(name);
                self.enter_vm(step, vm_type.unwrap_or(0));
            }
            StepKind::DropVm(name) => {
                self.vms.remove(name);
                self.names.drop_vm(name);
            }
            StepKind::Call(request) => self.call(step, request)?,
            StepKind::Snp(snp) => self.snp(step, snp),
            StepKind::Convert(convert) => self.convert(step, convert),
        }
        Ok(())
    }

    /// Makes the current VM unless it exists.
    fn enter_vm(&mut self, step: &Step, vm_type: u32) {
        if self.vms.contains_key(self.names.vm()) {
            return;
        }
        let made = self.machine.create_vm(vm_type);
        let (vm, result) = match made {
            Ok(vm) => (Some(vm), Ok(Outcome::Done)),
            Err(error) => (None, Err(error)),
        };
        self.vms.insert(self.names.vm().to_owned(), vm);
        let expected = step
            .expect
            .as_ref()
            .filter(|_| matches!(step.kind, StepKind::Vm { .. }));
        if expected.is_some() || result.is_err() {
            let verdict = match (&result, expected) {
                (Err(error), None) => Verdict::NotTried {
                    why: format!("VM type {vm_type} is not supported here: {error}"),
                },
                _ => judge(expected, &result),
            };
            self.push(step, Some(result), verdict);
        }
    }

    fn call(&mut self, step: &Step, request: &Request) -> Result<(), RunError> {
        self.enter_vm(step, 0);
        let call = match request.resolve(&self.names) {
            Ok(call) => call,
            Err(unbound @ (Unbound::File(_) | Unbound::Map(_) | Unbound::Host(_))) => {
                self.push(
                    step,
                    None,
                    Verdict::NotTried {
                        why: unbound.to_string(),
                    },
                );
                return Ok(());
            }
            Err(unbound) => {
                return Err(RunError {
                    line: step.line,
                    what: unbound.to_string(),
                });
            }
        };
        let Some(Some(vm)) = self.vms.get_mut(self.names.vm()) else {
            self.push(
                step,
                None,
                Verdict::NotTried {
                    why: "its VM could not be made".to_owned(),
                },
            );
            return Ok(());
        };
        let result = vm.call(&call);
        if let Ok(outcome) = &result {
            self.names.bind(request, outcome);
        }
        let verdict = match vm.take_divergence() {
            Some(divergence) => Verdict::Diverges {
                model: divergence.model,
            },
            None => judge(step.expect.as_ref(), &result),
        };
        self.push(step, Some(result), verdict);
        Ok(())
    }

    fn snp(&mut self, step: &Step, what: &SnpStep) {
        self.enter_vm(step, 0);
        let Some(Some(vm)) = self.vms.get_mut(self.names.vm()) else {
            let why = "its VM could not be made".to_owned();
            return self.push(step, None, Verdict::NotTried { why });
        };
        let result = match what {
            SnpStep::Command(command) => vm.memory_encrypt_op(&EncryptOp::Snp(*command)),
            SnpStep::Op(op) => match vm.snp(op) {
                Ok(answer) => return self.answered(step, answer),
                Err(error) => Err(error),
            },
        };
        let verdict = judge(step.expect.as_ref(), &result);
        self.push(step, Some(result), verdict);
    }

    fn convert(&mut self, step: &Step, convert: &ConvertOp) {
        self.enter_vm(step, 0);
        let Some(Some(vm)) = self.vms.get_mut(self.names.vm()) else {
            let why = "its VM could not be made".to_owned();
            return self.push(step, None, Verdict::NotTried { why });
        };
        let result = convert.run(vm);
        let verdict = match vm.take_divergence() {
            Some(divergence) => Verdict::Diverges {
                model: divergence.model,
            },
            None => judge(step.expect.as_ref(), &result),
        };
        self.push(step, Some(result), verdict);
    }

    fn answered(&mut self, step: &Step, answer: SnpAnswer) {
        let verdict = match &step.expect {
            None => Verdict::Unchecked,
            Some(Expect::Snp(expected)) if *expected == answer => Verdict::Agrees,
            Some(_) => Verdict::Differs,
        };
        self.push(step, None, verdict);
        if let Some(report) = self.report.steps.last_mut() {
            report.snp = Some(answer);
        }
    }

    fn push(&mut self, step: &Step, result: Option<CallResult>, verdict: Verdict) {
        self.report.steps.push(StepReport {
            line: step.line,
            text: step.to_string(),
            result,
            snp: None,
            verdict,
        });
    }
}

/// How a result compares with what was expected.
fn judge(expect: Option<&Expect>, result: &CallResult) -> Verdict {
    let code = result.as_ref().err().and_then(CallError::code);
    let plain: Result<Outcome, Errno> = match result {
        Ok(outcome) => Ok(outcome.clone()),
        Err(CallError::Refused { errno, .. }) => Err(*errno),
        Err(CallError::Tdx { why }) => Err(why.errno()),
        Err(CallError::Sev { why }) => Err(why.errno()),
        Err(CallError::NotConverted { .. }) => Err(Errno::EINVAL),
        Err(CallError::NotTried { why }) => {
            return Verdict::NotTried {
                why: (*why).to_owned(),
            };
        }
    };
    match (expect, code) {
        (None, _) => Verdict::Unchecked,
        (Some(expect), _) if !expect.accepts(&plain) => Verdict::Differs,
        (Some(expect), Some(actual)) if expect.reason().is_some_and(|code| code != actual) => {
            Verdict::OtherReason { code: actual }
        }
        (Some(_), _) => Verdict::Agrees,
    }
}
