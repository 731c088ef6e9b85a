//! Random programs of guests that run guests of their own, each event predicted.
//!
//! `SLAT_EVENTS` and `SLAT_SEED` choose how much and what, `SLAT_TRIES` how often a program that differs is tried with less
//! in it. The oracle is the kernel.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::time::{Duration, Instant};

use slat_memslot::{PageSize, SlotZap};
use slat_mmu::host::MmioCaching;
use slat_mmu::spte::NxHugePages;
use slat_vmm::live::{Config, Live, Program, abilities, here_nested};
use slat_vmm::replay::{Machine, Planted, Verdict};

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn every_event_is_predicted_and_wrong_rules_are_found() {
    let machine = match here_nested() {
        Ok(machine) => machine,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let mut live = match Live::new(machine.clone()) {
        Ok(live) => live,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    one_read_is_predicted(&mut live);
    every_event_is_predicted(&machine, &mut live);
    drop(live);
    wrong_rules_are_found(&machine);
}

fn one_read_is_predicted(live: &mut Live) {
    for with_tables in [false, true] {
        let program = Program::nested_once(with_tables);
        let (recording, verdict) = live.record(&program).expect("a program that runs");
        match verdict {
            Verdict::Agrees { compared, .. } => println!("L2 reads once: {compared} events"),
            other => panic!("{recording}\n{other:?}"),
        }
        assert!(recording.contains("NOTE exit HLT"), "{recording}");
    }
}

fn every_event_is_predicted(machine: &Machine, live: &mut Live) {
    let events = usize::try_from(number("SLAT_EVENTS", 20_000)).expect("a number of events");
    let config = Config {
        tries: usize::try_from(number("SLAT_TRIES", 200)).expect("a number of tries"),
        ..Config::nested(number("SLAT_SEED", 1), events, abilities(machine))
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
        "{} programs, {} operations, {} accesses of L1 and L2, {} events and results as predicted, {:.1} s; \
         {} programs were disturbed and run again",
        outcome.programs,
        outcome.operations,
        outcome.executed,
        outcome.events,
        outcome.elapsed.as_secs_f64(),
        outcome.disturbed
    );
}

/// One rule of the kernel or the machine, made wrong.
type Wrong = fn(&mut Machine);

const WRONG: &[(&str, Wrong)] = &[
    ("no 2 MiB pages", |m| {
        m.host = m.host.with_largest_page(PageSize::Size4K);
    }),
    ("no MMIO entries", |m| {
        m.host.mmio_caching = MmioCaching::Off;
    }),
    ("huge pages never executable", |m| {
        m.nx_huge_pages = NxHugePages::On;
    }),
    ("slots always zap all", |m| {
        m.profile.slot_zap.set(SlotZap::AlwaysAll);
    }),
];

/// A minute is what each may take.
const MINUTE: Duration = Duration::from_secs(60);

fn wrong_rules_are_found(machine: &Machine) {
    for (what, wrong) in WRONG {
        let mut lying = machine.clone();
        wrong(&mut lying);
        let live = Live::new(lying).expect("a capture");
        is_found(what, live, machine);
    }
    for planted in Planted::NESTED {
        let live = Live::new(machine.clone()).expect("a capture");
        is_found(&format!("{planted:?}"), live.with_planted(planted), machine);
    }
}

fn is_found(what: &str, mut live: Live, machine: &Machine) {
    let begin = Instant::now();
    let config = Config {
        tries: 0,
        within: Some(MINUTE),
        ..Config::nested(number("SLAT_SEED", 1), usize::MAX, abilities(machine))
    };
    let outcome = live.compare(&config, |_| {}).expect("programs that run");
    let finding = outcome
        .finding
        .unwrap_or_else(|| panic!("{what}: not found"));
    println!(
        "{what}: found in {:.1} s, by seed {}, after {} events",
        begin.elapsed().as_secs_f64(),
        finding.seed,
        outcome.events
    );
}
