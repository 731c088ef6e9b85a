//! The runner, as a user runs it, on each kernel that was set up.
//!
//! The oracle is the host's own shell, which runs inside: what it is told to print, write and return has to come out.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Runs `script` in a machine with this kernel; nothing if that kernel was never set up.
fn shell<S: AsRef<OsStr>>(kernel: &str, options: &[S], script: &str) -> Option<Output> {
    let output = Command::new(env!("CARGO_BIN_EXE_slat-vm"))
        .env_remove("SLAT_VM_OPTIONS")
        .args(["run", "--kernel", kernel, "--timeout", "300"])
        .args(options)
        .args(["--", "sh", "-c", script])
        .output()
        .unwrap();
    let error = text(&output.stderr);
    if output.status.code() == Some(125) && error.contains("is not there yet") {
        println!("skipped: {error}");
        return None;
    }
    Some(output)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const KERNELS: [&str; 2] = ["built", "debian"];
const NO_OPTIONS: [&str; 0] = [];

#[test]
fn status_and_both_streams_come_out() {
    for kernel in KERNELS {
        let script = "echo out; echo err >&2; exit 7";
        let Some(output) = shell(kernel, &NO_OPTIONS, script) else {
            continue;
        };
        assert_eq!(text(&output.stdout), "out\n");
        assert_eq!(text(&output.stderr), "err\n");
        assert_eq!(output.status.code(), Some(7));
    }
}

/// Arguments, variables and the current folder are those of the host.
#[test]
fn surroundings_are_those_of_the_host() {
    let script = r#"printf '%s|' "$PWD" "$CARGO_MANIFEST_DIR" "it's"; id -u"#;
    let Some(output) = shell("built", &NO_OPTIONS, script) else {
        return;
    };
    let here = env!("CARGO_MANIFEST_DIR");
    assert_eq!(text(&output.stdout), format!("{here}|{here}|it's|0\n"));
}

/// Three megabytes, in lines and without a last newline.
#[test]
fn long_output_is_complete() {
    let Some(output) = shell("built", &NO_OPTIONS, "seq 1 400000; printf end") else {
        return;
    };
    let mut expected: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    expected.push_str("end");
    assert_eq!(output.stdout.len(), expected.len());
    assert!(text(&output.stdout) == expected, "lines are out of order");
}

#[test]
fn files_come_back_from_writable_folders_only() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let shared = folder.path().join("shared, with a comma");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("in"), "from the host").unwrap();
    let script = format!(
        "cd '{}' && cp in out && echo more >../lost && cat ../lost",
        shared.display()
    );
    let options = ["--write".as_ref(), shared.as_os_str()];
    let Some(output) = shell("built", &options, &script) else {
        return;
    };
    assert_eq!(text(&output.stdout), "more\n", "{}", text(&output.stderr));
    assert_eq!(
        fs::read_to_string(shared.join("out")).unwrap(),
        "from the host"
    );
    assert!(!folder.path().join("lost").exists());
}

