//! The VM that a call is asked about, and the call.

use std::fmt::Display;

use slat_memslot::{Call, Profile, VmType};
use slat_vmm::scenario::{self, Names, Request, Scenario, Step, StepKind};
use slat_vmm::{Session, StepReport, Verdict, model};

use super::Around;
use crate::Error;
use crate::kernel::Choice;

/// A call and the VM it is made on.
#[derive(Debug)]
pub(super) struct Situation {
    pub(super) choice: Choice,
    /// What had to be assumed.
    pub(super) notes: Vec<String>,
    pub(super) vm: model::Vm,
    pub(super) names: Names,
    pub(super) request: Request,
    pub(super) call: Call,
    /// The lines of the question before its call.
    pub(super) first: Vec<String>,
}

/// Where a line comes from.
enum Origin {
    VmType,
    File(String, usize),
    With(String),
    Question,
}

impl Origin {
    fn error(&self, what: impl Display) -> Error {
        match self {
            Self::VmType => format!("--vm-type: {what}"),
            Self::File(file, line) => format!("--context {file}, line {line}: {what}"),
            Self::With(line) => format!("--with {line:?}: {what}"),
            Self::Question => what.to_string(),
        }
        .into()
    }
}

/// Lines with their origins.
#[derive(Default)]
struct Script {
    text: String,
    origins: Vec<Origin>,
}

impl Script {
    /// What comes before the question.
    fn around(around: &Around) -> Result<Self, Error> {
        let mut script = Self::default();
        if let Some(vm_type) = &around.vm_type {
            // The model's own names of types are taken as well, such as `snp`.
            let vm_type = match vm_type.parse::<VmType>() {
                Ok(known) => known.raw().to_string(),
                Err(_) => vm_type.clone(),
            };
            let line = format!("vm {} type={vm_type}", scenario::DEFAULT_VM);
            script.push(&line, |_| Origin::VmType);
        }
        if let Some(path) = &around.context {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|e| format!("{name}: {e}"))?;
            script.push(&text, |line| Origin::File(name.clone(), line));
        }
        for line in &around.with {
            script.push(line, |_| Origin::With(line.clone()));
        }
        Ok(script)
    }

    fn push(&mut self, text: &str, origin: impl Fn(usize) -> Origin) {
        for (number, line) in (1..).zip(text.split('\n')) {
            self.text.push_str(line);
            self.text.push('\n');
            self.origins.push(origin(number));
        }
    }

    fn origin(&self, line: u32) -> &Origin {
        let index = usize::try_from(line).unwrap_or(usize::MAX).wrapping_sub(1);
        self.origins.get(index).unwrap_or(&Origin::Question)
    }

    fn parse(&self) -> Result<Scenario, Error> {
        scenario::parse(&self.text).map_err(|e| self.origin(e.line).error(&e.message))
    }
}

impl Situation {
    /// The last of `lines`, behind the others.
    pub(super) fn of_lines(lines: &[String], around: &Around) -> Result<Self, Error> {
        let mut script = Script::around(around)?;
        for line in lines {
            script.push(line, |_| Origin::Question);
        }
        let mut scenario = script.parse()?;
        let question = match scenario.steps.pop().map(|step| step.kind) {
            Some(StepKind::Call(request)) => request,
            _ => return Err("the line is not a call".into()),
        };
        let mut situation = Self::new(&script, &scenario, around, |names| {
            let call = question.resolve(names)?;
            Ok((question, call))
        })?;
        if let [first @ .., _] = lines {
            situation.first = first.to_vec();
        }
        Ok(situation)
    }

    /// A call with numbers.
    pub(super) fn of_call(call: Call, around: &Around) -> Result<Self, Error> {
        let script = Script::around(around)?;
        let scenario = script.parse()?;
        Self::new(&script, &scenario, around, |names| {
            Ok((Request::of(&call, names, None), call))
        })
    }

    fn new(
        script: &Script,
        before: &Scenario,
        around: &Around,
        question: impl FnOnce(&Names) -> Result<(Request, Call), Error>,
    ) -> Result<Self, Error> {
        let (choice, notes) = kernel(before, around)?;
        let mut machine = model::Machine::new(choice.profile.clone());
        let mut session = Session::new(&mut machine);
        for step in &before.steps {
            make(&mut session, step, script.origin(step.line))?;
        }
        let current = Step {
            line: 0,
            kind: StepKind::Vm {
                name: session.names().vm().to_owned(),
                vm_type: None,
            },
            expect: None,
        };
        make(&mut session, &current, &Origin::Question)?;
        let names = session.names().clone();
        let vm = session.into_vm().ok_or("the VM could not be made")?;
        let (request, call) = question(&names)?;
        Ok(Self {
            choice,
            notes,
            vm,
            names,
            request,
            call,
            first: Vec::new(),
        })
    }
}

/// Makes a step of the context, which must succeed or end as its line says.
fn make(
    session: &mut Session<'_, model::Machine>,
    step: &Step,
    origin: &Origin,
) -> Result<(), Error> {
    let before = session.report().steps.len();
    session.step(step).map_err(|e| origin.error(&e.what))?;
    let new = session.report().steps.get(before..).unwrap_or_default();
    match new.iter().find_map(fault) {
        Some(fault) => Err(origin.error(fault)),
        None => Ok(()),
    }
}

/// What keeps a step from being context.
fn fault(step: &StepReport) -> Option<String> {
    let got = step
        .result
        .as_ref()
        .map_or_else(String::new, crate::run::result_text);
    match (&step.verdict, &step.result) {
        (Verdict::NotTried { why }, _) => Some(why.clone()),
        (Verdict::Agrees, _) | (Verdict::Unchecked, Some(Ok(_))) => None,
        (Verdict::Unchecked, _) => Some(format!("this call fails: {got}")),
        _ => Some(format!("expected something else than {got}")),
    }
}

/// The kernel of the question, with every VM type that comes up.
fn kernel(before: &Scenario, around: &Around) -> Result<(Choice, Vec<String>), Error> {
    let mut choice = Choice::for_questions(around.profile.as_deref())?;
    if around.zap_leafs_flag {
        choice.profile = choice.profile.with_zap_leafs_flag();
    }
    let mut notes = Vec::new();
    for step in &before.steps {
        if let StepKind::Vm {
            vm_type: Some(vm_type),
            ..
        } = step.kind
        {
            notes.extend(allow(&mut choice.profile, vm_type));
        }
    }
    Ok((choice, notes))
}

/// Makes VMs of a type possible; says what had to be changed for that.
fn allow(profile: &mut Profile, vm_type: u32) -> Option<String> {
    let vm_type = VmType::from_raw(vm_type).filter(|t| !profile.supports(*t))?;
    profile
        .vm_types
        .set(profile.vm_types.get() | vm_type.mask());
    if vm_type.has_private_memory() && profile.guest_memfd.get() {
        profile.attributes.set(true);
    }
    Some(format!(
        "assumed that VMs of type {vm_type} can be made; {} does not say so",
        profile.name
    ))
}
