//! `slat diff`: the model against a real kernel.

mod access;
mod tables;
mod walk;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use slat_memslot::{Errno, Profile};
use slat_vmm::differential::{self, Area, Config, Outcome, Stats};
use slat_vmm::{Machine, model, recordings, scenario};

use crate::{Error, kernel, table};

/// Options of `slat diff`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seed of the random calls; equal seeds give equal calls on equal kernels. Default: from the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// How many calls, translations, and events of tables to compare.
    #[arg(long, default_value_t = 100_000)]
    ops: u64,
    /// Parts of the interface, separated by commas; `walk` is the walk of guest page tables, held against KVM_TRANSLATE,
    /// `tables` what a VM's own tables become, event by event, `shadow` the same where guests run on shadow pages,
    /// `nested` where guests run guests of their own, and `access` has a guest execute accesses. Default: all that the
    /// kernel has, but for `shadow`, `nested` and `access`.
    #[arg(long, value_delimiter = ',')]
    area: Vec<AreaName>,
    /// Put one of so many refusals to the repair oracle.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    oracle_every: u32,
    /// Where the scenario of a difference goes.
    #[arg(long, default_value = ".")]
    output: PathBuf,
    /// Write every call with the kernel's answer to this scenario file.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// An area by its name.
#[derive(Clone, Copy, Debug)]
enum AreaName {
    Calls(Area),
    Walk,
    Access,
    Tables,
    Shadow,
    Nested,
}

impl Args {
    /// The areas of calls.
    fn calls(&self) -> Vec<Area> {
        let calls = |area: &AreaName| match area {
            AreaName::Calls(area) => Some(*area),
            AreaName::Walk
            | AreaName::Access
            | AreaName::Tables
            | AreaName::Shadow
            | AreaName::Nested => None,
        };
        match self.area.as_slice() {
            [] => Area::ALL.to_vec(),
            some => some.iter().filter_map(calls).collect(),
        }
    }

    /// Whether an area that is no calls is compared. Accesses only when they are asked for, since each takes as long as
    /// ten walks, and shadow pages and nested guests.
    fn wants(&self, wanted: AreaName) -> bool {
        let by_default = self.area.is_empty()
            && !matches!(
                wanted,
                AreaName::Access | AreaName::Shadow | AreaName::Nested
            );
        by_default || self.area.iter().any(|area| area.name() == wanted.name())
    }
}

impl AreaName {
    /// The word on the command line.
    const fn name(self) -> &'static str {
        match self {
            Self::Calls(area) => area.name(),
            Self::Walk => "walk",
            Self::Access => "access",
            Self::Tables => "tables",
            Self::Shadow => "shadow",
            Self::Nested => "nested",
        }
    }
}

impl ValueEnum for AreaName {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [AreaName; 13] = [
            AreaName::Calls(Area::Slots),
            AreaName::Calls(Area::Gmem),
            AreaName::Calls(Area::Attributes),
            AreaName::Calls(Area::DirtyLog),
            AreaName::Calls(Area::DirtyRing),
            AreaName::Calls(Area::Caps),
            AreaName::Calls(Area::PreFault),
            AreaName::Calls(Area::Layout),
            AreaName::Walk,
            AreaName::Access,
            AreaName::Tables,
            AreaName::Shadow,
            AreaName::Nested,
        ];
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.name()))
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    match kernel::with_model() {
        Ok(machines) => {
            let seed = args.seed.unwrap_or_else(clock_seed);
            let calls = match args.calls().is_empty() {
                true => ExitCode::SUCCESS,
                false => live(args, seed, machines)?,
            };
            let mut result = calls;
            if result == ExitCode::SUCCESS && args.wants(AreaName::Walk) {
                result = walk::run(args, seed)?;
            }
            if result == ExitCode::SUCCESS && args.wants(AreaName::Access) {
                result = access::run(args, seed)?;
            }
            if result == ExitCode::SUCCESS && args.wants(AreaName::Tables) {
                result = tables::run(args, seed, tables::Mmu::Tdp)?;
            }
            if result == ExitCode::SUCCESS && args.wants(AreaName::Shadow) {
                result = tables::run(args, seed, tables::Mmu::Shadow)?;
            }
            if result == ExitCode::SUCCESS && args.wants(AreaName::Nested) {
                result = tables::run(args, seed, tables::Mmu::Nested)?;
            }
            Ok(result)
        }
        Err(why) => {
            eprintln!("live comparison skipped: {why}");
            let replayed = replay_recordings()?;
            match args.json {
                true => println!("{}", serde_json::json!({ "replayed": replayed.json() })),
                false => println!("{replayed}"),
            }
            Ok(exit_code(replayed.failed == 0))
        }
    }
}

