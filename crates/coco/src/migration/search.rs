//! All interleavings of a guest and a VMM that keep to the rules.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::guest::{GuestOp, Half};
use super::host::{HostOp, ListOrder};
use super::page::{Page, Status};
use super::rules::{Rules, Technology};
use super::schedule::{Actor, Schedule, Step};

/// What is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// What guest and VMM keep to.
    pub rules: Rules,
    /// What the host learns from hardware.
    pub technology: Technology,
    /// Pages, at least 1 and at most [`Setting::MAX_PAGES`].
    pub pages: usize,
    /// The most states to look at before it is given up.
    pub states: usize,
}

impl Setting {
    /// The most pages that a search can have.
    pub const MAX_PAGES: usize = 2;
}

impl Default for Setting {
    /// All rules, SEV, one page, ten million states.
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            technology: Technology::default(),
            pages: 1,
            states: 10_000_000,
        }
    }
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explored {
    /// Different states of guest, VMM and pages.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
}

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The guest reads what it counts on, and something else is there.
    Content {
        /// Which page, from 0.
        page: usize,
        /// Which half of it.
        half: Half,
    },
    /// The destination takes the page for what it is not: the next migration breaks it.
    Listed {
        /// Which page, from 0.
        page: usize,
    },
}

/// A schedule that breaks a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The shortest one: no other has fewer steps.
    pub schedule: Schedule,
    /// What it breaks.
    pub damage: Damage,
    /// What was looked at until it was found.
    pub explored: Explored,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No interleaving breaks a page: every state that can be reached was looked at.
    Safe(Explored),
    /// One does.
    Broken(Broken),
}

/// A search that ended without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    /// More states than [`Setting::states`] can be reached.
    #[error("more than {0} states can be reached: raise the limit or take fewer pages")]
    States(usize),
    /// [`Setting::pages`] is 0 or too large.
    #[error("{0} pages: a search takes 1 or 2")]
    Pages(usize),
}

/// Where the VMM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Before this step of a round.
    Round(u8),
    /// Between rounds, the list being the one to use for the last round.
    Between { has_list: bool },
    /// The guest has moved.
    Moved,
}

/// Guest, VMM and pages. Pages that a search does not have stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    phase: Phase,
    pages: [Page; Setting::MAX_PAGES],
}

/// What a list says of a page that nobody has told about.
pub(super) const fn default_status(rules: Rules) -> Status {
    if rules.private_by_default {
        Status::Private
    } else {
        Status::Shared
    }
}

/// Looks at every interleaving, shortest first.
///
/// # Errors
/// The setting cannot be searched, or not within its limit.
pub fn check(setting: &Setting) -> Result<Verdict, TooLarge> {
    if !(1..=Setting::MAX_PAGES).contains(&setting.pages) {
        return Err(TooLarge::Pages(setting.pages));
    }
    Search::new(setting).run()
}

struct Search {
    setting: Setting,
    rules: Rules,
    /// By number: each state and how it was reached.
    states: Vec<(State, Option<Reached>)>,
    numbers: FxHashMap<State, usize>,
    queue: VecDeque<usize>,
    steps: usize,
}

/// From which state, by which step.
#[derive(Clone, Copy, Debug)]
struct Reached {
    from: usize,
    step: Move,
}

/// What leads from one state to the next.
#[derive(Clone, Copy, Debug)]
enum Move {
    Guest(usize, GuestOp),
    /// A step of the VMM, and where it is then.
    Host(HostOp, Phase),
    /// The guest stands still: the last round, and the move.
    Finish,
}

impl Search {
    fn new(setting: &Setting) -> Self {
        let rules = setting.technology.enforce(setting.rules);
        let first = State {
            phase: Phase::Round(0),
            pages: [Page::new(default_status(rules)); Setting::MAX_PAGES],
        };
        Self {
            setting: *setting,
            rules,
            states: vec![(first, None)],
            numbers: FxHashMap::from_iter([(first, 0)]),
            queue: VecDeque::from([0]),
            steps: 0,
        }
    }

    fn run(mut self) -> Result<Verdict, TooLarge> {
        while let Some(number) = self.queue.pop_front() {
            let state = self.states[number].0;
            if let Some(damage) = self.damage(&state) {
                return Ok(Verdict::Broken(Broken {
                    schedule: self.schedule(number, damage),
                    damage,
                    explored: self.explored(),
                }));
            }
            for step in self.moves(&state) {
                self.reach(number, step, self.after(state, step));
            }
            if self.states.len() > self.setting.states {
                return Err(TooLarge::States(self.setting.states));
            }
        }
        Ok(Verdict::Safe(self.explored()))
    }

    fn explored(&self) -> Explored {
        Explored {
            states: self.states.len(),
            steps: self.steps,
        }
    }

    fn reach(&mut self, from: usize, step: Move, state: State) {
        self.steps += 1;
        let next = self.states.len();
        if *self.numbers.entry(state).or_insert(next) == next {
            self.states.push((state, Some(Reached { from, step })));
            self.queue.push_back(next);
        }
    }

