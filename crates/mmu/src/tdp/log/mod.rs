//! What a dirty log asks of the tables: leaves lose the right to write, or their dirty bit, so that the next write shows.
//!
//! | operation | lock | which leaves | reports |
//! |---|---|---|---|
//! | [`Weaken::write_protect`] | shared | of a range, from a size on | each change |
//! | [`Weaken::clear_dirty`] | shared | of a range | each change |
//! | [`Locked::clear_dirty`](super::Locked::clear_dirty) | exclusive | 4 KiB leaves, by 64 frames | each change |
//! | [`Locked::write_track`](super::Locked::write_track) | exclusive | of one frame | each change |
//!
//! TLBs are the caller's to flush.

mod masked;
mod track;
mod weaken;

pub use masked::{ByWhat, ClearDirty};
pub use weaken::Weaken;
pub(super) use weaken::weakened;
