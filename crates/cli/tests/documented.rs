//! Every command in README.md and docs/*.md: those of `slat` that need no machine are run and print what the page says; the others
//! are listed here, with the reason.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A command of a page, and what the page says that it prints.
#[derive(Debug)]
struct Documented {
    place: String,
    command: String,
    output: Vec<String>,
}

/// What is done about a command.
enum Plan {
    /// It prints what the page says, where `...` stands for any lines.
    Prints,
    /// It runs: what it prints depends on the machine or on a file of the reader's.
    Runs,
    /// Not here.
    Elsewhere(&'static str),
}

/// Beginnings of commands that are not run, or whose output is not compared. The first that fits counts; `slat` commands
/// that are not listed print what their page says.
const PLANS: [(&str, Plan); 29] = [
    (
        "cargo vm",
        Plan::Elsewhere("it needs the emulated machine, docs/vm.md"),
    ),
    (
        "SLAT_VM_OPTIONS=",
        Plan::Elsewhere("it needs the emulated machine, docs/vm.md"),
    ),
    (
        "cargo test",
        Plan::Elsewhere("it runs this test: the step `test` of .ci/run"),
    ),
    (
        "cargo bench",
        Plan::Elsewhere("times, which a busy machine does not show"),
    ),
    (
        "cargo build",
        Plan::Elsewhere("the steps `diff` and `vm` of .ci/run"),
    ),
    (
        "cargo mutants",
        Plan::Elsewhere("hours, and a tool that is installed apart"),
    ),
    ("cargo fmt", Plan::Elsewhere("the step `format` of .ci/run")),
    (
        "cargo clippy",
        Plan::Elsewhere("the step `clippy` of .ci/run"),
    ),
    (
        "cargo deny",
        Plan::Elsewhere("a tool that is installed apart"),
    ),
    (
        "cargo +nightly fuzz",
        Plan::Elsewhere("a toolchain and a tool that are installed apart"),
    ),
    (
        "cargo install",
        Plan::Elsewhere("it changes the reader's machine"),
    ),
    ("cargo run --example", Plan::Elsewhere("tests/examples.rs")),
    (".ci/run", Plan::Elsewhere("it runs this test")),
    (
        ".ci/mutants",
        Plan::Elsewhere("minutes to hours, and tools that are installed apart"),
    ),
    ("git ", Plan::Elsewhere("the reader's own clone")),
    (
        "SLAT_",
        Plan::Elsewhere("a long form of a test, for minutes"),
    ),
    (
        "trace-cmd",
        Plan::Elsewhere("another tool, as root, beside a VM"),
    ),
    (
        "perf ",
        Plan::Elsewhere("another tool, as root, beside a VM"),
    ),
    (
        "cd /sys/kernel/tracing",
        Plan::Elsewhere("root, beside a VM"),
    ),
    ("strace ", Plan::Elsewhere("another tool, and a VMM")),
    (
        "valgrind ",
        Plan::Elsewhere("a tool that is installed apart"),
    ),
    (
        "slat record",
        Plan::Elsewhere("a VMM that is installed apart"),
    ),
    (
        "slat replay /tmp/tables",
        Plan::Elsewhere("a file that the command before it makes in the machine"),
    ),
    ("slat replay trace", Plan::Runs),
    (
        "slat draw trace",
        Plan::Elsewhere("a trace of the reader's own VM"),
    ),
    (
        "slat explain --profile linux-6.18.44-pvm --strace",
        Plan::Runs,
    ),
    ("slat run", Plan::Runs),
    ("slat diff", Plan::Elsewhere("the step `diff` of .ci/run")),
    (
        "slat zap --scaling --full",
        Plan::Elsewhere("half a minute; the short form is run"),
    ),
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn pages() -> Vec<PathBuf> {
    let root = repository();
    let mut pages = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        pages.push(entry.unwrap().path());
    }
    pages.retain(|page| page.extension().is_some_and(|e| e == "md") && page.exists());
    pages.sort();
    pages
}

/// The commands of a page: lines of `sh` blocks; cargo's in blocks without a language; lines behind a prompt in `console` and `text` blocks, with what follows.
fn commands(page: &Path) -> Vec<Documented> {
    let text = fs::read_to_string(page).unwrap();
    let name = page.file_name().unwrap().to_string_lossy().into_owned();
    let mut found: Vec<Documented> = Vec::new();
    let (mut block, mut continues, mut prompted) = (None, false, false);
    for (number, line) in text.lines().enumerate() {
        // Blocks may be indented, below a point of a list.
        let line = match block {
            Some(_) => line,
            None => line.trim_start(),
        };
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            block = match block {
                Some(_) => None,
                None => Some(kind.to_owned()),
            };
            (continues, prompted) = (false, false);
            continue;
        }
        let command = match block.as_deref() {
            Some("sh") if !line.trim().is_empty() && !line.trim_start().starts_with('#') => {
                Some(line.trim_start())
            }
            // Blocks without a language hold other things beside commands of cargo.
            Some("") if line.starts_with("cargo ") => Some(line),
            Some("console" | "text") => line.strip_prefix("$ ").or_else(|| {
                // A prompt of root, where the block begins with one.
                line.strip_prefix("# ")
                    .filter(|_| !prompted && block.as_deref() == Some("console"))
            }),
            _ => None,
        };
        let line_of_command = if continues { Some(line) } else { command };
        match line_of_command {
            Some(text) if continues => {
                let last = found.last_mut().unwrap();
                last.command.push(' ');
                last.command
                    .push_str(text.trim().trim_end_matches('\\').trim());
                continues = text.ends_with('\\');
            }
            Some(text) => {
                prompted |= line.starts_with("$ ");
                continues = text.ends_with('\\');
                found.push(Documented {
                    place: format!("{name}:{}", number + 1),
                    command: without_comment(text.trim_end_matches('\\')),
                    output: Vec::new(),
                });
            }
            None if block.is_some() && prompted => {
                if let Some(last) = found.last_mut() {
                    last.output.push(line.trim_end().to_owned());
                }
            }
            None => {}
        }
    }
    found
}

