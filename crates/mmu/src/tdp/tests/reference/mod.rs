//! Random sequences of operations, against a reference that knows no tables.
//!
//! `SLAT_SEQUENCES` sets how many, `SLAT_SEED` from which seed on. A sequence that fails is shortened as long as it
//! still fails, and printed as a list of operations.

mod compare;
mod log;
mod model;
mod ops;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use slat_memslot::AsId;

use self::ops::{Choice, Op, Random, places};
use self::world::World;
use super::*;
use crate::host::{Encryption, Layout};
use crate::role::reachable_tdp_roots;
use crate::roots::Acquired;
use crate::spte::{AdType, Ept};

/// As many as take a few seconds.
const SEQUENCES: u64 = 5_000;
const SEED: u64 = 0x51a7;
const OPERATIONS: usize = 30;

/// The hosts that sequences run on, in turn.
const HOSTS: [Host; 14] = [
    Host::ept(40),
    Host::ept(40).without_ad(),
    Host::ept(50).with_five_levels(),
    Host::ept(40).without_pml().with_layout(Layout::P1),
    Host::ept(40).without_ad().with_software_ad(),
    Host::ept(50).with_five_levels().with_layout(Layout::P3),
    Host::ept(40).without_ad().with_layout(Layout::P3),
    Host::ept(40).with_software_ad(),
    Host::npt(40),
    Host::npt(50).with_five_levels().with_software_ad(),
    Host::npt(48).with_encryption(Encryption::Active { c_bit: 47 }, 43),
    Host::npt(40).with_layout(Layout::P3),
    Host::npt(40).without_mmio_caching(),
    Host::ept(39).with_l1tf(44),
];

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect("a number"))
}

/// Runs a sequence on fresh tables, and says what went wrong after which operation.
fn run(host: &Host, watch: u64, sequence: &[Op], places: &[u64]) -> Result<(), String> {
    let npt = matches!(host.second_stage, crate::host::SecondStage::Npt);
    match (npt, watch % 3) {
        (false, 0) => follow(World::<Ept, false, false>::new(host, places), sequence),
        (false, 1) => follow(World::<Ept, false, true>::new(host, places), sequence),
        (false, _) => follow(World::<Ept, true, true>::new(host, places), sequence),
        (true, 0) => follow(World::<Npt, false, false>::new(host, places), sequence),
        (true, 1) => follow(World::<Npt, false, true>::new(host, places), sequence),
        (true, _) => follow(World::<Npt, true, true>::new(host, places), sequence),
    }
}

fn follow<F: Format, const E: bool, const H: bool>(
    mut world: World<F, E, H>,
    sequence: &[Op],
) -> Result<(), String> {
    for (number, op) in sequence.iter().enumerate() {
        let step = catch_unwind(AssertUnwindSafe(|| world.step(op)));
        let step = step.unwrap_or_else(|_| Err("it panicked".into()));
        step.map_err(|error| format!("after operation {number}: {error}"))?;
    }
    world.compare_all()
}

/// Drops operations as long as what is left still fails.
fn shorten(mut sequence: Vec<Op>, fails: impl Fn(&[Op]) -> bool) -> Vec<Op> {
    let mut at = sequence.len();
    while at > 0 {
        at = at.min(sequence.len()) - 1;
        let mut shorter = sequence.clone();
        shorter.remove(at);
        if fails(&shorter) {
            sequence = shorter;
            at = sequence.len();
        }
        if sequence.is_empty() {
            break;
        }
    }
    sequence
}

fn report(host: &Host, watch: u64, seed: u64, sequence: Vec<Op>, places: &[u64]) -> String {
    let short = shorten(sequence, |ops| run(host, watch, ops, places).is_err());
    let error = run(host, watch, &short, places).expect_err("it still fails");
    let list: String = short.iter().map(|op| format!("\n    {op:x?},")).collect();
    format!("SLAT_SEED={seed} SLAT_SEQUENCES=1\n{host:?}\n[{list}\n]\n{error}")
}

#[test]
fn random_operations_agree_with_the_reference() {
    let (count, seed) = (
        number("SLAT_SEQUENCES", SEQUENCES),
        number("SLAT_SEED", SEED),
    );
    let (start, mut operations) = (Instant::now(), 0);
    for seed in seed..seed.wrapping_add(count) {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let host = &random.pick(&HOSTS);
        let (watch, end) = (random.next(), 1 << (host.maxphyaddr - 12));
        let places = places(end);
        let mut choice = Choice {
            random: &mut random,
            places: &places,
            end,
        };
        let sequence = choice.sequence(OPERATIONS);
        operations += sequence.len();
        if run(host, watch, &sequence, &places).is_err() {
            panic!("{}", report(host, watch, seed, sequence, &places));
        }
    }
    let took = start.elapsed();
    println!("{count} sequences from seed {seed:#x}, {operations} operations, in {took:.1?}");
}
