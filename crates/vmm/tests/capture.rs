//! What this process makes the local kernel's MMU do, captured.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_vmm::capture::{Capture, Captured, Fields, Setup};
use slat_vmm::rebuild::{Options, rebuild};
use slat_vmm::traces::Traced;
use slat_vmm::traces::kernel::{self, Format, Said};
use slat_vmm::{kvm, run, scenario};

/// A slot that is deleted, so many times. On a kernel with the quirk each deletion zaps all.
fn deletions(count: usize) -> String {
    let once = "set_user_memory_region slot=0 gpa=0 size=64K hva=A => ok\n\
                set_user_memory_region slot=0 size=0 => ok\n";
    format!("case \"deletions\"\n{}", once.repeat(count))
}

/// Runs the deletions while events are captured; `None` where that cannot be.
fn captured(setup: &Setup, count: usize) -> Option<Captured> {
    // One at a time, so that what is left afterwards can be looked at.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = ALONE.lock();
    let skip = |why: &dyn std::fmt::Display| println!("skipped: {why}");
    let mut machine = kvm::Machine::open().map_err(|error| skip(&error)).ok()?;
    let mut capture = Capture::start(setup).map_err(|error| skip(&error)).ok()?;
    capture.mark("OP before").unwrap();
    let scenario = scenario::parse(&deletions(count)).unwrap();
    let report = run(&scenario, &mut machine).unwrap();
    assert_eq!(report.failures().count(), 0);
    capture.mark("OP after").unwrap();
    let captured = capture.stop().unwrap();
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let tracefs = text
        .lines()
        .find(|line| line.contains(" tracefs "))
        .unwrap();
    let place = tracefs.split(' ').nth(4).unwrap();
    let left = std::fs::read_dir(format!("{place}/instances")).unwrap();
    let own = format!("slat-{}-", std::process::id());
    let is_own = |name: std::ffi::OsString| name.to_string_lossy().starts_with(&own);
    assert_eq!(
        left.flatten()
            .filter(|entry| is_own(entry.file_name()))
            .count(),
        0
    );
    Some(captured)
}

#[test]
fn own_events_stand_between_own_marks() {
    for fields in [Fields::Text, Fields::Raw] {
        let setup = Setup {
            fields,
            ..Setup::default()
        };
        let Some(captured) = captured(&setup, 3) else {
            return;
        };
        assert_eq!(captured.lost.events(), 0);
        let reader = kernel::read(&captured.text);
        assert_eq!(reader.format(), Format::Ftrace);
        let records: Vec<_> = reader.map(Result::unwrap).collect();
        let at = |mark| {
            records
                .iter()
                .position(|record| record.said == Said::Marker(mark))
        };
        let zap = |record: &kernel::Record<'_>| {
            matches!(record.said, Said::Event(Traced::ZapAllFast { .. }))
        };
        let zaps: Vec<usize> = (0..records.len()).filter(|at| zap(&records[*at])).collect();
        println!("{} records, {} zaps of all", records.len(), zaps.len());
        let (before, after) = (at("OP before").unwrap(), at("OP after").unwrap());
        assert!(
            zaps.len() >= 3 && zaps.iter().all(|zap| before < *zap),
            "{}",
            captured.text
        );
        assert!(zaps.iter().filter(|zap| **zap < after).count() >= 3);
        let own = std::process::id();
        let strangers = records.iter().filter_map(|record| record.task?.process);
        assert_eq!(strangers.filter(|process| *process != own).count(), 0);
        let rebuilt = rebuild(&captured.text, &Options::default()).unwrap();
        assert!(rebuilt.is_clean(), "{:?}", rebuilt.failures);
        assert_eq!(rebuilt.markers.len(), 2);
    }
}

#[test]
fn losses_are_detected() {
    let setup = Setup {
        buffer_kib: 4,
        ..Setup::default()
    };
    let Some(captured) = captured(&setup, 600) else {
        return;
    };
    let rebuilt = rebuild(&captured.text, &Options::default()).unwrap();
    println!("{:?}, in the text {:?}", captured.lost, rebuilt.lost);
    assert!(captured.lost.events() > 0);
    let told: u64 = rebuilt.lost.iter().filter_map(|(_, events)| *events).sum();
    assert_eq!(told, captured.lost.events());
}
