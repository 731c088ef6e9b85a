//! Whole operations in random schedules.

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};

use super::operations::{Part, Worker, World};

/// `SLAT_SCHEDULES` sets how many there are of each kind.
fn schedules() -> usize {
    let given = std::env::var("SLAT_SCHEDULES").ok();
    given.map_or(10_000, |given| given.parse().unwrap())
}

fn run(scheduler: impl Scheduler + 'static, parts: &'static [Part], steps: usize) {
    let mut config = Config::new();
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(move || {
        let world = World::new(parts.len());
        let worker = |(number, part): (usize, &Part)| {
            let mut worker = Worker::new(&world, number, thread_rng().r#gen());
            let part = *part;
            thread::spawn(move || {
                for _ in 0..steps {
                    worker.step(part);
                }
                worker.leave();
            })
        };
        let threads: Vec<_> = parts.iter().enumerate().map(worker).collect();
        for thread in threads {
            thread.join().unwrap();
        }
        world.finish();
    });
}

const TWO: &[Part] = &[Part::Everything; 2];
const THREE: &[Part] = &[Part::Vcpu, Part::Vcpu, Part::Everything];
const FOUR: &[Part] = &[Part::Vcpu, Part::Vcpu, Part::Everything, Part::Everything];

#[test]
fn two_threads_at_random() {
    run(RandomScheduler::new(schedules()), TWO, 12);
}

#[test]
fn three_threads_with_few_changes() {
    run(PctScheduler::new(3, schedules()), THREE, 10);
}

#[test]
fn four_threads_at_random() {
    run(RandomScheduler::new(schedules()), FOUR, 8);
}
