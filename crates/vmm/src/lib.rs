//! Whole VMs.
