//! `slat replay`: traces of real VMs, rebuilt; recordings, predicted.

mod predict;
pub(crate) mod rebuild;

use std::process::ExitCode;

use crate::Error;

const EXAMPLES: &str = "\
Examples:
  trace-cmd record -e kvmmmu -o t.dat sleep 60; trace-cmd report -i t.dat >trace
  slat replay trace                     the tables of all VMs in the trace, with what was checked and inferred
  slat replay --at 1200 --vm 0 trace    those of the first VM before line 1200
  slat replay --pid 790 trace           of one process only
  slat replay npt-l4/03-thp-2m-fault    a recording that comes with slat
  slat replay --predict npt-l4          recordings, predicted from their operations

docs/replay.md says how to make a trace and what can be inferred from it.

Exit status: 0 if nothing contradicts and the audit finds nothing, 1 if something does, 2 if a file cannot be read; with
--predict, 3 for what is not modelled.";

/// Options of `slat replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, group = clap::ArgGroup::new("job").required(true))]
pub(crate) struct Args {
    /// A trace: text of the kernel, of `trace-cmd report` or `perf script`, or a recording; `-` is standard input.
    #[arg(value_name = "TRACE", group = "job")]
    trace: Option<String>,
    /// Predict files, or recordings that come with slat: MACHINE/SCENARIO, or MACHINE for all of its.
    #[arg(long, value_name = "FILE|MACHINE/SCENARIO", num_args = 1.., group = "job")]
    predict: Vec<String>,
    /// Name the recordings that come with slat.
    #[arg(long, group = "job")]
    list: bool,
    /// The machine that files were recorded on. Default: what their directory is called.
    #[arg(long, value_name = "NAME", requires = "predict")]
    machine: Option<String>,
    #[command(flatten)]
    read: rebuild::ReadArgs,
    /// One of several VMs, by its number.
    #[arg(long, value_name = "N", requires = "trace")]
    vm: Option<usize>,
    /// Tell every table and every raw entry, too.
    #[arg(long, requires = "trace")]
    raw: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    if args.list {
        predict::list(args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    match &args.trace {
        Some(trace) => rebuild::run(args, trace),
        None => predict::run(args),
    }
}
