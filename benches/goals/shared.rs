//! Sides of the two kinds of zap that are no plain job: a root zapped while another thread faults, and all roots at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::paired::Side;
use crate::side::{FastZap, Filling, Seen, SharedZap};

/// Checks a shared zap's results once, then makes a side of it.
pub(crate) fn shared_side(label: &str, pages: u64, mut zap: Box<dyn SharedZap>) -> Side {
    for _ in 0..2 {
        zap.prepare();
        assert_eq!(zap.seen(0), Seen::Absent, "{label}: an empty new root");
        assert!(zap.left() > 0, "{label}: a full invalid root");
        let (_, faults) = zap_beside_faults(zap.as_ref(), pages);
        assert_eq!(zap.left(), 0, "{label}: leaves of the invalid root");
        for gfn in 0..pages {
            let expected = if gfn < faults {
                Filling::Full.at(gfn)
            } else {
                Seen::Absent
            };
            assert_eq!(zap.seen(gfn), expected, "{label}: {gfn:#x} of {faults}");
        }
    }
    Side::timed(label, move |times| {
        let mut total = Duration::ZERO;
        for _ in 0..times {
            zap.prepare();
            total += zap_beside_faults(zap.as_ref(), pages).0;
        }
        total
    })
}

/// Zaps while another thread maps frames from 0 on. How long the zap took, and how many faults there were.
fn zap_beside_faults(zap: &dyn SharedZap, pages: u64) -> (Duration, u64) {
    let (faults, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let fault_on = || {
        let mut fault = zap.vcpu();
        while !stop.load(Ordering::Relaxed) {
            let number = faults.load(Ordering::Relaxed);
            fault(number % pages);
            faults.store(number + 1, Ordering::Relaxed);
        }
    };
    let took = std::thread::scope(|scope| {
        scope.spawn(fault_on);
        while faults.load(Ordering::Relaxed) == 0 {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        zap.zap();
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        took
    });
    (took, faults.load(Ordering::Relaxed))
}

/// Checks that roots are invalidated as often as asked, then makes a side of it.
pub(crate) fn fast_side(label: &str, mut zap: Box<dyn FastZap>) -> Side {
    let before = zap.generation();
    let _took = zap.invalidate(7);
    assert_eq!(zap.generation(), before + 7, "{label}");
    Side::timed(label, move |times| zap.invalidate(times))
}
