//! What confidential hardware allows on top of KVM's own rules.
//!
//! - [`convert`]: what an exit asks of a VMM, private or shared, and what it answers.
//! - [`migration`]: live migration of SEV guests: a checker that finds its races, and proves the rules that prevent them.
//! - [`psc`]: page-state changes, as an engine that a VMM can use on any machine.
//! - [`rmp`]: the reverse map of SEV-SNP, with every instruction that changes or asks it.
//! - [`sev`]: SEV and SEV-ES guests, from their launch to their migration, with contents and keys as symbols.
//! - [`snp`]: a guest on a host, with faults, conversions, and an audit.
//! - [`tdx`]: the memory half of the TDX module, and KVM's mirror of its tables.
//!
//! What KVM itself decides by VM type (flags of a slot, guest_memfd, memory attributes) is in [`slat_memslot`].
#![forbid(unsafe_code)]

pub mod convert;
pub mod migration;
pub mod psc;
pub mod rmp;
pub mod sev;
pub mod snp;
mod sync;
pub mod tdx;
