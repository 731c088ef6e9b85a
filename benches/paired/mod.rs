//! Two ways to do the same work, timed in turn, so that noise of the machine falls on both alike.

mod quiet;

use std::fmt;
use std::time::{Duration, Instant};

use quiet::Processor;

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

/// The time that one side takes of a round, at the least.
pub(crate) const PART: Duration = Duration::from_millis(2);
/// The time for all rounds of a target.
const ALL_ROUNDS: Duration = Duration::from_secs(2);
/// The fewest and the most rounds.
pub(crate) const ROUNDS: std::ops::RangeInclusive<usize> = 15..=301;
/// How long to go on where the machine gives a whole processor for few of the rounds.
const PATIENCE: Duration = Duration::from_secs(6);

/// Counts rounds. Those count in which the machine gave a whole processor from begin to end, if there are enough of them.
pub(crate) struct Rounds {
    processor: Processor,
    start: Instant,
    was_whole: bool,
    /// Whether each round counts.
    whole: Vec<bool>,
}

impl Rounds {
    pub(crate) fn new() -> Self {
        Self {
            processor: Processor::new(),
            start: Instant::now(),
            was_whole: false,
            whole: Vec::new(),
        }
    }

    /// Begins a round, if there is to be one more.
    pub(crate) fn begin(&mut self) -> bool {
        let counting = self.whole.iter().filter(|whole| **whole).count();
        let took = self.start.elapsed();
        let enough = counting >= *ROUNDS.start() && took >= ALL_ROUNDS;
        let more = counting < *ROUNDS.end() && !enough;
        self.was_whole = self.processor.is_whole();
        more && (took < PATIENCE || self.whole.len() < *ROUNDS.start())
    }

    /// Ends it.
    pub(crate) fn end(&mut self) {
        let whole = self.processor.is_whole() && self.was_whole;
        self.whole.push(whole);
    }

    /// What was measured in the rounds that count.
    pub(crate) fn counting<T: Copy>(&self, measured: &[T]) -> Vec<T> {
        let kept = measured.iter().zip(&self.whole);
        let kept: Vec<T> = kept.filter(|(_, whole)| **whole).map(|(m, _)| *m).collect();
        match kept.len() < *ROUNDS.start() {
            true => measured.to_vec(),
            false => kept,
        }
    }
}

impl Target {
    /// Runs rounds of one part per side, the sides taking turns to be first, until the time is up.
    pub(crate) fn run(&mut self) -> Ratio {
        let (times, times_beside) = (self.measured.repetitions(), self.beside.repetitions());
        let mut ratios = Vec::new();
        let mut rounds = Rounds::new();
        while rounds.begin() {
            let (own, other) = if ratios.len() % 2 == 0 {
                let own = self.measured.seconds(times);
                (own, self.beside.seconds(times_beside))
            } else {
                let other = self.beside.seconds(times_beside);
                (self.measured.seconds(times), other)
            };
            ratios.push(self.bound.ratio(own, other));
            rounds.end();
        }
        Ratio::of(rounds.counting(&ratios))
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
    /// How many rounds.
    pub(crate) rounds: usize,
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
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.interval;
        write!(
            f,
            "{:7.2}  [{low:.2}, {high:.2}] in {} rounds",
            self.median, self.rounds
        )
    }
}
