//! `slat zap --plot`: figures.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use plotters::prelude::*;
use serde_json::json;
use slat_memslot::Pages;
use slat_vmm::zap::{Goal, Paged, Policy, Prices, Scene, Zapping};

use super::exit_code;
use super::figure::{Drawn, Figure, bounds, line, sample};
use super::measured::{Line, Measured, Who};
use super::table::size;
use crate::Error;

/// The slot that goes: 1 MiB.
const SLOT: Pages = Pages::new(256);
/// What others have mapped, in small pages.
const OTHERS: [u64; 9] = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536];
/// Sizes of slots for the line where both cost the same.
const SLOTS: [u64; 6] = [16, 64, 256, 1024, 4096, 16384];
/// vCPUs for it.
const VCPUS: [u32; 2] = [1, 8];
/// Each is measured so often. The least counts: whatever else the machine does only adds to it.
const TIMES: usize = 9;

const ALL: RGBColor = RGBColor(0xc5, 0x22, 0x1f);
const LEAVES: RGBColor = RGBColor(0x0b, 0x80, 0x43);
const INK: RGBColor = RGBColor(0x1f, 0x29, 0x33);

/// Microseconds of one policy.
#[derive(Clone, Copy, Debug)]
struct Point {
    others: u64,
    zap: f64,
    /// With the faults that follow.
    total: f64,
}

/// One who measures, and both policies' points for one size of slot.
struct Series {
    who: &'static str,
    paged: Paged,
    all: Vec<Point>,
    leaves: Vec<Point>,
}

/// Measures and writes `zap-cost-*.svg` and `zap-crossover.svg`.
pub(super) fn run(directory: &Path, who: &mut Who, as_json: bool) -> Result<ExitCode, Error> {
    fs::create_dir_all(directory)?;
    let mut good = true;
    let mut series = measure(who, SLOT, &mut good)?;
    if who.on_kernel() || who.paged() != Paged::Tdp {
        series.extend(measure(&mut Who::tdp_model(), SLOT, &mut good)?);
    }
    for one in &series {
        let path = directory.join(format!("zap-cost-{}-{}.svg", one.who, one.mmu()));
        cost(&path, one).map_err(|why| format!("{}: {why}", path.display()))?;
        println!("{}", path.display());
    }
    let lines = VCPUS.map(|vcpus| (vcpus, SLOTS.map(|slot| (slot, balance(slot, vcpus)))));
    let path = directory.join("zap-crossover.svg");
    crossover(&path, &lines).map_err(|why| format!("{}: {why}", path.display()))?;
    println!("{}", path.display());
    match as_json {
        true => println!("{}", serde_json::to_string_pretty(&value(&series, &lines))?),
        false => tell(&series, &lines),
    }
    Ok(exit_code(good))
}

fn measure(who: &mut Who, slot: Pages, good: &mut bool) -> Result<Vec<Series>, Error> {
    let mut series: Vec<Series> = Vec::new();
    for others in OTHERS {
        for policy in [Policy::QuirkOn, Policy::QuirkOff] {
            let scene = Scene::new(slot)
                .with_others(Pages::new(others))
                .with_policy(policy);
            let mut measured: Vec<Measured> = Vec::new();
            for _ in 0..TIMES {
                measured.push(who.measure(&scene)?);
            }
            *good &= measured.iter().all(Measured::agrees);
            let lines: Vec<Vec<Line>> = measured.iter().map(Measured::lines).collect();
            for place in 0..lines[0].len() {
                let least = |of: &dyn Fn(&Line) -> f64| {
                    let all = lines.iter().map(|lines| of(&lines[place]));
                    all.fold(f64::MAX, f64::min)
                };
                if series.len() <= place {
                    series.push(Series {
                        who: lines[0][place].who,
                        paged: who.paged(),
                        all: Vec::new(),
                        leaves: Vec::new(),
                    });
                }
                let point = Point {
                    others,
                    zap: least(&|line| line.zap_us),
                    total: least(&|line| line.zap_us + line.again_us),
                };
                match policy {
                    Policy::QuirkOn => series[place].all.push(point),
                    _ => series[place].leaves.push(point),
                }
            }
        }
    }
    Ok(series)
}

impl Series {
    const fn mmu(&self) -> &'static str {
        match self.paged {
            Paged::Tdp => "tdp",
            Paged::Shadow => "shadow",
        }
    }

    /// What others must have mapped for the guest to wait as long with either policy; `None` where there is no such number.
    ///
    /// A zap of leaves holds the lock, and faults wait for it. The TDP MMU zaps roots beside faults, shadow pages do not. Then
    /// come the faults.
    fn crossover(&self) -> Option<f64> {
        let difference: Vec<(f64, f64)> = self
            .all
            .iter()
            .zip(&self.leaves)
            .map(|(all, leaves)| {
                // Touching what is mapped takes time too, with leaves only.
                let faults = (all.total - all.zap) - (leaves.total - leaves.zap);
                let roots = match self.paged {
                    Paged::Tdp => 0.0,
                    Paged::Shadow => all.zap,
                };
                (all.others as f64, roots + faults - leaves.zap)
            })
            .collect();
        let crossing = difference
            .windows(2)
            .find(|two| two[0].1 < 0.0 && two[1].1 >= 0.0)?;
        let ((x0, y0), (x1, y1)) = (crossing[0], crossing[1]);
        let part = -y0 / (y1 - y0);
        Some((x0.ln() + (x1.ln() - x0.ln()) * part).exp())
    }
}

