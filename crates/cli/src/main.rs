//! The `slat` command.

/// Prints a line as the macro of the standard library does, but does not panic when the reader has gone, as `head` does.
macro_rules! println {
    () => { crate::output::line(format_args!("")) };
    ($($text:tt)*) => { crate::output::line(format_args!($($text)*)) };
}

mod diff;
mod draw;
mod dump;
mod explain;
mod kernel;
mod output;
mod races;
mod record;
mod replay;
mod run;
mod table;
mod walk;
mod zap;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// KVM's memory interface, checked against a real kernel and explained.
#[derive(Debug, Parser)]
#[command(name = "slat", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, Subcommand)]
enum Job {
    /// Hold the model against the local /dev/kvm with random calls; without it, replay recorded kernel results.
    Diff(diff::Args),
    /// Draw page tables as SVG: a tree per root and a map of guest memory, before and after an event.
    Draw(draw::Args),
    /// Play a script of page-table operations and print roots, roles and mapped ranges; read, check or compare dumps.
    Dump(dump::Args),
    /// Say whether a call is accepted or refused, why, and what would make it succeed.
    Explain(Box<explain::Args>),
    /// Find the races of live migration that a VMM and its guest leave open, or prove that there are none.
    Races(races::Args),
    /// Run a VMM and write down the memory calls it makes, as a scenario.
    Record(record::Args),
    /// Rebuild the page tables of real VMs from a kernel trace, and check them; or predict what kernels did in recordings.
    Replay(replay::Args),
    /// Run scenario files on the model, on the local /dev/kvm, or on both.
    Run(run::Args),
    /// Walk a guest's page tables in a dump of its memory, reference by reference, and explain a fault.
    Walk(Box<walk::Args>),
    /// Measure what it costs to delete, move or re-flag a slot under each policy, on the model and on the local /dev/kvm.
    Zap(Box<zap::Args>),
}

fn main() -> ExitCode {
    let result = match Cli::parse().job {
        Job::Diff(args) => diff::run(&args),
        Job::Draw(args) => draw::run(&args),
        Job::Dump(args) => dump::run(&args),
        Job::Explain(args) => explain::run(&args),
        Job::Races(args) => races::run(&args),
        Job::Record(args) => record::run(&args),
        Job::Replay(args) => replay::run(&args),
        Job::Run(args) => run::run(&args),
        Job::Walk(args) => walk::run(&args),
        Job::Zap(args) => zap::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("slat: {error}");
        ExitCode::from(2)
    })
}

/// Any error, for its message.
type Error = Box<dyn std::error::Error>;
