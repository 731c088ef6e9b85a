//! Whether the machine gives this thread a whole processor at the moment.
//!
//! Another machine on the same core takes more from code that keeps a processor busy than from code that waits for memory, so
//! that it changes ratios. What it takes shows in work that is neither side's.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Steps of the work: some 50 us.
const STEPS: u64 = 1 << 15;
/// How much longer than at best it may take.
const SLACK: f64 = 1.1;

/// The work, and how long it takes at best.
pub(crate) struct Processor {
    best: Duration,
}

impl Processor {
    /// Looks for the best time for a twentieth of a second.
    pub(crate) fn new() -> Self {
        let start = Instant::now();
        let mut best = work();
        while start.elapsed() < Duration::from_millis(50) {
            best = best.min(work());
        }
        Self { best }
    }

    /// Whether all of it is there now.
    pub(crate) fn is_whole(&mut self) -> bool {
        let took = work();
        self.best = self.best.min(took);
        took.as_secs_f64() <= self.best.as_secs_f64() * SLACK
    }
}

/// Four chains of multiplications and exclusive ors, so that most of what a core can do at once is wanted.
fn work() -> Duration {
    let start = Instant::now();
    let mut chains = black_box([1_u64, 2, 3, 4]);
    for step in 0..STEPS {
        for chain in &mut chains {
            *chain = chain.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ step;
        }
    }
    black_box(chains);
    start.elapsed()
}
