//! `slat run`: scenario files on the model, on a kernel, or on both.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use slat_vmm::scenario::{self, Scenario};
use slat_vmm::{CallResult, CheckedMachine, OnDivergence, Report, StepReport, Verdict, model};

use crate::Error;
use crate::kernel::{self, Choice};

/// Options of `slat run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Scenario files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// What to run them on.
    #[arg(long, value_enum, default_value_t = On::Model)]
    on: On,
    /// The kernel that the model plays. Default: the file's `profile` line, else the newest known.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum On {
    /// The model.
    Model,
    /// The local /dev/kvm.
    Kvm,
    /// The local /dev/kvm and the model of its profile, compared call by call.
    Both,
}

/// A file that was run.
struct Done<'a> {
    file: &'a Path,
    /// On what, in words.
    on: String,
    report: Report,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    let mut all = Vec::new();
    for file in &args.files {
        all.push(run_file(args, file)?);
    }
    if args.json {
        let files: Vec<_> = all.iter().map(Done::json).collect();
        println!("{}", serde_json::to_string_pretty(&files)?);
    } else {
        all.iter().for_each(Done::print);
    }
    let differ: usize = all.iter().map(|done| done.report.failures().count()).sum();
    let made = all
        .iter()
        .all(|done| done.report.agreed() + unchecked(&done.report) > 0);
    Ok(match (differ, made) {
        (0, true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn run_file<'a>(args: &Args, file: &'a Path) -> Result<Done<'a>, Error> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let in_file = |what: &dyn std::fmt::Display| format!("{}: {what}", file.display());
    let scenario = scenario::parse(&text).map_err(|e| in_file(&e))?;
    let (on, report) = match args.on {
        On::Model => on_model(args, &scenario),
        On::Kvm => on_kvm(&scenario),
        On::Both => on_both(args, &scenario),
    }
    .map_err(|e| in_file(&e))?;
    Ok(Done { file, on, report })
}

fn on_model(args: &Args, scenario: &Scenario) -> Result<(String, Report), Error> {
    let choice = Choice::for_file(args.profile.as_deref(), scenario.profile())?;
    let on = format!("the model of {} ({})", choice.profile.name, choice.why);
    let report = slat_vmm::run(
        scenario,
        &mut model::Machine::for_scenario(choice.profile, scenario),
    )?;
    Ok((on, report))
}

fn on_kvm(scenario: &Scenario) -> Result<(String, Report), Error> {
    let mut machine = kernel::open()?;
    let on = format!("/dev/kvm, {}", slat_vmm::Machine::profile(&machine).name);
    Ok((on, slat_vmm::run(scenario, &mut machine)?))
}

fn on_both(args: &Args, scenario: &Scenario) -> Result<(String, Report), Error> {
    let machine = kernel::open()?;
    let local = slat_vmm::Machine::profile(&machine).clone();
    let profile = match &args.profile {
        Some(name) => kernel::named(name)?,
        None => local.clone(),
    };
    let on = format!(
        "/dev/kvm, {}, and the model of {}",
        local.name, profile.name
    );
    let mut both = CheckedMachine::new(machine, model::Machine::for_scenario(profile, scenario))
        .on_divergence(OnDivergence::Keep);
    Ok((on, slat_vmm::run(scenario, &mut both)?))
}

/// Steps that were made without an expectation.
fn unchecked(report: &Report) -> usize {
    let open = |step: &&StepReport| step.verdict == Verdict::Unchecked;
    report.steps.iter().filter(open).count()
}

/// A result in words, as scenario files write it.
pub(crate) fn result_text(result: &CallResult) -> String {
    match result {
        Ok(outcome) => scenario::Expect::of(&Ok(outcome.clone())).to_string(),
        Err(error) => error.to_string(),
    }
}

/// The code of the reason that the model gave.
pub(crate) fn reason_code(result: &CallResult) -> Option<&'static str> {
    match result {
        Err(error) => error.code(),
        Ok(_) => None,
    }
}

/// A step that differs: its text without the expectation, the expectation, the result, what else is to be said.
struct Difference<'a> {
    line: u32,
    call: &'a str,
    expected: &'a str,
    got: String,
    note: Option<String>,
}

impl<'a> Difference<'a> {
    fn new(step: &'a StepReport) -> Self {
        let (call, expected) = step
            .text
            .rsplit_once(" => ")
            .unwrap_or((&step.text, "anything"));
        let got = match (&step.result, &step.snp) {
            (Some(result), _) => result_text(result),
            (None, Some(answer)) => scenario::Expect::Snp(answer.clone()).to_string(),
            (None, None) => String::new(),
        };
        let note = match &step.verdict {
            Verdict::OtherReason { code } => Some(format!("the model's reason is {code}")),
            Verdict::Diverges { model } => Some(format!("the model says {}", result_text(model))),
            _ => None,
        };
        Self {
            line: step.line,
            call,
            expected,
            got,
            note,
        }
    }
}

impl Done<'_> {
    fn print(&self) {
        println!("{}: on {}", self.file.display(), self.on);
        for step in self.report.failures() {
            let d = Difference::new(step);
            println!("  line {}: {}", d.line, d.call);
            println!("    expected {}, got {}", d.expected, d.got);
            if let Some(note) = d.note {
                println!("    {note}");
            }
        }
        let report = &self.report;
        println!(
            "  {} agree, {} unchecked, {} differ, {} not tried",
            report.agreed(),
            unchecked(report),
            report.failures().count(),
            report.not_tried().count()
        );
        for (why, lines) in self.not_tried() {
            println!("  not tried: {why} ({})", lines_text(&lines));
        }
    }

    /// Why steps were not tried, with their lines.
    fn not_tried(&self) -> std::collections::BTreeMap<&str, Vec<u32>> {
        let mut all = std::collections::BTreeMap::<&str, Vec<u32>>::new();
        for step in self.report.not_tried() {
            if let Verdict::NotTried { why } = &step.verdict {
                all.entry(why).or_default().push(step.line);
            }
        }
        all
    }

    fn json(&self) -> serde_json::Value {
        let differ: Vec<_> = self
            .report
            .failures()
            .map(|step| {
                let d = Difference::new(step);
                serde_json::json!({
                    "line": d.line, "call": d.call, "expected": d.expected, "got": d.got,
                    "reason": step.result.as_ref().and_then(reason_code), "note": d.note,
                })
            })
            .collect();
        serde_json::json!({
            "file": self.file,
            "on": self.on,
            "agree": self.report.agreed(),
            "unchecked": unchecked(&self.report),
            "differ": differ,
            "not_tried": self.not_tried(),
        })
    }
}

fn lines_text(lines: &[u32]) -> String {
    let text: Vec<String> = lines.iter().take(5).map(u32::to_string).collect();
    let more = if lines.len() > 5 { ", .." } else { "" };
    let word = if lines.len() == 1 { "line" } else { "lines" };
    format!("{word} {}{more}", text.join(", "))
}
