//! Tests of the module.

mod audit;
mod calls;
mod guest;
mod lifecycle;
mod world;
