//! A guest with SNP on a KVM host: private and shared memory, faults, conversions, and what holds between them.
//!
//! - [`SnpVm`]: the VM. vCPUs ([`SnpVcpu`]) access its memory, the VMM converts it ([`SnpVm::convert`]).
//! - [`RmpFaultPolicy`]: what becomes of an access that does not fit, as three proposals of one discussion.
//! - [`gmem_prepare`], [`gmem_invalidate`], [`private_max_mapping_level`]: what SNP adds to guest_memfd.
//! - [`SnpVm::launch_update`], [`ApCreation`]: the initial image, and vCPUs that the guest starts.
//! - [`GuestOp`]: a guest that does what it is told, right or wrong, and a [`Vmm`] that answers.
//! - [`SnpVm::audit`], [`Observed`]: whether reverse map, tables, attributes and file agree; [`Order`]: whether they came to
//!   it in the right order.
//! - [`Frames`]: the host's frames, their contents, and how the host itself maps them.
//!
//! ```
//! use std::sync::Arc;
//! use slat_coco::rmp::{Asid, Rmp, RmpSize, Visibility};
//! use slat_coco::snp::{Found, GuestOp, GuestReply, SnpSettings, SnpVm, Value, Vmm};
//! use slat_memslot::Gfn;
//! use slat_mmu::spte::Pfn;
//!
//! let rmp = Arc::new(Rmp::new(0x10000));
//! let settings = SnpSettings::new(Asid::new(5).unwrap(), 0x400);
//! let vm = SnpVm::new(settings, rmp, Pfn::new(0x1000)).unwrap();
//! let mut vcpu = vm.create_vcpu().unwrap();
//! let page = Gfn::new(7);
//! let write = GuestOp::Write(page, Visibility::Private, Value::Tag(1));
//! // The page is shared. Nobody has asked for a change, and this VMM makes none that was not asked for.
//! assert!(matches!(vm.run(&mut vcpu, &write, Vmm::CAREFUL), GuestReply::Exit(_)));
//! vm.unshare(&mut vcpu, slat_memslot::GfnRange::new(page, slat_memslot::Pages::new(1)).unwrap(), Vmm::CAREFUL);
//! assert_eq!(vm.run(&mut vcpu, &write, Vmm::CAREFUL), GuestReply::Done);
//! // The host finds noise.
//! assert_eq!(vm.host_peek_private(page), Some(Found::Scrambled));
//! assert!(vm.audit().is_empty());
//! ```
//!
//! KVM counterparts: `svm.c:npf_interception`, `sev.c:sev_handle_rmp_fault`, `sev_gmem_prepare`, `sev_gmem_invalidate`,
//! `kvm_main.c:kvm_vm_set_mem_attributes`, `guest_memfd.c:kvm_gmem_punch_hole`; kernel 6.12.117.

mod ap;
mod audit;
mod fault;
mod frames;
mod gmem;
mod guest;
mod launch;
mod order;
mod policy;
#[cfg(test)]
mod tests;
mod vm;

pub use ap::{ApCreation, ApError, ApRequest, INJECTION_MODES};
pub use audit::{Leaf, Observed, Reach, SnpViolation};
pub use fault::{Raised, RmpFault, SnpExit};
pub use frames::{Found, Frames, Key, Value};
pub use gmem::{
    Invalidated, PrepareError, Prepared, gmem_invalidate, gmem_prepare, prepared_size,
    private_max_mapping_level, psmash, rmpupdate,
};
pub use guest::{GuestOp, GuestReply, SharedBuffer, Vmm};
pub use launch::{LaunchError, Launched};
pub use order::{Act, Order};
pub use policy::RmpFaultPolicy;
pub use vm::{Hole, SnpSettings, SnpVcpu, SnpVm, SnpVmError};
