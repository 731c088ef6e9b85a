//! `slat zap --scaling`: how costs grow.

use std::process::ExitCode;

use serde_json::{Value, json};
use slat_vmm::zap::curves::{self, Curve, Extent};

use super::table::right;
use crate::Error;
use crate::table::plain;

pub(super) fn run(full: bool, as_json: bool) -> Result<ExitCode, Error> {
    let extent = match full {
        true => Extent::Full,
        false => Extent::Short,
    };
    let curves = curves::all(extent)?;
    match as_json {
        true => println!("{}", serde_json::to_string_pretty(&json_of(&curves))?),
        false => print(&curves),
    }
    Ok(super::exit_code(curves.iter().all(Curve::holds)))
}

fn print(curves: &[Curve]) {
    let mut table = plain([
        "what", "over", "from", "to", "counted", "least", "most", "grows", "law",
    ]);
    for curve in curves {
        let (Some(first), Some(last)) = (curve.points.first(), curve.points.last()) else {
            continue;
        };
        let found = curve
            .found()
            .map_or("otherwise".to_owned(), |law| law.to_string());
        let verdict = match curve.holds() {
            true => curve.law.to_string(),
            false => format!("{} BROKEN", curve.law),
        };
        table.add_row([
            curve.name.to_owned(),
            curve.over.to_owned(),
            first.0.to_string(),
            last.0.to_string(),
            curve.counted.to_owned(),
            first.1.to_string(),
            last.1.to_string(),
            found,
            verdict,
        ]);
    }
    right(&mut table, &[2, 3, 5, 6]);
    println!("{table}");
    println!();
    for curve in curves {
        let points = curve
            .points
            .iter()
            .map(|(size, count)| format!("{size}:{count}"));
        let points: Vec<String> = points.collect();
        println!(
            "{}, {}, {}: {}",
            curve.name,
            curve.over,
            curve.counted,
            points.join(" ")
        );
    }
    let kept = curves.iter().filter(|curve| curve.holds()).count();
    println!();
    println!("{kept} of {} costs grow by their law.", curves.len());
}

fn json_of(curves: &[Curve]) -> Value {
    let one = |curve: &Curve| {
        json!({
            "what": curve.name,
            "over": curve.over,
            "counted": curve.counted,
            "law": curve.law.to_string(),
            "grows": curve.found().map(|law| law.to_string()),
            "holds": curve.holds(),
            "points": curve.points,
        })
    };
    curves.iter().map(one).collect()
}
