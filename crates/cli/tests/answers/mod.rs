//! What `slat explain` says about single calls.

use super::{PVM, file, json, slat};

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
