//! Many ways to do the same work, timed in turn within each round: slat, hand-written floors, other projects.

use std::time::Instant;

use crate::paired::{Bound, PART, Rounds, Side, Took, part, ratio};

/// Repetitions that the first one's caches show in.
const FEW: u64 = 8;

/// What a side is to the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// What is measured.
    Slat,
    /// A shortest loop that does the same work.
    Floor,
    /// Another project.
    Peer,
}

/// What slat's side stands beside.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Beside {
    /// The fastest floor.
    Floor,
    /// The fastest of the other projects.
    BestPeer,
    /// The side of this label.
    Named(&'static str),
}

/// A ratio that slat's side has to keep, with the words that its line ends with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    pub(crate) words: &'static str,
    pub(crate) beside: Beside,
    pub(crate) bound: Bound,
}

/// All sides of one piece of work.
pub(crate) struct Race {
    name: String,
    /// What figures are printed by, and how many of it one repetition has.
    unit: (&'static str, u64),
    sides: Vec<(Part, Side)>,
    goals: Vec<Goal>,
}

impl Race {
    /// A race over `pages` pages.
    pub(crate) fn new(name: impl Into<String>, pages: u64) -> Self {
        Self::by(name.into(), ("page", pages))
    }

    /// A race of calls whose time does not depend on pages.
    pub(crate) fn calls(name: impl Into<String>) -> Self {
        Self::by(name.into(), ("call", 1))
    }

    fn by(name: String, unit: (&'static str, u64)) -> Self {
        Self {
            name,
            unit,
            sides: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// With one more side.
    pub(crate) fn with(mut self, part: Part, side: Side) -> Self {
        self.sides.push((part, side));
        self
    }

    /// With slat's side, where there is one.
    pub(crate) fn with_slat(self, side: Side) -> Self {
        self.with(Part::Slat, side)
    }

    /// With a ratio that slat's side has to keep.
    pub(crate) fn goal(mut self, words: &'static str, beside: Beside, bound: Bound) -> Self {
        self.goals.push(Goal {
            words,
            beside,
            bound,
        });
        self
    }

    /// What each side took in each round. Every round starts with another side; the first one does not count.
    ///
    /// Work that is done only a few times in a round is done once more before, so that no side finds the caches full of
    /// another's tables.
    fn run(&mut self) -> Vec<Vec<Took>> {
        let times: Vec<u64> = self.sides.iter_mut().map(|(_, side)| often(side)).collect();
        let count = self.sides.len();
        let mut took = vec![Vec::new(); count];
        let mut rounds = Rounds::new();
        let mut round = 0;
        while rounds.go_on() {
            for turn in 0..count {
                let number = (round + turn) % count;
                let few = times[number] <= FEW;
                let one = part(&mut self.sides[number].1, times[number], |side| {
                    if few {
                        let _took = side.seconds(1);
                    }
                });
                if round > 0 {
                    took[number].push(one);
                }
            }
            if round > 0 {
                let sides = self.sides.iter().zip(&took);
                let matter = sides.filter(|((part, _), _)| *part != Part::Peer);
                rounds.count(matter.filter_map(|(_, took)| took.last()));
            }
            round += 1;
        }
        took
    }

    /// Runs the rounds; prints what floors and other projects take, then slat's line for each goal.
    pub(crate) fn report(mut self) {
        let took = self.run();
        let medians: Vec<f64> = took.iter().map(|side| median(side)).collect();
        let floor = self.fastest(Part::Floor, &medians);
        for (number, (part, side)) in self.sides.iter().enumerate() {
            let words = match part {
                Part::Slat => "slat",
                Part::Floor => "floor",
                Part::Peer => "peer",
            };
            let name = format!("{}: {}", self.name, side.label);
            let each = medians[number] * 1e9 / self.unit.1 as f64;
            print!("{words:<6} {name:<72} {each:9.3} ns per {}", self.unit.0);
            match floor {
                Some(floor) if floor != number => {
                    let ratio = ratio(Bound::AtMost(f64::MAX), &took[number], &took[floor]);
                    println!("  {ratio}, times the floor");
                }
                _ => println!(),
            }
        }
        if let Some(own) = self.sides.iter().position(|(part, _)| *part == Part::Slat) {
            for goal in &self.goals {
                let beside = match goal.beside {
                    Beside::Floor => floor,
                    Beside::BestPeer => self.fastest(Part::Peer, &medians),
                    Beside::Named(label) => {
                        self.sides.iter().position(|(_, side)| side.label == label)
                    }
                };
                let beside = beside.expect("a goal names a side that runs");
                let ratio = ratio(goal.bound, &took[own], &took[beside]);
                let name = format!("{}, {}", self.name, goal.words);
                goal.bound.report(&name, &ratio);
            }
        }
    }

    /// The side of this part with the least median.
    fn fastest(&self, part: Part, medians: &[f64]) -> Option<usize> {
        (0..self.sides.len())
            .filter(|number| self.sides[*number].0 == part)
            .min_by(|a, b| medians[*a].total_cmp(&medians[*b]))
    }
}

/// The median of what one side took, by the same choice of rounds.
fn median(took: &[Took]) -> f64 {
    let one = Took {
        seconds: 1.0,
        whole: true,
    };
    ratio(Bound::AtMost(f64::MAX), took, &vec![one; took.len()]).median
}

/// How often the work fits into one part of a round, what is set up for it included: an even number. Tables are given back in one
/// order and handed out in the other, and going through memory upwards takes another time than downwards.
fn often(side: &mut Side) -> u64 {
    let mut times = 2;
    loop {
        let start = Instant::now();
        let _took = side.seconds(times);
        if start.elapsed() >= PART || times >= 1 << 30 {
            return times;
        }
        times *= 2;
    }
}
