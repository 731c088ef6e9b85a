//! Tables rebuilt from traces of real kernels: each old entry has to be the rebuilt one, and the audit has to be clean.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_vmm::rebuild::{Options, Rebuilt, rebuild};
use slat_vmm::traces::{Builtin, Machine};

/// The recordings of the machines whose kernels have the TDP MMU on.
fn recordings() -> impl Iterator<Item = Builtin> {
    let others = ["legacy-mmu", "off"];
    let all = Machine::ALL.iter().copied();
    let with_tdp = all.filter(move |one| !others.iter().any(|end| one.name().ends_with(end)));
    with_tdp.flat_map(Machine::recordings)
}

fn read(text: &str) -> Rebuilt {
    rebuild(text, &Options::default()).unwrap()
}

fn assert_clean(rebuilt: &Rebuilt, what: &str) {
    let wrong = rebuilt.failures.iter().map(ToString::to_string);
    let audits = rebuilt
        .vms
        .iter()
        .flat_map(|vm| vm.audit.iter().chain(&vm.not_audited).cloned());
    let wrong: Vec<String> = wrong.chain(audits).take(5).collect();
    assert!(
        wrong.is_empty() && rebuilt.is_clean(),
        "{what}: {}",
        wrong.join("\n")
    );
}

#[test]
fn all_recordings_check_themselves() {
    let (mut count, mut changes, mut confirmed, mut marks) = (0, 0, 0, 0);
    let (mut regained, mut split, mut split_confirmed) = (0, 0, 0);
    for one in recordings() {
        let rebuilt = read(one.text());
        assert_clean(&rebuilt, &format!("{}/{}", one.machine, one.scenario));
        let counts = rebuilt.counts;
        // They begin with the VM: nothing is from before, and nothing is lost.
        assert_eq!(
            (
                counts.from_before,
                counts.after_loss,
                counts.tables_from_before
            ),
            (0, 0, 0)
        );
        (count, changes) = (count + 1, changes + counts.changes);
        confirmed += counts.confirmed;
        (marks, regained) = (
            marks + counts.hardware_marks,
            regained + counts.execution_regained,
        );
        (split, split_confirmed) = (
            split + counts.split_children,
            split_confirmed + counts.split_confirmed,
        );
    }
    println!(
        "{count} recordings, {changes} changes: {confirmed} as rebuilt, {marks} marked by hardware, {regained} execute again"
    );
    println!("{split} split children, {split_confirmed} confirmed later");
    assert_eq!((count, changes), (331, 195_522));
    assert!(
        confirmed + marks + regained >= changes && marks < 200,
        "{confirmed} {marks} {regained}"
    );
    assert!(split > 0 && split - split_confirmed <= 9);
}

/// Without the probes that tell whole roles, as a user's trace is.
#[test]
fn plain_traces_check_themselves() {
    for one in recordings() {
        let plain = one.text().lines().filter(|line| !line.starts_with("  fn "));
        let plain: Vec<&str> = plain.collect();
        let rebuilt = read(&plain.join("\n"));
        assert_clean(&rebuilt, &format!("{}/{}", one.machine, one.scenario));
    }
}

#[test]
fn tables_are_sound_before_every_operation() {
    let (mut audits, mut roots) = (0, 0);
    for one in recordings() {
        let whole = read(one.text());
        for (line, marker) in &whole.markers {
            let until = Options {
                until: Some(*line),
                host: Some(whole.host),
                ..Options::default()
            };
            let part = rebuild(one.text(), &until).unwrap();
            assert_clean(
                &part,
                &format!("{}/{} line {line}: {marker}", one.machine, one.scenario),
            );
            audits += part.vms.len();
            roots += part.vms.iter().map(|vm| vm.dump.roots.len()).sum::<usize>();
        }
    }
    println!("{audits} audits of {roots} roots");
    assert!(audits > 2000 && roots > 2000);
}

/// The recording as a trace with a task in each line, as `trace-cmd report` gives it.
fn with_task(text: &str, task: &str) -> Vec<String> {
    let events = text.lines().filter_map(|line| line.strip_prefix("  "));
    let events = events.filter(|line| !line.starts_with("fn "));
    events
        .map(|event| format!("{task} [000] 1.5: {event}"))
        .collect()
}

