//! `slat explain`: one call, a whole log, or the catalogue.

mod answer;
mod facts;
mod list;
mod print;
mod question;
mod repair;
mod situation;
mod strace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::Error;
use question::{AttributesArgs, DirtyLog, GmemArgs, RegionArgs};

/// Options of `slat explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Put every memory ioctl of a log of strace to the model.
    #[arg(long, value_name = "FILE")]
    strace: Option<PathBuf>,
    #[command(flatten)]
    around: Around,
    #[command(subcommand)]
    about: Option<About>,
}

/// What surrounds the call in question.
#[derive(Clone, Debug, clap::Args)]
struct Around {
    /// A call made before, as a line of a scenario; can be given often.
    #[arg(long, global = true, value_name = "LINE", help_heading = "Context")]
    with: Vec<String>,
    /// A scenario that was run before.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Context")]
    context: Option<PathBuf>,
    /// The VM's type: default, sw-protected, sev, sev-es, sev-snp, tdx, or a number.
    #[arg(long, global = true, value_name = "TYPE", help_heading = "Context")]
    vm_type: Option<String>,
    /// The kernel; `slat explain profiles` lists them. Default: the local one, else the newest known.
    #[arg(long, global = true, value_name = "NAME", help_heading = "Context")]
    profile: Option<String>,
    /// Turn on the slot flag ZAP_LEAFS_ONLY, as it was proposed in May 2024.
    #[arg(long, global = true, help_heading = "Context")]
    zap_leafs_flag: bool,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum About {
    /// `KVM_SET_USER_MEMORY_REGION2`, or the older ioctl with --v1.
    Region(RegionArgs),
    /// `KVM_CREATE_GUEST_MEMFD`.
    Gmem(GmemArgs),
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    Attributes(AttributesArgs),
    /// `KVM_GET_DIRTY_LOG` or `KVM_CLEAR_DIRTY_LOG`.
    #[command(subcommand)]
    DirtyLog(DirtyLog),
    /// Any call, as a line of a scenario or of strace.
    Line {
        /// The line; with `ioctl(` in it, it is one of strace.
        text: String,
    },
    /// The same as --strace.
    Strace {
        /// The log.
        file: PathBuf,
    },
    /// Every reason for a refusal.
    Reasons,
    /// The kernels that the model can play, or the facts about one.
    Profiles {
        /// The kernel to tell about.
        name: Option<String>,
    },
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    let around = &args.around;
    let about = match (&args.strace, &args.about) {
        (Some(file), None) => return strace::run(file, around),
        (None, Some(about)) => about,
        (Some(_), Some(_)) => return Err("--strace stands alone".into()),
        (None, None) => return Err("what is to be explained? See `slat explain --help`".into()),
    };
    match about {
        About::Region(args) => explain(&args.lines()?, around),
        About::Gmem(args) => explain(&[args.line()?], around),
        About::Attributes(args) => explain(&[args.line()?], around),
        About::DirtyLog(args) => explain(&[args.line()?], around),
        About::Line { text } if text.contains("ioctl(") => strace::line(text, around),
        About::Line { text } => explain(&[text.trim().to_owned()], around),
        About::Strace { file } => strace::run(file, around),
        About::Reasons => list::reasons(around.json),
        About::Profiles { name } => list::profiles(name.as_deref(), around.json),
    }
}

/// Explains the last of `lines`; those before it belong to the question, too.
fn explain(lines: &[String], around: &Around) -> Result<ExitCode, Error> {
    let situation = situation::Situation::of_lines(lines, around)?;
    print::answer(&answer::Answer::new(situation), around.json)
}
