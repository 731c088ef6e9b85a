//! The protocol of epochs, by exhaustive search. Oracle: the property itself, and the counts of the fact sheet.
//!
//! The state vector and the atomic steps are those of `docs/tdx.md`. Counting and tracking are the module's own
//! ([`Epochs`]); the three faults take one rule away each.

use std::collections::{HashMap, VecDeque};

use crate::tdx::Epochs;

/// The last epoch that begins.
const LAST: u64 = 5;

/// A rule that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// An epoch begins although a vCPU is inside that entered before the present one.
    TrackUncounted,
    /// A vCPU that enters in another epoch than the last time does not flush.
    NoFlush,
    /// A page is removed without being tracked.
    Untracked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Page {
    Mapped,
    Blocked { epoch: u64 },
    Free,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Vcpu {
    inside: bool,
    /// In which epoch it entered last; 0 before it ever did.
    epoch: u64,
    /// Whether its TLB has a translation of the page.
    cached: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    epochs: Epochs,
    vcpus: Vec<Vcpu>,
    page: Page,
}

/// What happens at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Enter(usize),
    Exit(usize),
    Access(usize),
    Block,
    Track,
    Remove,
}

impl State {
    fn new(vcpus: usize) -> Self {
        let vcpu = Vcpu {
            inside: false,
            epoch: 0,
            cached: false,
        };
        Self {
            epochs: Epochs::new(),
            vcpus: vec![vcpu; vcpus],
            page: Page::Mapped,
        }
    }

    /// A running vCPU reaches a page that the host has got back.
    fn is_bad(&self) -> bool {
        let reaches = |vcpu: &Vcpu| vcpu.inside && vcpu.cached;
        self.page == Page::Free && self.vcpus.iter().any(reaches)
    }

    fn steps(&self) -> impl Iterator<Item = Step> {
        let vcpu = |number| {
            [
                Step::Enter(number),
                Step::Exit(number),
                Step::Access(number),
            ]
        };
        let vcpus = (0..self.vcpus.len()).flat_map(vcpu);
        vcpus.chain([Step::Block, Step::Track, Step::Remove])
    }

    /// What a step leads to, if it can be made.
    fn after(&self, step: Step, fault: Fault) -> Option<Self> {
        let mut next = self.clone();
        let can = match step {
            Step::Enter(number) => next.enter(number, fault),
            Step::Exit(number) => next.exit(number),
            Step::Access(number) => next.access(number),
            Step::Block => next.block(),
            Step::Track => next.track(fault),
            Step::Remove => next.remove(fault),
        };
        can.then_some(next)
    }

    fn enter(&mut self, number: usize, fault: Fault) -> bool {
        let vcpu = &mut self.vcpus[number];
        if vcpu.inside {
            return false;
        }
        let (epoch, flush) = self.epochs.enter(vcpu.epoch);
        (vcpu.inside, vcpu.epoch) = (true, epoch);
        vcpu.cached &= !flush || fault == Fault::NoFlush;
        true
    }

    fn exit(&mut self, number: usize) -> bool {
        let vcpu = &mut self.vcpus[number];
        if vcpu.inside {
            self.epochs.exit(vcpu.epoch);
        }
        core::mem::take(&mut vcpu.inside)
    }

    fn access(&mut self, number: usize) -> bool {
        let vcpu = &mut self.vcpus[number];
        let walks = vcpu.inside && self.page == Page::Mapped && !vcpu.cached;
        vcpu.cached |= walks;
        walks
    }

    fn block(&mut self) -> bool {
        let mapped = self.page == Page::Mapped;
        if mapped {
            self.page = Page::Blocked {
                epoch: self.epochs.current(),
            };
        }
        mapped
    }

    fn track(&mut self, fault: Fault) -> bool {
        if self.epochs.current() == LAST {
            return false;
        }
        if fault == Fault::TrackUncounted {
            self.epochs.plant_next();
            return true;
        }
        self.epochs.track()
    }

    fn remove(&mut self, fault: Fault) -> bool {
        let Page::Blocked { epoch } = self.page else {
            return false;
        };
        let tracked = fault == Fault::Untracked || self.epochs.is_tracked(epoch);
        if tracked {
            self.page = Page::Free;
        }
        tracked
    }
}

/// What a search has found.
struct Found {
    states: usize,
    bad: usize,
    /// The shortest way to a bad state.
    trace: Vec<Step>,
}

/// Visits every state that can be reached, nearest first.
fn search(vcpus: usize, fault: Fault) -> Found {
    let start = State::new(vcpus);
    let mut came_from: HashMap<State, Option<(State, Step)>> = HashMap::new();
    came_from.insert(start.clone(), None);
    let mut queue = VecDeque::from([start]);
    let (mut bad, mut nearest) = (0, None);
    while let Some(state) = queue.pop_front() {
        if state.is_bad() {
            bad += 1;
            nearest.get_or_insert_with(|| state.clone());
        }
        for step in state.steps() {
            let Some(next) = state.after(step, fault) else {
                continue;
            };
            if !came_from.contains_key(&next) {
                came_from.insert(next.clone(), Some((state.clone(), step)));
                queue.push_back(next);
            }
        }
    }
    let mut trace = Vec::new();
    let mut at = nearest;
    while let Some(Some((before, step))) = at.as_ref().map(|state| came_from[state].clone()) {
        trace.insert(0, step);
        at = Some(before);
    }
    Found {
        states: came_from.len(),
        bad,
        trace,
    }
}

#[test]
fn no_vcpu_reaches_a_page_that_was_removed() {
    for (vcpus, states) in [(1, 235), (2, 2_485), (3, 27_961)] {
        let found = search(vcpus, Fault::None);
        println!("{vcpus} vCPUs: {} states, {} bad", found.states, found.bad);
        assert_eq!((found.states, found.bad), (states, 0));
    }
}

#[test]
fn every_rule_is_needed() {
    use Step::{Access, Block, Enter, Exit, Remove, Track};
    let cases: [(_, _, &[Step]); 3] = [
        (
            Fault::TrackUncounted,
            [6, 166, 3_522],
            &[Enter(0), Access(0), Block, Track, Track, Remove],
        ),
        (
            Fault::NoFlush,
            [7, 157, 2_773],
            &[Enter(0), Access(0), Exit(0), Block, Track, Enter(0), Remove],
        ),
        (
            Fault::Untracked,
            [9, 185, 3_093],
            &[Enter(0), Access(0), Block, Remove],
        ),
    ];
    for (fault, bad, shortest) in cases {
        for (vcpus, bad) in (1..).zip(bad) {
            let found = search(vcpus, fault);
            println!(
                "{fault:?}, {vcpus} vCPUs: {} bad of {}",
                found.bad, found.states
            );
            println!("  {:?}", found.trace);
            assert_eq!(found.bad, bad);
            assert_eq!(found.trace, shortest);
        }
    }
}
