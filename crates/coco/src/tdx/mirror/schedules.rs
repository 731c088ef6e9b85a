//! The protocol under concurrency, in random schedules: vCPUs fault, accept and write while slots go, attributes change and
//! the module is busy.
//!
//! After each schedule the audit must be clean, the TD must be destroyable with no page left, and no vCPU may ever have
//! found a value that nobody wrote. `SLAT_SCHEDULES` sets how many schedules there are of each kind. Each rule that a
//! test leaves out must be missed.

use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config as Shuttle, Runner, thread};
use slat_memslot::{Gfn, GfnRange, Level, Pages};

use super::backend::Omit;
use super::*;
use crate::sync::lock;
use crate::tdx::{Accept, BusyPlan, GuestAccess};

const FIRST: u64 = 0x3fe;
const FRAMES: u64 = 4;

fn schedules() -> usize {
    let given = std::env::var("SLAT_SCHEDULES").ok();
    given.map_or(300, |given| given.parse().unwrap())
}

fn range(start: u64, pages: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), Pages::new(pages)).unwrap()
}

/// A fault that is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    Nothing,
    Omitted(Omit),
    /// A table goes with all below it while the TD runs.
    TableFirst,
    /// The mirror root is given up for another one.
    RootReplaced,
}

fn world(hooks: HookGen, busy: u64, planted: Planted) -> TdxMmu {
    let config = Config {
        hooks,
        pauses: true,
        ..Config::default()
    };
    let vm = TdxMmu::new(&config).unwrap();
    vm.add_slot(1, range(FIRST, FRAMES));
    vm.add_slot(2, range(0x1000, 2));
    vm.set_private(range(FIRST, FRAMES));
    vm.set_private(range(0x1000, 2));
    vm.finalize().unwrap();
    let mut vcpu = vm.vcpu(0).unwrap();
    for gfn in (FIRST..FIRST + FRAMES).map(Gfn::new) {
        accept(&vm, &mut vcpu, gfn).unwrap();
    }
    drop(vcpu);
    vm.module().plan_busy(BusyPlan::random(6, busy));
    if let Planted::Omitted(omit) = planted {
        vm.omit(omit);
    }
    vm
}

/// The guest accepts a page, however often it has to try, unless it is not there to be had.
fn accept(vm: &TdxMmu, vcpu: &mut Vcpu, gfn: Gfn) -> Option<()> {
    for _ in 0..4 {
        let accepted = vm.accept(vcpu, gfn, Level::L1);
        if matches!(accepted, Ok(Accept::Accepted | Accept::AlreadyAccepted(_))) {
            return Some(());
        }
    }
    None
}

/// What a vCPU does: values that it finds are its own or the other's, or zero.
fn vcpu(vm: &TdxMmu, number: u16, steps: usize) {
    let mut vcpu = vm.vcpu(number).unwrap();
    let mut random = thread_rng();
    for step in 0..steps {
        if vm.bug().is_some() {
            break;
        }
        let slot = random.gen_range(0..5_u64);
        let gfn = Gfn::new(if slot == 4 { 0x1000 } else { FIRST + slot });
        if accept(vm, &mut vcpu, gfn).is_none() {
            continue;
        }
        let mine = u64::from(number) * 1000 + step as u64 + 1;
        let found = vm.touch(&mut vcpu, gfn, GuestAccess::Write(mine));
        if let Touch::Value(value) = found {
            let value = value.expect("a page of the host's was reached");
            assert!(value % 1000 <= steps as u64 && value < 2000, "{value}");
        }
        if random.gen_range(0..4) == 0 {
            vm.leave(&vcpu);
        }
    }
    vm.leave(&vcpu);
}

/// What userspace does.
fn userspace(vm: &TdxMmu, steps: usize, planted: Planted) {
    let mut random = thread_rng();
    for _ in 0..steps {
        if vm.bug().is_some() {
            break;
        }
        let at = random.gen_range(0..FRAMES);
        match random.gen_range(0..5) {
            0 => vm.set_shared(range(FIRST + at, 1)),
            1 => vm.set_private(range(FIRST, FRAMES)),
            2 => vm.punch(range(FIRST + at, 1)),
            3 => {
                let _bug = vm.delete_slot(1, SlotZap::Leafs);
                vm.add_slot(1, range(FIRST, FRAMES));
            }
            _ => plant(vm, planted),
        }
    }
}

fn plant(vm: &TdxMmu, planted: Planted) {
    use slat_mmu::role::RoleFlag;
    use slat_mmu::tdp::Unobserved;
    match planted {
        Planted::Nothing | Planted::Omitted(_) => {}
        Planted::TableFirst => vm.exclusively(|tables| {
            let mut locked = tables.exclusive(Unobserved);
            let table = locked.find(vm.mirror, Gfn::new(FIRST)).place.table;
            locked.zap_page(table);
        }),
        Planted::RootReplaced => vm.exclusively(|tables| {
            let mirror = |(_, role): &(_, slat_mmu::role::PageRole)| role.has(RoleFlag::IsMirror);
            let role = tables.roots().iter().find(mirror).map(|(_, role)| role);
            let another = role.unwrap().with(RoleFlag::Smm);
            let _root = tables.exclusive(Unobserved).acquire_root(another);
        }),
    }
}

/// Everything that has to hold when all is over; what does not is returned.
fn finish(vm: &TdxMmu) -> Vec<String> {
    vm.module().plan_busy(BusyPlan::default());
    let mut wrong: Vec<String> = vm.bug().iter().map(ToString::to_string).collect();
    wrong.extend(vm.audit().iter().map(|each| format!("{each:?}")));
    if wrong.is_empty() {
        let gmem = lock(&vm.kvm).gmem.len() as u64;
        if let Err(refusal) = vm.destroy() {
            wrong.push(refusal.to_string());
        }
        if vm.pages_in_use() != gmem {
            wrong.push(format!(
                "{} pages, {gmem} of guest_memfd",
                vm.pages_in_use()
            ));
        }
        wrong.extend(vm.audit().iter().map(|each| format!("{each:?}")));
    }
    wrong
}

/// Runs schedules, and says how many ended with something wrong.
fn run(scheduler: impl Scheduler + 'static, steps: usize, planted: Planted) -> usize {
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
                thread::spawn(move || vcpu(&vm, number, steps))
            })
            .collect();
        let other = Arc::clone(&vm);
        threads.push(thread::spawn(move || userspace(&other, steps, planted)));
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
