//! Random schedules of everything, each with its own random operations.
//!
//! A schedule that fails is printed, and `shuttle::replay` repeats it.

use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};

use super::guest::{CHOICE, FIRST, USED};
use super::userspace::Removal;
use super::vcpu::Vcpu;
use super::world::{FRAMES, Paging, World};
use crate::fault::Kind;

/// What a thread does beside running its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Nothing.
    Vcpu,
    /// The host's memory management.
    Notifier,
    /// A dirty log.
    Log,
    /// The slot goes and comes, and pages become obsolete.
    Slots,
}

/// `SLAT_SCHEDULES` sets how many there are of each kind.
fn schedules() -> usize {
    let given = std::env::var("SLAT_SCHEDULES").ok();
    given.map_or(2_000, |given| given.parse().unwrap())
}

fn below(end: u64) -> u64 {
    thread_rng().gen_range(0..end)
}

/// Most accesses are to few frames, so that threads meet.
fn frame() -> u64 {
    match below(4) {
        0 => below(FRAMES),
        _ => below(4),
    }
}

fn guest(world: &World, vcpu: &mut Vcpu) {
    let kind = [Kind::Write, Kind::Write, Kind::Read, Kind::Execute][below(4) as usize];
    if world.role.is_direct() {
        return match below(10) {
            0 => vcpu.drop_roots(),
            _ => vcpu.access(frame() << 12, kind, None),
        };
    }
    let page = below(USED);
    match below(10) {
        0 => vcpu.drop_roots(),
        1 => vcpu.flush_tlb(),
        2..6 => {
            let rights = [0x67, 7, 5][below(3) as usize];
            let entry = (FIRST + below(CHOICE)) << 12 | rights;
            vcpu.edit(page, if below(4) == 0 { 0 } else { entry });
        }
        _ => vcpu.access(page << 12, kind, None),
    }
}

fn step(world: &World, vcpu: &mut Vcpu, part: Part) {
    match (part, below(4)) {
        (Part::Vcpu, _) | (_, 0) => guest(world, vcpu),
        (Part::Notifier, 1) => world.age(frame()),
        (Part::Notifier, _) => world.unmap(frame()),
        (Part::Log, 1) => world.log_on(),
        (Part::Log, 2) if below(4) == 0 => world.log_off(),
        (Part::Log, _) => world.read_log(),
        (Part::Slots, 1) => world.delete(Removal::Leafs),
        (Part::Slots, 2) if below(2) == 0 => world.delete(Removal::Everything),
        (Part::Slots, 2) => world.zap_all(),
        (Part::Slots, _) => world.create(),
    }
}

fn run(scheduler: impl Scheduler + 'static, paging: Paging, parts: &'static [Part], steps: usize) {
    let mut config = Config::new();
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(move || {
        let world = World::new(paging, parts.len());
        let worker = |(number, part): (usize, &Part)| {
            let mut vcpu = Vcpu::new(&world, number);
            let (world, part) = (Arc::clone(&world), *part);
            thread::spawn(move || {
                for _ in 0..steps {
                    step(&world, &mut vcpu, part);
                }
                vcpu
            })
        };
        let threads: Vec<_> = parts.iter().enumerate().map(worker).collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap());
        let mut vcpus: Vec<Vcpu> = joined.collect();
        if paging == Paging::Long {
            vcpus[0].check_translations(USED);
        }
        for vcpu in &mut vcpus {
            vcpu.drop_roots();
        }
        let roots: Vec<_> = vcpus.iter().map(|vcpu| &vcpu.roots).collect();
        world.finish(&roots);
    });
}

const NOTIFIER: &[Part] = &[Part::Vcpu, Part::Vcpu, Part::Notifier];
const LOG: &[Part] = &[Part::Vcpu, Part::Vcpu, Part::Log];
const SLOTS: &[Part] = &[Part::Vcpu, Part::Vcpu, Part::Slots];
const EVERYTHING: &[Part] = &[Part::Vcpu, Part::Notifier, Part::Log, Part::Slots];

#[test]
fn faults_against_notifiers() {
    run(RandomScheduler::new(schedules()), Paging::Off, NOTIFIER, 6);
}

/// Here an invalidation may well begin and end between two steps of a fault: in one schedule of a thousand.
#[test]
fn faults_against_notifiers_with_few_changes() {
    let many = 10 * schedules();
    run(PctScheduler::new(3, many), Paging::Off, NOTIFIER, 6);
}

#[test]
fn faults_against_dirty_logs() {
    run(RandomScheduler::new(schedules()), Paging::Off, LOG, 6);
}

#[test]
fn faults_against_slots_and_zaps_that_give_way() {
    run(RandomScheduler::new(schedules()), Paging::Off, SLOTS, 6);
}

#[test]
fn guests_that_change_their_tables() {
    run(RandomScheduler::new(schedules()), Paging::Long, LOG, 6);
}

#[test]
fn guests_that_change_their_tables_against_everything() {
    run(
        PctScheduler::new(3, schedules()),
        Paging::Long,
        EVERYTHING,
        6,
    );
}
