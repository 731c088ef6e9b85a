//! slat's own sides.
//!
//! Everything else in this bench is floors and other projects. A function that gives `None` has no side of slat yet, and
//! the targets that wait for it print no line.

use crate::side::{FastZap, Job, Kind, SharedZap};

/// The job of a kind over `pages` pages: targets 1, 2, 4 (deferred free), 6, 12, 13.
pub(crate) fn job(kind: Kind, pages: u64) -> Option<Box<dyn Job>> {
    let _ = (kind, pages);
    None
}

/// An invalid root of `pages` pages, zapped under the lock held for reading: target 3.
pub(crate) fn shared_zap(pages: u64) -> Option<Box<dyn SharedZap>> {
    let _ = pages;
    None
}

/// Tables that map `pages` pages, whose roots are invalidated: target 4.
pub(crate) fn fast_zap(pages: u64) -> Option<Box<dyn FastZap>> {
    let _ = pages;
    None
}
