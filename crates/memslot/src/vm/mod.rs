//! The calls on a VM as a whole: capabilities, attributes, pre-faulting, and what else lays memory out.

mod attributes;
mod capability;
mod contents;
mod guest;
mod layout;
mod pre_fault;

#[cfg(test)]
mod tests;