/// Lines of two traces by turns, a few at a time.
fn mixed(a: &[String], b: &[String]) -> String {
    let (mut a, mut b) = (a.chunks(7), b.chunks(5));
    let mut lines: Vec<String> = Vec::new();
    loop {
        let (x, y) = (a.next(), b.next());
        if x.is_none() && y.is_none() {
            return lines.join("\n");
        }
        lines.extend(x.into_iter().chain(y).flatten().cloned());
    }
}

/// A recording with all of its memory elsewhere, so that it can be another VM on the same host.
fn moved(text: &str) -> String {
    let elsewhere = |line: &str| {
        let mut before = "";
        let words = line.split(' ').map(|word| {
            let named = std::mem::replace(&mut before, word);
            let entry = u64::from_str_radix(word, 16);
            match (named, entry) {
                ("old_spte" | "new_spte" | "spte" | "new", Ok(entry)) if entry & 0x800 != 0 => {
                    format!("{:x}", entry ^ 1 << 38)
                }
                ("at", Ok(entry)) => format!("{:x}", entry ^ 1 << 38),
                _ => word.to_owned(),
            }
        });
        words.collect::<Vec<_>>().join(" ")
    };
    text.lines().map(elsewhere).collect::<Vec<_>>().join("\n")
}

#[test]
fn mixed_vms_are_told_apart() {
    let machine = Machine::named("npt-l4").unwrap();
    let all = machine.recordings();
    let find = |name: &str| all.iter().find(|one| one.scenario == name).unwrap().text();
    let a = find("08-dirty-log-2m-eager-split");
    let b = moved(find("15-slot-delete-quirk-on-4k"));
    for (first, second) in [("CPU 0/KVM-7", "CPU 0/KVM-9"), ("a-7 ( 5)", "b-9 ( 6)")] {
        let text = mixed(&with_task(a, first), &with_task(&b, second));
        let both = read(&text);
        assert_clean(&both, &format!("{first} and {second}"));
        assert_eq!(both.vms.len(), 2, "{first} and {second}");
        let alone = read(&with_task(a, first).join("\n")).counts.changes;
        assert!(both.counts.changes > alone);
        let only = Options {
            only: vec![7],
            ..Options::default()
        };
        let only = rebuild(&text, &only).unwrap();
        assert_clean(&only, "one of two");
        assert_eq!((only.counts.changes, only.vms.len()), (alone, 1));
    }
}

/// From any line on: what is not known is inferred or named, and nothing contradicts. Those that
/// `slat record --tables` makes have more VMs in which roots read the same, and `docs/replay.md` says what becomes of them.
#[test]
fn a_trace_may_begin_in_the_middle() {
    let (mut traces, mut learned, mut named) = (0, 0, 0);
    let by_hand = |one: &Builtin| !one.machine.ends_with("-complete");
    for one in recordings().filter(by_hand).step_by(3) {
        let lines = with_task(one.text(), "vcpu-7");
        let host = Some(read(one.text()).host);
        for from in (1..lines.len()).step_by(1 + lines.len() / 9) {
            let options = Options {
                host,
                ..Options::default()
            };
            let rebuilt = rebuild(&lines[from..].join("\n"), &options).unwrap();
            assert_clean(
                &rebuilt,
                &format!("{}/{} from {from}", one.machine, one.scenario),
            );
            traces += 1;
            learned += rebuilt.counts.from_before;
            named += rebuilt.vms.iter().map(|vm| vm.unknown.len()).sum::<usize>();
        }
    }
    println!("{traces} traces: {learned} entries learned, {named} ranges named");
    assert!(learned > 1000 && named > 100);
}

