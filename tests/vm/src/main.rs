//! Runs programs as root in an emulated machine, next to the `/dev/kvm` of a Linux kernel with AMD's nested paging.
//!
//! QEMU emulates the processor, SVM and NPT included, so nothing depends on the host's own hardware or `/dev/kvm`. The
//! host's files are the machine's, read-only under a layer of memory; so any program of the host runs there, with its
//! libraries, its current folder and its variables. `docs/vm.md` is the manual.

mod archive;
mod cache;
mod debian;
mod emulator;
mod failure;
mod job;
mod kernel;
mod options;
mod tool;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Args, Parser, Subcommand};

use cache::Cache;
use failure::{Doing, Failure, Outcome};
use kernel::{Image, Setup};
use options::Machine;

/// Options for every run, split at blanks, ahead of those on the command line.
const OPTIONS: &str = "SLAT_VM_OPTIONS";

/// Cargo's name for what starts its tests; the programs of the machine are those of this host.
const RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";

#[derive(Parser, Debug)]
#[command(
    name = "slat-vm",
    about = "Runs programs next to a Linux kernel with a TDP MMU",
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Job,
}

#[derive(Subcommand, Debug)]
enum Job {
    /// Gets the kernels, and what is needed to run them, from Debian's packages
    Setup(Setup),
    /// Runs a program in the machine and ends with its exit status
    Run(Run),
    /// Runs cargo here, and every test and program that it starts in the machine
    Cargo(Cargo),
    /// Runs KVM's own selftests in the machine, traced, and rebuilds page tables from what the kernel told
    Selftests(Selftests),
}

#[derive(Args, Debug)]
#[command(args_override_self = true)]
struct Run {
    #[command(flatten)]
    machine: Machine,
    /// The program
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

#[derive(Args, Debug)]
struct Cargo {
    /// Cargo's arguments: `test -p slat-vmm --test golden`. Options of the machine are taken from SLAT_VM_OPTIONS
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    arguments: Vec<OsString>,
}

#[derive(Args, Debug)]
struct Selftests {
    /// Keeps the traces in this folder, for `slat replay`
    #[arg(long, value_name = "FOLDER")]
    traces: Option<PathBuf>,
    /// Runs the tests as long as they run by themselves
    #[arg(long)]
    long: bool,
    /// Only those whose name contains this
    test: Option<String>,
}

fn main() -> ExitCode {
    match carry_out() {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            eprintln!("slat-vm: {failure}");
            ExitCode::from(failure.status())
        }
    }
}

fn carry_out() -> Outcome<u8> {
    match Cli::parse_from(command_line()).command {
        Job::Setup(what) => kernel::setup(&what, &Cache::of_user()?).map(|()| 0),
        Job::Run(run) => {
            let image = Image::find(&run.machine.kernel, &Cache::of_user()?)?;
            job::run(&run.machine, &image, &run.program, &run.arguments)
        }
        Job::Cargo(cargo) => Err(run_cargo(&cargo.arguments, &[], &Vec::new())?),
        Job::Selftests(selftests) => Err(run_selftests(&selftests)?),
    }
}

/// The command line, with the options of the environment where a run's own would begin.
fn command_line() -> Vec<OsString> {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    if words.get(1).is_some_and(|job| job == "run") {
        let options = std::env::var(OPTIONS).unwrap_or_default();
        let options = options.split_whitespace().map(OsString::from);
        words.splice(2..2, options);
    }
    words
}

/// Becomes cargo, whose tests and programs run in a machine with these options; returns only if that fails.
fn run_cargo(arguments: &[OsString], options: &[&str], variables: &Variables) -> Outcome<Failure> {
    let own = std::env::current_exe().doing("name this program")?;
    let name = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let options = options
        .iter()
        .fold(String::new(), |all, one| all + " " + one);
    let error = Command::new(name)
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .env(RUNNER, format!("{} run{options} --", own.display()))
        .exec();
    Ok(Failure::new(format!("cannot start cargo: {error}")))
}

/// Variables of cargo's surroundings, which are those of what it starts in the machine.
type Variables = Vec<(&'static str, OsString)>;

/// What the selftests want from the machine: memory for their guests beside the traces, and huge pages.
const FOR_SELFTESTS: [&str; 6] = [
    "--memory",
    "3072",
    "--hugepages",
    "2M=8",
    "--timeout",
    "1800",
];

/// Becomes cargo with the test that runs them.
fn run_selftests(what: &Selftests) -> Outcome<Failure> {
    let programs = kernel::set_up_selftests(&Cache::of_user()?)?;
    let mut variables: Variables = vec![("SLAT_SELFTESTS", programs.into())];
    if what.long {
        variables.push(("SLAT_SELFTESTS_LONG", "1".into()));
    }
    if let Some(only) = &what.test {
        variables.push(("SLAT_SELFTEST", only.into()));
    }
    let mut options = FOR_SELFTESTS.to_vec();
    let traces = what.traces.as_deref().map(folder_for_traces).transpose()?;
    if let Some(folder) = &traces {
        options.extend(["--write", folder]);
        variables.push(("SLAT_TRACES", folder.into()));
    }
    let arguments = "test --quiet --package slat-vmm --test selftests -- --nocapture";
    let arguments: Vec<OsString> = arguments.split(' ').map(OsString::from).collect();
    run_cargo(&arguments, &options, &variables)
}

/// The folder, as it can stand among the options of cargo's runner.
fn folder_for_traces(folder: &Path) -> Outcome<String> {
    std::fs::create_dir_all(folder).doing(format_args!("make {}", folder.display()))?;
    let path = folder.canonicalize();
    let path = path.doing(format_args!("use {}", folder.display()))?;
    match path.to_str() {
        Some(name) if !name.contains(char::is_whitespace) => Ok(name.to_owned()),
        _ => Err(Failure::new(format!(
            "cargo cannot pass on a folder of this name: {}",
            path.display()
        ))),
    }
}
