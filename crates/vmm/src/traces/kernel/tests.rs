use proptest::prelude::*;
use slat_memslot::{AsId, Gfn, Level};
use slat_mmu::role::RoleFlag;

use super::{Format, Reader, Record, Said, read};
use crate::traces::{ParseError, Traced};

macro_rules! sample {
    ($name:literal) => {
        include_str!(concat!("../../../tests/data/traces/", $name))
    };
}

/// Made by one small guest on Linux 6.18 with shadow paging, and cut.
const FTRACE: &str = sample!("ftrace.txt");
const FTRACE_FIELDS: &str = sample!("ftrace-fields.txt");
const TRACE_CMD: &str = sample!("trace-cmd.txt");
const TRACE_CMD_RAW: &str = sample!("trace-cmd-raw.txt");
const PERF_SCRIPT: &str = sample!("perf-script.txt");

fn all(text: &str) -> (Vec<Record<'_>>, Reader<'_>) {
    let mut reader = read(text);
    let records: Result<_, ParseError> = reader.by_ref().collect();
    match records {
        Ok(records) => (records, reader),
        Err(error) => panic!("{error}"),
    }
}

fn events<'r, 'a>(records: &'r [Record<'a>]) -> impl Iterator<Item = &'r Traced<'a>> {
    records.iter().filter_map(|record| match &record.said {
        Said::Event(event) => Some(event),
        _ => None,
    })
}

fn error(text: &str) -> String {
    let found: Result<Vec<_>, _> = read(text).collect();
    found.map_or_else(|error| error.to_string(), |records| format!("{records:?}"))
}

/// All programs tell the same story of the same guest: four tables, then leaves in the first.
#[test]
fn each_form_says_the_same() {
    let forms = [
        (FTRACE, Format::Ftrace, "g"),
        (TRACE_CMD, Format::TraceCmd, "guest"),
        (TRACE_CMD_RAW, Format::TraceCmd, "guest"),
        (PERF_SCRIPT, Format::PerfScript, "g"),
    ];
    for (text, format, task) in forms {
        let (records, reader) = all(text);
        assert_eq!(reader.format(), format);
        let pages = events(&records).filter_map(|event| match event {
            Traced::GetPage {
                page,
                created: true,
            } => Some((page.gfn.raw(), page.role.level() as u8)),
            _ => None,
        });
        let pages: Vec<_> = pages.take(5).collect();
        assert_eq!(
            pages,
            [(1, 4), (2, 3), (3, 2), (4, 1), (0x200, 1)],
            "{format:?}"
        );
        let leaves = events(&records).filter_map(|event| match event {
            Traced::SetSpte {
                gfn,
                spte,
                at,
                level: Level::L1,
                ..
            } => Some((gfn.raw(), spte & 0xfff, at & 0xfff)),
            _ => None,
        });
        let leaves: Vec<_> = leaves.take(3).collect();
        assert_eq!(
            leaves,
            [(8, 0xa25, 0x40), (0x10, 0xe67, 0x80), (0x11, 0xe67, 0x88)]
        );
        let named = records.iter().filter_map(|record| record.task);
        assert!(
            named.filter(|of| of.name == task).count() > 20,
            "{format:?}"
        );
        assert!(reader.skipped()["kvm_fpu"] > 0);
    }
}

#[test]
fn fields_by_name_tell_whole_roles() {
    let (records, _) = all(FTRACE_FIELDS);
    let lost = Said::Lost {
        cpu: None,
        events: Some(274),
    };
    assert_eq!(records.first().map(|record| &record.said), Some(&lost));
    let task = records.iter().find_map(|record| record.task);
    let task = task.map(|task| (task.name, task.thread, task.process));
    assert_eq!(task, Some(("CPU 0/KVM", 5505, Some(5503))));
    let roles = records.iter().filter_map(|record| match record.said {
        Said::Role { gfn, role } => Some((gfn, role)),
        _ => None,
    });
    let (gfn, role) = roles.collect::<Vec<_>>().pop().expect("a role");
    assert_eq!(gfn, Gfn::new(0x200));
    assert!(role.has(RoleFlag::Cr0Wp) && role.is_direct());
}

#[test]
fn marks_and_losses() {
    let mark = |text| {
        let (records, _) = all(text);
        records.into_iter().find_map(|record| match record.said {
            Said::Marker(text) => Some(text),
            _ => None,
        })
    };
    assert_eq!(mark(FTRACE), Some("hello OP x"));
    assert_eq!(mark(TRACE_CMD), Some("OP start"));
    assert_eq!(mark(TRACE_CMD_RAW), Some("OP start"));
    let lost = |text| match all(text).0.as_slice() {
        [Record { said, .. }] => said.clone(),
        other => panic!("{text}: {other:?}"),
    };
    let told = |cpu, events| Said::Lost { cpu, events };
    let event = "# tracer: nop\n";
    assert_eq!(
        lost("# tracer: nop\nCPU:1 [LOST 274 EVENTS]"),
        told(Some(1), Some(274))
    );
    assert_eq!(
        lost("cpus=2\nCPU:0 [7 EVENTS DROPPED]"),
        told(Some(0), Some(7))
    );
    assert_eq!(lost("cpus=2\nCPU:0 [EVENTS DROPPED]"), told(Some(0), None));
    let perf = format!("{event} g 1 [000] 9.1: PERF_RECORD_LOST lost 12");
    assert_eq!(lost(&perf), told(None, Some(12)));
}