/// A command without the words behind it: two blanks or more, outside quotes.
fn without_comment(line: &str) -> String {
    let mut quoted = false;
    let bytes = line.as_bytes();
    for at in 1..bytes.len() {
        quoted ^= bytes[at] == b'\'';
        let blanks = bytes[at - 1] == b' ' && bytes[at] == b' ';
        if blanks && !quoted {
            return line[..at].trim().to_owned();
        }
    }
    line.trim().to_owned()
}

/// Files that pages speak of.
fn prepare(folder: &Path) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let traces = repository().join("crates/vmm/tests/data/traces");
    fs::copy(data.join("qemu.strace"), folder.join("qemu.strace")).unwrap();
    fs::copy(data.join("tables.txt"), folder.join("tables.txt")).unwrap();
    fs::copy(traces.join("ftrace.txt"), folder.join("trace")).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    write("before", "host npt 48\nroot a\nmap a 0x10..0x12 0x777010\n");
    write("after", "host npt 48\nroot a\nmap a 0x11 0x9\n");
    let two = "set_user_memory_region slot=0 gpa=0 size=64K hva=A => ok\n\
               set_user_memory_region slot=1 gpa=0xf000 size=64K hva=A+0x100000 => ok\n";
    write("two.slat", two);
    write(
        "qemu.slat",
        "set_user_memory_region slot=0 gpa=0 size=64K hva=A => ok\n",
    );
    for (dump, script) in [
        ("tables.dump", "tables.txt"),
        ("before.dump", "before"),
        ("after.dump", "after"),
    ] {
        let out = shell(folder, &format!("slat dump --raw {script}"));
        write(dump, &out.1);
    }
    fs::write(folder.join("guest.raw"), guest()).unwrap();
    // Paths of the repository, read only.
    let _there = std::os::unix::fs::symlink(repository().join("crates"), folder.join("crates"));
}