    fn damage(&self, state: &State) -> Option<Damage> {
        if state.phase != Phase::Moved {
            return None;
        }
        let pages = &state.pages[..self.setting.pages];
        pages.iter().enumerate().find_map(|(number, page)| {
            if let Some(half) = page.broken_half() {
                return Some(Damage::Content { page: number, half });
            }
            let announced = page.unheard.unwrap_or(page.listed);
            let kept = self.rules.announce_first && self.rules.private_by_default;
            (kept && announced != page.mapped).then_some(Damage::Listed { page: number })
        })
    }

    fn moves(&self, state: &State) -> Vec<Move> {
        let mut moves = Vec::new();
        self.host_moves(state, &mut moves);
        for (number, page) in state.pages[..self.setting.pages].iter().enumerate() {
            let ops = GuestOp::allowed(page, self.rules);
            moves.extend(ops.map(|op| Move::Guest(number, op)));
        }
        moves
    }

    fn host_moves(&self, state: &State, moves: &mut Vec<Move>) {
        let pages = &state.pages[..self.setting.pages];
        if pages.iter().any(|page| page.unheard.is_some()) {
            moves.push(Move::Host(HostOp::Hear, state.phase));
        }
        let round = ListOrder::of(self.rules).round();
        match state.phase {
            Phase::Round(2) => moves.push(Move::Host(round[2], Phase::Between { has_list: false })),
            Phase::Round(at) => {
                moves.push(Move::Host(round[usize::from(at)], Phase::Round(at + 1)));
            }
            Phase::Between { has_list } => {
                // Another round, or the last one.
                moves.push(Move::Host(round[0], Phase::Round(1)));
                if self.rules.fresh_list || has_list {
                    moves.push(Move::Finish);
                } else {
                    let phase = Phase::Between { has_list: true };
                    moves.push(Move::Host(HostOp::GetList, phase));
                }
            }
            Phase::Moved => (),
        }
    }

    /// The state after a step.
    fn after(&self, mut state: State, step: Move) -> State {
        let (rules, technology) = (self.rules, self.setting.technology);
        match step {
            Move::Guest(number, op) => {
                let has_moved = state.phase == Phase::Moved;
                let page = &mut state.pages[number];
                op.take_contents(page, technology);
                op.apply(page, rules, has_moved);
            }
            Move::Host(op, phase) => {
                self.on_all(&mut state, op);
                state.phase = phase;
            }
            Move::Finish => {
                for op in self.finish() {
                    self.on_all(&mut state, op);
                }
                state.phase = Phase::Moved;
            }
        }
        state
    }

    fn on_all(&self, state: &mut State, op: HostOp) {
        for page in &mut state.pages[..self.setting.pages] {
            op.apply(page, self.rules, self.setting.technology);
        }
    }

    /// What is done while the guest stands still.
    fn finish(&self) -> Vec<HostOp> {
        let order = match (ListOrder::of(self.rules), self.rules.fresh_list) {
            (order, true) => order,
            (_, false) => ListOrder::Once,
        };
        let mut ops = Vec::new();
        if self.rules.final_round {
            ops.push(HostOp::Stop);
            ops.extend(order.last_round());
        }
        ops.push(HostOp::Resume);
        ops
    }

    fn schedule(&self, end: usize, damage: Damage) -> Schedule {
        let mut moves = Vec::new();
        let mut at = end;
        while let Some(reached) = self.states[at].1 {
            moves.push((reached.from, reached.step));
            at = reached.from;
        }
        let mut steps = Vec::new();
        for &(from, step) in moves.iter().rev() {
            self.steps_of(&self.states[from].0, step, &mut steps);
        }
        if let Damage::Content { page, half } = damage {
            let kind = self.states[end].0.pages[page].halves[half as usize].written;
            let actor = Actor::Guest { has_moved: true };
            steps.push(Step::guest(actor, page, GuestOp::Read(kind)));
        }
        Schedule::new(steps, self.setting.pages)
    }

    /// The steps of a move as they are printed; what is sent as what it is not is told.
    fn steps_of(&self, before: &State, step: Move, steps: &mut Vec<Step>) {
        let mut state = *before;
        match step {
            Move::Guest(page, op) => {
                let has_moved = before.phase == Phase::Moved;
                steps.push(Step::guest(Actor::Guest { has_moved }, page, op));
            }
            Move::Host(op, _) => steps.push(self.host_step(&mut state, op)),
            Move::Finish => {
                for op in self.finish() {
                    steps.push(self.host_step(&mut state, op));
                }
            }
        }
    }

    fn host_step(&self, state: &mut State, op: HostOp) -> Step {
        let sent = match op {
            HostOp::Send => self.sent(state),
            _ => Vec::new(),
        };
        self.on_all(state, op);
        Step::host(op, sent)
    }

    /// Which pages are sent now, and as what.
    fn sent(&self, state: &State) -> Vec<(usize, Status)> {
        let pages = state.pages[..self.setting.pages].iter().enumerate();
        pages
            .filter(|(_, page)| page.taken)
            .map(
                |(number, page)| match self.setting.technology.is_enforced() {
                    true => (number, page.listed),
                    false => (number, page.read),
                },
            )
            .collect()
    }
}