#[test]
fn lines_of_every_make() {
    let change = Traced::SpteChanged {
        as_id: AsId::SMM,
        gfn: Gfn::new(0x400),
        level: Level::L2,
        old: 0x8000_0000_0000_0000,
        new: 0x1_4380_0ee7,
    };
    let text = "as id 1 gfn 400 level 2 old_spte 8000000000000000 new_spte 143800ee7";
    let heads = [
        "qemu-9 [001] d..1. 93.123456: kvm_tdp_mmu_spte_changed: ",
        "CPU 0/KVM-9 (    7) [001] d..1. 93.123456: kvm_tdp_mmu_spte_changed: ",
        "CPU 0/KVM-9 (-------) [001] .....      1165: kvm_tdp_mmu_spte_changed: ",
        "   vcpu-0-9  0d..1. 93.123456: kvm_tdp_mmu_spte_changed:  ",
        "buffer:   CPU 0/KVM-9  [001] 93.123456: kvm_tdp_mmu_spte_changed:  ",
        "CPU 0/KVM     9 [001] 93.123456: kvmmmu:kvm_tdp_mmu_spte_changed: ",
        "CPU 0/KVM  7/9  [001] 93.123456789: kvmmmu:kvm_tdp_mmu_spte_changed: ",
    ];
    for head in heads {
        let line = format!("  {head}{text}");
        let (records, _) = all(&line);
        let [record] = records.as_slice() else {
            panic!("{line}: {records:?}")
        };
        assert_eq!(record.said, Said::Event(change.clone()), "{line}");
        assert_eq!(record.task.map(|task| task.thread), Some(9), "{line}");
    }
    let named = " g-9 [001] ..... 1.2: kvm_tdp_mmu_spte_changed: gfn=0x400 (1024) old_spte=0x8000000000000000 \
                 (-9223372036854775808) new_spte=0x143800ee7 (5427433191) level=(2) as_id=(1)";
    assert_eq!(
        all(named).0.first().map(|r| r.said.clone()),
        Some(Said::Event(change))
    );
}

#[test]
fn what_is_wrong_is_named() {
    let head = " g-9 [001] ..... 1.2: ";
    let cases = [
        (
            "kvm_tdp_mmu_spte_changed: as id 0 gfn x level 1 old_spte 0 new_spte 0",
            "column 61: x: not what kvm_tdp_mmu_spte_changed has here",
        ),
        (
            "kvm_mmu_get_page: mmu_valid_gen=0 gfn=1 role=12 root_count=0 unsync=0 created=1",
            "column 63: role=12: role 12: ",
        ),
        (
            "kvm_mmu_get_page: mmu_valid_gen=0 gfn=1 root_count=0 unsync=0 created=1",
            "kvm_mmu_get_page has no field role here",
        ),
        (
            "kvm_mmu_spte_requested: gfn=0x1 pfn=0xg level=1",
            "pfn=0xg: no number for pfn",
        ),
        (
            "kvm_mmu_spte_requested: gfn=0x1 pfn=0x1 level=7",
            "level=7: no level",
        ),
    ];
    for (line, expected) in cases {
        let text = format!("# tracer: nop\n{head}{line}");
        let found = error(&text);
        assert!(
            found.starts_with("line 2, ") && found.contains(expected),
            "{found}"
        );
    }
    let found = error("# tracer: nop\nhello world");
    assert_eq!(
        found,
        "line 2, column 1: hello: no task, time and event of a trace"
    );
}

proptest! {
    #[test]
    fn no_text_panics(text in "(# tracer: nop\n)?( g-9 \\[001\\] 1.2: )?(kvm_mmu_get_page: |kvm_mmu_set_spte: |print: |é)?(gfn=|sp gen 0 |\\[FAILED TO PARSE\\] )?\\PC{0,40}") {
        let last = text.lines().count();
        for record in read(&text) {
            if let Err(error) = record {
                prop_assert!(error.line as usize <= last);
            }
        }
    }
}

/// Real lines with a piece changed: an error or another record, in any case no panic.
#[test]
fn damaged_lines_do_not_panic() {
    let (mut good, mut bad) = (0, 0);
    for text in [FTRACE, FTRACE_FIELDS, TRACE_CMD, TRACE_CMD_RAW, PERF_SCRIPT] {
        for line in text.lines().skip(11).step_by(5) {
            for at in (0..line.len()).filter(|at| line.is_char_boundary(*at)) {
                let (before, after) = line.split_at(at);
                for damaged in [
                    format!("{before}§{after}"),
                    before.to_owned(),
                    after.to_owned(),
                ] {
                    match read(&damaged).collect::<Result<Vec<_>, _>>() {
                        Ok(_) => good += 1,
                        Err(_) => bad += 1,
                    }
                }
            }
        }
    }
    assert!(good > 0 && bad > good, "{good} {bad}");
}
