//! `slat replay TRACE` and `slat draw`, as a user runs them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod command;

use std::path::PathBuf;

use command::slat;
use serde_json::Value;

/// A file with this text, gone with the test run.
fn file(name: &str, text: impl AsRef<[u8]>) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Wrong input: exit code 2, nothing on standard output, and this in the message.
fn wrong(args: &[&str], part: &str) {
    let (code, out, err) = slat(args);
    assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
    assert!(err.contains(part), "{args:?}: {err}");
}

/// A huge page of a VM with EPT is split, in the middle of its life.
const EPT: &str = "\
 CPU 0/KVM-812 (    790) [001] d..1. 93.000001: kvm_mmu_get_page: sp gen 0 gfn 400 l1 8-byte q0 direct wux nxe ad root 0 sync new
 CPU 0/KVM-812 (    790) [001] d..1. 93.000002: kvm_tdp_mmu_spte_changed: as id 0 gfn 400 level 2 old_spte 8600000143800bf7 new_spte 8000000142a47907
 CPU 0/KVM-812 (    790) [001] d..1. 93.000003: kvm_mmu_split_huge_page: gfn 400 spte 8600000143800bf7 level 2 errno 0
 CPU 0/KVM-812 (    790) [001] d..1. 93.000004: kvm_tdp_mmu_spte_changed: as id 0 gfn 401 level 1 old_spte 8600000143801b77 new_spte 8600000143801b75
 CPU 0/KVM-812 (    790) [001] d..1. 93.000005: kvm_entry: vcpu 0
";

#[test]
fn replay_rebuilds_a_trace_from_its_middle() {
    let trace = file("ept.trace", EPT);
    let (code, out, err) = slat(&["replay", &trace]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for part in [
        ": ftrace, 4 records, 2 changes of entries",
        "# self-check: 1 old entries, 0 leaves and 0 roles as rebuilt; 0 failures",
        "512 children of split huge pages; 1 entries from before the trace; 2 tables from before the trace",
        "# skipped: kvm_entry 1",
        "# vm 0, process 790, CPU 0/KVM-812",
        "slat-dump 1 ept p2 maxphyaddr 46 levels 4 ad on",
        "0x401..0x402 l1 r-x pfn 0x143801 hw mw ad wb+ipat",
        "0x402..0x600 l1 rwx pfn 0x143802 hw mw ad wb+ipat",
        "# unknown: root 0.0 0x0..0x400",
        "# unknown: root 0.0 0x600..0x1000000000",
        "# audit: clean",
    ] {
        assert!(out.contains(part), "{part}:\n{out}");
    }
    // The output is a dump.
    let dump = file("ept.dump", &out);
    let (code, again, err) = slat(&["dump", &dump]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(again.contains("0x402..0x600 l1 rwx"), "{again}");
    let (code, out, _) = slat(&["replay", "--json", "--at", "4", &trace]);
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &value["clean"]), (0, &true.into()), "{out}");
    assert_eq!(value["inferred"]["children_of_split_huge_pages"], 512);
    assert_eq!(
        value["vms"][0]["dump"]["roots"][0]["ranges"][0]["end"],
        0x600
    );
    let (code, out, _) = slat(&["replay", "--pid", "13", &trace]);
    assert!(code == 2 && out.is_empty(), "{out}");
}

#[test]
fn replay_names_what_contradicts() {
    let trace = file(
        "contradiction.trace",
        EPT.replace("old_spte 8600000143801b77", "old_spte 8600000143901b77"),
    );
    let (code, out, err) = slat(&["replay", &trace]);
    assert_eq!(code, 1, "{out}");
    let told = "line 4: vm 0 gfn 0x401 level 1: old_spte is 0x8600000143901b77, rebuilt was 0x8600000143801b77";
    assert!(err.contains(told), "{err}");
    // A link without the bit that keeps #VE away is made on no host.
    let trace = file(
        "audit.trace",
        EPT.replace("new_spte 8600000143801b75", "new_spte 8600000143801b72"),
    );
    let (code, out, err) = slat(&["replay", &trace]);
    assert_eq!(code, 1, "{out}");
    assert!(err.contains("vm 0: A31 reserved-bits"), "{err}");
}