/// Random calls on the kernel and on the model of its profile.
fn live<K: Machine>(
    args: &Args,
    seed: u64,
    (mut machine, model): (K, model::Machine),
) -> Result<ExitCode, Error> {
    let areas = args.calls();
    eprintln!("kernel: {}, seed {seed}", machine.profile().name);
    let mut skipped = false;
    for area in &areas {
        if let Some(missing) = area.missing(machine.profile(), model.host()) {
            eprintln!("skipped: {}: {missing}", area.name());
            skipped = true;
        }
    }
    let config = Config {
        seed,
        calls: args.ops,
        areas,
        oracle_every: args.oracle_every,
        record: args.record.is_some(),
        ..Config::default()
    };
    let bar = progress(args.ops);
    let progress = |calls| bar.set_position(calls);
    let outcome = differential::compare_with(&mut machine, model, &config, progress)?;
    bar.finish_and_clear();
    if let (Some(path), Some(recording)) = (&args.record, &outcome.recording) {
        std::fs::write(path, recording.to_string())?;
    }
    // What this kernel cannot show, others have shown.
    let replayed = if skipped {
        Some(replay_recordings()?)
    } else {
        None
    };
    report(args, seed, &outcome, replayed.as_ref())
}

fn exit_code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What every comparison of walks comes to.
struct Concluded<'o, S, D> {
    area: &'static str,
    skipped: &'o [S],
    difference: Option<&'o D>,
}

impl<S: std::fmt::Display, D: std::fmt::Display> Concluded<'_, S, D> {
    /// Says what was skipped and what differed, and between them the numbers for a machine or for people.
    fn report(
        &self,
        args: &Args,
        summary: impl FnOnce() -> serde_json::Value,
        print: impl FnOnce(),
    ) -> Result<ExitCode, Error> {
        for skipped in self.skipped {
            eprintln!("skipped: {}, {skipped}", self.area);
        }
        match args.json {
            true => println!("{}", serde_json::to_string_pretty(&summary())?),
            false => print(),
        }
        if let Some(difference) = self.difference {
            eprintln!("{difference}");
        }
        Ok(exit_code(self.difference.is_none()))
    }
}

fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| u64::from(d.subsec_nanos()) ^ d.as_secs())
}

/// A progress bar, on a terminal only.
fn progress(len: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} calls, {per_sec}, {eta} left");
    let bar = ProgressBar::new(len);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn report(
    args: &Args,
    seed: u64,
    outcome: &Outcome,
    replayed: Option<&Replayed>,
) -> Result<ExitCode, Error> {
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&summary(seed, outcome, replayed))?
        );
    } else {
        print_summary(&outcome.stats);
        let seconds = outcome.elapsed.as_secs_f64();
        let calls = outcome.stats.calls;
        println!(
            "\n{} calls in {seconds:.1} s on {} VMs, {:.0} calls/s, {} % succeeded, {} reasons hit, {} confirmed by repair",
            calls,
            outcome.stats.vms,
            calls as f64 / seconds,
            outcome.stats.succeeded * 100 / calls.max(1),
            outcome.stats.by_reason.len(),
            outcome.stats.confirmed.len(),
        );
    }
    let verdict = match &outcome.finding {
        None => "0 divergences".to_owned(),
        Some(finding) => {
            let path = args.output.join(format!("slat-divergence-{seed}.slat"));
            std::fs::write(&path, finding.scenario.to_string())?;
            let (from, difference) = (finding.original_calls, &finding.difference);
            format!(
                "1 divergence, shrunk from {from} calls: {}\n{difference}",
                path.display()
            )
        }
    };
    match (args.json, replayed) {
        (true, _) => eprintln!("{verdict}"),
        (false, None) => println!("{verdict}"),
        (false, Some(replayed)) => println!("{verdict}\n{replayed}"),
    }
    Ok(exit_code(
        outcome.finding.is_none() && replayed.is_none_or(|r| r.failed == 0),
    ))
}

