//! The built command, as a user runs it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod answers;
mod command;

use std::path::PathBuf;

use command::slat;
use serde_json::Value;

/// A file with this text, gone with the test run.
fn file(name: &str, text: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

const QEMU: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/qemu.strace");
const PVM: &str = "linux-6.18.44-pvm";

/// Wrong input: exit code 2 and this in the message.
fn wrong(args: &[&str], parts: &[&str]) {
    let (code, out, err) = slat(args);
    assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
    for part in parts {
        assert!(err.contains(part), "{args:?}: {err}");
    }
}

#[test]
fn wrong_input_is_named() {
    let region = |slot: &'static str, more: &[&'static str]| {
        let args = [
            "explain", "region", "--gpa", "0", "--size", "4K", "--hva", "A", "--slot", slot,
        ];
        [&args, more].concat()
    };
    wrong(&region("70000x", &[]), &["slot=70000x: not a number"]);
    wrong(
        &region("0", &["--gmem-offset", "0x1ffffffffffffffff"]),
        &["gmem_offset=0x1ffffffffffffffff: "],
    );
    wrong(
        &region("0", &["--gmem-offset", "20000000T"]),
        &["gmem_offset=20000000T: "],
    );
    wrong(&region("0", &["--gmem", "a b"]), &["--gmem", "a b"]);
    wrong(
        &region("0", &["--gmem", "nobody"]),
        &["nobody is no guest_memfd"],
    );
    wrong(
        &region("0", &["--profile", "linux-0.99"]),
        &["linux-0.99", "linux-6.12", PVM],
    );
    wrong(&region("0", &["--vm-type", "vax"]), &["--vm-type: ", "vax"]);
    wrong(
        &region("0", &["--with", "frob"]),
        &["--with \"frob\": frob: no such operation"],
    );
    wrong(
        &region("0", &["--with", "get_dirty_log slot=0"]),
        &["--with \"get_dirty_log slot=0\": ", "ENOENT"],
    );
    wrong(
        &region("0", &["--context", "/nonexistent.slat"]),
        &["/nonexistent.slat"],
    );
    wrong(&["explain"], &["what is to be explained"]);
    wrong(&["explain", "line", "vm a"], &["not a call"]);
    wrong(
        &["explain", "line", "ioctl(4, KVM_GET_DIRTY_LOG, 0x7ffe) = 0"],
        &["KVM_GET_DIRTY_LOG", "not shown"],
    );
    wrong(&["explain", "--strace", "/nonexistent"], &["/nonexistent"]);
    wrong(
        &["explain", "--strace", &file("empty.strace", "")],
        &["no memory ioctl"],
    );
    wrong(&["explain", "profiles", "none"], &["linux-7.1"]);
}

#[test]
fn a_broken_scenario_is_refused_with_line_and_value() {
    let broken = file(
        "broken.slat",
        "case \"x\"\n\nset_user_memory_region slot=0 gpa=0 size=4Q hva=A => ok\n",
    );
    wrong(
        &["run", &broken],
        &["broken.slat: line 3, column ", "size=4Q"],
    );
    let unknown = file("unknown.slat", "create_vcpu => ok\n");
    wrong(
        &["run", "--profile", "x", &unknown],
        &["no profile \"x\"", PVM],
    );
}

#[test]
fn run_counts_and_names_what_differs() {
    let text = "profile linux-6.12\nset_user_memory_region slot=0 gpa=0 size=4K hva=A => ok\n\
                set_user_memory_region slot=1 gpa=0 size=4K hva=A => EINVAL\ncreate_vcpu\n";
    let path = file("differs.slat", text);
    let (code, out, _) = slat(&["run", &path]);
    assert_eq!(code, 1);
    assert!(
        out.contains("on the model of linux-6.12 (as the file says)\n"),
        "{out}"
    );
    assert!(
        out.contains("  line 3: set_user_memory_region slot=1 gpa=0 size=0x1000 hva=A\n"),
        "{out}"
    );
    assert!(
        out.contains("    expected EINVAL, got EEXIST (slot 1 would overlap slot 0"),
        "{out}"
    );
    assert!(
        out.contains("  1 agree, 1 unchecked, 1 differ, 0 not tried\n"),
        "{out}"
    );
    let (_, out, _) = slat(&["run", "--json", &path]);
    assert_eq!(json(&out)[0]["differ"][0]["reason"], "overlap");
    let (code, out, _) = slat(&["run", &file("nothing.slat", "# nothing\n")]);
    assert_eq!(code, 1, "nothing ran: {out}");
}

#[test]
fn run_plays_tds() {
    let path = |name| format!("{}/../vmm/scenarios/tdx/{name}", env!("CARGO_MANIFEST_DIR"));
    let (mistakes, answers) = (path("mistakes.slat"), path("answers-errno.slat"));
    let (code, out, _) = slat(&["run", &mistakes, &answers]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("linux-6.18-tdx") && out.contains("linux-7.3-rc1-tdx"));
    let (code, _, _) = slat(&["run", "--profile", "linux-6.18", &mistakes]);
    assert_ne!(code, 0, "a host without TDX makes no TD");
}

