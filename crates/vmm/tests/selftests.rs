//! KVM's own selftests, traced on the kernel that this runs on: page tables are rebuilt from what the kernel told, which must
//! not contradict itself, and be sound.
//!
//! `cargo vm selftests` builds the programs from Debian's source package and runs this next to a kernel with the TDP MMU. It
//! says where they are by `SLAT_SELFTESTS`; `SLAT_SELFTEST` chooses some by a part of their names, `SLAT_TRACES` is a folder that
//! keeps the traces, and with `SLAT_SELFTESTS_LONG` each test runs as long as it does by itself.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use slat_memslot::VmType;
use slat_vmm::capture::{Capture, Captured, EVENTS, RoleProbe, Setup, Whose};
use slat_vmm::live::here;
use slat_vmm::rebuild::{Options, Rebuilt, rebuild};

/// One of KVM's tests.
struct Selftest {
    name: &'static str,
    /// Arguments that make it short.
    short: &'static [&'static str],
    /// Those that it needs at any length.
    always: &'static [&'static str],
    needs: Needs,
}

/// What a kernel must have for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    PrivateMemory,
    /// Parameters as the script has them that comes with the test, and huge pages.
    NxHugePages,
}

const SELFTESTS: &[Selftest] = &[
    Selftest {
        name: "set_memory_region_test",
        short: &["3"],
        always: &[],
        needs: Needs::Nothing,
    },
    Selftest {
        name: "pre_fault_memory_test",
        short: &[],
        always: &[],
        needs: Needs::Nothing,
    },
    Selftest {
        name: "private_mem_conversions_test",
        short: &[],
        always: &[],
        needs: Needs::PrivateMemory,
    },
    Selftest {
        name: "private_mem_kvm_exits_test",
        short: &[],
        always: &[],
        needs: Needs::PrivateMemory,
    },
    Selftest {
        name: "dirty_log_test",
        short: &["-i", "3", "-M", "dirty-log"],
        always: &[],
        needs: Needs::Nothing,
    },
    Selftest {
        name: "smm_test",
        short: &[],
        always: &[],
        needs: Needs::Nothing,
    },
    Selftest {
        name: "nx_huge_pages_test",
        short: &[],
        // A number by which the test knows that its parameters were set, and their period.
        always: &["-t", "887563923", "-p", "2000", "-r"],
        needs: Needs::NxHugePages,
    },
];

