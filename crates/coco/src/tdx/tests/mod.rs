//! Tests of the module.

mod audit;
mod calls;
mod epochs;
mod guest;
mod ioctl;
mod legality;
mod lifecycle;
mod world;
