//! The tables with many threads in them.
//!
//! Three tools, each for what the others cannot do: under `--cfg loom` single protocols in all interleavings, weakly
//! ordered memory included; under `--cfg shuttle` whole operations of up to four threads in random schedules; else real
//! threads on tables of full size. All end with [`check::consistent`].

mod check;
#[cfg(loom)]
mod empty;
#[cfg(loom)]
mod mirror;
#[cfg(not(loom))]
mod operations;
#[cfg(loom)]
mod reclaim;
#[cfg(loom)]
mod removal;
#[cfg(loom)]
mod roots;
#[cfg(shuttle)]
mod schedules;
#[cfg(not(any(loom, shuttle)))]
mod stress;
#[cfg(loom)]
mod world;
#[cfg(loom)]
mod zap;