#[test]
fn run_on_the_kernel_or_a_clear_error() {
    let path = file(
        "kvm.slat",
        "set_user_memory_region slot=0 gpa=0 size=4K hva=A => ok\n",
    );
    for on in ["kvm", "both"] {
        let (code, out, err) = slat(&["run", "--on", on, &path]);
        match code {
            0 => assert!(
                out.contains("  1 agree, 0 unchecked, 0 differ, 0 not tried\n"),
                "{out}"
            ),
            _ => {
                println!("skipped: {err}");
                assert_eq!(code, 2);
                assert!(err.contains("/dev/kvm"), "{err}");
            }
        }
    }
}

#[test]
fn a_log_of_qemu_is_predicted() {
    let (code, out, err) = slat(&["explain", "--profile", PVM, "--strace", QEMU]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(
        out.contains("\n50 predicted right, 0 wrong, 40 undecoded, 0 not compared\n"),
        "{out}"
    );
    assert!(out.contains("from line 19 on, the model's state may be incomplete: it lacks the arguments of KVM_ENABLE_CAP"));
    let log = std::fs::read_to_string(QEMU).unwrap();
    let damaged = log.replacen("memory_size=268435456", "memory_size=268435457", 1);
    let (code, out, _) = slat(&[
        "explain",
        "--profile",
        PVM,
        "--json",
        "--strace",
        &file("damaged.strace", &damaged),
    ]);
    assert_eq!(code, 1);
    assert_eq!(json(&out)["wrong"][0]["reason"], "size-unaligned");
}

#[test]
fn catalogues() {
    let (code, out, _) = slat(&["explain", "reasons", "--json"]);
    assert_eq!(code, 0);
    assert!(json(&out).as_array().unwrap().len() > 80);
    let (_, out, _) = slat(&["explain", "reasons"]);
    assert!(
        out.contains("kvm_main.c:check_memory_region_flags"),
        "{out}"
    );
    let (_, out, _) = slat(&["explain", "profiles"]);
    assert!(out.lines().any(|line| line == PVM), "{out}");
    let (_, out, _) = slat(&["explain", "profiles", PVM]);
    assert!(
        out.contains("slot_zap") && out.contains("observed on "),
        "{out}"
    );
}

/// `slat` records itself running a scenario on the kernel.
#[test]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn record_and_run_again() {
    let input = file(
        "recorded-input.slat",
        "set_user_memory_region slot=0 gpa=0x800 size=4K hva=A => EINVAL\n",
    );
    let (code, _, err) = slat(&["run", "--on", "kvm", &input]);
    if code == 2 {
        assert!(err.contains("/dev/kvm"), "{err}");
        return println!("skipped: {err}");
    }
    let output = file("recorded-output.slat", "");
    let program = env!("CARGO_BIN_EXE_slat");
    let (code, out, err) = slat(&[
        "record",
        "-o",
        &output,
        "--timeout",
        "60",
        "--",
        program,
        "run",
        "--on",
        "kvm",
        &input,
    ]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("the program exited with 0\n"), "{out}");
    let text = std::fs::read_to_string(&output).unwrap();
    assert!(
        text.contains("gpa=0x800 size=0x1000 hva=0x") && text.contains("=> EINVAL\n"),
        "{text}"
    );
    for on in ["model", "both"] {
        let (code, out, err) = slat(&["run", "--on", on, &output]);
        assert_eq!(code, 0, "{out}{err}");
    }
}

#[test]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn record_says_what_it_cannot_start() {
    let output = file("unstarted.slat", "");
    wrong(
        &["record", "-o", &output, "--", "/nonexistent/vmm"],
        &["/nonexistent/vmm"],
    );
    let (code, _, err) = slat(&["record", "-o", &output]);
    assert_eq!(code, 2, "{err}");
}

#[test]
fn diff_refuses_a_wrong_area() {
    let (code, _, err) = slat(&["diff", "--area", "nowhere"]);
    assert_eq!(code, 2);
    assert!(err.contains("nowhere"), "{err}");
}

const TABLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tables.txt");

#[test]
fn dump_prints_what_the_documentation_shows() {
    let (code, out, err) = slat(&["dump", TABLES]);
    assert_eq!((code, err.as_str()), (0, ""));
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/dump.md");
    let Ok(page) = std::fs::read_to_string(page) else {
        println!("skipped: docs/dump.md is absent, as in a package");
        return;
    };
    let script = std::fs::read_to_string(TABLES).unwrap();
    assert!(page.contains(&format!("```\n{script}```\n")));
    assert!(page.contains(&format!("```\n{out}```\n")), "{out}");
}

