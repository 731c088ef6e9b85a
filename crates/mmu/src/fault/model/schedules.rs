//! Random schedules of everything, each with its own random operations.
//!
//! A schedule that fails is printed, and `shuttle::replay` repeats it.

use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};
use slat_memslot::Gfn;

use super::check;
use super::log::{Anew, Split};
use super::slots::Removal;
use super::vcpu::Vcpu;
use super::world::{FRAMES, World};
use crate::fault::Kind;
use crate::host::Host;
use crate::spte::{Ept, Format, Npt, NxHugePages};
use crate::tdp::{Age, Collapse};

/// What a thread does beside running its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Nothing.
    Vcpu,
    /// The host's memory management.
    Notifier,
    /// Dirty logs.
    Log,
    /// The slot goes and comes.
    Slots,
    /// All of it.
    Everything,
}

/// `SLAT_SCHEDULES` sets how many there are of each kind.
fn schedules() -> usize {
    let given = std::env::var("SLAT_SCHEDULES").ok();
    given.map_or(5_000, |given| given.parse().unwrap())
}

fn below(end: u64) -> u64 {
    thread_rng().gen_range(0..end)
}

fn guest<F: Format>(vcpu: &mut Vcpu<F>) {
    let gfn = Gfn::new(below(FRAMES));
    match below(12) {
        0..6 => vcpu.access(gfn, Kind::Write),
        6..9 => vcpu.access(gfn, Kind::Read),
        9 => vcpu.access(gfn, Kind::Execute),
        10 => vcpu.prefault(gfn),
        _ => vcpu.drop_roots(),
    }
}

fn notifier<F: Format>(world: &World<F>) {
    let gfn = below(FRAMES);
    match below(6) {
        0..3 => world.unmap(gfn),
        3 => world.make_huge(gfn),
        4 => world.age(gfn, Age::Take),
        _ => world.age(gfn, Age::Test),
    }
}

fn log<F: Format>(world: &World<F>, vcpu: &mut Vcpu<F>) {
    let reader = &mut vcpu.reader;
    match below(8) {
        0 | 1 => world.log_on(reader, Split::Eagerly),
        2 | 3 => world.log_on(reader, Split::Lazily),
        4 => world.log_off(reader, Collapse::Recover(NxHugePages::Off)),
        5 => world.log_off(reader, Collapse::Zap),
        6 => world.get_log(Anew::AtOnce),
        _ => {
            world.get_log(Anew::ByHand);
            world.clear_log();
        }
    }
}

fn slots<F: Format>(world: &World<F>, vcpu: &mut Vcpu<F>) {
    match below(6) {
        0 => world.delete(&mut vcpu.reader, Removal::Leafs),
        1 => world.delete(&mut vcpu.reader, Removal::Roots),
        2 => world.zap_all(&mut vcpu.reader),
        _ => world.create(),
    }
}

fn step<F: Format>(world: &World<F>, vcpu: &mut Vcpu<F>, part: Part) {
    match (part, below(4)) {
        (Part::Vcpu, _) | (_, 0) => guest(vcpu),
        (Part::Notifier, _) | (Part::Everything, 1) => notifier(world),
        (Part::Log, _) | (Part::Everything, 2) => log(world, vcpu),
        (Part::Slots | Part::Everything, _) => slots(world, vcpu),
    }
}

fn run<F: Format>(
    scheduler: impl Scheduler + 'static,
    host: Host,
    parts: &'static [Part],
    steps: usize,
) where
    World<F>: Send + Sync + 'static,
    Vcpu<F>: Send + 'static,
{
    let mut config = Config::new();
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(move || {
        let world = World::<F>::new(&host, parts.len());
        world.create();
        let worker = |(number, part): (usize, &Part)| {
            let mut vcpu = Vcpu::new(&world, number);
            let (world, part) = (Arc::clone(&world), *part);
            thread::spawn(move || {
                for _ in 0..steps {
                    step(&world, &mut vcpu, part);
                }
                vcpu.drop_roots();
            })
        };
        let threads: Vec<_> = parts.iter().enumerate().map(worker).collect();
        for thread in threads {
            thread.join().unwrap();
        }
        check::finish(world);
    });
}

const NOTIFIER: &[Part] = &[Part::Vcpu, Part::Vcpu, Part::Notifier];
const LOG: &[Part] = &[Part::Vcpu, Part::Vcpu, Part::Log];
const SLOTS: &[Part] = &[Part::Vcpu, Part::Vcpu, Part::Slots];
const EVERYTHING: &[Part] = &[
    Part::Vcpu,
    Part::Notifier,
    Part::Everything,
    Part::Everything,
];

#[test]
fn faults_against_notifiers() {
    run::<Npt>(
        RandomScheduler::new(schedules()),
        Host::npt(48),
        NOTIFIER,
        8,
    );
}

/// Here an invalidation may well begin and end between two steps of a fault.
#[test]
fn faults_against_notifiers_with_few_changes() {
    run::<Npt>(
        PctScheduler::new(3, schedules()),
        Host::npt(48),
        NOTIFIER,
        8,
    );
}

#[test]
fn faults_against_dirty_logs_by_write_protection() {
    run::<Npt>(RandomScheduler::new(schedules()), Host::npt(48), LOG, 8);
}

#[test]
fn faults_against_dirty_logs_by_dirty_bits() {
    run::<Ept>(RandomScheduler::new(schedules()), Host::ept(48), LOG, 8);
}

#[test]
fn faults_against_slots() {
    run::<Npt>(RandomScheduler::new(schedules()), Host::npt(48), SLOTS, 8);
}

#[test]
fn everything_at_once() {
    run::<Ept>(
        RandomScheduler::new(schedules()),
        Host::ept(48),
        EVERYTHING,
        8,
    );
}

#[test]
fn everything_at_once_without_accessed_bits() {
    let host = Host::ept(48).without_ad();
    run::<Ept>(PctScheduler::new(3, schedules()), host, EVERYTHING, 8);
}
