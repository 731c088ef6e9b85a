//! Tables rebuilt from recordings of real kernels, held against the recordings themselves.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_vmm::rebuild::{Counts, Options, rebuild};
use slat_vmm::traces::Machine;

/// The machines whose kernels have the TDP MMU on.
fn with_tdp() -> impl Iterator<Item = Machine> {
    let all = Machine::ALL.iter().copied();
    all.filter(|machine| !["legacy-mmu", "off"].iter().any(|end| machine.name().ends_with(end)))
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
                rebuilt.failures.iter().take(4).for_each(|f| println!("  {f}"));
                for vm in &rebuilt.vms {
                    vm.audit.iter().take(4).for_each(|v| println!("  {v}"));
                    if let Some(why) = &vm.not_audited { println!("  not audited: {why}"); }
                }
            }
            sum.push((one.machine, 1, rebuilt.counts));
        }
    }
    println!("{} recordings, {bad} bad", sum.len());
    assert_eq!(bad, 0);
}
