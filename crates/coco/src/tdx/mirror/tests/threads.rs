//! The same operations as in random schedules, on real threads. `SLAT_SEED` and `SLAT_ROUNDS` steer them; threads being what
//! they are, a seed need not repeat a run.

use std::thread;

use super::super::backend::Omit;
use super::super::operations::{Planted, finish, userspace, vcpu, world};
use super::*;

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect("a number"))
}

/// One round, and what was wrong at its end.
fn round(seed: u64, planted: Planted) -> Vec<String> {
    let vm = world(BOTH[usize::from(seed % 2 == 0)], seed, planted);
    let died = thread::scope(|scope| {
        let run = |cpu| {
            let vm = &vm;
            scope.spawn(move || vcpu(vm, cpu, 100, seed + u64::from(cpu)))
        };
        let vcpus = [run(0), run(1)];
        userspace(&vm, 100, planted, seed);
        vcpus
            .into_iter()
            .filter_map(|vcpu| vcpu.join().err())
            .count()
    });
    let mut wrong = finish(&vm);
    wrong.extend((0..died).map(|_| "a vCPU found what it should not".to_owned()));
    wrong
}

#[test]
fn threads_leave_nothing_behind() {
    let (rounds, first) = (number("SLAT_ROUNDS", 100), number("SLAT_SEED", 3));
    for seed in first..first + rounds {
        let wrong = round(seed, Planted::Nothing);
        assert_eq!(wrong, Vec::<String>::new(), "SLAT_SEED={seed}");
    }
}

#[test]
fn what_is_left_out_is_noticed() {
    let planted = [
        Planted::Omitted(Omit::Track),
        Planted::Omitted(Omit::Retry),
        Planted::TableFirst,
        Planted::RootReplaced,
    ];
    for each in planted {
        let found = (0..20).filter(|seed| !round(*seed, each).is_empty());
        let found = found.count();
        println!("{each:?}: found in {found} of 20 rounds");
        assert!(found > 0, "{each:?}");
    }
}
