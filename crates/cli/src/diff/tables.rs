//! `slat diff --area tables`, `shadow` and `nested`: what the tables of a real VM become, event by event.

use std::process::ExitCode;

use super::Args;
use crate::Error;

/// Which MMU is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mmu {
    Tdp,
    Shadow,
    /// Either, below guests that run guests of their own.
    Nested,
}

impl Mmu {
    const fn area(self) -> &'static str {
        match self {
            Self::Tdp => "tables",
            Self::Shadow => "shadow",
            Self::Nested => "nested",
        }
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(super) fn run(args: &Args, seed: u64, mmu: Mmu) -> Result<ExitCode, Error> {
    use slat_vmm::live::{Config, Live, abilities, here, here_nested, here_shadowed};

    use super::{exit_code, progress};

    let area = mmu.area();
    let found = match mmu {
        Mmu::Tdp => here(),
        Mmu::Shadow => here_shadowed(),
        Mmu::Nested => here_nested(),
    };
    let machine = match found {
        Ok(machine) => machine,
        Err(why) => {
            eprintln!("skipped: {area}: {why}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    eprintln!("{area}: {}, seed {seed}", machine.name);
    let abilities = abilities(&machine);
    let mut live = match Live::new(machine) {
        Ok(live) => live,
        Err(why) => {
            eprintln!("skipped: {area}: {why}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let events = usize::try_from(args.ops)?;
    let config = match mmu {
        Mmu::Tdp => Config::new(seed, events, abilities),
        Mmu::Shadow => Config::with_tables(seed, events, abilities),
        Mmu::Nested => Config::nested(seed, events, abilities),
    };
    let bar = progress(args.ops);
    let outcome = live.compare(&config, |events| bar.set_position(events as u64))?;
    bar.finish_and_clear();
    if let Some(finding) = &outcome.finding {
        let path = args
            .output
            .join(format!("slat-{area}-{}.txt", finding.seed));
        std::fs::write(&path, &finding.recording)?;
        eprintln!(
            "1 difference, shrunk from {} operations: {}\n{}\nfirst seen as: {}",
            finding.original,
            path.display(),
            finding.difference,
            finding.first
        );
    }
    let seconds = outcome.elapsed.as_secs_f64();
    match args.json {
        true => println!(
            "{}",
            serde_json::to_string_pretty(&serde_json::json!({
                "area": area,
                "seed": seed,
                "programs": outcome.programs,
                "operations": outcome.operations,
                "left_out": outcome.left_out,
                "events": outcome.events,
                "guest_runs": outcome.executed,
                "disturbed": outcome.disturbed,
                "seconds": seconds,
                "difference": outcome.finding.as_ref().map(|finding| &finding.difference),
            }))?
        ),
        false => println!(
            "{} events and results of {} operations ({} runs of guests) in {} programs compared in {seconds:.1} s, \
             {} differences, {} programs disturbed and run again",
            outcome.events,
            outcome.operations,
            outcome.executed,
            outcome.programs,
            u8::from(outcome.finding.is_some()),
            outcome.disturbed,
        ),
    }
    Ok(exit_code(outcome.finding.is_none()))
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(super) fn run(_args: &Args, _seed: u64, mmu: Mmu) -> Result<ExitCode, Error> {
    let area = mmu.area();
    eprintln!("skipped: {area}: KVM for x86-64 needs Linux on x86-64");
    Ok(ExitCode::SUCCESS)
}
