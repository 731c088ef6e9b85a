//! `slat draw`: page tables as a picture.

mod colour;
mod map;
mod page;
mod state;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use slat_memslot::{Gfn, GfnRange};
use slat_mmu::tdp::Dump;
use slat_vmm::rebuild::{Rebuilt, rebuild};
use slat_vmm::traces::{Op, Recording, What};

use crate::Error;
use crate::replay::rebuild::{ReadArgs, read};
use page::Panel;
use state::State;

const EXAMPLES: &str = "\
Examples:
  slat draw tables.dump -o tables.svg             a dump of slat dump or slat replay
  slat draw before.dump after.dump -o change.svg  two, beside each other
  slat draw trace --at 1200 -o tables.svg         the tables that a trace leads to, before line 1200
  slat draw trace --from 1200 --at 1300 -o x.svg  before line 1200 and before line 1300
  slat draw npt-l4/08-dirty-log-2m-eager-split --from 57 --at 600 -o split.svg

Numbers of lines are those of the trace; slat replay --json names them. A range is private if --private says so, if it is in
the mirror root of a TDX VM, or if a KVM_SET_MEMORY_ATTRIBUTES call that stands in the trace made it so.";

/// Options of `slat draw`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A dump or a trace; two dumps are drawn beside each other. `-` is standard input.
    #[arg(required = true, num_args = 1..=2, value_name = "FILE")]
    files: Vec<String>,
    /// Where the picture goes (SVG). Default: standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Draw the state before this line, too, on the left.
    #[arg(long, value_name = "LINE")]
    from: Option<u32>,
    #[command(flatten)]
    read: ReadArgs,
    /// One of several VMs of a trace, by its number.
    #[arg(long, value_name = "N")]
    vm: Option<usize>,
    /// Frames that are private, START..END.
    #[arg(long, value_name = "START..END")]
    private: Vec<String>,
    /// What stands above the picture.
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    let private = args
        .private
        .iter()
        .map(|text| frames(text))
        .collect::<Result<Vec<_>, _>>()?;
    let panels = match args.files.as_slice() {
        [a, b] => {
            let dump = |file: &str, title: &str| panel_of_dump(file, title, &private);
            vec![dump(a, "before")?, dump(b, "after")?]
        }
        [file] => panels(args, file, &private)?,
        _ => return Err("one file, or two dumps".into()),
    };
    let title = match (&args.title, args.files.first()) {
        (Some(title), _) => title.clone(),
        (None, Some(file)) => format!("Page tables of {file}"),
        (None, None) => String::new(),
    };
    let drawing = page::draw(&title, &panels);
    match &args.output {
        Some(file) => {
            svg::save(file, &drawing).map_err(|error| format!("{}: {error}", file.display()))?
        }
        None => println!("{drawing}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// `0x400..0x600`.
fn frames(text: &str) -> Result<GfnRange, Error> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let range = text.split_once("..").and_then(|(start, end)| {
        GfnRange::between(Gfn::new(number(start)?), Gfn::new(number(end)?))
    });
    range.ok_or_else(|| format!("--private {text}: not START..END, with START below END").into())
}

fn panel_of_dump(file: &str, title: &str, private: &[GfnRange]) -> Result<Panel, Error> {
    let text = read(file)?;
    let dump: Dump = text.parse().map_err(|error| format!("{file}: {error}"))?;
    Ok(Panel {
        title: title.to_owned(),
        state: State {
            dump: dump.normalised(),
            unknown: Vec::new(),
            private: private.to_vec(),
        },
    })
}

/// A dump, or one or two states of a trace.
fn panels(args: &Args, file: &str, private: &[GfnRange]) -> Result<Vec<Panel>, Error> {
    let text = read(file)?;
    if crate::dump::is_dump(&text) {
        if args.from.or(args.read.at).is_some() {
            return Err(format!("{file}: a dump has no lines to stop at").into());
        }
        return Ok(vec![panel_of_dump(file, "", private)?]);
    }
    if let (Some(from), Some(at)) = (args.from, args.read.at)
        && from >= at
    {
        return Err(format!("--from {from}: not before --at {at}").into());
    }
    let panel = |at: Option<u32>, title: Option<&str>| -> Result<Panel, Error> {
        let options = args.read.options(at)?;
        let rebuilt = rebuild(&text, &options).map_err(|error| format!("{file}: {error}"))?;
        let title = title.map_or_else(|| after(&rebuilt, at), ToOwned::to_owned);
        let state = state_of(args, file, &rebuilt, private)?;
        Ok(Panel { title, state })
    };
    match args.from {
        Some(_) => Ok(vec![
            panel(args.from, Some("Before"))?,
            panel(args.read.at, None)?,
        ]),
        None => Ok(vec![panel(args.read.at, None)?]),
    }
}

/// The longest title of a panel, in characters.
const LONGEST: usize = 66;

/// What happened last.
fn after(rebuilt: &Rebuilt, at: Option<u32>) -> String {
    let last = rebuilt.markers.last().map(|(_, text)| text.as_str());
    let title = match (last, at) {
        (Some(text), _) => format!("After {}", text.strip_prefix("OP ").unwrap_or(text)),
        (None, Some(line)) => format!("Before line {line}"),
        (None, None) => "At the end".to_owned(),
    };
    match title.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", title.get(..end).unwrap_or_default()),
        None => title,
    }
}

fn state_of(
    args: &Args,
    file: &str,
    rebuilt: &Rebuilt,
    private: &[GfnRange],
) -> Result<State, Error> {
    let numbers: Vec<String> = rebuilt.vms.iter().map(|vm| vm.number.to_string()).collect();
    let vm = match (args.vm, rebuilt.vms.as_slice()) {
        (Some(number), vms) => vms.iter().find(|vm| vm.number == number),
        (None, [vm]) => Some(vm),
        (None, []) if !rebuilt.has_tdp => {
            return Err(
                format!("{file}: no change by the TDP MMU, so there are no trees to draw").into(),
            );
        }
        (None, _) => None,
    };
    let vm =
        vm.ok_or_else(|| format!("{file}: choose with --vm, one of {}", numbers.join(", ")))?;
    let mut private = private.to_vec();
    private.extend(private_ranges(rebuilt));
    private.sort_by_key(|range| range.start());
    Ok(State {
        dump: vm.dump.clone(),
        unknown: vm
            .unknown
            .iter()
            .map(|unknown| (unknown.root, unknown.frames))
            .collect(),
        private,
    })
}

/// The frames that calls in a trace have made private, and not shared again.
fn private_ranges(rebuilt: &Rebuilt) -> Vec<GfnRange> {
    const PRIVATE: u64 = 1 << 3;
    let mut ranges: Vec<GfnRange> = Vec::new();
    for (_, text) in &rebuilt.markers {
        let Ok(recording) = Recording::parse(text) else {
            continue;
        };
        for item in recording.items {
            let What::Op(Op::SetAttributes {
                gfn,
                pages,
                attributes,
            }) = item.what
            else {
                continue;
            };
            let Some(frames) = GfnRange::new(gfn, pages) else {
                continue;
            };
            ranges = ranges
                .into_iter()
                .flat_map(|range| without(range, frames))
                .collect();
            if attributes & PRIVATE != 0 {
                ranges.push(frames);
            }
        }
    }
    ranges
}

/// What is left of a range.
fn without(range: GfnRange, taken: GfnRange) -> impl Iterator<Item = GfnRange> {
    let below = GfnRange::between(range.start(), range.end().min(taken.start()));
    let above = GfnRange::between(range.start().max(taken.end()), range.end());
    below.into_iter().chain(above)
}
