//! vCPUs, conversions and holes in random schedules, under `--cfg shuttle`.
//!
//! Upstream and strictly, nothing is left that the audit complains about, whatever the schedule. Under the proposal of 2021
//! there are schedules after which a page that nobody has is assigned, or the host has faulted: what its reviewers feared.

use std::sync::atomic::{AtomicU64, Ordering};

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};

use slat_memslot::{Level, PageSize};
use slat_mmu::spte::Access;
use slat_mmu::tdp::{AccessCheck, Translated};

use super::*;
use crate::psc::{Direction, PscEntry, PscOperation};
use crate::rmp::{Adjustment, GuestCpu, GuestPage, Permissions, RmpState, Vmpl};

/// `SLAT_SCHEDULES` sets how many there are of each kind.
fn schedules() -> usize {
    let given = std::env::var("SLAT_SCHEDULES").ok();
    given.map_or(1_000, |given| given.parse().unwrap())
}

/// What a thread does.
#[derive(Clone, Copy)]
enum Part {
    /// Accesses, validates, asks for changes.
    Vcpu,
    /// Converts and punches, as a VMM on its own account.
    Vmm,
}

/// Frames that the threads fight over: of one folio, and beside it.
fn any_frame(folio: RmpSize) -> u64 {
    match folio {
        RmpSize::Size4K => thread_rng().gen_range(0..2),
        RmpSize::Size2M => [512, 515][thread_rng().gen_range(0..2)],
    }
}

fn guest_step(vm: &SnpVm, vcpu: &mut SnpVcpu, folio: RmpSize) {
    let at = any_frame(folio);
    let vmm = if thread_rng().r#gen() {
        Vmm::CAREFUL
    } else {
        Vmm::OBEDIENT
    };
    let access = if thread_rng().gen_range(0..3) == 0 {
        SHARED
    } else {
        PRIVATE
    };
    let op = match thread_rng().gen_range(0..6) {
        0 => GuestOp::Read(gfn(at), access),
        1 | 2 => GuestOp::Write(gfn(at), access, Value::Tag(at)),
        3 => GuestOp::Validate(gfn(at), RmpSize::Size4K),
        4 => GuestOp::Validate(gfn(at & !511), RmpSize::Size2M),
        _ => {
            let operation = if thread_rng().r#gen() {
                PscOperation::Private
            } else {
                PscOperation::Shared
            };
            GuestOp::Psc(vec![PscEntry::new(gfn(at), operation, RmpSize::Size4K)])
        }
    };
    let reply = vm.run(vcpu, &op, vmm);
    if let GuestReply::Read(Found::Value(Value::Tag(value))) = reply {
        // Under the proposal a page can come with what its last owner wrote, since the host could not clear it.
        let proposal = vm.settings().policy == RmpFaultPolicy::Rfc2021;
        assert!(value == at || proposal, "another page's contents");
    }
}

fn vmm_step(vm: &SnpVm, folio: RmpSize) {
    let at = any_frame(folio);
    let (start, pages) = match (folio, thread_rng().r#gen()) {
        (RmpSize::Size2M, true) => (512, 512),
        _ => (at, 1),
    };
    let pages = range(start, pages);
    match thread_rng().gen_range(0..5) {
        0 | 1 => vm.convert(pages, Direction::ToPrivate, Hole::Punched),
        2 => vm.convert(pages, Direction::ToShared, Hole::Punched),
        3 => {
            vm.punch_hole(range(at, 1));
        }
        _ => vm.discard_shared(range(at, 1)),
    }
}

