//! `slat dump`: page tables as text, from a script or from a dump.

pub(crate) mod json;

use std::fmt::Display;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use slat_mmu::tdp::dump::{Detail, Dump};
use slat_vmm::tables::{self, Options, Report, Step};

use crate::Error;

const EXAMPLES: &str = "\
Examples:
  slat dump tables.txt                  the tables that a script leaves behind
  slat dump --events tables.txt         everything that happened on the way, as comments before the dump
  slat dump --raw tables.txt >before    every table and raw entry, too
  slat dump before                      reads a dump, checks it, and prints it in its normal form
  slat dump --diff before after         what differs between two dumps, or between what two scripts leave
  printf 'root a\\nmap a 0..0x200 0x1000\\n' | slat dump -

docs/dump.md describes scripts and dumps.

Exit status: 0 if all went as expected (and nothing differs), 1 if an operation gave something else than the script
expects or two dumps differ, 2 if a file cannot be read.";

/// Options of `slat dump`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A script of table operations, or a dump; `-` is standard input.
    #[arg(required_unless_present = "diff")]
    file: Option<PathBuf>,
    /// Compare two dumps, or what two scripts leave behind.
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["file", "raw", "events"])]
    diff: Option<Vec<PathBuf>>,
    /// Tell every table and every raw entry, too.
    #[arg(long)]
    raw: bool,
    /// Tell every event in order, as KVM's trace text would.
    #[arg(long)]
    events: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What a file holds.
struct Loaded {
    dump: Dump,
    /// Whether every operation gave what was expected.
    good: bool,
    events: Vec<serde_json::Value>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    if let Some([a, b]) = args.diff.as_deref() {
        return diff(args, a, b);
    }
    let file = args.file.as_deref().ok_or("no file")?;
    let loaded = load(args, file)?;
    if args.json {
        let mut value = json::dump(&loaded.dump);
        if args.events {
            value["events"] = loaded.events.into();
        }
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        print(&loaded.dump);
    }
    Ok(exit_code(loaded.good))
}

fn diff(args: &Args, a: &Path, b: &Path) -> Result<ExitCode, Error> {
    if is_stdin(a) && is_stdin(b) {
        return Err("-: standard input can only be one of two".into());
    }
    let (old, new) = (load(args, a)?, load(args, b)?);
    let diff = old.dump.diff(&new.dump);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&json::diff(&diff))?);
    } else if !diff.is_empty() {
        println!("--- {}\n+++ {}", a.display(), b.display());
        print(&diff);
    }
    Ok(exit_code(diff.is_empty() && old.good && new.good))
}

fn exit_code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints a text that ends with a new line.
fn print(text: &impl Display) {
    let text = text.to_string();
    println!("{}", text.trim_end());
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn load(args: &Args, file: &Path) -> Result<Loaded, Error> {
    let in_file = |what: &dyn Display| format!("{}: {what}", file.display());
    let text = read(file).map_err(|e| in_file(&e))?;
    if is_dump(&text) {
        if args.events {
            return Err(in_file(&"a dump has no events").into());
        }
        let dump: Dump = text.parse().map_err(|e| in_file(&e))?;
        return Ok(Loaded {
            dump: dump.normalised(),
            good: true,
            events: Vec::new(),
        });
    }
    let script = tables::parse(&text).map_err(|e| in_file(&e))?;
    let detail = if args.raw {
        Detail::Entries
    } else {
        Detail::Ranges
    };
    let options = Options {
        detail,
        ..Options::default()
    };
    let mut events = Vec::new();
    let report = if args.events {
        tables::run_traced(&script, &options, &mut |step, event| match args.json {
            true => events.extend(event.map(|event| json::event(step, &event))),
            false => print_event(step, event),
        })
    } else {
        tables::run(&script, &options)
    };
    print_failures(file, &report);
    Ok(Loaded {
        good: report.failures().count() == 0,
        dump: report.dump,
        events,
    })
}

fn read(file: &Path) -> Result<String, std::io::Error> {
    if !is_stdin(file) {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// Whether the first word of a text says that it is a dump.
pub(crate) fn is_dump(text: &str) -> bool {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let mut words = lines.flat_map(str::split_ascii_whitespace);
    words.next() == Some("slat-dump")
}

/// Events are comments, so that what is printed with them is a dump still.
fn print_event(step: &Step, event: Option<&dyn Display>) {
    match event {
        Some(event) => println!("#   {event}"),
        None => println!("# line {}: {}", step.line, step.text),
    }
}

fn print_failures(file: &Path, report: &Report) {
    for step in report.failures() {
        let expected = step.expect.as_ref();
        let expected = expected.map_or("no error".to_owned(), ToString::to_string);
        eprintln!(
            "{}: line {}: {}: expected {expected}, got {}",
            file.display(),
            step.line,
            step.text,
            step.outcome
        );
    }
}
