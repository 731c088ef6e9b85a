//! The built command, as a user runs it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// Runs `slat`; gives exit code, standard output, standard error.
fn slat(args: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_slat"))
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

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

/// Explains with a fixed profile; the output must be this, and the exit code 1.
fn refused(args: &[&str], expected: &str) {
    let mut all = vec!["explain", "--profile", "linux-6.12"];
    all.extend(args);
    let (code, out, err) = slat(&all);
    assert_eq!(out, expected, "{err}");
    assert_eq!(code, 1);
}

/// How many lines a way that is printed has.
fn way(lines: &str) -> Vec<&str> {
    let (_, way) = lines.split_once("what would make it succeed:\n").unwrap();
    way.lines().map(str::trim).collect()
}

#[test]
fn logging_private_memory() {
    refused(
        &[
            "region",
            "--vm-type",
            "snp",
            "--slot",
            "0",
            "--gpa",
            "0",
            "--size",
            "2M",
            "--hva",
            "A",
            "--flags",
            "KVM_MEM_LOG_DIRTY_PAGES,KVM_MEM_GUEST_MEMFD",
            "--gmem",
            "new:2M",
        ],
        "\
set_user_memory_region2 slot=0 flags=LOG_DIRTY_PAGES|GUEST_MEMFD gpa=0 size=0x200000 hva=A gmem=new
refused with EINVAL: log-with-gmem
  KVM_MEM_LOG_DIRTY_PAGES and KVM_MEM_GUEST_MEMFD exclude each other
  kernel: kvm_main.c:check_memory_region_flags, since 6.8
  profile: linux-6.12 (by --profile)
  fact: guest_memfd = true, observed on Debian 6.12.117
  note: assumed that VMs of type snp can be made; linux-6.12 does not say so
what would make it succeed:
  create_guest_memfd new size=2M
  set_user_memory_region2 slot=0 flags=GUEST_MEMFD gpa=0 size=0x200000 hva=A gmem=new
",
    );
}

#[test]
fn two_faults_at_once() {
    refused(
        &[
            "region", "--v1", "--slot", "0", "--gpa", "0x800", "--size", "64K", "--hva", "A+0x10",
        ],
        "\
set_user_memory_region slot=0 gpa=0x800 size=0x10000 hva=A+0x10
refused with EINVAL: gpa-unaligned
  guest_phys_addr 0x800 is no multiple of 4096
  kernel: kvm_main.c:kvm_set_memory_region, always
  profile: linux-6.12 (by --profile)
behind it: EINVAL: hva-unaligned: userspace_addr 0x7f0000000010 is no multiple of 4096
what would make it succeed:
  set_user_memory_region slot=0 gpa=0 size=0x10000 hva=A
",
    );
}

#[test]
fn overlap() {
    refused(
        &[
            "line",
            "--with",
            "set_user_memory_region slot=0 gpa=0 size=64K hva=A",
            "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=1, flags=0, guest_phys_addr=0xf000, memory_size=65536, \
             userspace_addr=0x7f1234560000}) = -1 EEXIST (File exists)",
        ],
        "\
set_user_memory_region slot=1 gpa=0xf000 size=0x10000 hva=0x7f1234560000
refused with EEXIST: overlap
  slot 1 would overlap slot 0, which holds guest frames [0x0, 0x10)
  kernel: kvm_main.c:kvm_check_memslot_overlap, always
  profile: linux-6.12 (by --profile)
what would make it succeed:
  set_user_memory_region slot=1 gpa=0x10000 size=0x10000 hva=0x7f1234560000
",
    );
}

#[test]
fn deleting_what_is_not_there() {
    let (code, out, _) = slat(&[
        "explain",
        "--profile",
        PVM,
        "region",
        "--slot",
        "3",
        "--size",
        "0",
    ]);
    assert_eq!(code, 1);
    assert!(
        out.contains("refused with EINVAL: delete-absent\n"),
        "{out}"
    );
}

#[test]
fn a_slot_cannot_grow() {
    let context = file(
        "grow.slat",
        "set_user_memory_region slot=0 gpa=0 size=64K hva=A => ok\n",
    );
    let line = "set_user_memory_region slot=0 gpa=0 size=128K hva=A";
    let (code, out, err) = slat(&[
        "explain",
        "--profile",
        PVM,
        "--context",
        &context,
        "line",
        line,
    ]);
    assert_eq!(code, 1, "{err}");
    assert!(out.contains("refused with EINVAL: size-changed\n"), "{out}");
}

#[test]
fn a_guest_memfd_that_is_too_small() {
    let (code, out, err) = slat(&[
        "explain",
        "--profile",
        PVM,
        "region",
        "--slot",
        "0",
        "--gpa",
        "0",
        "--size",
        "64K",
        "--hva",
        "A",
        "--flags",
        "GUEST_MEMFD",
        "--gmem",
        "new:32K",
    ]);
    assert_eq!(code, 1, "{err}");
    assert!(
        out.contains("refused with EINVAL: gmem-beyond-file\n"),
        "{out}"
    );
    assert_eq!(way(&out).first(), Some(&"create_guest_memfd new size=32K"));
}

#[test]
fn a_move_that_fails_has_zapped_already() {
    refused(
        &[
            "region",
            "--with",
            "set_user_memory_region slot=0 gpa=0 size=64K hva=A",
            "--slot",
            "0",
            "--gpa",
            "0x1000000000000",
            "--size",
            "64K",
            "--hva",
            "A",
        ],
        "\
set_user_memory_region2 slot=0 gpa=0x1000000000000 size=0x10000 hva=A
refused with EINVAL: gfn-too-high
  the last frame 0x100000000f is above 0x3ffffffff, the highest that the MMU can map
  kernel: x86.c:kvm_arch_prepare_memory_region, since 5.19
  profile: linux-6.12 (by --profile)
  fact: tdp = true, observed on Debian 6.12.117
  fact: maxphyaddr = 46, inferred: a common Intel server
the refused call leaves behind: as 0 is now generation 0x6; zapped: all roots of the VM (a default VM with the quirk \
         SLOT_ZAP_ALL on)
what would make it succeed:
  set_user_memory_region2 slot=0 gpa=0x10000 size=0x10000 hva=A
",
    );
}

/// What is offered as the way to success does succeed.
#[test]
fn a_way_can_be_run() {
    let region = [
        "--slot",
        "0",
        "--gpa",
        "0x1800",
        "--size",
        "64K",
        "--hva",
        "A",
        "--flags",
        "GUEST_MEMFD",
        "--gmem",
        "none",
    ];
    let mut args = vec!["explain", "--profile", PVM, "--json", "region"];
    args.extend(region);
    let (code, out, _) = slat(&args);
    assert_eq!(code, 1);
    let answer = json(&out);
    let lines = answer["repair"]["lines"].as_array().unwrap();
    let text: String = lines
        .iter()
        .map(|l| format!("{} => ok\n", l.as_str().unwrap()))
        .collect();
    let (code, out, err) = slat(&["run", "--profile", PVM, &file("way.slat", &text)]);
    assert_eq!(code, 0, "{text}{out}{err}");
}

#[test]
fn an_accepted_delete_says_what_is_zapped() {
    let (code, out, _) = slat(&[
        "explain",
        "--profile",
        "linux-6.12",
        "--with",
        "set_user_memory_region slot=0 gpa=0 size=64K hva=A",
        "region",
        "--slot",
        "0",
        "--size",
        "0",
    ]);
    assert_eq!(code, 0);
    assert!(
        out.contains("plan: delete slot 0: guest frames [0x0, 0x10)\n"),
        "{out}"
    );
    assert!(out.contains("  fact: slot_zap = ByTypeAndQuirk, "), "{out}");
    let (_, out, _) = slat(&[
        "explain",
        "--profile",
        "linux-6.12",
        "--zap-leafs-flag",
        "--with",
        "set_user_memory_region2 slot=0 flags=ZAP_LEAFS_ONLY gpa=0 size=64K hva=A",
        "region",
        "--slot",
        "0",
        "--size",
        "0",
        "--flags",
        "ZAP_LEAFS_ONLY",
    ]);
    assert!(
        out.contains("the slot's flag KVM_MEM_ZAP_LEAFS_ONLY (experiment)"),
        "{out}"
    );
}

#[test]
fn the_other_questions() {
    let ask = |args: &[&str]| {
        let mut all = vec!["explain", "--profile", PVM, "--json"];
        all.extend(args);
        let (code, out, err) = slat(&all);
        assert!(err.is_empty(), "{err}");
        (
            code,
            json(&out)["reason"]["code"].as_str().map(str::to_owned),
        )
    };
    let why = |code: &str| (1, Some(code.to_owned()));
    assert_eq!(ask(&["gmem", "--size", "64K"]), (0, None));
    assert_eq!(ask(&["gmem", "--size", "0"]), why("gmem-size"));
    let attributes = [
        "attributes",
        "--address",
        "0",
        "--size",
        "4K",
        "--attributes",
        "PRIVATE",
    ];
    assert_eq!(ask(&attributes), why("no-attributes"));
    assert_eq!(
        ask(&["dirty-log", "get", "--slot", "0"]),
        why("dirty-no-slot")
    );
    let clear = ["dirty-log", "clear", "--slot", "0", "--num-pages", "64"];
    assert_eq!(ask(&clear), why("dirty-no-slot"));
}

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