#[test]
fn a_program_that_hangs_is_stopped() {
    let started = Instant::now();
    let script = "echo begun; while :; do :; done";
    let Some(output) = shell("built", &["--timeout", "45"], script) else {
        return;
    };
    assert_eq!(output.status.code(), Some(124));
    assert_eq!(text(&output.stdout), "begun\n");
    let error = text(&output.stderr);
    assert!(error.contains("did not end within 45 seconds"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(200));
}

#[test]
fn a_machine_that_breaks_down_is_told_from_a_program_that_fails() {
    let script = "echo o >/proc/sysrq-trigger; sleep 60";
    let Some(output) = shell("debian", &NO_OPTIONS, script) else {
        return;
    };
    assert_eq!(output.status.code(), Some(125));
    let error = text(&output.stderr);
    assert!(error.contains("ended without a result"), "{error}");
}

/// What the options promise, as the kernel in the machine sees it: the MMU's parameters, the processors with five
/// levels, the huge pages of either size, NX huge pages.
#[test]
fn options_reach_the_kernel() {
    const SCRIPT: &str = "cat /sys/module/kvm/parameters/tdp_mmu /sys/module/kvm_amd/parameters/npt; \
        grep -c -w la57 /proc/cpuinfo; \
        cat /sys/kernel/mm/hugepages/*/nr_hugepages | sort -n; \
        cat /sys/module/kvm/parameters/nx_huge_pages";
    let much = "--mmu direct --levels 5 --cpus 2 --memory 4096 --hugepages 2M=9 --hugepages 1G=1 \
        --append kvm.nx_huge_pages=force";
    let cases = [
        ("built", "--levels 4", "Y\nY\n0\n0\n0\nN\n"),
        ("built", "--mmu shadow", "N\nN\n0\n0\n0\nN\n"),
        ("built", much, "N\nY\n2\n1\n9\nY\n"),
        ("debian", much, "N\nY\n2\n1\n9\nY\n"),
    ];
    for (kernel, options, expected) in cases {
        let options: Vec<&str> = options.split_whitespace().collect();
        let Some(output) = shell(kernel, &options, SCRIPT) else {
            continue;
        };
        assert_eq!(text(&output.stdout), expected, "{kernel} {options:?}");
    }
}

/// What only the built kernel has, and what both have.
#[test]
fn kernels_have_what_they_are_for() {
    let script = "test -c /dev/kvm && test -d /sys/kernel/tracing/events/kvmmmu/kvm_tdp_mmu_spte_changed \
        && test -d /sys/kernel/debug/kvm && uname -r";
    for (kernel, name) in [("built", "-slat"), ("debian", "-amd64")] {
        if let Some(output) = shell(kernel, &NO_OPTIONS, script) {
            assert!(output.status.success());
            let release = text(&output.stdout);
            assert!(release.starts_with("6.12."), "{release}");
            assert!(release.trim_end().ends_with(name), "{release}");
        }
    }
    if let Some(output) = shell("built", &NO_OPTIONS, "zcat /proc/config.gz") {
        let has = text(&output.stdout);
        for option in ["KVM_SW_PROTECTED_VM", "KVM_SMM", "KVM_PROVE_MMU"] {
            assert!(has.contains(&format!("CONFIG_{option}=y\n")), "{option}");
        }
    }
}

/// Times are those of the host: a second inside is no longer or shorter than one outside.
#[test]
fn clocks_run_at_the_hosts_pace() {
    for kernel in KERNELS {
        let script = "date +%s%N; sleep 4; date +%s%N";
        let Some(output) = shell(kernel, &NO_OPTIONS, script) else {
            continue;
        };
        let stamps: Vec<u64> = text(&output.stdout)
            .lines()
            .map(|line| line.parse().unwrap())
            .collect();
        let seconds = (stamps[1] - stamps[0]) / 1_000_000_000;
        assert!((4..20).contains(&seconds), "{kernel}: {seconds} s");
    }
}

/// What the runner itself refuses, and what a signal ends.
#[test]
fn what_is_wrong_is_said() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_slat-vm"))
            .args(arguments)
            .output()
            .unwrap()
    };
    let absent = Path::new("/absent/program");
    for (arguments, expected) in [
        (
            &["run", "--kernel", "/absent/kernel", "--", "true"][..],
            "cannot boot /absent/kernel: No such file",
        ),
        (
            &["run", "--hugepages", "4K=1", "--", "true"],
            "huge pages are of 2M or 1G, not of 4K",
        ),
        (&["run", "--levels", "3", "--", "true"], "3 is not in 4..=5"),
    ] {
        let output = run(arguments);
        let error = text(&output.stderr);
        assert!(!output.status.success());
        assert!(error.contains(expected), "{error}");
    }
    if let Some(output) = shell("built", &NO_OPTIONS, "kill -9 $$") {
        assert_eq!(output.status.code(), Some(128 + 9));
        let output = run(&["run", "--", absent.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(125));
        assert_eq!(
            text(&output.stderr),
            "slat-vm: there is no /absent/program\n"
        );
    }
}
