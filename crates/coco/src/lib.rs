//! What confidential hardware allows on top of KVM's own rules.
//!
//! This crate will own the models of the TDX module with its secure EPT and KVM's mirror of it, of the SEV-SNP reverse
//! map table, of page-state change requests, and of the rules under which a confidential guest can be migrated. None
//! of that is needed for what slat does so far, so the crate holds nothing yet. What KVM itself decides by VM type
//! (flags of a slot, guest_memfd, memory attributes) is in [`slat_memslot`].
#![forbid(unsafe_code)]

mod sync;
pub mod tdx;
