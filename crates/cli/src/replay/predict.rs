//! Recordings of real kernels' MMUs, predicted from their operations.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use slat_vmm::replay::{Machine, NotModelled, Verdict, predict};
use slat_vmm::traces::{self, Builtin, Recording};

use super::Args;
use crate::Error;

/// The exit status for what is not modelled: neither agreement nor difference.
const NOT_MODELLED: u8 = 3;

/// A recording that was predicted.
struct Done {
    name: String,
    verdict: Verdict,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Error> {
    let mut all = Vec::new();
    for target in &args.predict {
        all.extend(predict_target(args, target)?);
    }
    if args.json {
        let json: Vec<_> = all.iter().map(Done::json).collect();
        println!("{}", serde_json::to_string_pretty(&json)?);
    } else {
        all.iter().for_each(Done::print);
    }
    let differs = |done: &Done| matches!(done.verdict, Verdict::Differs { .. });
    let agrees = |done: &Done| matches!(done.verdict, Verdict::Agrees { .. });
    Ok(if all.iter().any(differs) {
        ExitCode::FAILURE
    } else if all.iter().all(agrees) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_MODELLED)
    })
}

pub(super) fn list(json: bool) -> Result<(), Error> {
    let names: Vec<String> = traces::builtin().map(|one| name_of(&one)).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&names)?);
    } else {
        names.iter().for_each(|name| println!("{name}"));
    }
    Ok(())
}

fn name_of(one: &Builtin) -> String {
    format!("{}/{}", one.machine, one.scenario)
}

fn predict_target(args: &Args, target: &str) -> Result<Vec<Done>, Error> {
    let path = Path::new(target);
    if path.is_file() {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{target}: {e}"))?;
        let machine = match &args.machine {
            Some(name) => name.clone(),
            None => machine_of(path).ok_or_else(|| {
                format!(
                    "{target}: its directory is no machine; say --machine, one of {}",
                    names()
                )
            })?,
        };
        return Ok(vec![predict_text(target, &machine, &text)?]);
    }
    let wanted = |one: &Builtin| one.machine == target || name_of(one) == target;
    let (machine, _) = target.split_once('/').unwrap_or((target, ""));
    let known = traces::Machine::named(machine);
    let all = known.map(traces::Machine::recordings).unwrap_or_default();
    let found: Vec<&Builtin> = all.iter().filter(|one| wanted(one)).collect();
    if found.is_empty() {
        return Err(
            format!("{target}: no file, and no recording that slat replay --list names").into(),
        );
    }
    let predict = |one: &&Builtin| predict_text(&name_of(one), one.machine, one.text());
    found.iter().map(predict).collect()
}

fn names() -> String {
    Machine::NAMES.join(", ")
}

/// The machine that a file's directory is named after, with or without the kind of its tables.
fn machine_of(file: &Path) -> Option<String> {
    let directory = file.parent().map(PathBuf::from)?.canonicalize().ok()?;
    let own = directory.file_name()?.to_str()?;
    let above = directory.parent().and_then(Path::file_name);
    let above = above.and_then(|name| name.to_str()).unwrap_or_default();
    let candidates = [own.to_owned(), format!("{above}-{own}")];
    let known = |name: &String| traces::Machine::named(name).is_some();
    candidates.into_iter().find(known)
}

fn predict_text(name: &str, machine: &str, text: &str) -> Result<Done, Error> {
    let recording = Recording::parse(text).map_err(|error| format!("{name}: {error}"))?;
    let verdict = match (Machine::named(machine), traces::Machine::named(machine)) {
        (Some(machine), _) => predict(&recording, &machine),
        (None, Some(_)) => Verdict::NotModelled(NotModelled {
            line: 0,
            what: format!("machine {machine}, which has no TDP MMU,"),
        }),
        (None, None) => {
            return Err(format!("machine {machine}: not one of {}", names()).into());
        }
    };
    Ok(Done {
        name: name.to_owned(),
        verdict,
    })
}

impl Done {
    fn print(&self) {
        let name = &self.name;
        match &self.verdict {
            Verdict::Agrees { compared, .. } => {
                println!("{name}: {compared} events and results as predicted");
            }
            Verdict::Differs {
                compared,
                difference,
            } => {
                println!("{name}: {compared} events and results as predicted, then a difference");
                println!("{difference}");
            }
            Verdict::NotModelled(what) => println!("{name}: not predicted: {what}"),
        }
    }

    fn json(&self) -> serde_json::Value {
        let name = &self.name;
        match &self.verdict {
            Verdict::Agrees { compared, .. } => serde_json::json!({
                "recording": name, "verdict": "agrees", "compared": compared,
            }),
            Verdict::Differs {
                compared,
                difference,
            } => serde_json::json!({
                "recording": name, "verdict": "differs", "compared": compared,
                "line": difference.line,
                "operation": difference.operation.as_ref().map(|(_, text)| text),
                "recorded": difference.recorded,
                "predicted": difference.predicted,
                "mismatch": difference.mismatch.to_string(),
            }),
            Verdict::NotModelled(what) => serde_json::json!({
                "recording": name, "verdict": "not modelled", "what": what.to_string(),
            }),
        }
    }
}
