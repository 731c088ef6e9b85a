//! Logs of strace, and single lines of them.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use slat_memslot::{Call, Errno};
use slat_vmm::predict::{self, Prediction, Predictions};
use slat_vmm::strace::{EventKind, Events};

use super::answer::Answer;
use super::situation::Situation;
use super::{Around, print};
use crate::kernel::Choice;
use crate::run::{reason_code, result_text};
use crate::{Error, table};

/// Explains one line.
pub(super) fn line(text: &str, around: &Around) -> Result<ExitCode, Error> {
    let situation = Situation::of_call(call(text)?, around)?;
    print::answer(&Answer::new(situation), around.json)
}

/// The call that a line shows.
fn call(text: &str) -> Result<Call, Error> {
    let event = Events::new(text).next();
    let event = event.ok_or("strace line: not an ioctl of KVM")?;
    let event = event.map_err(|e| format!("strace line, column {}: {}", e.column, e.message))?;
    match event.kind {
        EventKind::Call(call) => Ok(call),
        EventKind::Undecoded { request, .. } => {
            Err(format!("strace line: {request}: its arguments are not shown").into())
        }
        _ => Err("strace line: not a call on a VM's memory".into()),
    }
}

/// Puts a whole log to the model.
pub(super) fn run(file: &Path, around: &Around) -> Result<ExitCode, Error> {
    if !around.with.is_empty() || around.context.is_some() || around.vm_type.is_some() {
        return Err("a log has its own context: no --with, --context, --vm-type here".into());
    }
    let bytes = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut choice = Choice::for_questions(around.profile.as_deref())?;
    if around.zap_leafs_flag {
        choice.profile = choice.profile.with_zap_leafs_flag();
    }
    let log = String::from_utf8_lossy(&bytes);
    let done = predict::strace(&log, choice.profile.clone());
    if done.calls.is_empty() && done.unread.is_empty() {
        return Err(format!("{}: no memory ioctl of KVM in there", file.display()).into());
    }
    if around.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&summary(&choice, &done))?
        );
    } else {
        report(&choice, &done);
    }
    Ok(match done.wrong.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn report(choice: &Choice, done: &Predictions) {
    println!("profile: {} ({})\n", choice.profile.name, choice.why);
    println!("{}", tallies(done));
    if !done.refusals.is_empty() {
        println!("\nrefused, as predicted:");
        done.refusals.iter().for_each(print_prediction);
    }
    if !done.wrong.is_empty() {
        println!("\npredicted wrong:");
        done.wrong.iter().for_each(print_prediction);
    }
    print_rest(done);
    println!(
        "\n{} predicted right, {} wrong, {} undecoded, {} not compared",
        done.right(),
        done.wrong.len(),
        done.undecoded(),
        done.open()
    );
}

fn tallies(done: &Predictions) -> comfy_table::Table {
    let header = ["call", "right", "wrong", "undecoded", "not compared"];
    let mut calls = table::plain(header);
    for (name, tally) in &done.calls {
        let counts = [tally.right, tally.wrong, tally.undecoded, tally.open];
        let row = core::iter::once((*name).to_owned()).chain(counts.map(|n| n.to_string()));
        calls.add_row(row);
    }
    calls
}

fn print_prediction(prediction: &Prediction) {
    println!("  line {}: {}", prediction.at, prediction.text);
    println!(
        "    kernel: {}, model: {}",
        actual(prediction.actual),
        result_text(&prediction.predicted)
    );
    if let Some(reason) = prediction.reason() {
        println!("    {}, {}", reason.code(), reason.kernel_site());
    }
}

/// What the model could not see.
fn print_rest(done: &Predictions) {
    println!();
    if let Some(gap) = &done.gap {
        println!(
            "from line {} on, the model's state may be incomplete: it lacks {}",
            gap.at, gap.what
        );
    }
    if done.other_capabilities > 0 {
        println!(
            "left out: {} calls on capabilities that are no matter of memory",
            done.other_capabilities
        );
    }
    for error in &done.unread {
        println!("unreadable: {error}");
    }
}

fn actual(result: Result<i64, Errno>) -> String {
    match result {
        Ok(0) => "ok".to_owned(),
        Ok(value) => format!("ok, {value}"),
        Err(errno) => errno.to_string(),
    }
}

fn summary(choice: &Choice, done: &Predictions) -> Value {
    let calls: Vec<Value> = done
        .calls
        .iter()
        .map(|(name, tally)| {
            json!({
                "call": name, "right": tally.right, "wrong": tally.wrong,
                "undecoded": tally.undecoded, "not_compared": tally.open,
            })
        })
        .collect();
    let list = |all: &[Prediction]| all.iter().map(prediction).collect::<Vec<_>>();
    let unread: Vec<String> = done.unread.iter().map(ToString::to_string).collect();
    json!({
        "profile": { "name": choice.profile.name, "why": choice.why },
        "calls": calls,
        "right": done.right(),
        "undecoded": done.undecoded(),
        "not_compared": done.open(),
        "wrong": list(&done.wrong),
        "refused": list(&done.refusals),
        "incomplete_from": done.gap.as_ref().map(|gap| json!({ "line": gap.at, "lacks": gap.what })),
        "other_capabilities": done.other_capabilities,
        "unreadable": unread,
    })
}

fn prediction(prediction: &Prediction) -> Value {
    json!({
        "line": prediction.at,
        "vm": prediction.vm,
        "call": prediction.text,
        "kernel": actual(prediction.actual),
        "model": result_text(&prediction.predicted),
        "reason": reason_code(&prediction.predicted),
    })
}