/// How many bytes of events each processor keeps, in KiB.
const BUFFER_KIB: u32 = 192 << 10;
/// What the test says that cannot run here.
const SKIPPED: i32 = 4;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[test]
fn page_tables_are_rebuilt_from_traces_of_kvms_selftests() {
    let Some(programs) = variable("SLAT_SELFTESTS").map(PathBuf::from) else {
        println!("skipped: no selftests here; `cargo vm selftests` has them");
        return;
    };
    let machine = match here() {
        Ok(machine) => machine,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let private_memory = machine.profile.supports(VmType::SwProtected);
    let only = variable("SLAT_SELFTEST").unwrap_or_default();
    let mut wrong = Vec::new();
    for test in SELFTESTS.iter().filter(|test| test.name.contains(&only)) {
        if test.needs == Needs::PrivateMemory && !private_memory {
            println!(
                "{}: skipped: this kernel has no software-protected VMs",
                test.name
            );
            continue;
        }
        if let Err(why) = one(test, &programs) {
            println!("{}: WRONG: {why}", test.name);
            wrong.push(test.name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join(", "));
}

/// Runs one test, and says what is wrong.
fn one(test: &Selftest, programs: &Path) -> Result<(), String> {
    let before = match test.needs {
        Needs::NxHugePages => Parameters::set(NX_HUGE_PAGES)?,
        Needs::Nothing | Needs::PrivateMemory => Parameters::default(),
    };
    let begin = Instant::now();
    let captured = run(test, programs)?;
    drop(before);
    let ran = begin.elapsed().as_secs_f64();
    if let Some(folder) = variable("SLAT_TRACES") {
        let path = Path::new(&folder).join(format!("{}.txt", test.name));
        fs::write(&path, &captured.text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if captured.lost.events() != 0 {
        return Err(format!("{:?}: the buffer is too small", captured.lost));
    }
    let rebuilt = rebuild(&captured.text, &Options::default()).map_err(|e| e.to_string())?;
    let (counts, seconds) = (&rebuilt.counts, begin.elapsed().as_secs_f64());
    println!(
        "{}: {} changes, {} failures; inferred: {}; ran {ran:.1} s, {:.1} s in all",
        test.name,
        counts.changes,
        rebuilt.failures.len(),
        inferred(&rebuilt),
        seconds
    );
    judge(&rebuilt)
}

/// The test with everything that the kernel's MMU told meanwhile.
fn run(test: &Selftest, programs: &Path) -> Result<Captured, String> {
    let roles = RoleProbe::add().ok();
    let probe = roles.iter().map(|_| &RoleProbe::EVENT);
    let setup = Setup {
        // A thread of the kernel's own recovers huge pages.
        whose: Whose::Everybodys,
        buffer_kib: BUFFER_KIB,
        events: EVENTS
            .iter()
            .chain(probe)
            .map(|event| (*event).to_owned())
            .collect(),
        ..Setup::default()
    };
    let capture = Capture::start(&setup).map_err(|error| error.to_string())?;
    let short: &[&str] = match variable("SLAT_SELFTESTS_LONG") {
        Some(_) => &[],
        None => test.short,
    };
    let program = programs.join(test.name);
    let output = Command::new(&program)
        .args(test.always)
        .args(short)
        .output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    let captured = capture.stop().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(captured);
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    Err(match output.status.code() {
        Some(SKIPPED) => format!("it says that it cannot run here: {said}"),
        _ => format!("it ends with {}: {said}", output.status),
    })
}

/// What the rebuilt tables rest on beside events, where it is anything.
fn inferred(rebuilt: &Rebuilt) -> String {
    let counts = &rebuilt.counts;
    let all = [
        (counts.hardware_marks, "marks of hardware"),
        (counts.split_children, "split children"),
        (counts.execution_regained, "executable split children"),
        (counts.from_before, "entries from before"),
        (counts.tables_from_before, "tables from before"),
        (counts.after_loss, "entries after losses"),
        (counts.ambiguous, "ambiguous changes"),
        (counts.fast_faults, "fast faults"),
    ];
    let some = all.iter().filter(|(count, _)| *count > 0);
    let some: Vec<String> = some
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    match some.is_empty() {
        true => "nothing".to_owned(),
        false => some.join(", "),
    }
}

/// Nothing contradicts, nothing is missing, all tables are sound.
fn judge(rebuilt: &Rebuilt) -> Result<(), String> {
    let mut wrong: Vec<String> = rebuilt
        .failures
        .iter()
        .take(20)
        .map(ToString::to_string)
        .collect();
    for vm in &rebuilt.vms {
        let about = |what: &String| format!("vm {}: {what}", vm.number);
        wrong.extend(vm.audit.iter().chain(&vm.not_audited).map(about));
    }
    if rebuilt.counts.changes == 0 {
        wrong.push("no entry of a page table was changed".to_owned());
    }
    if !rebuilt.lost.is_empty() {
        wrong.push(format!("events are missing: {:?}", rebuilt.lost));
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join("\n")),
    }
}

/// As `nx_huge_pages_test.sh` has them, but for the period: on a slow machine huge pages come back within a tenth of a second
/// after they were split, before the test has looked.
const NX_HUGE_PAGES: &[(&str, &str)] = &[
    ("/sys/module/kvm/parameters/nx_huge_pages", "1"),
    (
        "/sys/module/kvm/parameters/nx_huge_pages_recovery_ratio",
        "1",
    ),
    (
        "/sys/module/kvm/parameters/nx_huge_pages_recovery_period_ms",
        "2000",
    ),
];

/// Files that were written to, with what was in them before, which comes back in the end.
#[derive(Default)]
struct Parameters(Vec<(&'static str, String)>);

impl Parameters {
    fn set(values: &[(&'static str, &str)]) -> Result<Self, String> {
        let mut before = Self::default();
        for (path, value) in values {
            let old = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
            before.0.push((path, old));
            fs::write(path, value).map_err(|error| format!("{path}: {error}"))?;
        }
        Ok(before)
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        for (path, value) in &self.0 {
            // It was written to just now.
            let _ = fs::write(path, value.trim());
        }
    }
}
