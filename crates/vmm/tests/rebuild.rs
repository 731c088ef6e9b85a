//! Tables rebuilt from recordings of real kernels, held against the recordings themselves.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_vmm::rebuild::{Counts, Options, rebuild};
use slat_vmm::traces::Machine;

/// The machines whose kernels have the TDP MMU on.
fn with_tdp() -> impl Iterator<Item = Machine> {
    let all = Machine::ALL.iter().copied();
    all.filter(|machine| {
        !["legacy-mmu", "off"]
            .iter()
            .any(|end| machine.name().ends_with(end))
    })
}

#[test]
fn every_recording_is_consistent() {
    let mut sum: Vec<(&str, usize, Counts)> = Vec::new();
    let mut bad = 0;
    for machine in with_tdp() {
        for one in machine.recordings() {
            let rebuilt = rebuild(one.text(), &Options::default()).unwrap();
            if !rebuilt.is_clean() {
                bad += 1;
                println!("== {}/{} {:?}", one.machine, one.scenario, rebuilt.counts);
                rebuilt
                    .failures
                    .iter()
                    .take(4)
                    .for_each(|f| println!("  {f}"));
                for vm in &rebuilt.vms {
                    vm.audit.iter().take(4).for_each(|v| println!("  {v}"));
                    if let Some(why) = &vm.not_audited {
                        println!("  not audited: {why}");
                    }
                }
            }
            sum.push((one.machine, 1, rebuilt.counts));
        }
    }
    println!("{} recordings, {bad} bad", sum.len());
    assert_eq!(bad, 0);
}

/// Without the probes that tell whole roles, as a user's trace is.
#[test]
fn plain_traces_are_consistent() {
    let mut bad = 0;
    for machine in with_tdp() {
        for one in machine.recordings() {
            let plain: Vec<&str> = one
                .text()
                .lines()
                .filter(|line| !line.starts_with("  fn "))
                .collect();
            let rebuilt = rebuild(&plain.join("\n"), &Options::default()).unwrap();
            if !rebuilt.is_clean() {
                bad += 1;
                println!("== {}/{} {:?}", one.machine, one.scenario, rebuilt.counts);
                rebuilt
                    .failures
                    .iter()
                    .take(4)
                    .for_each(|f| println!("  {f}"));
                for vm in &rebuilt.vms {
                    vm.audit.iter().take(4).for_each(|v| println!("  {v}"));
                    if let Some(why) = &vm.not_audited {
                        println!("  not audited: {why}");
                    }
                }
            }
        }
    }
    assert_eq!(bad, 0);
}

#[test]
fn every_operation_leaves_sound_tables() {
    let (mut audits, mut bad) = (0, 0);
    let mut total = Counts::default();
    for machine in with_tdp() {
        for one in machine.recordings() {
            let whole = rebuild(one.text(), &Options::default()).unwrap();
            total.changes += whole.counts.changes;
            total.confirmed += whole.counts.confirmed;
            total.hardware_marks += whole.counts.hardware_marks;
            total.from_before += whole.counts.from_before;
            total.split_children += whole.counts.split_children;
            total.split_confirmed += whole.counts.split_confirmed;
            total.leaves_confirmed += whole.counts.leaves_confirmed;
            total.roles_confirmed += whole.counts.roles_confirmed;
            total.ambiguous += whole.counts.ambiguous;
            total.fast_faults += whole.counts.fast_faults;
            total.after_loss += whole.counts.after_loss;
            total.tables_from_before += whole.counts.tables_from_before;
            for (line, marker) in &whole.markers {
                let until = Options {
                    until: Some(*line),
                    host: Some(whole.host),
                    ..Options::default()
                };
                let part = rebuild(one.text(), &until).unwrap();
                audits += 1;
                if !part.is_clean() {
                    bad += 1;
                    println!("== {}/{} line {line} {marker}", one.machine, one.scenario);
                    part.failures.iter().take(4).for_each(|f| println!("  {f}"));
                    for vm in &part.vms {
                        vm.audit.iter().take(4).for_each(|v| println!("  {v}"));
                        if let Some(why) = &vm.not_audited {
                            println!("  not audited: {why}");
                        }
                    }
                }
            }
        }
    }
    println!("{audits} audits, {bad} bad, {total:?}");
    assert_eq!(bad, 0);
}

#[test]
fn every_planted_fault_is_noticed() {
    let (mut dropped, mut unnoticed_drops) = (0, 0);
    let (mut changed, mut unnoticed) = (0, 0);
    for machine in with_tdp() {
        for one in machine.recordings() {
            let lines: Vec<&str> = one.text().lines().collect();
            let whole = rebuild(one.text(), &Options::default()).unwrap();
            let options = Options {
                host: Some(whole.host),
                ..Options::default()
            };
            let notices = |lines: &[String]| {
                let rebuilt = rebuild(&lines.join("\n"), &options).unwrap();
                !rebuilt.is_clean() || rebuilt.counts.from_before > 0
            };
            let changes: Vec<usize> = (0..lines.len())
                .filter(|at| lines[*at].contains("spte_changed"))
                .collect();
            let step = (changes.len() / 12).max(1);
            for at in changes.into_iter().step_by(step) {
                let mut without: Vec<String> = lines.iter().map(|l| l.to_string()).collect();
                let line = without.remove(at);
                dropped += 1;
                if !notices(&without) {
                    unnoticed_drops += 1;
                    println!("{}/{} line {}: {}", one.machine, one.scenario, at + 1, line);
                }
                let (before, new) = line.split_once(" new_spte ").unwrap();
                let (before, old) = before.split_once(" old_spte ").unwrap();
                let old = u64::from_str_radix(old, 16).unwrap() ^ (1 << 13);
                without.insert(at, format!("{before} old_spte {old:x} new_spte {new}"));
                changed += 1;
                if !notices(&without) {
                    unnoticed += 1;
                    println!(
                        "{}/{} line {}: changed {}",
                        one.machine,
                        one.scenario,
                        at + 1,
                        line
                    );
                }
            }
        }
    }
    println!(
        "{dropped} dropped, {unnoticed_drops} unnoticed; {changed} changed, {unnoticed} unnoticed"
    );
    assert_eq!((unnoticed_drops, unnoticed), (0, 0));
}
