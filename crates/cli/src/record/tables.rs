//! `slat record --tables`: what the MMU of this kernel does, program by program.

use std::path::Path;
use std::process::ExitCode;

use slat_vmm::live::{abilities, here};
use slat_vmm::programs;
use slat_vmm::replay::{Verdict, predict};
use slat_vmm::traces::Recording;

use crate::Error;

/// Makes every program that this kernel can make, and writes a recording of each into `folder`.
pub(super) fn run(folder: &Path, json: bool) -> Result<ExitCode, Error> {
    let machine = here()?;
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let (mut events, mut wrong, mut all) = (0, 0, Vec::new());
    for (number, program) in (1..).zip(programs::all(abilities(&machine))) {
        let name = format!("{number:02}-{}", program.name);
        let text = programs::make(&program).map_err(|e| format!("{name}: {e}"))?;
        let path = folder.join(format!("{name}.txt"));
        std::fs::write(&path, &text).map_err(|e| format!("{}: {e}", path.display()))?;
        let recording = Recording::parse(&text).map_err(|e| format!("{name}: {e}"))?;
        let (compared, difference) = match predict(&recording, &machine) {
            Verdict::Agrees { compared, .. } => (compared, None),
            Verdict::Differs {
                compared,
                difference,
            } => (compared, Some(difference.to_string())),
            Verdict::NotModelled(what) => (0, Some(what.to_string())),
        };
        events += compared;
        if !json {
            println!("{name}: {compared} events and results as predicted");
        }
        if let Some(difference) = &difference {
            wrong += 1;
            eprintln!("{name}: {difference}");
        }
        all.push(
            serde_json::json!({ "name": name, "compared": compared, "difference": difference }),
        );
    }
    match json {
        true => println!("{}", serde_json::to_string_pretty(&all)?),
        false => println!(
            "{} recordings in {}, {events} events and results as predicted, {wrong} differ",
            all.len(),
            folder.display()
        ),
    }
    Ok(match wrong {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