/// Events that are lost, and said to be, contradict nothing; those that are lost in silence do.
#[test]
fn losses_are_no_failures() {
    let (mut after, mut silent) = (0, 0);
    for one in recordings().step_by(2) {
        let lines = with_task(one.text(), "vcpu-7");
        let host = Some(read(one.text()).host);
        let lose = |instead: &[&str]| {
            let every = lines
                .iter()
                .enumerate()
                .flat_map(|(at, line)| match at % 29 {
                    28 => instead.to_vec(),
                    _ => vec![line.as_str()],
                });
            let options = Options {
                host,
                ..Options::default()
            };
            rebuild(&every.collect::<Vec<_>>().join("\n"), &options).unwrap()
        };
        let told = lose(&["CPU:0 [LOST 1 EVENTS]"]);
        let failures: Vec<String> = told.failures.iter().map(ToString::to_string).collect();
        assert_eq!(failures, [""; 0], "{}/{}", one.machine, one.scenario);
        after += told.counts.after_loss;
        silent += lose(&[]).failures.len();
    }
    println!(
        "{after} entries changed during losses; {silent} failures where nothing tells of them"
    );
    assert!(after > 100 && silent > 100);
}

/// A line left out, and an old entry changed in one bit. What cannot be noticed: that only accessed or dirty was taken, which
/// hardware sets again; and that the last table of a VM with shadow pages went.
#[test]
fn planted_faults_are_noticed() {
    const MARKS: u64 = 0x360;
    let (mut planted, mut unnoticed) = (0, 0);
    for one in recordings().step_by(2) {
        let lines: Vec<&str> = one.text().lines().collect();
        let options = Options {
            host: Some(read(one.text()).host),
            ..Options::default()
        };
        let notices = |lines: &[&str]| {
            let rebuilt = rebuild(&lines.join("\n"), &options).unwrap();
            !rebuilt.is_clean() || rebuilt.counts.from_before > 0
        };
        let is_change = |at: &usize| lines[*at].contains("spte_changed");
        let changes: Vec<usize> = (0..lines.len()).filter(is_change).collect();
        for at in changes.iter().copied().step_by(1 + changes.len() / 9) {
            let (before, entries) = lines[at].split_once(" old_spte ").unwrap();
            let (old, new) = entries.split_once(" new_spte ").unwrap();
            let [old, new] = [old, new].map(|entry| u64::from_str_radix(entry, 16).unwrap());
            let mut faulty = lines.clone();
            faulty.remove(at);
            planted += 2;
            if !notices(&faulty) {
                let last_table = one.scenario.starts_with("42-") || one.scenario.starts_with("67-");
                let marks = old & !new & !MARKS == 0 && new & !old == 0;
                assert!(
                    marks || last_table,
                    "{}/{}: {}",
                    one.machine,
                    one.scenario,
                    lines[at]
                );
                unnoticed += 1;
            }
            let changed = format!("{before} old_spte {:x} new_spte {new:x}", old ^ 1 << 13);
            faulty.insert(at, &changed);
            assert!(
                notices(&faulty),
                "{}/{}: {changed}",
                one.machine,
                one.scenario
            );
        }
    }
    println!("{planted} planted, {unnoticed} that nothing can show");
    assert!(planted > 1500 && unnoticed * 50 < planted);
}

/// A process that runs two VMs one after the other, and a host with shadow paging.
#[test]
fn shadow_pages_are_listed() {
    let machine = Machine::named("npt-l4-shadow-npt-off").unwrap();
    let all = machine.recordings();
    let one = all
        .iter()
        .find(|one| one.scenario.starts_with("01-"))
        .unwrap();
    let cut = one
        .text()
        .lines()
        .position(|line| line.contains("kvm_mmu_prepare_zap_page"))
        .unwrap();
    let lines: Vec<&str> = one.text().lines().take(cut).collect();
    let rebuilt = read(&lines.join("\n"));
    assert!(!rebuilt.has_tdp && rebuilt.vms.is_empty());
    let leaves: usize = rebuilt.shadow.iter().map(|page| page.leaves.len()).sum();
    println!("{} shadow pages, {leaves} leaves", rebuilt.shadow.len());
    assert!(rebuilt.shadow.len() >= 3 && leaves > 0);
    assert!(read(one.text()).shadow.len() < rebuilt.shadow.len());
}
