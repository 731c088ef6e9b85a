//! Other projects' page tables, over frames of [`memory`](crate::memory).

pub(crate) mod hyperlight;
pub(crate) mod memflow;
pub(crate) mod multiarch;
pub(crate) mod x86_64;
