//! Real threads on tables of full size.

use std::thread;
use std::time::{Duration, Instant};

use super::operations::{Part, Worker, World};

/// `SLAT_STRESS_SECONDS` sets for how long.
fn duration() -> Duration {
    let given = std::env::var("SLAT_STRESS_SECONDS").ok();
    Duration::from_secs(given.map_or(2, |given| given.parse().unwrap()))
}

#[test]
fn four_threads_leave_consistent_tables() {
    const PARTS: [Part; 4] = [Part::Vcpu, Part::Vcpu, Part::Everything, Part::Everything];
    let end = Instant::now() + duration();
    let seed = u64::from(std::process::id()) << 8;
    let (mut rounds, mut steps) = (0_u64, 0_u64);
    while rounds == 0 || Instant::now() < end {
        let world = World::new(PARTS.len());
        println!("seed {}", seed + rounds);
        steps += thread::scope(|scope| {
            let worker = |number: usize| {
                let seed = (seed + rounds).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut worker = Worker::new(&world, number, seed ^ (number as u64) << 32);
                scope.spawn(move || {
                    let until = Instant::now() + Duration::from_millis(250);
                    let mut done = 0_u64;
                    while Instant::now() < until {
                        worker.step(PARTS[number]);
                        done += 1;
                    }
                    worker.leave();
                    done
                })
            };
            let threads: Vec<_> = (0..PARTS.len()).map(worker).collect();
            let each = threads.into_iter().map(|thread| thread.join().unwrap());
            each.sum::<u64>()
        });
        world.finish();
        rounds += 1;
    }
    println!("{rounds} rounds, {steps} operations");
}