#[test]
fn replay_reads_recordings() {
    let split = "npt-l4/08-dirty-log-2m-eager-split";
    let (code, out, err) = slat(&["replay", split, "--at", "594"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        out.contains("0x400..0x600 l1 r-x pfn 0x143800 hw mw ad pat"),
        "{out}"
    );
    let (code, out, _) = slat(&[
        "replay",
        "npt-l4-legacy-mmu/01-first-fault-4k",
        "--at",
        "70",
    ]);
    assert!(
        code == 0 && out.contains("# the TDP MMU changed nothing"),
        "{out}"
    );
}

#[test]
fn wrong_traces_are_named() {
    let changed = file("broken.trace", EPT.replace("level 2 old", "level 9 old"));
    wrong(
        &["replay", &changed],
        "line 2, column 97: 9: not what kvm_tdp_mmu_spte_changed has here",
    );
    wrong(&["draw", &changed], "line 2, column 97");
    wrong(
        &["replay", &file("no.trace", "# tracer: nop\n#\n")],
        "no event of kvmmmu",
    );
    wrong(
        &["replay", &file("perf.data", "PERFILE2....")],
        "`perf script`",
    );
    wrong(
        &["replay", &file("trace.dat", b"\x17\x08\x44tracing\xff")],
        "`trace-cmd report`",
    );
    wrong(&["replay", &file("bytes", b"ab\xff")], "byte 2 is no text");
    wrong(&["replay", "/nonexistent"], "/nonexistent: ");
    let trace = file("good.trace", EPT);
    wrong(&["replay", &trace, "--vm", "7"], "--vm 7: ");
    wrong(&["replay", &trace, "--host", "vax p2"], "--host: vax: ");
    wrong(
        &["draw", &trace, "--from", "4", "--at", "3"],
        "--from 4: not before --at 3",
    );
    wrong(&["draw", &trace, "--private", "9..3"], "--private 9..3: ");
    wrong(
        &["draw", &trace, "-o", "/nonexistent/x.svg"],
        "/nonexistent/x.svg: ",
    );
    wrong(
        &["draw", "npt-l4-legacy-mmu/01-first-fault-4k"],
        "no change by the TDP MMU",
    );
}

/// How often a text is in another.
fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

#[test]
fn draw_shows_both_states() {
    let split = "npt-l4/08-dirty-log-2m-eager-split";
    let (code, out, err) = slat(&["draw", split, "--from", "74", "--at", "594"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("<svg") && out.trim_end().ends_with("</svg>"));
    assert!(
        out.contains(">\nBefore\n<") && out.contains("After KVM_SET_USER_MEMORY_REGION slot=1")
    );
    assert!(
        out.contains("4 tables, 1 x 4 KiB, 1 x 2 MiB") && out.contains("5 tables, 513 x 4 KiB")
    );
    // Four tables before and five after, of which one is new.
    assert_eq!(count(&out, "level 1 table"), 3);
    assert_eq!(count(&out, "table, gfn"), 9);
    assert!(out.contains("gfn 0x400..0x600: 2 MiB"));
    let picture = include_str!("../../../docs/replay.svg");
    let (_, again, _) = slat(&[
        "draw", split, "--from", "74", "--at", "594", "--title", TITLE,
    ]);
    assert_eq!(
        again.trim_end(),
        picture.trim_end(),
        "docs/replay.svg is not what slat draws"
    );
}

const TITLE: &str = "Dirty logging splits a huge page";

#[test]
fn draw_takes_dumps_and_private_frames() {
    let (_, out, _) = slat(&["replay", "npt-l4/27-gmem-attributes-4k", "--at", "97"]);
    let before = file("gmem-before.dump", out);
    let (_, out, _) = slat(&["replay", "npt-l4/27-gmem-attributes-4k", "--at", "135"]);
    let after = file("gmem-after.dump", out);
    let svg = file("gmem.svg", "");
    let args = [
        "draw",
        &before,
        &after,
        "--private",
        "0x400..0x402",
        "-o",
        &svg,
    ];
    assert_eq!(slat(&args), (0, String::new(), String::new()));
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(drawn.contains("private (hatched)") && drawn.contains("table or mapping that is new"));
    // In a recording the calls themselves say what is private.
    let (_, drawn, _) = slat(&["draw", "npt-l4/27-gmem-attributes-4k", "--at", "97"]);
    assert!(drawn.contains("private (hatched)"));
    let (_, drawn, _) = slat(&["draw", &after]);
    assert!(!drawn.contains("private (hatched)"));
}
