//! Random programs of guests with tables of their own, on a kernel without a second stage, each event predicted.
//!
//! `SLAT_EVENTS` and `SLAT_SEED` choose how much and what, `SLAT_TRIES` how often a program that differs is tried with less
//! in it.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use slat_vmm::live::{Config, Live, abilities, here_shadowed};
use slat_vmm::replay::Machine;
use slat_vmm::traces::Note;

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn every_event_is_predicted_and_wrong_rules_are_found() {
    let machine = match here_shadowed() {
        Ok(machine) => machine,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    every_event_is_predicted(&machine);
}

fn every_event_is_predicted(machine: &Machine) {
    let events = usize::try_from(number("SLAT_EVENTS", 30_000)).expect("a number of events");
    let config = Config::with_tables(number("SLAT_SEED", 1), events, abilities(machine));
    let config = Config {
        tries: usize::try_from(number("SLAT_TRIES", 300)).expect("a number of tries"),
        ..config
    };
    let mut live = match Live::new(machine.clone()) {
        Ok(live) => live,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let outcome = live.compare(&config, |_| {}).expect("programs that run");
    if let Some(finding) = &outcome.finding {
        println!("{}", finding.recording);
        panic!(
            "seed {}: {}\nat first: {}",
            finding.seed, finding.difference, finding.first
        );
    }
    println!("of their shadow pages: {}", Note::Counts(outcome.counted));
    println!(
        "{} programs, {} operations, {} instructions, {} events and results as predicted, {:.1} s",
        outcome.programs,
        outcome.operations,
        outcome.executed,
        outcome.events,
        outcome.elapsed.as_secs_f64()
    );
}
