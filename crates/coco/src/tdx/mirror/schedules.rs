//! The protocol in random schedules. `SLAT_SCHEDULES` sets how many there are of each kind. Each rule that a test leaves out
//! must be missed.

use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config as Shuttle, Runner, thread};

use super::HookGen;
use super::backend::Omit;
use super::operations::{Planted, finish, userspace, vcpu, world};

fn schedules() -> usize {
    let given = std::env::var("SLAT_SCHEDULES").ok();
    given.map_or(300, |given| given.parse().unwrap())
}

/// Runs schedules, and says how many ended with something wrong.
fn run(scheduler: impl Scheduler + 'static, steps: u64, planted: Planted) -> usize {
    let missed = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&missed);
    let mut config = Shuttle::new();
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(move || {
        let hooks = [HookGen::Split, HookGen::Unified][thread_rng().gen_range(0..2)];
        let vm = Arc::new(world(hooks, thread_rng().r#gen(), planted));
        let mut threads: Vec<_> = (0..2)
            .map(|number| {
                let vm = Arc::clone(&vm);
                let seed = thread_rng().r#gen();
                thread::spawn(move || vcpu(&vm, number, steps, seed))
            })
            .collect();
        let other = Arc::clone(&vm);
        let seed = thread_rng().r#gen();
        threads.push(thread::spawn(move || {
            userspace(&other, steps, planted, seed)
        }));
        for thread in threads {
            thread.join().unwrap();
        }
        let wrong = finish(&vm);
        if planted == Planted::Nothing {
            assert_eq!(wrong, Vec::<String>::new());
        }
        let wrong = usize::from(!wrong.is_empty());
        count.fetch_add(wrong, std::sync::atomic::Ordering::Relaxed);
    });
    missed.load(std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn faults_conversions_and_deletions_at_random() {
    let wrong = run(RandomScheduler::new(schedules()), 6, Planted::Nothing);
    assert_eq!(wrong, 0);
}

#[test]
fn faults_conversions_and_deletions_with_few_changes() {
    let wrong = run(PctScheduler::new(3, schedules()), 6, Planted::Nothing);
    assert_eq!(wrong, 0);
}

#[test]
fn every_rule_that_is_left_out_is_missed() {
    let planted = [
        Planted::Omitted(Omit::Track),
        Planted::Omitted(Omit::Kick),
        Planted::Omitted(Omit::Retry),
        Planted::TableFirst,
        Planted::RootReplaced,
    ];
    for each in planted {
        let schedules = schedules().min(50);
        let found = run(RandomScheduler::new(schedules), 6, each);
        println!("{each:?}: found in {found} of {schedules} schedules");
        assert!(found > 0, "{each:?}");
    }
}
