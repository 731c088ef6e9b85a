//! Requests, plans and runs.

mod decode;
mod map;
mod plan;
mod reference;
mod run;
mod vmms;