fn print_summary(stats: &Stats) {
    let mut operations = table::plain(["operation", "result", "calls"]);
    for ((operation, errno), count) in &stats.by_operation {
        operations.add_row([
            (*operation).to_owned(),
            result_name(*errno),
            count.to_string(),
        ]);
    }
    println!("{operations}\n");
    let mut reasons = table::plain(["reason", "refusals", "confirmed by repair"]);
    for (reason, count) in &stats.by_reason {
        let confirmed = stats.confirmed.get(reason).copied().unwrap_or(0);
        reasons.add_row([
            (*reason).to_owned(),
            count.to_string(),
            confirmed.to_string(),
        ]);
    }
    println!("{reasons}");
    println!(
        "\nrefusals without a repair that can be tried: {}; calls not tried: {}",
        stats.unconfirmed,
        stats.not_tried.values().sum::<u64>()
    );
    for (why, count) in &stats.not_tried {
        println!("  {count}: {why}");
    }
}

fn result_name(errno: Option<Errno>) -> String {
    errno.map_or("ok".to_owned(), |e| e.to_string())
}

fn summary(seed: u64, outcome: &Outcome, replayed: Option<&Replayed>) -> serde_json::Value {
    let stats = &outcome.stats;
    let operations: Vec<_> = stats
        .by_operation
        .iter()
        .map(|((operation, errno), count)| {
            serde_json::json!({ "operation": operation, "result": result_name(*errno), "calls": count })
        })
        .collect();
    serde_json::json!({
        "seed": seed,
        "calls": stats.calls,
        "succeeded": stats.succeeded,
        "vms": stats.vms,
        "seconds": outcome.elapsed.as_secs_f64(),
        "operations": operations,
        "reasons": stats.by_reason,
        "confirmed": stats.confirmed,
        "unconfirmed": stats.unconfirmed,
        "not_tried": stats.not_tried,
        "replayed": replayed.map(Replayed::json),
        "divergence": outcome.finding.as_ref().map(|f| f.difference.to_string()),
    })
}

/// What came of replaying the recorded results of real kernels on the model.
struct Replayed {
    agreed: usize,
    failed: usize,
}

impl Replayed {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({ "agreed": self.agreed, "failed": self.failed })
    }
}

impl std::fmt::Display for Replayed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { agreed, failed } = self;
        write!(
            f,
            "{agreed} recorded kernel results replayed on the model, {failed} differ"
        )
    }
}

fn replay_recordings() -> Result<Replayed, Error> {
    let mut replayed = Replayed {
        agreed: 0,
        failed: 0,
    };
    for (name, text) in recordings::GOLDEN.iter().chain(recordings::RECORDED) {
        let scenario = scenario::parse(text)?;
        let named = scenario.profile().and_then(Profile::named);
        let profile = named.unwrap_or_else(Profile::latest);
        let report = slat_vmm::run(&scenario, &mut model::Machine::new(profile))?;
        replayed.agreed += report.agreed();
        for step in report.failures() {
            replayed.failed += 1;
            eprintln!(
                "{name}:{}: {}: the model says {:?}",
                step.line, step.text, step.result
            );
        }
    }
    Ok(replayed)
}
