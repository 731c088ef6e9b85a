//! Scenes and costs as a table.

use std::process::ExitCode;

use comfy_table::CellAlignment;
use slat_memslot::{PAGE_SIZE, Pages};
use slat_vmm::zap::{Operation, Scene, Subject, concurrent};

use super::measured::{Measured, Who};
use crate::Error;
use crate::table::plain;

const SCENE: [&str; 8] = [
    "operation",
    "policy",
    "slot",
    "mapped",
    "leaf",
    "others",
    "roots",
    "vCPUs",
];
const COSTS: [&str; 8] = [
    "who", "zapped", "entries", "tables", "back", "faults", "zap us", "back us",
];

/// A size in bytes, short.
pub(super) fn size(pages: Pages) -> String {
    let kib = pages.raw() * (PAGE_SIZE >> 10);
    let units = [(30, "T"), (20, "G"), (10, "M")];
    let fits = |(shift, _): &&(u32, &str)| kib > 0 && kib.trailing_zeros() >= *shift;
    match units.iter().find(fits) {
        Some((shift, unit)) => format!("{}{unit}", kib >> shift),
        None => format!("{kib}K"),
    }
}

fn scene(scene: &Scene) -> [String; 8] {
    [
        scene.operation.to_string(),
        scene.policy.to_string(),
        size(scene.pages),
        size(scene.touched),
        scene.leaf.to_string(),
        size(scene.others),
        scene.roots.to_string(),
        scene.vcpus.to_string(),
    ]
}

pub(super) fn print(measured: &[Measured]) {
    let mut table = plain(SCENE.into_iter().chain(COSTS));
    for one in measured {
        for line in one.lines() {
            let number = |count: Option<u64>| count.map_or("-".to_owned(), |n| n.to_string());
            let costs = [
                line.who.to_owned(),
                line.zapped.to_string(),
                number(line.entries),
                line.tables.to_string(),
                (line.others_back + line.own_back).to_string(),
                line.faults.to_string(),
                format!("{:.1}", line.zap_us),
                format!("{:.1}", line.again_us),
            ];
            table.add_row(scene(&one.scene).into_iter().chain(costs));
        }
    }
    right(&mut table, &[2, 3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15]);
    println!("{table}");
    println!();
    println!(
        "zapped: leaves that go; entries: those that change, leaves among them; tables: those that go, or shadow pages;"
    );
    println!(
        "back: leaves that come back when every vCPU touches its pages again, by so many faults."
    );
    let differ: Vec<&Measured> = measured.iter().filter(|one| !one.agrees()).collect();
    for one in &differ {
        println!("model and kernel count differently: {:?}", one.scene);
    }
    let both = measured.iter().filter(|one| one.lines().len() == 2).count();
    if both > 0 && differ.is_empty() {
        println!("model and kernel count the same in {both} of {both} scenes.");
    }
}

pub(super) fn right(table: &mut comfy_table::Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Deletions beside another thread.
pub(super) fn threads(scenes: &[Scene], who: &Who, json: bool) -> Result<ExitCode, Error> {
    if who.on_kernel() {
        return Err("--threads is for the model's tables".into());
    }
    let mut table = plain(SCENE.into_iter().chain(["zap us", "faults", "longest us"]));
    let mut rows = Vec::new();
    for one in scenes {
        if !matches!(one.operation, Operation::Delete | Operation::Move) {
            return Err(format!("{} zaps nothing", one.operation).into());
        }
        let cost = concurrent(one, &Subject::tdp())?;
        let micros = |time: core::time::Duration| time.as_secs_f64() * 1e6;
        let (zap, longest) = (micros(cost.zap), micros(cost.longest));
        let numbers = [
            format!("{zap:.1}"),
            cost.faults.to_string(),
            format!("{longest:.1}"),
        ];
        table.add_row(scene(one).into_iter().chain(numbers));
        rows.push(serde_json::json!({
            "scene": super::json::scene(one), "zap_us": zap, "faults": cost.faults, "longest_us": longest,
        }));
    }
    right(&mut table, &[2, 3, 5, 6, 7, 8, 9, 10]);
    match json {
        true => println!("{}", serde_json::to_string_pretty(&rows)?),
        false => {
            println!("{table}");
            println!();
            println!(
                "faults: pages that another thread has mapped meanwhile; longest: the longest of them, with its wait."
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
