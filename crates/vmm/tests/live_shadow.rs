//! Random programs of guests with tables of their own, on a kernel without a second stage, each event predicted.
//!
//! `SLAT_EVENTS` and `SLAT_SEED` choose how much and what, `SLAT_TRIES` how often a program that differs is tried with less
//! in it.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::time::{Duration, Instant};

use slat_memslot::{PageSize, SlotZap};
use slat_mmu::host::MmioCaching;
use slat_mmu::shadow::UnsyncChildren;
use slat_mmu::spte::NxHugePages;
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
    wrong_rules_are_found(&machine);
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
    println!(
        "of their shadow pages: {}; {} programs were disturbed and run again",
        Note::Counts(outcome.counted),
        outcome.disturbed
    );
    println!(
        "{} programs, {} operations, {} instructions, {} events and results as predicted, {:.1} s",
        outcome.programs,
        outcome.operations,
        outcome.executed,
        outcome.events,
        outcome.elapsed.as_secs_f64()
    );
}

/// One rule of the kernel or the machine, made wrong.
type Wrong = fn(&mut Machine);

const WRONG: &[(&str, Wrong)] = &[
    ("no 2 MiB pages", |m| {
        m.host = m.host.with_largest_page(PageSize::Size4K);
    }),
    ("MMIO entries where there are none, or none", |m| {
        m.host.mmio_caching = match m.host.mmio_caching {
            MmioCaching::On => MmioCaching::Off,
            MmioCaching::Off => MmioCaching::On,
        };
    }),
    ("huge pages never executable", |m| {
        m.nx_huge_pages = NxHugePages::On;
    }),
    ("slots always zap all", |m| {
        m.profile.slot_zap.set(SlotZap::AlwaysAll);
    }),
    ("pages out of step go with those above, or stay", |m| {
        let rules = &mut m.shadow_rules;
        rules.unsync_children = match rules.unsync_children {
            UnsyncChildren::Zapped => UnsyncChildren::Kept,
            UnsyncChildren::Kept => UnsyncChildren::Zapped,
        };
    }),
    ("16 neighbours", |m| m.shadow_rules.prefetch = 16),
    ("no neighbours", |m| m.shadow_rules.prefetch = 1),
    ("a table is given up after two writes", |m| {
        m.shadow_rules.flood = 2;
    }),
    ("less room is made", |m| m.shadow_rules.refilled = 24),
];

/// A minute is what each may take.
const MINUTE: Duration = Duration::from_secs(60);

fn wrong_rules_are_found(machine: &Machine) {
    for (what, wrong) in WRONG {
        let mut lying = machine.clone();
        wrong(&mut lying);
        let begin = Instant::now();
        let config = Config {
            tries: 0,
            ..Config::with_tables(number("SLAT_SEED", 1), 2_000_000, abilities(machine))
        };
        let mut live = Live::new(lying).expect("a capture");
        let outcome = live.compare(&config, |_| {}).expect("programs that run");
        let seconds = begin.elapsed().as_secs_f64();
        let finding = outcome
            .finding
            .unwrap_or_else(|| panic!("{what}: not found"));
        assert!(begin.elapsed() < MINUTE, "{what}: {seconds:.1} s");
        println!(
            "{what}: found in {seconds:.1} s, by seed {}, after {} events",
            finding.seed, outcome.events
        );
    }
}
