//! What checks and plans cost, as ratios of one round, and what the reverse map costs.
//!
//! `cargo bench -p slat-coco`; with `--test` a round of little work, to see that it runs.

mod psc;
mod walk;

use std::time::Instant;

use slat_coco::rmp::{Asid, Rmp, RmpSize, RmpState};
use slat_memslot::Gfn;
use slat_mmu::spte::Pfn;

/// Nanoseconds a run, of `times` runs.
fn time(times: u64, mut run: impl FnMut(u64)) -> f64 {
    let start = Instant::now();
    for number in 0..times {
        run(number);
    }
    start.elapsed().as_secs_f64() * 1e9 / times as f64
}

/// The median of some rounds of two things, and of their ratio.
fn compare(rounds: u32, mut both: impl FnMut() -> (f64, f64)) -> (f64, f64, f64) {
    let all: Vec<(f64, f64)> = (0..rounds).map(|_| both()).collect();
    let median = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = all.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    (
        median(&|one| one.0),
        median(&|one| one.1),
        median(&|one| one.1 / one.0),
    )
}

fn rates(times: u64) {
    let rmp = Rmp::new(1 << 28);
    let asid = Asid::new(5).expect("it is small");
    let regions = times.min(1 << 19);
    let update = time(regions, |number| {
        let gfn = Gfn::new(number * 512);
        let state = RmpState::private(asid, gfn, RmpSize::Size2M);
        let done = rmp.rmpupdate(Pfn::new(number * 512), &state);
        debug_assert!(done.is_ok());
    });
    let bytes_huge = rmp.bytes() as f64 / (regions * 512) as f64;
    let small = regions.min(1 << 10);
    let psmash = time(small, |number| {
        let done = rmp.psmash(Pfn::new(number * 512));
        debug_assert!(done.is_ok());
    });
    let again = time(small * 512, |number| {
        let state = RmpState::private(asid, Gfn::new(number), RmpSize::Size4K);
        let done = rmp.rmpupdate(Pfn::new(number), &state);
        debug_assert!(done.is_ok());
    });
    println!(
        "RMPUPDATE 2M {update:.0} ns with memory, 4K {again:.0} ns; PSMASH {psmash:.0} ns; {bytes_huge:.2} bytes a page \
         in 2M entries, 16 in 4K entries"
    );
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--test");
    let (rounds, times) = if quick { (3, 100) } else { (15, 100_000) };
    psc::plans(rounds, times);
    walk::walks(rounds, times * 10);
    rates(times * 4);
}
