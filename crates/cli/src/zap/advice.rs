//! `slat zap --advice`: which deletion is cheaper, and why.

use std::process::ExitCode;

use serde_json::{Value, json};
use slat_vmm::zap::{Advice, Estimate, Goal, Prices, Scene, Zapping};

use super::table::size;
use crate::Error;

const GOALS: [(Goal, &str); 3] = [
    (Goal::Work, "work, with the faults that follow"),
    (Goal::Call, "time of the call"),
    (Goal::Stall, "time for which vCPUs stand still"),
];

pub(super) fn run(scenes: &[Scene], as_json: bool) -> Result<ExitCode, Error> {
    let mut values = Vec::new();
    for scene in scenes {
        let mut advices = Vec::new();
        for (goal, words) in GOALS {
            advices.push((words, scene.advice((goal, &Prices::default()))?));
        }
        match as_json {
            true => values.push(json!({
                "scene": super::json::scene(scene),
                "advice": advices.iter().map(|(goal, advice)| value(goal, advice)).collect::<Vec<_>>(),
            })),
            false => print(scene, &advices),
        }
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&values)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(scene: &Scene, advices: &[(&str, Advice)]) {
    println!(
        "a slot of {} with {} mapped by {}, others with {}; {} roots, {} vCPUs; {}",
        size(scene.pages),
        size(scene.touched),
        scene.leaf,
        size(scene.others),
        scene.roots,
        scene.vcpus,
        scene.policy
    );
    for (goal, advice) in advices {
        println!("  {goal}: {}", name(advice.cheaper));
        for (policy, estimate) in [("all roots", &advice.all_roots), ("leaves", &advice.leaves)] {
            println!("    {policy:<10} {}", words(estimate));
        }
        for reason in &advice.reasons {
            println!("    since {reason}");
        }
    }
    if let Some((_, advice)) = advices.first() {
        println!("  the kernel zaps {}", advice.kernel);
    }
    println!();
}

const fn name(zapping: Zapping) -> &'static str {
    match zapping {
        Zapping::AllRoots => "all roots",
        Zapping::Leaves => "leaves",
    }
}

fn words(estimate: &Estimate) -> String {
    format!(
        "{:>10.1} us: {} leaves, {} entries, {} tables, {} faults, {} vCPUs reload, {} flushes",
        estimate.nanoseconds / 1e3,
        estimate.leaves,
        estimate.entries,
        estimate.tables,
        estimate.refaults,
        estimate.reloads,
        estimate.flushes
    )
}

fn value(goal: &str, advice: &Advice) -> Value {
    let estimate = |estimate: &Estimate| {
        json!({
            "leaves": estimate.leaves,
            "entries": estimate.entries,
            "tables": estimate.tables,
            "refaults": estimate.refaults,
            "reloads": estimate.reloads,
            "flushes": estimate.flushes,
            "ns": estimate.nanoseconds,
        })
    };
    json!({
        "goal": goal,
        "cheaper": name(advice.cheaper),
        "all_roots": estimate(&advice.all_roots),
        "leaves": estimate(&advice.leaves),
        "reasons": advice.reasons.iter().map(|reason| json!({
            "code": reason.code(), "text": reason.to_string(),
        })).collect::<Vec<Value>>(),
        "kernel": advice.kernel.to_string(),
        "taken": advice.is_taken(),
    })
}
