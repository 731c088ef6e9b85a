//! Dirty logging: which pages a guest wrote, and what becomes of that knowledge.

mod bitmap;
mod chunk;
mod epoch;
mod log;
mod merge;
mod pages;
mod ring;
mod rings;
mod window;

pub use bitmap::{ClearMask, DirtyBitmap, InitialBits};
pub use epoch::{DirtyBacklog, DirtyEpoch};
pub use merge::{DirtySource, MergeError, coalesce_dirty, merge_dirty};
pub use pages::DirtyPages;
pub use ring::{DirtyRing, Rearm, RingEntry, RingFill, RingReset};
pub use rings::FreedRings;
pub(crate) use rings::{MAX_BYTES as MAX_RING_BYTES, ring_size};
pub use window::DirtyWindow;

#[cfg(test)]
mod tests;
