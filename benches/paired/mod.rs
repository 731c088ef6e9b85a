//! Two ways to do the same work, timed in turn, so that noise of the machine falls on both alike.

mod quiet;

use std::fmt;
use std::time::{Duration, Instant};

/// Does the work this often, and says how long that took; what is set up on the way does not count.
pub(crate) type Work = Box<dyn FnMut(u64) -> Duration>;

/// What a ratio has to keep.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// The measured side takes at most this many times as long as the other.
    AtMost(f64),
    /// The other side takes at least this many times as long as the measured one.
    AtLeast(f64),
}

impl Bound {
    /// The ratio of the two times that the bound is about.
    pub(crate) fn ratio(self, measured: f64, beside: f64) -> f64 {
        match self {
            Self::AtMost(_) => measured / beside,
            Self::AtLeast(_) => beside / measured,
        }
    }

    /// Prints the line of a target.
    pub(crate) fn report(self, name: &str, ratio: &Ratio) {
        let (words, limit, kept) = match self {
            Self::AtMost(limit) => ("at most", limit, ratio.median <= limit),
            Self::AtLeast(limit) => ("at least", limit, ratio.median >= limit),
        };
        let verdict = if kept { "ok" } else { "short" };
        println!("target {name:<44} {ratio}  {words} {limit}  {verdict}");
    }
}

/// One side of a pair.
pub(crate) struct Side {
    /// What it is called in reports.
    pub(crate) label: String,
    /// The work.
    pub(crate) work: Work,
}

impl Side {
    /// Work that needs no set-up between repetitions.
    pub(crate) fn new(label: impl Into<String>, mut once: impl FnMut() + 'static) -> Self {
        Self::timed(label, move |times| {
            let start = Instant::now();
            for _ in 0..times {
                once();
            }
            start.elapsed()
        })
    }

    /// Work that keeps its own time.
    pub(crate) fn timed(
        label: impl Into<String>,
        work: impl FnMut(u64) -> Duration + 'static,
    ) -> Self {
        Self {
            label: label.into(),
            work: Box::new(work),
        }
    }

    /// How often the work fits into one part of a round.
    fn repetitions(&mut self) -> u64 {
        let mut times = 1;
        loop {
            let took = (self.work)(times);
            if took >= PART || times >= 1 << 30 {
                return times;
            }
            times *= 2;
        }
    }

    /// Seconds for one repetition.
    pub(crate) fn seconds(&mut self, times: u64) -> f64 {
        let times = times.max(1);
        (self.work)(times).as_secs_f64() / times as f64
    }
}

/// A target: what is measured, beside what, within which bound.
pub(crate) struct Target {
    /// What it is called in reports.
    pub(crate) name: &'static str,
    /// What is measured.
    pub(crate) measured: Side,
    /// What it is measured beside.
    pub(crate) beside: Side,
    /// What the ratio has to keep.
    pub(crate) bound: Bound,
}

/// The time that one side takes of a round, at the least: short, so that it fits between two neighbours of the machine.
pub(crate) const PART: Duration = Duration::from_micros(250);
/// The time for all rounds of a target.
const ALL_ROUNDS: Duration = Duration::from_secs(2);
/// The fewest and the most rounds.
pub(crate) const ROUNDS: std::ops::RangeInclusive<usize> = 25..=301;
/// How long to go on where the machine gives a whole processor for few of the rounds.
const PATIENCE: Duration = Duration::from_secs(12);
/// How long one part of a round is timed again until the machine gives a whole processor for it.
const TRIES: Duration = Duration::from_millis(20);

/// What one part of a round took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    /// Seconds for one repetition.
    pub(crate) seconds: f64,
    /// Whether the machine gave a whole processor, before it and after it.
    pub(crate) whole: bool,
}

/// Times one part of a round, again if the machine did not give a whole processor for it. `warm_up` is done before each time.
pub(crate) fn part(side: &mut Side, times: u64, mut warm_up: impl FnMut(&mut Side)) -> Took {
    let start = Instant::now();
    loop {
        quiet::wait(TRIES.saturating_sub(start.elapsed()));
        warm_up(side);
        let was_whole = quiet::is_whole();
        if was_whole || start.elapsed() >= TRIES {
            let seconds = side.seconds(times);
            let whole = was_whole && quiet::is_whole();
            if whole || start.elapsed() >= TRIES {
                return Took { seconds, whole };
            }
        }
    }
}

