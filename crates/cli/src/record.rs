//! `slat record`: a VMM's memory calls as a scenario, or what the kernel's MMU does as recordings.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tables;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::Error;

/// Options of `slat record`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the scenario goes.
    #[arg(short, long, default_value = "recording.slat")]
    output: PathBuf,
    /// Kill the program after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
    /// No program: make those that come with slat, and write into this folder what the kernel's MMU does. Needs root, and a
    /// kernel with the TDP MMU.
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    tables: Option<PathBuf>,
    /// The program and its arguments.
    #[arg(last = true, required_unless_present = "tables")]
    command: Vec<OsString>,
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(crate) fn run(_args: &Args) -> Result<ExitCode, Error> {
    Err("recording needs Linux on x86-64".into())
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) use linux::run;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod linux {
    use std::fmt::Write as _;
    use std::path::Path;
    use std::time::Duration;

    use slat_vmm::Machine;
    use slat_vmm::record::{Converted, Exit, RecordOptions, Recording, record};

    use super::{Args, Error, ExitCode};
    use crate::{kernel, table};

    pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
        if let Some(folder) = &args.tables {
            return super::tables::run(folder, args.json);
        }
        let options = RecordOptions {
            timeout: args.timeout.map(Duration::from_secs),
        };
        let recording = record(&args.command, options)?;
        let done = recording.to_scenario(&profile_name());
        std::fs::write(&args.output, text(args, &recording, &done))
            .map_err(|e| format!("{}: {e}", args.output.display()))?;
        if args.json {
            let summary = json(&args.output, &recording, &done);
            println!("{}", serde_json::to_string_pretty(&summary)?);
        } else {
            print(&args.output, &recording, &done);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The name of the local kernel's profile.
    fn profile_name() -> String {
        let local = kernel::open().map(|machine| machine.profile().name.to_string());
        local.unwrap_or_else(|_| "unknown".to_owned())
    }

    /// The scenario with a comment on where it comes from.
    fn text(args: &Args, recording: &Recording, done: &Converted) -> String {
        let command: Vec<_> = args.command.iter().map(|a| a.to_string_lossy()).collect();
        let command = command.join(" ").replace('\n', " ");
        let mut text = format!("# Recorded with `slat record -- {command}`\n");
        let _infallible = writeln!(
            text,
            "# {}; {}.\n",
            exit_text(recording.exit),
            left_out(recording, done)
        );
        text.push_str(&done.scenario.to_string());
        text
    }

    fn print(output: &Path, recording: &Recording, done: &Converted) {
        let mut calls = table::plain(["call", "succeeded", "failed"]);
        for (kind, (good, bad)) in &done.counts {
            calls.add_row([(*kind).to_owned(), good.to_string(), bad.to_string()]);
        }
        println!("{calls}\n");
        println!("left out: {}", left_out(recording, done));
        println!("the program {}", exit_text(recording.exit));
        println!("{} events: {}", recording.events.len(), output.display());
    }

    fn left_out(recording: &Recording, done: &Converted) -> String {
        let others: u64 = recording.undecoded.values().sum();
        format!(
            "{} calls on capabilities that are no matter of memory, {} unreadable, {} interrupted, {others} other ioctls",
            done.other_capabilities, done.unknown, done.interrupted
        )
    }

    fn exit_text(exit: Exit) -> String {
        match exit {
            Exit::Code(code) => format!("exited with {code}"),
            Exit::Signal(signal) => format!("was killed by signal {signal}"),
            Exit::TimedOut => "was killed when the time was over".to_owned(),
        }
    }

    fn json(output: &Path, recording: &Recording, done: &Converted) -> serde_json::Value {
        let calls: Vec<_> = done
            .counts
            .iter()
            .map(|(call, (good, bad))| serde_json::json!({ "call": call, "succeeded": good, "failed": bad }))
            .collect();
        let exit = match recording.exit {
            Exit::Code(code) => serde_json::json!({ "code": code }),
            Exit::Signal(signal) => serde_json::json!({ "signal": signal }),
            Exit::TimedOut => serde_json::json!("timed out"),
        };
        serde_json::json!({
            "file": output,
            "events": recording.events.len(),
            "calls": calls,
            "left_out": {
                "other_capabilities": done.other_capabilities,
                "unreadable": done.unknown,
                "interrupted": done.interrupted,
                "other_ioctls": recording.undecoded.values().sum::<u64>(),
            },
            "exit": exit,
        })
    }
}
