//! How many interleavings of a guest's program with a VMM's rounds are bad.

use core::fmt;

use rustc_hash::FxHashMap;

use super::guest::{GuestOp, Half};
use super::host::{HostOp, ListOrder};
use super::page::{Page, Status};
use super::rules::{Rules, Technology};

/// What a guest does, step by step, to one page that it found private and full of what it counts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(Vec<GuestOp>);

/// Guests that get a conversion right or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProgramName {
    /// Writes the page in its new kind, then announces it, then reads.
    Late,
    /// Announces, writes, reads.
    Early,
    /// Announces shared, thinks better of it, announces private and reads what was there before.
    Abort,
    /// The same, but knows that what was there is lost, and reads nothing.
    AbortLost,
    /// The same, and writes anew before it reads.
    AbortRewrite,
}

impl ProgramName {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Late,
        Self::Early,
        Self::Abort,
        Self::AbortLost,
        Self::AbortRewrite,
    ];

    /// Its name in commands and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Early => "early",
            Self::Abort => "abort",
            Self::AbortLost => "abort-lost",
            Self::AbortRewrite => "abort-rewrite",
        }
    }

    /// Its steps.
    pub fn program(self) -> Program {
        use GuestOp::{Announce, Lose, Read, Rely};
        use Status::{Private, Shared};
        let write = |kind| Half::ALL.map(|half| GuestOp::Write(half, kind));
        let ([s0, s1], [p0, p1]) = (write(Shared), write(Private));
        Program(match self {
            Self::Late => vec![s0, s1, Rely, Announce(Shared), Read(Shared)],
            Self::Early => vec![Announce(Shared), s0, s1, Rely, Read(Shared)],
            Self::Abort => vec![Announce(Shared), Announce(Private), Read(Private)],
            Self::AbortLost => vec![Announce(Shared), Lose, Announce(Private), Read(Private)],
            Self::AbortRewrite => vec![
                Announce(Shared),
                Lose,
                Announce(Private),
                p0,
                p1,
                Rely,
                Read(Private),
            ],
        })
    }
}

impl fmt::Display for ProgramName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Program {
    /// A program of these steps.
    pub const fn new(ops: Vec<GuestOp>) -> Self {
        Self(ops)
    }

    /// Its steps.
    pub fn ops(&self) -> &[GuestOp] {
        &self.0
    }
}

/// How many interleavings there are, and how many of them break the page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All of them.
    pub interleavings: u128,
    /// Those after which the guest reads something else than what it counts on.
    pub bad: u128,
}

/// Guest, VMM and page on the way, and whether the guest has read something wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    page: Page,
    has_moved: bool,
    bad: bool,
}

/// Counts the interleavings of a program with this many rounds before the guest is stopped, and how many of them are bad. With
/// `announcement_dirties` an announcement of another kind marks the page dirty.
///
/// What the VMM does while the guest stands still is one step. The number of interleavings is that of ways to choose the VMM's
/// steps among all; states that are alike are followed once.
///
/// ```
/// use slat_coco::migration::{ListOrder, ProgramName, count};
///
/// let late = count(&ProgramName::Late.program(), ListOrder::DirtyFirst, 1, false);
/// assert_eq!((late.interleavings, late.bad), (126, 41));
/// ```
pub fn count(
    program: &Program,
    order: ListOrder,
    rounds: usize,
    announcement_dirties: bool,
) -> Count {
    let rules = Rules {
        announcement_dirties,
        // Programs say themselves what they give up.
        data_lost: false,
        ..Rules::default()
    };
    let host = host_program(order, rounds);
    let first = State {
        page: Page::new(Status::Private),
        has_moved: false,
        bad: false,
    };
    // By how far the guest is, with the VMM at one step after the other: how many ways lead to each state.
    let mut row = vec![FxHashMap::default(); program.ops().len() + 1];
    row[0] = FxHashMap::from_iter([(first, 1_u128)]);
    for op in host.iter().map(Some).chain([None]) {
        run_guest(&mut row, program, rules);
        let Some(op) = op else { break };
        for states in &mut row {
            *states = after(states, |state| op.apply(state, order, rules));
        }
    }
    row.pop()
        .into_iter()
        .flatten()
        .fold(Count::default(), |sum, (state, ways)| Count {
            interleavings: sum.interleavings + ways,
            bad: sum.bad + if state.bad { ways } else { 0 },
        })
}

/// Lets the guest take any number of steps.
fn run_guest(row: &mut [FxHashMap<State, u128>], program: &Program, rules: Rules) {
    for (at, op) in program.ops().iter().enumerate() {
        let next = after(&row[at], |state| guest_step(*op, state, rules));
        for (state, ways) in next {
            *row[at + 1].entry(state).or_default() += ways;
        }
    }
}

fn guest_step(op: GuestOp, state: &mut State, rules: Rules) {
    let same = matches!(op, GuestOp::Announce(kind) if kind == state.page.listed);
    let rules = Rules {
        announcement_dirties: rules.announcement_dirties && !same,
        ..rules
    };
    op.apply(&mut state.page, rules, state.has_moved);
    if matches!(op, GuestOp::Read(_)) && state.has_moved {
        state.bad |= Half::ALL.into_iter().any(|half| state.page.has_lost(half));
    }
}

fn after(states: &FxHashMap<State, u128>, step: impl Fn(&mut State)) -> FxHashMap<State, u128> {
    let mut next = FxHashMap::default();
    for (&state, &ways) in states {
        let mut state = state;
        step(&mut state);
        *next.entry(state).or_default() += ways;
    }
    next
}

/// A step of the VMM: one of a round, or all that is done while the guest stands still.
#[derive(Clone, Copy, Debug)]
enum HostStep {
    One(HostOp),
    Finish,
}

fn host_program(order: ListOrder, rounds: usize) -> Vec<HostStep> {
    let round = order.round().map(HostStep::One);
    let mut steps: Vec<_> = core::iter::repeat_n(round, rounds).flatten().collect();
    if order == ListOrder::Once {
        steps.push(HostStep::One(HostOp::GetList));
    }
    steps.push(HostStep::Finish);
    steps
}

impl HostStep {
    fn apply(self, state: &mut State, order: ListOrder, rules: Rules) {
        let mut one = |op: HostOp| op.apply(&mut state.page, rules, Technology::Sev);
        match self {
            Self::One(op) => one(op),
            Self::Finish => {
                order.last_round().for_each(&mut one);
                one(HostOp::Resume);
                state.has_moved = true;
            }
        }
    }
}
