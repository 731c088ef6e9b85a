//! Runs: random VMs, requests and failures, against a VM page by page. Whatever fails, the guest has what it had or what it asked for.

use std::collections::BTreeSet;

use proptest::prelude::*;
use slat_memslot::{AsId, Errno, Gfn, GfnRange, Memory, Pages, Profile, Region, SlotKey, VmType};

use super::plan::request;
use super::reference::{Naive, World, file_page, host_page};
use crate::convert::{
    Devices, Ended, Found, Left, LeftBehind, Outcome, Pause, Plan, PlanError, Policy, Request, Run,
    Step, Unbacked,
};
use crate::migration::Status;

const FRAMES: u64 = 48;

/// Where slots begin and how long they are, whether they have a file, and whether they lie on the memory of the one before.
type Slots = Vec<(u64, u64, bool, bool)>;

#[derive(Clone, Debug)]
struct Case {
    slots: Slots,
    private: Vec<(u64, u64)>,
    request: (u64, u64, bool),
    policy: Policy,
    contents: u64,
}

fn policy() -> impl Strategy<Value = Policy> {
    let unbacked = || {
        prop_oneof![
            Just(Unbacked::Refuse),
            Just(Unbacked::Skip),
            Just(Unbacked::Set)
        ]
    };
    let left = prop_oneof![Just(LeftBehind::Discard), Just(LeftBehind::Keep)];
    let devices = prop_oneof![Just(Devices::None), Just(Devices::Mapped)];
    (left, unbacked(), unbacked(), devices).prop_map(
        |(left_behind, to_private, to_shared, devices)| Policy {
            left_behind,
            unbacked_to_private: to_private,
            unbacked_to_shared: to_shared,
            devices,
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let slot = (
        0..10_u64,
        1..12_u64,
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.15),
    );
    let part = || (0..FRAMES, 1..20_u64);
    let slots = prop::collection::vec(slot, 1..6);
    let private = prop::collection::vec(part(), 0..5);
    (
        slots,
        private,
        part(),
        any::<bool>(),
        policy(),
        any::<u64>(),
    )
        .prop_map(
            |(slots, private, (start, pages), to_private, policy, contents)| Case {
                slots,
                private,
                request: (start, pages, to_private),
                policy,
                contents,
            },
        )
}

/// A deterministic value for a page that is not always there.
fn value(seed: u64, page: u64) -> Option<u64> {
    let mixed = (seed ^ page).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (mixed % 4 != 0).then_some(mixed | 1)
}

impl Case {
    fn memory(&self) -> Memory {
        let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
        let file = memory.create_gmem(FRAMES << 13, 0).expect("a file");
        let mut gfn = 0;
        let mut before = None;
        for (id, (gap, pages, has_file, alias)) in (0..).zip(&self.slots) {
            gfn += gap;
            let hva = match before.filter(|_| *alias) {
                Some(hva) => hva,
                None => 0x7f00_0000_0000 + (u64::from(id) << 30),
            };
            before = Some(hva);
            let mut region = Region::new(SlotKey::normal(id), gfn << 12, pages << 12, hva);
            if *has_file {
                region = region.with_gmem(file, gfn << 12);
            }
            let _effects = memory.set_region(&region).expect("a slot");
            gfn += pages;
        }
        for (start, pages) in &self.private {
            memory
                .set_attributes(start << 12, pages << 12, 8, 0)
                .expect("set");
        }
        memory
    }

    /// Every page has contents; devices reach what is shared and has both sides.
    fn world(&self, memory: &Memory) -> World {
        let mut world = World::default();
        for gfn in (0..FRAMES * 2).map(Gfn::new) {
            if memory.is_private(gfn) {
                world.private.insert(gfn);
            }
            let Some(slot) = memory.space(AsId::NORMAL).by_gfn(gfn) else {
                continue;
            };
            let host = host_page(slot, gfn);
            world
                .shared
                .extend(value(self.contents, host).map(|value| (host, value)));
            if let Some(file) = file_page(slot, gfn) {
                let value = value(!self.contents, file.1);
                world.files.extend(value.map(|value| (file, value)));
                if self.policy.devices == Devices::Mapped && !memory.is_private(gfn) {
                    world.devices.insert(gfn);
                }
            }
        }
        world
    }

    fn request(&self) -> Request {
        let (start, pages, to_private) = self.request;
        let to = if to_private {
            Status::Private
        } else {
            Status::Shared
        };
        request(start, start + pages, to)
    }

    /// What the conversion comes to, page by page; `None` if it has to be refused.
    fn converted(&self, memory: &Memory, old: &World) -> Option<World> {
        let Request { range, to, .. } = self.request();
        let mut new = old.clone();
        let gfns = || (range.start().raw()..range.end().raw()).map(Gfn::new);
        let backed = |gfn| {
            let slot = memory.space(AsId::NORMAL).by_gfn(gfn)?;
            Some((host_page(slot, gfn), file_page(slot, gfn)?))
        };
        let unbacked = match to {
            Status::Private => self.policy.unbacked_to_private,
            Status::Shared => self.policy.unbacked_to_shared,
        };
        for gfn in gfns().filter(|gfn| old.status(*gfn) != to) {
            match (backed(gfn), unbacked) {
                (None, Unbacked::Refuse) => return None,
                (None, Unbacked::Skip) => continue,
                _ => {}
            }
            match to {
                Status::Private => new.private.insert(gfn),
                Status::Shared => new.private.remove(&gfn),
            };
        }
        let changed: Vec<Gfn> = gfns()
            .filter(|gfn| old.status(*gfn) != new.status(*gfn))
            .collect();
        for gfn in changed {
            let Some((host, file)) = backed(gfn) else {
                continue;
            };
            if self.policy.devices == Devices::Mapped {
                match to {
                    Status::Private => new.devices.remove(&gfn),
                    Status::Shared => new.devices.insert(gfn),
                };
            }
            if self.policy.left_behind == LeftBehind::Keep {
                continue;
            }
            let uses = |other: Gfn| {
                let slot = memory.space(AsId::NORMAL).by_gfn(other)?;
                let keeps = new.status(other) == Status::Shared || file_page(slot, other).is_none();
                Some(host_page(slot, other) == host && keeps)
            };
            let used = (0..FRAMES * 2).any(|other| uses(Gfn::new(other)) == Some(true));
            match to {
                Status::Shared => drop(new.files.remove(&file)),
                // Somebody else's shared memory stays.
                Status::Private if used => {}
                Status::Private => drop(new.shared.remove(&host)),
            }
        }
        Some(new)
    }
}

/// Steps until the end, trying again whatever may be.
fn to_end(run: &mut Run, naive: &mut Naive<'_>) -> Ended {
    for _ in 0..100 {
        match run.to_end(naive) {
            Ok(ended) => return ended,
            Err(Pause::Interrupted { .. } | Pause::Halfway { .. }) => {}
        }
    }
    panic!("it does not come to an end")
}

/// The same but for memory that is left over.
fn same_but_left_over(a: &World, b: &World) -> bool {
    (&a.private, &a.devices) == (&b.private, &b.devices)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_run_comes_to_what_pages_come_to(case in case()) {
        let memory = case.memory();
        let old = case.world(&memory);
        let plan = Plan::new(&memory, &case.request(), &case.policy);
        let wanted = case.converted(&memory, &old);
        let Ok(plan) = plan else {
            let refused = matches!(plan, Err(PlanError::NothingPrivate { .. }));
            prop_assert!(refused && wanted.is_none());
            return Ok(());
        };
        let wanted = wanted.expect("a plan for what has to be refused");
        prop_assert_eq!(plan.is_empty(), old.private == wanted.private);
        let mut naive = Naive::new(old.clone(), &memory);
        let mut run = Run::new(plan.clone());
        prop_assert_eq!(run.to_end(&mut naive), Ok(Ended::Converted));
        prop_assert_eq!(&naive.world, &wanted);

        // What is said of losses is what happened.
        let told: BTreeSet<Gfn> = plan.losses().iter().flat_map(|loss| gfns(loss.range)).collect();
        for gfn in gfns(case.request().range) {
            let changed = old.status(gfn) != wanted.status(gfn);
            let has_both = memory.space(AsId::NORMAL).by_gfn(gfn).is_some_and(|slot| slot.binding().is_some());
            prop_assert_eq!(told.contains(&gfn), changed && has_both);
        }
        for loss in plan.losses() {
            for gfn in gfns(loss.range) {
                prop_assert_eq!(loss.found, Found::LastKept);
                let slot = memory.space(AsId::NORMAL).by_gfn(gfn).expect("both sides");
                let left = match loss.to {
                    Status::Private => naive.world.shared.get(&host_page(slot, gfn)),
                    Status::Shared => naive.world.files.get(&file_page(slot, gfn).expect("a file")),
                };
                match loss.left {
                    Left::Gone => prop_assert_eq!(left, None),
                    Left::Kept => prop_assert_eq!(left.copied().or(Some(0)), old.read(&memory, gfn)),
                    _ => prop_assert!(false, "{:?}", loss),
                }
            }
        }
    }

    /// One step fails, or two, for good or for a moment, also when it takes others back.
    #[test]
    fn a_failure_leaves_the_old_or_the_new(case in case(), first in 0..12_usize, second in 0..12_usize, again in any::<[bool; 2]>()) {
        let memory = case.memory();
        let old = case.world(&memory);
        let Ok(plan) = Plan::new(&memory, &case.request(), &case.policy) else { return Ok(()) };
        let new = case.converted(&memory, &old).expect("what has a plan");
        let mut naive = Naive::new(old.clone(), &memory);
        for (at, again) in [first, second].into_iter().zip(again) {
            naive.failing.insert(at, if again { Errno::EINTR } else { Errno::ENOMEM });
        }
        let mut run = Run::new(plan);
        let ended = to_end(&mut run, &mut naive);
        match ended {
            Ended::TakenBack { why } => {
                prop_assert_eq!(&naive.world, &old);
                prop_assert_eq!((why, ended.outcome()), (Errno::ENOMEM, Outcome::TryAgain));
                prop_assert!(run.left_over().is_empty());
            }
            Ended::Converted => {
                prop_assert!(same_but_left_over(&naive.world, &new));
                if run.left_over().is_empty() {
                    prop_assert_eq!(&naive.world, &new);
                }
                // What is left over is what is there beside the new state, and goes when it can.
                naive.failing.clear();
                prop_assert_eq!(run.give_back(&mut naive), 0);
                prop_assert_eq!(&naive.world, &new);
            }
        }
        // It ended, and stays so.
        let steps = naive.tried.len();
        prop_assert_eq!(run.to_end(&mut naive), Ok(ended));
        prop_assert_eq!(naive.tried.len(), steps);
    }

    /// At every point between two steps the VMM may give up, or be copied and go on later.
    #[test]
    fn it_can_be_stopped_and_taken_up(case in case(), after in 0..8_usize) {
        let memory = case.memory();
        let old = case.world(&memory);
        let Ok(plan) = Plan::new(&memory, &case.request(), &case.policy) else { return Ok(()) };
        let new = case.converted(&memory, &old).expect("what has a plan");
        let mut naive = Naive::new(old.clone(), &memory);
        let mut run = Run::new(plan);
        for _ in 0..after {
            prop_assert!(run.advance(&mut naive).is_ok());
        }
        let mut later = run.clone();
        let mut elsewhere = Naive::new(naive.world.clone(), &memory);
        prop_assert_eq!(later.to_end(&mut elsewhere), Ok(Ended::Converted));
        prop_assert_eq!(&elsewhere.world, &new);

        let gone = run.give_up(Errno::EINTR);
        let ended = run.to_end(&mut naive);
        match gone {
            true => {
                prop_assert_eq!(ended, Ok(Ended::TakenBack { why: Errno::EINTR }));
                prop_assert_eq!(&naive.world, &old);
            }
            false => {
                prop_assert_eq!(ended, Ok(Ended::Converted));
                prop_assert_eq!(&naive.world, &new);
            }
        }
    }
}

fn gfns(range: GfnRange) -> impl Iterator<Item = Gfn> {
    (range.start().raw()..range.end().raw()).map(Gfn::new)
}

/// Each step of one plan fails, in turn: what was done before is taken back in reverse order.
#[test]
fn every_step_fails_once() {
    let memory = super::plan::memory(VmType::SwProtected);
    let policy = Policy {
        unbacked_to_private: Unbacked::Skip,
        devices: Devices::Mapped,
        ..Policy::default()
    };
    let plan = Plan::new(&memory, &request(0x18, 0x68, Status::Private), &policy).expect("a plan");
    let steps: Vec<Step> = plan.steps().copied().collect();
    // Three slots, two calls, three discards.
    assert_eq!(steps.len(), 8, "{plan}");
    let devices = gfns(super::plan::range(0x10, 0x70)).collect();
    let old = World {
        devices,
        ..World::default()
    };
    for failing in 0..steps.len() {
        let mut naive = Naive::new(old.clone(), &memory);
        naive.failing.insert(failing, Errno::EINVAL);
        let mut run = Run::new(plan.clone());
        let ended = run.to_end(&mut naive).expect("an end");
        assert_eq!(naive.tried[..=failing], steps[..=failing]);
        if failing < 5 {
            let why = Errno::EINVAL;
            assert_eq!(
                (ended, ended.outcome()),
                (Ended::TakenBack { why }, Outcome::Refused)
            );
            assert_eq!(naive.world, old);
            assert_eq!(naive.tried.len(), 2 * failing + 1);
        } else {
            assert_eq!((ended, run.left_over().len()), (Ended::Converted, 1));
            assert_eq!(naive.world.private.len(), 0x28 + 8);
        }
    }
}

/// What takes back can fail too: then nobody is told that all is well.
#[test]
fn a_way_back_that_fails_is_said() {
    let memory = super::plan::memory(VmType::SwProtected);
    let policy = Policy {
        unbacked_to_private: Unbacked::Skip,
        ..Policy::default()
    };
    let plan = Plan::new(&memory, &request(0x38, 0x68, Status::Private), &policy).expect("a plan");
    let mut naive = Naive::new(World::default(), &memory);
    naive
        .failing
        .extend([(1, Errno::ENOMEM), (2, Errno::ENOMEM)]);
    let mut run = Run::new(plan);
    let halfway = run.to_end(&mut naive).expect_err("halfway");
    let text = halfway.to_string();
    assert!(
        text.starts_with("make [0x38, 0x40) shared, which takes back"),
        "{text}"
    );
    assert_eq!(run.ended(), None);
    assert_eq!(
        run.to_end(&mut naive),
        Ok(Ended::TakenBack { why: Errno::ENOMEM })
    );
    assert_eq!(naive.world, World::default());
}

/// The number of steps knows nothing of the number of pages.
#[test]
fn a_plan_is_as_long_as_there_are_borders() {
    let gib = 1 << 18;
    let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
    let file = memory.create_gmem(64 << 30, 0).expect("a file");
    for (id, gfn) in (0..).zip([0, 32 * gib]) {
        let hva = 0x7f00_0000_0000 + (gfn << 12);
        let slot = Region::new(SlotKey::normal(id), gfn << 12, 32 << 30, hva);
        let _effects = memory
            .set_region(&slot.with_gmem(file, gfn << 12))
            .expect("a slot");
    }
    let steps = |start, pages| {
        let plan = Plan::new(
            &memory,
            &request(start, start + pages, Status::Private),
            &Policy::default(),
        );
        plan.expect("a plan").steps().count()
    };
    assert_eq!(
        (steps(0, 512), steps(0, gib), steps(0, 32 * gib)),
        (2, 2, 2)
    );
    assert_eq!(steps(31 * gib, 2 * gib), 3);
    let pages = Pages::new(64 * gib);
    assert_eq!(steps(0, pages.raw()), 3);
}
