//! The secure EPT: entries, their states, and the tables.

mod entry;
mod state;
mod tables;

pub use entry::{EntryView, SeptEntry};
pub use state::SeptState;
pub(crate) use tables::{Place, Sept, Walked};
