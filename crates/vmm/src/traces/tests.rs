//! The recordings, and single lines.

use std::collections::BTreeMap;

use proptest::prelude::*;
use slat_memslot::{AsId, Errno, Gfn, Gpa, Level, Pages};

use super::{
    Exit, GuestAct, Machine, Note, Op, Probe, Recording, Ret, Sregs, Traced, What, builtin,
};

/// What one line says.
fn what(line: &str) -> What<'_> {
    let recording = Recording::parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    recording.items.into_iter().next().expect("an item").what
}

fn error(line: &str) -> String {
    let text = format!("RET 0\n{line}\n");
    Recording::parse(&text).expect_err(line).to_string()
}

/// The name of the variant, and of the one inside it.
fn variant(what: &What<'_>) -> String {
    let text = format!("{what:?}");
    let names = text.split(|c: char| !c.is_ascii_alphanumeric());
    names.take(2).collect::<Vec<_>>().join("::")
}

#[test]
fn every_recording_parses_and_holds_nothing_unknown() {
    let (mut files, mut lines, mut counts) = (0, 0, BTreeMap::new());
    for recorded in builtin() {
        let at = format!("{}/{}", recorded.machine, recorded.scenario);
        let recording = Recording::parse(recorded.text()).unwrap_or_else(|e| panic!("{at}: {e}"));
        let name = recorded.scenario.split_once('-').map(|(_, name)| name);
        assert_eq!(recording.scenario, name, "{at}");
        assert_eq!(
            recording.truncated,
            at == "ept-l4-noad/36-pre-fault-obsolete-root"
        );
        for item in &recording.items {
            let known = !matches!(
                item.what,
                What::Op(
                    Op::Other(_)
                        | Op::SetSregs {
                            sregs: Sregs::Other(_),
                            ..
                        }
                        | Op::Guest {
                            act: GuestAct::Other(_),
                            ..
                        }
                ) | What::Event(Traced::Other { .. })
                    | What::Probe(Probe::Other { .. })
            );
            assert!(known, "{at}, line {}: {}", item.line, item.text);
            *counts.entry(variant(&item.what)).or_insert(0) += 1;
        }
        (files, lines) = (files + 1, lines + recorded.text().lines().count());
    }
    for (variant, count) in &counts {
        println!("{count:7} {variant}");
    }
    assert_eq!((files, lines), (507, 294_467));
    let count = |name: &str| counts.get(name).copied().unwrap_or(0);
    assert_eq!(count("Event::SpteChanged"), 195_522);
    assert_eq!(count("Probe::SpRole"), count("Event::GetPage"));
    assert_eq!(count("Note::Backing"), 12_555);
}

/// What is written says the same, read again.
#[test]
fn operations_results_and_notes_are_read_as_they_are_written() {
    let mut count = 0;
    for recorded in builtin() {
        let recording = Recording::parse(recorded.text()).expect("a recording");
        for item in recording.items {
            let written = match &item.what {
                What::Op(op) => format!("OP {op}"),
                What::Ret(ret) => format!("RET {ret}"),
                What::Note(note) => format!("NOTE {note}"),
                _ => continue,
            };
            assert_eq!(what(&written), item.what, "{}", item.text);
            count += 1;
        }
    }
    assert!(count > 15_000, "{count}");
}

/// What newer recordings say beyond those.
#[test]
fn inputs_that_older_recordings_leave_out() {
    for line in [
        "OP KVM_SET_USER_MEMORY_REGION slot=1 as=1 flags=0x1 gfn=400 npages=200 hva=200000400000",
        "OP KVM_SET_USER_MEMORY_REGION2 slot=1 as=0 flags=0x4 gfn=400 npages=200 gmem_off=0x1000 hva=1000",
        "OP KVM_PRE_FAULT_MEMORY vcpu=1 gfn=400 npages=2 flags=0x1",
        "NOTE backing gfn=400 pfn=17b400 level=2",
    ] {
        let text = match what(line) {
            What::Op(op) => format!("OP {op}"),
            What::Note(note) => format!("NOTE {note}"),
            other => panic!("{other:?}"),
        };
        assert_eq!(text, line);
    }
    assert!(error("NOTE backing gfn=400 pfn=17b400 level=9").contains("level=9"));
}

