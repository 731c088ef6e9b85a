//! Whether the machine gives this thread a whole processor at the moment.
//!
//! Another machine on the same core takes more from code that keeps a processor busy than from code that waits for memory, so
//! that it changes ratios. What it takes shows in work that is neither side's.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Steps of the work: some 15 us, for a whole processor is often there for a millisecond or two only.
const STEPS: u64 = 1 << 13;
/// Chains of the work that do not wait for each other: enough to want everything that a core can do at once.
const CHAINS: usize = 8;
/// How much longer than at best it may take.
const SLACK: f64 = 1.1;

/// How long the work takes at best, in nanoseconds, as far as this process knows.
static BEST: AtomicU64 = AtomicU64::new(u64::MAX);

/// Looks for the best time for a twentieth of a second.
pub(crate) fn look_around() {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(50) {
        let _whole = is_whole();
    }
}

/// Whether all of the processor is there now.
pub(crate) fn is_whole() -> bool {
    let took = work();
    let best = BEST.fetch_min(took, Ordering::Relaxed).min(took);
    took as f64 <= best as f64 * SLACK
}

/// Waits until all of it is there, for so long at most.
pub(crate) fn wait(at_most: Duration) {
    let start = Instant::now();
    while !is_whole() && start.elapsed() < at_most {}
}

/// Nanoseconds for the work. Bytes are swapped since no compiler makes vectors of that.
fn work() -> u64 {
    let start = Instant::now();
    let mut chains = black_box([1_u64; CHAINS]);
    for step in 0..STEPS {
        for chain in &mut chains {
            *chain = (chain.swap_bytes() ^ step).wrapping_add(CHAINS as u64);
        }
    }
    black_box(chains);
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