fn run(
    scheduler: impl Scheduler + 'static,
    policy: RmpFaultPolicy,
    folio: RmpSize,
    parts: &'static [Part],
    then: impl Fn(&SnpVm) + Send + Sync + 'static,
) {
    let mut config = Config::new();
    config.silence_warnings = true;
    config.max_steps = shuttle::MaxSteps::None;
    Runner::new(scheduler, config).run(move || {
        let vm = Arc::new(vm_with(policy, folio));
        let threads: Vec<_> = parts
            .iter()
            .map(|part| {
                let (vm, part) = (Arc::clone(&vm), *part);
                thread::spawn(move || {
                    let mut vcpu = vm.create_vcpu().unwrap();
                    for _ in 0..4 {
                        match part {
                            Part::Vcpu => guest_step(&vm, &mut vcpu, folio),
                            Part::Vmm => vmm_step(&vm, folio),
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        then(&vm);
    });
}

const TWO: &[Part] = &[Part::Vcpu, Part::Vmm];
const THREE: &[Part] = &[Part::Vcpu, Part::Vcpu, Part::Vmm];
const FOUR: &[Part] = &[Part::Vcpu, Part::Vcpu, Part::Vcpu, Part::Vcpu];

fn clean(vm: &SnpVm) {
    assert_eq!(vm.audit(), []);
}

#[test]
fn upstream_stays_clean_in_small_pages() {
    let (policy, folio) = (RmpFaultPolicy::Upstream, RmpSize::Size4K);
    run(RandomScheduler::new(schedules()), policy, folio, TWO, clean);
    run(
        RandomScheduler::new(schedules()),
        policy,
        folio,
        THREE,
        clean,
    );
    run(
        PctScheduler::new(3, schedules()),
        policy,
        folio,
        FOUR,
        clean,
    );
}

/// An entry of 2 MiB has 511 tails, each of them a few steps: fewer schedules.
#[test]
fn upstream_stays_clean_in_huge_pages() {
    let (policy, folio) = (RmpFaultPolicy::Upstream, RmpSize::Size2M);
    let few = schedules() / 20;
    run(RandomScheduler::new(few), policy, folio, TWO, clean);
    run(PctScheduler::new(3, few), policy, folio, THREE, clean);
}

#[test]
fn strictly_it_stays_clean() {
    let (policy, folio) = (RmpFaultPolicy::Strict, RmpSize::Size4K);
    run(
        RandomScheduler::new(schedules()),
        policy,
        folio,
        THREE,
        clean,
    );
}

#[test]
fn the_proposal_of_2021_leaves_pages_assigned_that_nobody_has() {
    let violations = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&violations);
    let note = move |vm: &SnpVm| {
        let found = vm.audit();
        let feared = found
            .iter()
            .all(|violation| ["N04", "N07", "N13"].contains(&violation.code()));
        assert!(feared, "{found:?}");
        count.fetch_add(u64::from(!found.is_empty()), Ordering::Relaxed);
    };
    let (policy, folio) = (RmpFaultPolicy::Rfc2021, RmpSize::Size4K);
    run(
        RandomScheduler::new(schedules()),
        policy,
        folio,
        THREE,
        note,
    );
    let count = violations.load(Ordering::Relaxed);
    println!(
        "{count} of {} schedules end with what the reviewers feared",
        schedules()
    );
    assert!(count > 0);
}

fn config() -> Config {
    let mut config = Config::new();
    config.silence_warnings = true;
    config.max_steps = shuttle::MaxSteps::None;
    config
}

/// Two instructions at one entry, or at a tail and its head: one of them gives way, and what is left is consistent.
#[test]
fn instructions_meet() {
    let scheduler = RandomScheduler::new(schedules());
    Runner::new(scheduler, config()).run(|| {
        let rmp = Arc::new(Rmp::new(0x400));
        let update = |state: RmpState, at: u64| {
            let rmp = Arc::clone(&rmp);
            thread::spawn(move || rmp.rmpupdate(Pfn::new(at), &state))
        };
        let huge = update(RmpState::private(asid(), gfn(0), RmpSize::Size2M), 0x200);
        let tail = update(RmpState::private(asid(), gfn(3), RmpSize::Size4K), 0x203);
        let (huge, tail) = (huge.join().unwrap(), tail.join().unwrap());
        assert!(huge.is_err() || tail.is_err(), "a tail under a head of 2M");
        let head = rmp.own_entry(Pfn::new(0x200));
        assert_eq!(head.assigned, huge.is_ok());
        assert_eq!(rmp.own_entry(Pfn::new(0x203)).assigned, tail.is_ok());
    });
}

/// A walk that is let through while PSMASH is under way has seen all of it: a page of 4 KiB is there from then on.
#[test]
fn walks_meet_psmash() {
    const HEAD: u64 = 0x200;
    let scheduler = RandomScheduler::new(schedules());
    let failed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&failed);
    Runner::new(scheduler, config()).run(move || {
        let rmp = Arc::new(Rmp::new(0x400));
        let state = RmpState::private(asid(), gfn(0), RmpSize::Size2M);
        rmp.rmpupdate(Pfn::new(HEAD), &state).unwrap();
        let _ = rmp.pvalidate(cpu(Vmpl::Vmpl0), guest_page(0, HEAD), RmpSize::Size2M, true);
        let smash = {
            let rmp = Arc::clone(&rmp);
            thread::spawn(move || rmp.psmash(Pfn::new(HEAD)).unwrap())
        };
        let guard = rmp.guard(cpu(Vmpl::Vmpl0), Visibility::Private);
        // All but the first check find the entry by a guess.
        while guard.check(&write(3, HEAD + 3)).is_err() {
            count.fetch_add(1, Ordering::Relaxed);
            thread::yield_now();
        }
        assert_eq!(rmp.own_entry(Pfn::new(HEAD)).size, RmpSize::Size4K);
        smash.join().unwrap();
    });
    println!("{} checks failed", failed.load(Ordering::Relaxed));
    assert!(failed.load(Ordering::Relaxed) > 0);
}

/// A walk never takes what a page's next owner permits for what the one before it did.
#[test]
fn walks_meet_a_new_owner() {
    const AT: u64 = 0x203;
    let scheduler = PctScheduler::new(2, schedules());
    Runner::new(scheduler, config()).run(|| {
        let rmp = Arc::new(Rmp::new(0x400));
        let give = |rmp: &Rmp, frame: u64| {
            let state = RmpState::private(asid(), gfn(frame), RmpSize::Size4K);
            rmp.rmpupdate(Pfn::new(AT), &state).unwrap();
            let (level, page) = (cpu(Vmpl::Vmpl0), guest_page(frame, AT));
            let _ = rmp.pvalidate(level, page, RmpSize::Size4K, true);
        };
        give(&rmp, 3);
        let owner = {
            let rmp = Arc::clone(&rmp);
            thread::spawn(move || {
                give(&rmp, 515);
                let all = Adjustment {
                    target: Vmpl::Vmpl1,
                    permissions: Permissions::all(),
                    vmsa: false,
                };
                let (level, page) = (cpu(Vmpl::Vmpl0), guest_page(515, AT));
                rmp.rmpadjust(level, page, RmpSize::Size4K, all).unwrap();
            })
        };
        let guard = rmp.guard(cpu(Vmpl::Vmpl1), Visibility::Private);
        for _ in 0..3 {
            assert!(guard.check(&write(3, AT)).is_err(), "VMPL1 was let through");
        }
        owner.join().unwrap();
        assert!(guard.check(&write(515, AT)).is_ok());
    });
}

fn cpu(vmpl: Vmpl) -> GuestCpu {
    GuestCpu { asid: asid(), vmpl }
}

fn guest_page(frame: u64, pfn: u64) -> GuestPage {
    GuestPage {
        gfn: gfn(frame),
        pfn: Pfn::new(pfn),
        nested: PageSize::Size2M,
    }
}

fn write(frame: u64, pfn: u64) -> Translated {
    Translated {
        gfn: gfn(frame),
        pfn: Pfn::new(pfn),
        level: Level::L1,
        access: Access::WRITE,
    }
}
