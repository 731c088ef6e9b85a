//! `slat diff --area access`: accesses that a guest executes, against walks.

use std::process::ExitCode;

use slat_vmm::walks::{AccessConfig, AccessOutcome, Executor as _, compare_accesses};

use super::{Args, Concluded, progress};
use crate::{Error, table};

/// Random accesses by a guest and by the model.
pub(super) fn run(args: &Args, seed: u64) -> Result<ExitCode, Error> {
    let mut guest = match open() {
        Ok(guest) => guest,
        Err(why) => {
            eprintln!("skipped: access: {why}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    eprintln!(
        "accesses: executed by a guest, walked by {}, seed {seed}",
        guest.walked_by()
    );
    let config = AccessConfig {
        seed,
        accesses: args.ops,
        per_state: 24,
    };
    let bar = progress(args.ops);
    let outcome = compare_accesses(&mut guest, &config, |done| bar.set_position(done))
        .map_err(|errno| format!("accesses cannot be compared: {errno}"))?;
    bar.finish_and_clear();
    let concluded = Concluded {
        area: "access",
        skipped: &outcome.skipped,
        difference: outcome.difference.as_ref(),
    };
    concluded.report(args, || summary(seed, &outcome), || print(&outcome))
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn open() -> Result<slat_vmm::kvm::AccessGuest, Error> {
    Ok(slat_vmm::kvm::AccessGuest::open()?)
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn open() -> Result<std::convert::Infallible, Error> {
    Err("KVM for x86-64 needs Linux on x86-64".into())
}

fn print(outcome: &AccessOutcome) {
    let mut ends = table::plain(["mode", "privilege", "access", "end", "accesses"]);
    for ((mode, who, kind, end), count) in &outcome.by_end {
        ends.add_row([&mode.to_string(), *who, *kind, end, &count.to_string()]);
    }
    println!("{ends}\n");
    for (mode, count) in outcome.by_mode() {
        println!("{count} accesses in {mode} paging");
    }
    for (departure, count) in &outcome.departures {
        println!("{count} times the CPU, unlike KVM's own walker, {departure}");
    }
    let seconds = outcome.elapsed.as_secs_f64();
    println!(
        "\n{} accesses in {seconds:.1} s, {:.0}/s, {} left out since they would leave the test's memory",
        outcome.accesses,
        outcome.accesses as f64 / seconds,
        outcome.left_out,
    );
    println!(
        "{}",
        match outcome.difference {
            None => "0 differences in outcome, place, error code, CR2, accessed and dirty bits",
            Some(_) => "1 difference",
        }
    );
}

fn summary(seed: u64, outcome: &AccessOutcome) -> serde_json::Value {
    let ends: Vec<_> = outcome
        .by_end
        .iter()
        .map(|((mode, who, kind, end), count)| {
            serde_json::json!({
                "mode": mode.to_string(),
                "privilege": who,
                "access": kind,
                "end": end,
                "accesses": count,
            })
        })
        .collect();
    let skipped: Vec<String> = outcome.skipped.iter().map(ToString::to_string).collect();
    let departures: Vec<_> = outcome
        .departures
        .iter()
        .map(|(departure, count)| {
            serde_json::json!({ "rule": departure.to_string(), "accesses": count })
        })
        .collect();
    serde_json::json!({
        "area": "access",
        "seed": seed,
        "accesses": outcome.accesses,
        "left_out": outcome.left_out,
        "seconds": outcome.elapsed.as_secs_f64(),
        "walked_by": outcome.walked_by.to_string(),
        "skipped": skipped,
        "departures": departures,
        "ends": ends,
        "difference": outcome.difference.as_ref().map(ToString::to_string),
    })
}
