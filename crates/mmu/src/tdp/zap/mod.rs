//! Taking mappings away: leaves of a range, one table, whole roots, and all roots at once.
//!
//! | operation | lock | which roots | gives way | flush |
//! |---|---|---|---|---|
//! | [`ZapLeafs`] | exclusive | as told | yes, flushing before | its caller's, see [`ZapLeafs::needs_flush`] |
//! | [`Locked::zap_page`](super::Locked::zap_page) | exclusive | one table | no | its caller's |
//! | [`Locked::invalidate_roots`](super::Locked::invalidate_roots) | exclusive | valid | no | none: a vCPU flushes when it loads a root |
//! | [`ZapInvalidated`] | shared | those invalidated | yes | none, for the same reason |
//! | [`ZapAll`] | exclusive | all | yes | none: the VM is dying |
//!
//! An operation that can give way is a value: run it until it is [`Progress::Done`](super::Progress::Done), with the lock
//! given up in between.

mod discard;
mod fast;
mod leafs;
mod page;
mod root;

pub use fast::{FastZap, ZapInvalidated, zap_all_fast};
pub use leafs::ZapLeafs;
pub use root::{Passes, ZapAll};