fn cost(path: &Path, series: &Series) -> Drawn {
    let all = || series.all.iter().chain(&series.leaves);
    let (low, high) = bounds(all().flat_map(|point| [point.zap, point.total]));
    let last = *OTHERS.last().unwrap_or(&1) as f64;
    let mmu = match series.paged {
        Paged::Tdp => "TDP MMU",
        Paged::Shadow => "shadow pages",
    };
    let figure = Figure {
        title: format!("A slot of {} is deleted: {}, {mmu}", size(SLOT), series.who),
        across: ("pages that others have mapped", 1.0..last),
        up: ("microseconds", low..high),
    };
    let lines = [
        ("all roots: zap", &series.all, ALL, false),
        (
            "all roots: zap, and everybody touches again",
            &series.all,
            ALL,
            true,
        ),
        ("leaves: zap", &series.leaves, LEAVES, false),
        (
            "leaves: zap, and everybody touches again",
            &series.leaves,
            LEAVES,
            true,
        ),
    ];
    figure.draw(path, |chart| {
        for (label, points, colour, total) in lines {
            let points = points.iter().map(|point| {
                let y = if total { point.total } else { point.zap };
                (point.others as f64, y.max(0.01))
            });
            let width = if total { 3 } else { 1 };
            line(chart, label, points, colour.stroke_width(width).filled())?;
        }
        if let Some(at) = series.crossover() {
            let crossing = LineSeries::new([(at, low), (at, high)], INK.mix(0.5));
            chart
                .draw_series(crossing)?
                .label(format!("the guest waits as long for either: {at:.0} pages"))
                .legend(|at| sample(at, INK.mix(0.5)));
        }
        Ok(())
    })
}

/// What others must have mapped for vCPUs to stand still as long with either policy, by the advisor's prices.
fn balance(slot: u64, vcpus: u32) -> u64 {
    let prices = Prices::default();
    let roots_are_better = |others: u64| {
        let scene = Scene::new(Pages::new(slot)).with_others(Pages::new(others));
        let advice = scene.with_vcpus(1, vcpus).advice((Goal::Stall, &prices));
        advice.is_ok_and(|advice| advice.cheaper == Zapping::AllRoots)
    };
    let (mut low, mut high) = (0, slot.max(1) * u64::from(vcpus));
    while low < high {
        let middle = low.midpoint(high);
        match roots_are_better(middle) {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    low
}

/// vCPUs, and for each size of slot what others have mapped where both policies are as good.
type Balance = [(u32, [(u64, u64); SLOTS.len()]); VCPUS.len()];

fn crossover(path: &Path, lines: &Balance) -> Drawn {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let (low, high) = bounds(points().map(|(_, others)| *others as f64));
    let (first, last) = (SLOTS[0] as f64, SLOTS[SLOTS.len() - 1] as f64);
    let figure = Figure {
        title: "Where vCPUs stand still as long with either policy".into(),
        across: ("mapped pages of the slot that goes", first..last),
        up: (
            "pages that others have mapped and touch again",
            low.max(0.5)..high,
        ),
    };
    figure.draw(path, |chart| {
        for ((vcpus, points), colour) in lines.iter().zip([LEAVES, ALL]) {
            let label = format!("{vcpus} vCPUs: above it leaves are better, below it all roots");
            let points = points.iter();
            let points = points.map(|(slot, others)| (*slot as f64, (*others as f64).max(0.5)));
            line(chart, &label, points, colour.stroke_width(2))?;
        }
        Ok(())
    })
}

fn tell(series: &[Series], lines: &Balance) {
    for one in series {
        println!(
            "{} with the MMU {}, a slot of {}: microseconds",
            one.who,
            one.mmu(),
            size(SLOT)
        );
        println!("  others   all roots   with faults   leaves   with touches");
        for (all, leaves) in one.all.iter().zip(&one.leaves) {
            println!(
                "  {:>6} {:>11.1} {:>13.1} {:>8.1} {:>14.1}",
                all.others, all.zap, all.total, leaves.zap, leaves.total
            );
        }
        match one.crossover() {
            Some(others) => {
                println!("  the guest waits as long when others have {others:.0} pages")
            }
            None => println!("  the guest never waits as long: one policy is always better"),
        }
    }
    for (vcpus, points) in lines {
        for (slot, others) in points {
            println!(
                "{vcpus} vCPUs, a slot with {slot} pages: by the advisor's prices as long when others have {others} pages"
            );
        }
    }
}

fn value(series: &[Series], lines: &Balance) -> serde_json::Value {
    let point = |point: &Point| json!({ "others": point.others, "zap_us": point.zap, "total_us": point.total });
    let one = |one: &Series| {
        json!({
            "who": one.who,
            "mmu": one.mmu(),
            "all_roots": one.all.iter().map(point).collect::<Vec<_>>(),
            "leaves": one.leaves.iter().map(point).collect::<Vec<_>>(),
        })
    };
    json!({
        "costs": series.iter().map(one).collect::<Vec<_>>(),
        "crossover": lines.iter().map(|(vcpus, points)| json!({ "vcpus": vcpus, "points": points })).collect::<Vec<_>>(),
    })
}