#[test]
fn remarks_are_few() {
    let mut remarks: BTreeMap<String, u32> = BTreeMap::new();
    for recorded in builtin() {
        let recording = Recording::parse(recorded.text()).expect("a recording");
        for item in recording.items {
            if let What::Note(Note::Remark(text)) = item.what {
                *remarks.entry(text.to_owned()).or_default() += 1;
            }
        }
    }
    for (remark, count) in &remarks {
        println!("{count:4} {remark}");
        assert!(!remark.contains('=') || remark.contains("L1"), "{remark}");
    }
}

#[test]
fn machines_have_names() {
    let machine = Machine::named("ept-l5").expect("a machine");
    let names: Vec<String> = machine
        .recordings()
        .into_iter()
        .map(|one| one.scenario)
        .collect();
    assert_eq!(names.len(), 9);
    assert!(Machine::named("ept-l6").is_none());
}

#[test]
fn operations() {
    let op = |line| match what(line) {
        What::Op(op) => op,
        other => panic!("{line}: {other:?}"),
    };
    let page = |gfn, pages| (Gfn::new(gfn), Pages::new(pages));
    assert_eq!(
        op("OP KVM_SET_CPUID2 vcpu=1 (supported, MAXPHYADDR=52)"),
        Op::SetCpuid {
            vcpu: 1,
            max_phys_addr: Some(52)
        }
    );
    assert_eq!(
        op("OP KVM_SET_SREGS CR4.PAE|PSE=1"),
        Op::SetSregs {
            vcpu: None,
            sregs: Sregs::Bits {
                register: "CR4",
                bits: "PAE|PSE",
                set: true
            },
        }
    );
    let maps =
        "OP KVM_SET_SREGS long mode; gva 40000000 -> gpa f012200000, gva 1 -> gpa 0812200000";
    let pages = vec![
        (0x4000_0000, Gpa::new(0xf0_1220_0000)),
        (1, Gpa::new(0x8_1220_0000)),
    ];
    assert_eq!(
        op(maps),
        Op::SetSregs {
            vcpu: None,
            sregs: Sregs::LongModeWith { pages }
        }
    );
    let Op::SetSregs {
        sregs: Sregs::LongMode { nesting, cr3 },
        ..
    } = op(
        "OP KVM_SET_SREGS EFER.SVME=1, long mode, CR3=0x4000, 2M guest pages (VMRUN needs paging in L1)",
    )
    else {
        panic!("long mode")
    };
    assert_eq!((nesting, cr3), (Some("EFER.SVME"), Gpa::new(0x4000)));
    assert_eq!(
        op("OP KVM_ENABLE_CAP MANUAL_DIRTY_LOG_PROTECT2 args0=0x3"),
        Op::EnableCap {
            cap: "MANUAL_DIRTY_LOG_PROTECT2",
            bits: None,
            arg: 3
        }
    );
    assert_eq!(
        op("OP KVM_ENABLE_CAP DISABLE_QUIRKS2 SLOT_ZAP_ALL args0=0x80"),
        Op::EnableCap {
            cap: "DISABLE_QUIRKS2",
            bits: Some("SLOT_ZAP_ALL"),
            arg: 0x80
        }
    );
    let Op::SetRegion(region) =
        op("OP KVM_SET_USER_MEMORY_REGION2 slot=1 as=1 flags=0x4 gfn=400 npages=200 gmem_off=1000")
    else {
        panic!("a region")
    };
    assert_eq!((region.slot, region.as_id, region.flags), (1, AsId::SMM, 4));
    assert_eq!((region.gfn, region.pages), page(0x400, 0x200));
    assert_eq!(region.gmem_offset, Some(0x1000));
    assert_eq!(
        op("OP mprotect PROT_READ|PROT_WRITE"),
        Op::Mprotect {
            writable: true,
            range: None
        }
    );
    assert_eq!(
        op("OP mprotect PROT_READ gfn=400 npages=200"),
        Op::Mprotect {
            writable: false,
            range: Some(page(0x400, 0x200))
        }
    );
    let (gfn, pages) = page(0x401, 1);
    assert_eq!(
        op("OP madvise COLLAPSE gfn=401 npages=1 (inside a 2M page)"),
        Op::Madvise {
            advice: "COLLAPSE",
            gfn,
            pages
        }
    );
    assert_eq!(op("OP reboot the host"), Op::Other("reboot the host"));
    assert_eq!(op("OP fork (backing becomes copy-on-write)"), Op::Fork);
}

