//! Second Level Address Translation: KVM's memory virtualisation as a userspace library.
//!
//! slat says what KVM will do with a VM's memory before it is asked to: whether it takes a call, why not, what would
//! repair it, what is zapped on the way. It is held against real kernels call by call.
//!
//! # A tour
//!
//! - [`memslot`]: what userspace asked for. [`Memory`](memslot::Memory) is the memory of one VM on one kernel
//!   ([`Profile`](memslot::Profile)); it checks, plans and commits any [`Call`](memslot::Call), and names the one
//!   [`Reason`](memslot::Reason) of a refusal.
//! - [`mmu`]: what the page tables say: entry formats, page roles, roots and their cache.
//! - [`coco`]: what confidential hardware allows: the reverse map of SEV-SNP, page-state changes, a guest on a host.
//! - [`vmm`]: whole VMs. [`MemoryVm`](vmm::MemoryVm) is KVM's memory interface as a trait, answered by the model, by
//!   the real `/dev/kvm`, or by both compared ([`Checked`](vmm::Checked)). Scenario files, differential runs, strace logs
//!   and recordings are here too.
//!
//! # Three steps of a VMM author
//!
//! ```
//! use slat::prelude::*;
//!
//! // 1. The kernel at hand; `slat::vmm::kvm::Machine::open` probes the live one.
//! let mut memory = Memory::new(Profile::named("linux-6.12").unwrap(), VmType::Default);
//!
//! // 2. Ask before the ioctl.
//! let ram = Region::new(SlotKey::normal(0), 0, 0x8000_0000, 0x7f00_0000_0000);
//! let plan = memory.check_region(&ram).unwrap();
//! println!("{plan}");
//! let _effects = memory.commit_region(plan).unwrap();
//!
//! // 3. A refusal has a name, an errno, a place in the kernel, and a repair.
//! let hotplug = Region::new(SlotKey::normal(1), 0x7fff_f000, 0x1000, 0x7e00_0000_0000);
//! let refusal = memory.check_region(&hotplug).unwrap_err();
//! assert_eq!((refusal.errno().to_string(), refusal.reason.code()), ("EEXIST".to_owned(), "overlap"));
//! println!("{refusal}; {:?}", memory.repair(&Call::SetRegion(hotplug), &refusal.reason));
//! ```
//!
//! The features `kvm` (conversions from and to kvm-bindings) and `serde` are off by default.

pub use slat_coco as coco;
pub use slat_memslot as memslot;
pub use slat_mmu as mmu;
pub use slat_vmm as vmm;

/// The names that a VMM author needs first.
pub mod prelude {
    pub use slat_memslot::{Call, Memory, Profile, Region, SlotKey, VmType};
    pub use slat_vmm::{Machine, MemoryVm};
}
