//! Random programs on the kernel that this runs on, each event predicted.
//!
//! `SLAT_EVENTS` and `SLAT_SEED` choose how much and what, `SLAT_TRIES` how often a program that differs is tried with less
//! in it. Needs a kernel with the TDP MMU, and its events.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::time::{Duration, Instant};

use slat_memslot::{LogOff, PageSize, SlotZap};
use slat_mmu::host::Layout;
use slat_mmu::spte::NxHugePages;
use slat_mmu::tdp::Passes;
use slat_vmm::live::{Abilities, Config, Live, Outcome, abilities, here};
use slat_vmm::replay::{Machine, Planted};

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The machine, where it has what is needed. Several tests at a time would see each other's events.
fn machine() -> Option<Machine> {
    match here() {
        Ok(machine) => Some(machine),
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

#[test]
fn every_event_is_predicted_and_wrong_rules_are_found() {
    let Some(machine) = machine() else { return };
    every_event_is_predicted(&machine);
    wrong_rules_are_found(&machine);
    planted_rules_are_found(&machine);
}

fn every_event_is_predicted(machine: &Machine) {
    let events = usize::try_from(number("SLAT_EVENTS", 30_000)).expect("a number of events");
    let config = Config {
        tries: usize::try_from(number("SLAT_TRIES", 120)).expect("a number of tries"),
        ..Config::new(number("SLAT_SEED", 1), events, abilities(machine))
    };
    let mut live = Live::new(machine.clone()).expect("a capture");
    let (begin, mut told) = (Instant::now(), 0);
    let progress = |events: usize| {
        if events / 100_000 > told {
            told = events / 100_000;
            let seconds = begin.elapsed().as_secs_f64();
            println!("{events} events so far, {seconds:.1} s");
        }
    };
    let outcome = live.compare(&config, progress).expect("programs that run");
    if let Some(finding) = &outcome.finding {
        println!("{}", finding.recording);
        panic!("seed {}: {}", finding.seed, finding.difference);
    }
    println!(
        "{} programs, {} operations, {} events and results as predicted, {:.1} s",
        outcome.programs,
        outcome.operations,
        outcome.events,
        outcome.elapsed.as_secs_f64()
    );
}

/// One rule of the kernel or the machine, made wrong.
type Wrong = fn(&mut Machine);

const WRONG: &[(&str, Wrong)] = &[
    ("other bits of KVM's own", |m| {
        m.host = m.host.with_layout(Layout::P1);
    }),
    ("no 2 MiB pages", |m| {
        m.host = m.host.with_largest_page(PageSize::Size4K);
    }),
    ("no MMIO entries", |m| {
        m.host = m.host.without_mmio_caching()
    }),
    ("roots are zapped in another order", |m| {
        m.passes = match m.passes {
            Passes::LargestFirst => Passes::SmallestFirst,
            Passes::SmallestFirst => Passes::LargestFirst,
        };
    }),
    ("huge pages never executable", |m| {
        m.nx_huge_pages = NxHugePages::On;
        m.profile.log_off.set(LogOff::Recover);
    }),
    ("logging ends in place", |m| {
        m.profile.log_off.set(LogOff::Recover);
    }),
    ("slots always zap all", |m| {
        m.profile.slot_zap.set(SlotZap::AlwaysAll);
    }),
    ("no SMM", |m| m.profile.smm.set(false)),
    ("a leaf in the place of a writable one is dirty", |m| {
        m.profile.replaced_leaf_is_clean.set(false);
    }),
    ("a leaf that allows the access stays", |m| {
        m.profile.pre_fault_remakes_leaf.set(false);
    }),
    ("no pre-fault", |m| m.profile.pre_fault.set(false)),
];

/// A minute is what each may take, and three on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(180);

fn wrong_rules_are_found(machine: &Machine) {
    let found = WRONG.iter().filter(|(what, wrong)| {
        let mut lying = machine.clone();
        wrong(&mut lying);
        is_found(what, Live::new(lying).expect("a capture"), machine)
    });
    assert_eq!(found.count(), WRONG.len());
}

/// Rules about what the host and the guest do, each made wrong as well, where this kernel can be asked for what it is about.
fn planted_rules_are_found(machine: &Machine) {
    let can = abilities(machine);
    let (shown, others): (Vec<_>, Vec<_>) = Planted::ALL
        .into_iter()
        .partition(|rule| can_show(*rule, &can));
    for planted in others {
        println!("skipped: {planted:?}: this machine cannot show it");
    }
    let found = shown.iter().filter(|planted| {
        let live = Live::new(machine.clone()).expect("a capture");
        is_found(
            &format!("{planted:?}"),
            live.with_planted(**planted),
            machine,
        )
    });
    assert_eq!(found.count(), shown.len());
}

fn can_show(planted: Planted, can: &Abilities) -> bool {
    match planted {
        Planted::AgeingForgets => can.host.ageing,
        Planted::MergedIsWritable => can.host.merging,
        Planted::MovedStays => can.host.offlining,
        Planted::FilledReadsZero => can.host.userfault,
        Planted::SmiKeepsRoot | Planted::RsmKeepsRoot => can.smm,
        Planted::HolesZapNothing => can.private_memory,
        Planted::RingsWatchNothing => can.rings,
        Planted::UnmapsNothing | Planted::ForkedIsWritable => true,
        // Test `live_nested`.
        Planted::StoresOfL1Unread | Planted::L2KeepsRoot | Planted::ZerosHalt => false,
    }
}

/// Whether a run finds what is wrong in time.
fn is_found(what: &str, mut live: Live, machine: &Machine) -> bool {
    let begin = Instant::now();
    let config = Config {
        tries: 0,
        within: Some(LIMIT),
        ..Config::new(number("SLAT_SEED", 1), 2_000_000, abilities(machine))
    };
    let outcome: Outcome = live.compare(&config, |_| {}).expect("programs that run");
    let seconds = begin.elapsed().as_secs_f64();
    let Some(finding) = outcome.finding else {
        let programs = outcome.programs;
        println!("{what}: NOT found in {programs} programs, {seconds:.1} s");
        return false;
    };
    println!(
        "{what}: found in {seconds:.1} s, by seed {}, after {} events",
        finding.seed, outcome.events
    );
    true
}
