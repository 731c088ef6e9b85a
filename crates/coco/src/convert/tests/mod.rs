//! Requests, plans and runs.

mod decode;
mod plan;
mod reference;
mod run;
mod vmms;