/// A guest whose tables map page 0 to itself, behind EPT that does the same.
fn guest() -> Vec<u8> {
    let mut memory = vec![0; 0x8000];
    let mut put = |at: usize, entry: u64| memory[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    for (at, entry) in [(0, 0x1007), (0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 7)] {
        put(at, entry);
    }
    for (at, entry) in [(0x4000, 0x5007), (0x5000, 0x6007), (0x6000, 0x7007)] {
        put(at, entry);
    }
    for page in 0..8 {
        put(0x7000 + page * 8, (page as u64) << 12 | 0x37);
    }
    memory
}

/// Runs a command as a reader would, in a folder; gives the exit status and what it printed.
fn shell(folder: &Path, command: &str) -> (i32, String, String) {
    let slat = Path::new(env!("CARGO_BIN_EXE_slat"));
    let path = format!(
        "{}:{}",
        slat.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(folder)
        .env("PATH", path)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Whether a text is what a page says, where `...` stands for any lines. A last empty line does not count.
fn is_as_documented(documented: &[String], printed: &str) -> bool {
    fn matches(documented: &[String], printed: &[&str]) -> bool {
        match (documented.split_first(), printed.split_first()) {
            (Some((first, rest)), _) if first.trim() == "..." => {
                (0..=printed.len()).any(|skip| matches(rest, &printed[skip..]))
            }
            (Some((first, rest)), Some((line, left))) => {
                first == line.trim_end() && matches(rest, left)
            }
            (None, None) => true,
            _ => false,
        }
    }
    let printed: Vec<&str> = printed.trim_end().lines().collect();
    let end = documented.iter().rposition(|line| !line.is_empty());
    matches(&documented[..end.map_or(0, |end| end + 1)], &printed)
}

fn plan(command: &str) -> Option<&'static Plan> {
    let known = PLANS
        .iter()
        .find(|(beginning, _)| command.starts_with(beginning));
    match known {
        Some((_, plan)) => Some(plan),
        None if command.starts_with("slat ") || command.contains("| slat ") => Some(&Plan::Prints),
        None => None,
    }
}

#[test]
fn documented_commands_do_what_their_page_says() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("documented");
    fs::create_dir_all(&folder).unwrap();
    prepare(&folder);
    let (mut compared, mut run, mut wrong) = (0, 0, Vec::new());
    for documented in pages().iter().flat_map(|page| commands(page)) {
        let command = documented
            .command
            .replace("cargo run --release -- ", "slat ");
        let command = command.replace("target/release/slat", "slat");
        let place = &documented.place;
        let Some(plan) = plan(&command) else {
            wrong.push(format!("{place}: nobody knows what to do about: {command}"));
            continue;
        };
        if let Plan::Elsewhere(why) = plan {
            println!("{place}: not here ({why}): {command}");
            continue;
        }
        let (status, out, err) = shell(&folder, &command);
        let usage = !(0..2).contains(&status);
        let no_kernel = err.contains("/dev/kvm");
        if usage && !no_kernel {
            wrong.push(format!("{place}: {command}\nexit status {status}: {err}"));
        } else if no_kernel {
            println!("{place}: skipped, {err}");
        } else if matches!(plan, Plan::Prints) && !documented.output.is_empty() {
            match is_as_documented(&documented.output, &out) {
                true => compared += 1,
                false => wrong.push(format!(
                    "{place}: {command}\nprints\n{out}\nand not\n{}",
                    documented.output.join("\n")
                )),
            }
        } else {
            run += 1;
        }
    }
    println!("{compared} commands print what their page says, {run} more run");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(compared >= 6 && run >= 4);
}

/// Words behind an option, wherever a page names a cargo target.
fn named<'t>(text: &'t str, option: &'t str) -> impl Iterator<Item = String> + use<'t> {
    text.match_indices(option).map(move |(at, _)| {
        let rest = &text[at + option.len()..];
        rest.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    })
}

#[test]
fn targets_that_pages_name_exist() {
    let root = repository();
    let crates = [
        "crates/memslot",
        "crates/mmu",
        "crates/coco",
        "crates/vmm",
        "crates/cli",
        "tests/vm",
        ".",
    ];
    let exists = |folder: &str, name: &str| {
        crates.iter().any(|package| {
            let place = root.join(package).join(folder);
            let found = [format!("{name}.rs"), format!("{name}/main.rs")];
            found.iter().any(|file| place.join(file).exists())
        }) || fs::read_to_string(root.join("crates/mmu/Cargo.toml"))
            .unwrap()
            .contains(&format!("name = \"{name}\""))
            || fs::read_to_string(root.join("crates/vmm/Cargo.toml"))
                .unwrap()
                .contains(&format!("name = \"{name}\""))
            || fs::read_to_string(root.join("Cargo.toml"))
                .unwrap()
                .contains(&format!("name = \"{name}\""))
    };
    let mut checked = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (option, folder) in [
            ("--test ", "tests"),
            ("--example ", "examples"),
            ("--bench ", "benches"),
        ] {
            for name in named(&text, option) {
                let upper = name.is_empty() || name.chars().all(|c| c.is_uppercase() || c == '_');
                assert!(
                    upper || exists(folder, &name),
                    "{}: {option}{name}",
                    page.display()
                );
                checked += 1;
            }
        }
    }
    println!("{checked} tests, examples and benches are where pages say");
    assert!(checked > 20);
}