/// Counts rounds.
pub(crate) struct Rounds {
    start: Instant,
    all: usize,
    whole: usize,
}

impl Rounds {
    pub(crate) fn new() -> Self {
        quiet::look_around();
        Self {
            start: Instant::now(),
            all: 0,
            whole: 0,
        }
    }

    /// Whether there is to be one more.
    pub(crate) fn go_on(&self) -> bool {
        let took = self.start.elapsed();
        if self.whole < *ROUNDS.start() {
            return took < PATIENCE || self.all < *ROUNDS.start();
        }
        self.whole < *ROUNDS.end() && took < ALL_ROUNDS
    }

    /// Counts one, with the parts that matter most.
    pub(crate) fn count<'t>(&mut self, parts: impl IntoIterator<Item = &'t Took>) {
        self.all += 1;
        self.whole += usize::from(parts.into_iter().all(|took| took.whole));
    }
}

/// The ratios that `bound` is about, round by round. Those rounds count for which the machine gave a whole processor, if there
/// are enough of them.
pub(crate) fn ratio(bound: Bound, measured: &[Took], beside: &[Took]) -> Ratio {
    let pairs = || measured.iter().zip(beside);
    let of = |(own, other): (&Took, &Took)| bound.ratio(own.seconds, other.seconds);
    let whole = pairs().filter(|(own, other)| own.whole && other.whole);
    let whole: Vec<f64> = whole.map(of).collect();
    match whole.len() < *ROUNDS.start() {
        true => Ratio::of(pairs().map(of).collect()),
        false => Ratio {
            all: measured.len(),
            ..Ratio::of(whole)
        },
    }
}

impl Target {
    /// Runs rounds of one part per side, the sides taking turns to be first, until the time is up.
    pub(crate) fn run(&mut self) -> Ratio {
        let (times, times_beside) = (self.measured.repetitions(), self.beside.repetitions());
        let (mut measured, mut beside) = (Vec::new(), Vec::new());
        let mut rounds = Rounds::new();
        while rounds.go_on() {
            let (own, other) = if measured.len() % 2 == 0 {
                let own = part(&mut self.measured, times, |_| {});
                (own, part(&mut self.beside, times_beside, |_| {}))
            } else {
                let other = part(&mut self.beside, times_beside, |_| {});
                (part(&mut self.measured, times, |_| {}), other)
            };
            rounds.count([&own, &other]);
            measured.push(own);
            beside.push(other);
        }
        ratio(self.bound, &measured, &beside)
    }

    /// Runs the rounds and prints the line.
    pub(crate) fn report(&mut self) {
        let ratio = self.run();
        self.bound.report(self.name, &ratio);
    }
}

/// The ratio of two sides over all rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratio {
    /// The median.
    pub(crate) median: f64,
    /// The 95 % confidence interval of the median, by order statistics: no distribution is assumed.
    pub(crate) interval: (f64, f64),
    /// How many rounds count.
    pub(crate) rounds: usize,
    /// How many there were.
    all: usize,
}

impl Ratio {
    /// The median of `ratios` and its interval.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "half the width of the interval is less than the number of rounds"
    )]
    pub(crate) fn of(mut ratios: Vec<f64>) -> Self {
        ratios.sort_by(f64::total_cmp);
        let (rounds, middle) = (ratios.len(), ratios.len() / 2);
        let half_width = (0.98 * (rounds as f64).sqrt()).ceil() as usize;
        let low = middle.saturating_sub(half_width);
        let high = (middle + half_width).min(rounds - 1);
        Self {
            median: ratios[middle],
            interval: (ratios[low], ratios[high]),
            rounds,
            all: rounds,
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.interval;
        write!(f, "{:7.2}  [{low:.2}, {high:.2}] in ", self.median)?;
        if self.rounds < self.all {
            write!(f, "{} of ", self.rounds)?;
        }
        write!(f, "{} rounds", self.all)
    }
}
