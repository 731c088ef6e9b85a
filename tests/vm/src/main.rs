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
use std::path::PathBuf;
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
        Job::Cargo(cargo) => Err(run_cargo(&cargo)?),
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

/// Becomes cargo; returns only if that fails.
fn run_cargo(cargo: &Cargo) -> Outcome<Failure> {
    let own = std::env::current_exe().doing("name this program")?;
    let name = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let error = Command::new(name)
        .args(&cargo.arguments)
        .env(RUNNER, format!("{} run --", own.display()))
        .exec();
    Ok(Failure::new(format!("cannot start cargo: {error}")))
}
