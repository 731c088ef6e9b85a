//! `slat diff --area walk`: walks of guest page tables against `KVM_TRANSLATE`.

use std::process::ExitCode;

use slat_vmm::walks::{self, Config, Outcome};

use super::{Args, Concluded, progress};
use crate::{Error, table};

/// Random translations on the kernel and on the model.
pub(super) fn run(args: &Args, seed: u64) -> Result<ExitCode, Error> {
    let mut translator = match open() {
        Ok(translator) => translator,
        Err(why) => {
            eprintln!("skipped: walk: {why}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    eprintln!("walks: KVM_TRANSLATE, seed {seed}");
    let config = Config {
        seed,
        translations: args.ops,
        ..Config::default()
    };
    let bar = progress(args.ops);
    let outcome = walks::compare(&mut translator, &config, |done| bar.set_position(done))
        .map_err(|errno| format!("KVM_TRANSLATE cannot be compared: {errno}"))?;
    bar.finish_and_clear();
    let concluded = Concluded {
        area: "walk",
        skipped: &outcome.skipped,
        difference: outcome.difference.as_ref(),
    };
    concluded.report(args, || summary(seed, &outcome), || print(&outcome))
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn open() -> Result<slat_vmm::kvm::Translator, Error> {
    Ok(slat_vmm::kvm::Translator::open()?)
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn open() -> Result<std::convert::Infallible, Error> {
    Err("KVM for x86-64 needs Linux on x86-64".into())
}

fn print(outcome: &Outcome) {
    let stats = &outcome.stats;
    let mut ends = table::plain(["mode", "end of the walk", "translations"]);
    for ((mode, end), count) in &stats.by_end {
        ends.add_row([mode.to_string(), end.to_string(), count.to_string()]);
    }
    println!("{ends}");
    let seconds = outcome.elapsed.as_secs_f64();
    println!(
        "\n{} translations in {seconds:.1} s, {:.0}/s, {} states of registers and tables ({} refused), {} % valid",
        stats.translations,
        stats.translations as f64 / seconds,
        stats.states,
        stats.refused_states,
        stats.valid() * 100 / stats.translations.max(1),
    );
    println!(
        "{} modes skipped, {}",
        outcome.skipped.len(),
        match outcome.difference {
            None => "0 differences in validity, address and accessed bits",
            Some(_) => "1 difference",
        }
    );
}

fn summary(seed: u64, outcome: &Outcome) -> serde_json::Value {
    let stats = &outcome.stats;
    let ends: Vec<_> = stats
        .by_end
        .iter()
        .map(|((mode, end), count)| {
            serde_json::json!({
                "mode": mode.to_string(),
                "end": end.to_string(),
                "translations": count,
            })
        })
        .collect();
    let skipped: Vec<String> = outcome.skipped.iter().map(ToString::to_string).collect();
    serde_json::json!({
        "area": "walk",
        "seed": seed,
        "translations": stats.translations,
        "states": stats.states,
        "refused_states": stats.refused_states,
        "valid": stats.valid(),
        "seconds": outcome.elapsed.as_secs_f64(),
        "ends": ends,
        "skipped": skipped,
        "difference": outcome.difference.as_ref().map(ToString::to_string),
    })
}
