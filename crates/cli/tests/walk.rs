//! `slat walk` and `slat diff --area walk`, as a user runs them.

mod command;

use std::path::PathBuf;

use command::slat;
use serde_json::Value;

/// A dump: four tables of the guest from page 0 on, four of EPT from page 4 on, five of EPT from page 9 on.
fn dump(name: &str) -> String {
    let mut words = vec![0_u64; 16 * 512];
    for table in 0..5 {
        words[table * 512] = ((table as u64 + 1) << 12) | 0x27;
    }
    // With five levels page 4 holds the last table, else it is the page.
    words[4 * 512] = 0x27;
    for table in 9..13 {
        words[table * 512] = ((table as u64 + 1) << 12) | 0x107;
    }
    for page in 0..16 {
        words[13 * 512 + page] = (page as u64) << 12 | 0x337;
    }
    // The leaf of page 8 is missing, and the guest's page 1 leads there.
    words[13 * 512 + 8] = 0;
    words[3 * 512 + 1] = 0x8027;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, bytes).expect("the folder is there");
    path.to_str().expect("text").to_owned()
}

#[test]
fn the_ladder_has_24_references_and_with_five_levels_35() {
    let memory = dump("ladder.raw");
    let (code, out, err) = slat(&["walk", "--memory", &memory, "--cr3", "0", "0x8"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert_eq!(out.lines().count(), 1 + 4 + 1, "{out}");
    assert!(
        out.ends_with("0x8 -> 0x4008, 4K page, rights wux\n"),
        "{out}"
    );

    let nested = [
        "walk", "--memory", &memory, "--cr3", "0", "--eptp", "0xa05e", "0x8",
    ];
    let (code, out, err) = slat(&nested);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert_eq!(out.lines().count(), 1 + 24 + 1, "{out}");
    assert!(
        out.contains("\n 24     second L1 at 0xd020: 0x4337, rights wux\n"),
        "{out}"
    );

    let five = [
        "walk", "--memory", &memory, "--cr3", "0", "--cr4", "0x1020", "--eptp", "0x9066", "0x8",
    ];
    let (code, out, err) = slat(&five);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert_eq!(out.lines().count(), 1 + 35 + 1, "{out}");
}

#[test]
fn a_fault_is_explained_and_told_as_data() {
    let memory = dump("fault.raw");
    let (code, out, _) = slat(&[
        "walk", "--memory", &memory, "--cr3", "0", "--user", "--fetch", "0x2000",
    ]);
    assert_eq!(code, 1);
    assert!(
        out.contains("#PF(0x14 USER|FETCH) at 0x2000, level 1: the entry is not present"),
        "{out}"
    );

    let args = [
        "walk", "--json", "--memory", &memory, "--cr3", "0", "--eptp", "0xa05e", "0x1000",
    ];
    let (code, out, _) = slat(&args);
    assert_eq!(code, 1);
    let value: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value["references"].as_array().map(Vec::len), Some(24));
    assert_eq!(value["exit"], "EPT violation, qualification 0x181");
    assert!(
        value["fault"]
            .as_str()
            .is_some_and(|text| text.starts_with("second stage at 0x8000, the final page"))
    );
}

#[test]
fn wrong_questions_are_refused() {
    let memory = dump("refused.raw");
    for (args, part) in [
        (
            vec!["walk", "--memory", "/nonexistent/dump", "--cr3", "0", "0"],
            "/nonexistent/dump",
        ),
        (
            vec!["walk", "--memory", &memory, "--cr3", "0x", "0"],
            "is no number",
        ),
        (
            vec![
                "walk",
                "--memory",
                &memory,
                "--cr3",
                "0",
                "--maxphyaddr",
                "80",
                "0",
            ],
            "80",
        ),
    ] {
        let (code, out, err) = slat(&args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
        assert!(err.contains(part), "{args:?}: {err}");
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn the_kernel_says_the_same() {
    if let Err(why) = slat_vmm::kvm::Translator::open() {
        println!("skipped: {why}");
        return;
    }
    let memory = dump("kernel.raw");
    for (address, code, answer) in [
        ("0x8", 0, "KVM_TRANSLATE: 0x4008, as the model"),
        ("0x2000", 1, "KVM_TRANSLATE: not valid, as the model"),
    ] {
        let (got, out, err) = slat(&[
            "walk", "--memory", &memory, "--cr3", "0", "--on", "both", address,
        ]);
        assert_eq!((got, err.as_str()), (code, ""), "{out}");
        assert!(out.contains(answer), "{out}");
    }
    let (code, out, err) = slat(&[
        "diff", "--area", "walk", "--ops", "20000", "--seed", "5", "--json",
    ]);
    assert_eq!(code, 0, "{err}");
    let value: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value["translations"], 20000);
    assert_eq!(value["difference"], Value::Null);
}

/// The scene needs a kernel; which second stage it has depends on the kernel, how many references there are does not.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn a_guest_that_ran_shows_its_walk() {
    if let Err(why) = slat_vmm::kvm::AccessGuest::open() {
        println!("skipped: {why}");
        return;
    }
    for (levels, address, access) in [
        ("4", "0x123456789abc", "--write"),
        ("4", "0xffff812345678ff0", "--fetch"),
        ("5", "0xab123456789abc", "--write"),
    ] {
        let (code, out, err) = slat(&[
            "walk", "--live", "--levels", levels, access, "--json", address,
        ]);
        if code == 2 && err.contains("-level: KVM_SET_SREGS") {
            println!("skipped: {err}");
            continue;
        }
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        let value: Value = serde_json::from_str(&out).expect("JSON");
        let references = value["references"].as_array().expect("a list");
        let guest: usize = levels.parse().expect("a number");
        let second = value["second_levels"]
            .as_u64()
            .and_then(|n| usize::try_from(n).ok());
        let second = second.expect("a number");
        let all = guest * (second + 1) + second;
        assert_eq!(references.len(), all, "{guest} by {second} levels: {out}");
        let own = references.iter().filter(|one| one["dimension"] == "guest");
        assert_eq!(own.count(), guest);
        assert_eq!(value["guest"], "the access was made");
        println!("{all} references, {}", value["second_stage"]);
    }
    for (args, part) in [
        (vec!["0x1000"], "0x8000000000"),
        (vec!["0x4000000000000"], "canonical"),
        (vec!["--memory", "dump", "0x1000"], "cannot be used with"),
    ] {
        let args: Vec<&str> = ["walk", "--live"].into_iter().chain(args).collect();
        let (code, _, err) = slat(&args);
        assert_eq!(code, 2, "{args:?}");
        assert!(err.contains(part), "{args:?}: {err}");
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn accesses_of_a_guest_end_as_the_model_says() {
    if let Err(why) = slat_vmm::kvm::AccessGuest::open() {
        println!("skipped: {why}");
        return;
    }
    let (code, out, err) = slat(&[
        "diff", "--area", "access", "--ops", "3000", "--seed", "5", "--json",
    ]);
    assert_eq!(code, 0, "{err}");
    let value: Value = serde_json::from_str(&out).expect("JSON");
    assert!(
        value["accesses"]
            .as_u64()
            .is_some_and(|count| count >= 3000)
    );
    assert_eq!(value["difference"], Value::Null);
}