#[test]
fn guests() {
    let act = |line| match what(line) {
        What::Op(Op::Guest { vcpu: 0, act }) => act,
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(act("OP guest vcpu=0 HLT"), GuestAct::Halt { at: None });
    assert_eq!(
        act("OP guest vcpu=0 HLT at gpa 0x1000 (first entry)"),
        GuestAct::Halt {
            at: Some(Gpa::new(0x1000))
        }
    );
    assert_eq!(
        act("OP guest vcpu=0 EXEC gpa=0x402000"),
        GuestAct::Execute(Gpa::new(0x40_2000))
    );
    assert_eq!(
        act("OP guest vcpu=0: RSM, back to the stub"),
        GuestAct::LeaveSmm
    );
    let vmx = "OP guest vcpu=0 L1: VMXON, VMPTRLD, VMWRITEs, VMLAUNCH; L2 READ gva=gpa=0x400000 then HLT (EPT12 on)";
    let read = Gpa::new(0x40_0000);
    assert_eq!(
        act(vmx),
        GuestAct::Launch {
            vmx: true,
            nested_paging: true,
            read
        }
    );
    assert_eq!(act("OP guest vcpu=0 sleeps"), GuestAct::Other("sleeps"));
}

#[test]
fn results_and_notes() {
    assert_eq!(
        what("RET -1 EOPNOTSUPP"),
        What::Ret(Ret::Failed(Errno::EOPNOTSUPP))
    );
    assert_eq!(what("RET -1"), What::Ret(Ret::Value(-1)));
    let note = |line| match what(line) {
        What::Note(note) => note,
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(
        note("NOTE dirty count=0 first= "),
        Note::Dirty {
            count: 0,
            first: vec![]
        }
    );
    assert_eq!(
        note("NOTE dirty count=2 first= 0 1f"),
        Note::Dirty {
            count: 2,
            first: vec![0, 0x1f]
        }
    );
    let gpa = Gpa::new(0x40_0000);
    assert_eq!(
        note("NOTE exit MEMORY_FAULT flags=0x8 gpa=0x400000 size=0x1000"),
        Note::Exit(Exit::MemoryFault {
            flags: 8,
            gpa,
            size: 0x1000
        })
    );
    assert_eq!(note("NOTE as1 page:"), Note::BackingOf(AsId::SMM));
    assert_eq!(
        note("NOTE backing never touched"),
        Note::Remark("backing never touched")
    );
}

#[test]
fn events_and_probes() {
    let line = "  fast_page_fault: vcpu 0 gva 400000 error_code P|W|U|0x100000000 sptep 0000000058010a50 \
                old 0x17b5cfe65 new 17b5cfe67 spurious 0 fixed 1";
    let What::Event(Traced::FastPageFault {
        error_code,
        old,
        new,
        fixed,
        ..
    }) = what(line)
    else {
        panic!("{line}")
    };
    assert_eq!(
        (error_code, old, new),
        (0x1_0000_0007, 0x1_7b5c_fe65, 0x1_7b5c_fe67)
    );
    assert!(fixed);
    let line = "  kvm_mmu_prepare_zap_page: sp gen 0 gfn b l4 8-byte q2 wux invalid !nxe !ad root 1 unsync";
    let What::Event(Traced::PrepareZapPage { page }) = what(line) else {
        panic!("{line}")
    };
    assert_eq!(page.role.to_string(), "l4 8-byte q2 wux invalid !nxe !ad");
    assert_eq!((page.root_count, page.unsync), (1, true));
    let line = "  kvm_mmu_split_huge_page: gfn 400 spte 143800ee7 level 2 errno -16";
    let split = what(line);
    assert!(matches!(
        split,
        What::Event(Traced::SplitHugePage {
            errno: -16,
            level: Level::L2,
            ..
        })
    ));
    let unknown = what("  kvm_exit: reason 12");
    assert_eq!(
        unknown,
        What::Event(Traced::Other {
            event: "kvm_exit",
            fields: "reason 12"
        })
    );
    let unknown = what("  fn schedule:");
    assert_eq!(
        unknown,
        What::Probe(Probe::Other {
            function: "schedule",
            args: ""
        })
    );
}

#[test]
fn a_malformed_line_is_named_with_its_value() {
    let cases = [
        (
            "OP KVM_CREATE_VM type=x",
            "line 2, column 23: x: not what an operation has here",
        ),
        (
            "OP KVM_CREATE_VCPU id=0 now",
            "line 2, column 24: now: not what an operation has here",
        ),
        (
            "RET five",
            "line 2, column 5: five: not what a result has here",
        ),
        (
            "RET -1 EWHAT",
            "line 2, column 7: EWHAT: not what a result has here",
        ),
        (
            "NOTE backing gfn=400 pfn=",
            "line 2, column 26: the end of the line: not what a note has here",
        ),
        (
            "  kvm_age_hva: mmu notifier age hva: 0x1 - 0x2",
            "line 2, column 41: -: not what kvm_age_hva has here",
        ),
        (
            "  kvm_mmu_spte_requested: gfn 10000000000000000 pfn 1 level 1",
            "line 2, column 31: 10000000000000000: not what kvm_mmu_spte_requested has here",
        ),
        (
            "  kvm_mmu_spte_requested: gfn 1 pfn 1 level 6",
            "line 2, column 45: 6: not what kvm_mmu_spte_requested has here",
        ),
        (
            "  nothing",
            "line 2, column 3: nothing: no name with a colon",
        ),
        (
            "ret 0",
            "line 2, column 1: ret: no operation, result, note or event",
        ),
        (
            "# scenario x status y",
            "line 2, column 21: y: not what a scenario has here",
        ),
    ];
    for (line, expected) in cases {
        assert_eq!(error(line), expected, "{line}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "(OP |RET |NOTE |  fn |  |# )?(KVM_CREATE_VM|guest vcpu=0 |dirty count=|kvm_mmu_get_page: sp gen 0|é)?\\PC{0,40}") {
        if let Err(error) = Recording::parse(&text) {
            prop_assert!(error.line == 1 && error.column as usize <= text.chars().count() + 1);
        }
    }
}

/// Real lines with a piece changed: an error or another item, in any case no panic.
#[test]
fn damaged_lines_do_not_panic() {
    let recorded = Machine::named("npt-l4").expect("a machine").recordings();
    let (mut read, mut refused) = (0, 0);
    for line in recorded
        .iter()
        .flat_map(|one| one.text().lines())
        .step_by(97)
    {
        for at in 0..line.len() {
            let (before, after) = line.split_at(at);
            for damaged in [
                format!("{before}§{after}"),
                before.to_owned(),
                after.to_owned(),
            ] {
                match Recording::parse(&damaged) {
                    Ok(_) => read += 1,
                    Err(error) => refused += usize::from(error.line == 1),
                }
            }
        }
    }
    assert!(read > 0 && refused > read, "{read} {refused}");
}
