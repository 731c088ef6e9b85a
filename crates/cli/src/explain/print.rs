//! An answer, for people and for programs.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::answer::{Answer, Fact};
use super::repair::Way;
use crate::Error;
use crate::run::result_text;

/// Prints an answer; the exit code is 0 for accepted, 1 for refused.
pub(super) fn answer(answer: &Answer, as_json: bool) -> Result<ExitCode, Error> {
    if as_json {
        println!("{}", serde_json::to_string_pretty(&json(answer))?);
    } else {
        print(answer);
    }
    Ok(match answer.result {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn print(answer: &Answer) {
    println!("{}", answer.line);
    match (answer.reason(), &answer.result) {
        (Some(reason), _) => {
            println!("refused with {}: {}", reason.errno(), reason.code());
            println!("  {reason}");
            let info = reason.info();
            println!("  kernel: {}, {}", info.site, info.since);
        }
        (None, Ok(_)) if answer.plan.is_some() => println!("accepted"),
        (None, result) => println!("accepted: {}", result_text(result)),
    }
    println!(
        "  profile: {} ({})",
        answer.choice.profile.name, answer.choice.why
    );
    for (name, value, evidence) in &answer.facts {
        println!("  fact: {name} = {value}, {evidence}");
    }
    for note in &answer.notes {
        println!("  note: {note}");
    }
    if let Some(plan) = &answer.plan {
        println!("plan: {plan}");
    }
    if let Some(effects) = &answer.effects {
        println!("the refused call leaves behind: {effects}");
    }
    if let Some(way) = &answer.way {
        print_way(way);
    }
}

fn print_way(way: &Way) {
    if let [_, more @ ..] = way.steps.as_slice() {
        for step in more {
            let code = step.reason.code();
            println!(
                "behind it: {}: {code}: {}",
                step.reason.errno(),
                step.reason
            );
        }
    }
    match way.impossible {
        Some(why) => println!("nothing makes this call succeed: {why}"),
        None => {
            println!("what would make it succeed:");
            way.lines.iter().for_each(|line| println!("  {line}"));
        }
    }
}

fn json(answer: &Answer) -> Value {
    let facts: Vec<Value> = answer.facts.iter().map(fact).collect();
    json!({
        "call": answer.line,
        "verdict": if answer.result.is_ok() { "accepted" } else { "refused" },
        "result": answer.reason().map_or_else(|| result_text(&answer.result), |r| r.errno().to_string()),
        "reason": answer.reason().map(|reason| json!({
            "code": reason.code(),
            "errno": reason.errno(),
            "text": reason.to_string(),
            "kernel": reason.kernel_site(),
            "since": reason.info().since,
            "values": reason,
        })),
        "profile": { "name": answer.choice.profile.name, "why": answer.choice.why, "facts": facts },
        "notes": answer.notes,
        "plan": answer.plan.map(|plan| json!({
            "kind": plan.kind,
            "zap": plan.zap,
            "dirty_log": plan.log,
            "exchanges": plan.swaps,
            "generation": { "before": plan.before, "after": plan.after },
            "text": plan.to_string(),
        })),
        "left_behind": answer.effects,
        "repair": answer.way.as_ref().map(|way| json!({
            "lines": way.lines,
            "impossible": way.impossible,
            "steps": way.steps,
        })),
    })
}

pub(super) fn fact((name, value, evidence): &Fact) -> Value {
    json!({ "name": name, "value": value, "evidence": evidence.to_string() })
}