#[test]
fn dump_reads_what_it_prints() {
    let (_, plain, _) = slat(&["dump", TABLES]);
    for option in ["--events", "--raw"] {
        let (code, out, _) = slat(&["dump", option, TABLES]);
        assert_eq!(code, 0);
        let printed = file("printed.dump", &out);
        let (code, again, err) = slat(&["dump", &printed]);
        assert_eq!((code, err.as_str()), (0, ""));
        assert_eq!(again == plain, option == "--events");
        let diff = slat(&["dump", "--diff", &printed, TABLES]);
        assert_eq!(diff, (0, String::new(), String::new()));
    }
    let (_, events, _) = slat(&["dump", "--events", TABLES]);
    let told = "# line 10: map normal 0x200 0x4200 2m\n#   kvm_mmu_spte_requested: gfn 200 pfn 4200 level 2\n#   kvm_tdp_mmu_spte_changed: as id 0 gfn 200 level 2 ";
    assert!(events.contains(told), "{events}");
}

#[test]
fn dump_prints_json() {
    let value = json(&slat(&["dump", "--json", "--events", TABLES]).1);
    let roots = value["roots"].as_array().unwrap();
    assert_eq!(roots[1]["role"]["baseline"], 0x3784);
    assert_eq!(roots[1]["ranges"][3]["pfn"], 0x4200);
    assert_eq!(roots[1]["ranges"][4]["kind"], "mmio");
    assert_eq!(value["events"][0]["line"], 4);
}

#[test]
fn dump_names_what_differs() {
    let script = std::fs::read_to_string(TABLES).unwrap();
    let more = file("more.tables", &format!("{script}zap 0x1ff..0x201\n"));
    let (code, out, err) = slat(&["dump", "--diff", TABLES, &more]);
    assert_eq!((code, err.as_str()), (1, ""));
    let changes: Vec<&str> = out.lines().skip(2).collect();
    assert_eq!(
        changes,
        [
            " root 0.0 valid refs 2",
            "-  0x1ff..0x200 l1 rwx pfn 0x7771ff hw mw ad pat",
            "-  0x200..0x400 l2 rwx pfn 0x4200 hw mw ad pat",
        ]
    );
    let value = json(&slat(&["dump", "--json", "--diff", TABLES, &more]).1);
    assert_eq!(value["roots"][0]["removed"][1]["level"], 2);
}

#[test]
fn dump_tells_what_is_wrong() {
    let broken = file("broken.tables", "root a\nmap a 0x8..0x2 1\n");
    wrong(
        &["dump", &broken],
        &["broken.tables: line 2, column 7: 0x8..0x2: "],
    );
    let dump = file("broken.dump", "slat-dump 1 npt p9 maxphyaddr 48\n");
    wrong(&["dump", &dump], &["broken.dump: line 1: p9: none of p1"]);
    wrong(&["dump", "/nonexistent"], &["/nonexistent"]);
    wrong(&["dump", "--diff", "-", "-"], &["standard input"]);
    let unexpected = file("unexpected.tables", "root a\nmap a 7 7\nmap a 7 8\n");
    let (code, out, err) = slat(&["dump", &unexpected]);
    assert_eq!(code, 1);
    assert!(out.contains("0x7..0x8 l1 rwx pfn 0x7 "));
    assert!(err.contains("line 3: map a 7 8: expected no error, got error pfn-changed"));
}

#[test]
fn replay_predicts_and_says_what_it_cannot() {
    let (code, out, err) = slat(&["replay", "--predict", "npt-l4/01-first-fault-4k"]);
    let told = "npt-l4/01-first-fault-4k: 45 events and results as predicted\n";
    assert_eq!((code, out.as_str(), err.as_str()), (0, told, ""));
    for other in [
        "npt-l4/42-nested-l2-with-npt",
        "ept-l4-legacy-mmu/01-first-fault-4k",
    ] {
        let (code, out, _) = slat(&["replay", "--predict", other]);
        assert_eq!(code, 0, "{out}");
    }
    let cut = "ept-l4-noad/36-pre-fault-obsolete-root";
    let (code, out, _) = slat(&["replay", "--predict", cut]);
    assert_eq!(code, 3, "{out}");
    assert!(
        out.contains("what happened before the recording begins"),
        "{out}"
    );
    let (code, out, _) = slat(&["replay", "--list"]);
    assert_eq!(code, 0);
    assert!(
        out.lines().any(|line| line == "ept-l5/54-maxphyaddr-39"),
        "{out}"
    );
    wrong(
        &["replay", "--predict", "nowhere/at-all"],
        &["nowhere/at-all: no file"],
    );
}

#[test]
fn replay_finds_the_first_difference() {
    let text = "# scenario one status 0\nOP KVM_CREATE_VM type=0\nRET 5\nOP KVM_CREATE_VCPU id=0\nRET -1 EINVAL\n";
    let path = file("one.txt", text);
    wrong(&["replay", "--predict", &path], &["say --machine"]);
    let args = ["replay", "--machine", "npt-l4", "--predict", &path];
    let (code, out, _) = slat(&args);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("line 5: another result"), "{out}");
    let (code, out, _) = slat(&[&["replay", "--json"], &args[1..]].concat());
    let value = json(&out);
    assert_eq!((code, &value[0]["line"]), (1, &5.into()), "{out}");
    assert_eq!(value[0]["compared"], 1);
}
