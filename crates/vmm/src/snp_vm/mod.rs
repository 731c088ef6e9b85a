//! VMs of type SNP: launch, private memory behind a reverse map, page-state changes, vCPUs that run on VMSAs.
//!
//! An SNP VM is a [`TdpVm`](crate::tdp_vm::TdpVm) on an NPT host with the state of this module beside its tables ([`Snp`]).
//! Slots, attributes, files, notifiers and logs are KVM's as for any VM. What is added, and where KVM has it:
//!
//! | here | KVM 6.12 |
//! |---|---|
//! | [`SnpCommand`] | `sev.c:sev_mem_enc_ioctl`, `snp_launch_start`, `_update`, `_finish` |
//! | a private page is assigned before it is mapped | `guest_memfd.c:kvm_gmem_get_pfn`, `sev.c:sev_gmem_prepare` |
//! | no leaf is larger than its entry | `sev.c:sev_private_max_mapping_level` |
//! | a page that is freed becomes the hypervisor's, after the zap | `sev.c:sev_gmem_invalidate` |
//! | a nested fault: the tables first, then PSMASH | `svm.c:npf_interception`, `sev.c:sev_handle_rmp_fault` |
//! | page-state changes exit to userspace | `sev.c:snp_begin_psc`, `snp_begin_psc_msr` |
//! | vCPUs that the guest starts | `sev.c:sev_snp_ap_creation`, `sev_snp_reload_vmsa` |
//!
//! A guest does what it is told, right or wrong, and so does its VMM: [`SnpOp`], by
//! [`MemoryVm::snp`](crate::MemoryVm::snp). Pages have contents, as symbols, so that it shows who can read what.
//!
//! ```
//! use slat_coco::rmp::{RmpSize, Visibility::Private};
//! use slat_coco::snp::{Found, Value};
//! use slat_memslot::{Attributes, Call, Gfn, Profile, Region, SlotFlags, SlotKey, VmType};
//! use slat_mmu::host::Host;
//! use slat_vmm::snp_vm::{EncryptOp, GuestAct, SnpAnswer, SnpCommand, SnpOp};
//! use slat_vmm::{Machine, MemoryVm, model};
//!
//! let profile = Profile::named("linux-6.12").unwrap();
//! let mut machine = model::Machine::with_host(profile, Host::npt(48)).with_snp();
//! let mut vm = machine.create_vm(VmType::Snp.raw()).unwrap();
//! let file = vm.create_guest_memfd(0x10000, 0).unwrap();
//! let region = Region::new(SlotKey::normal(0), 0, 0x10000, 0x7f00_0000_0000).with_gmem(file, 0);
//! vm.set_user_memory_region(&region).unwrap();
//! vm.set_memory_attributes(0, 0x10000, Attributes::PRIVATE.bits()).unwrap();
//! vm.call(&Call::CreateVcpu).unwrap();
//! for command in [SnpCommand::LaunchStart { policy: 0x3_0000, flags: 0 }, SnpCommand::LaunchFinish { flags: 0 }] {
//!     vm.memory_encrypt_op(&EncryptOp::Snp(command)).unwrap();
//! }
//!
//! let page = Gfn::new(7);
//! let mut guest = |act| vm.snp(&SnpOp::Guest(0, act)).unwrap();
//! assert_eq!(guest(GuestAct::Validate(page, RmpSize::Size4K)), SnpAnswer::Changed);
//! assert_eq!(guest(GuestAct::Write(page, Private, 5)), SnpAnswer::Done);
//! assert_eq!(guest(GuestAct::Read(page, Private)), SnpAnswer::Found(Found::Value(Value::Tag(5))));
//! // The host finds noise.
//! assert_eq!(vm.snp(&SnpOp::HostPeek(page)).unwrap(), SnpAnswer::Found(Found::Scrambled));
//! assert_eq!(vm.snp(&SnpOp::Audit).unwrap(), SnpAnswer::Audit(vec![]));
//! ```

mod audit;
mod backing;
mod fault;
mod guest;
mod launch;
mod op;
mod psc;
#[cfg(test)]
mod tests;
mod vcpu;
mod vmm;

use std::collections::BTreeMap;

use slat_coco::rmp::{Asid, Rmp, RmpSize, Vmpl};
use slat_coco::snp::{Frames, Order, RmpFaultPolicy};
use slat_memslot::{Gfn, GmemId, Pages, VmType};
use slat_mmu::spte::Pfn;

pub(crate) use backing::Behind;
pub use launch::{LaunchRefused, PageRefused};
pub use op::{GuestAct, LaunchType, SnpAnswer, SnpCommand, SnpOp, SnpStop, VmmWays};
use vcpu::Vmsa;

/// A command of `KVM_MEMORY_ENCRYPT_OP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EncryptOp {
    /// For an SNP guest.
    Snp(SnpCommand),
}

/// How far the launch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
enum Launch {
    /// Not begun: there is no context.
    #[default]
    None,
    /// Pages are added.
    Started,
    /// The guest may run.
    Finished,
}

/// A page of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FilePage {
    pfn: Pfn,
    /// The guest frame that it was made for.
    gfn: Gfn,
    /// Size of its folio.
    folio: RmpSize,
    /// It was assigned, or launched. It stays so until it is freed, whatever the attributes say.
    prepared: bool,
}

/// What an SNP guest has besides slots and tables.
#[derive(Debug)]
pub struct Snp {
    rmp: Rmp,
    asid: Asid,
    frames: Frames,
    policy: RmpFaultPolicy,
    folio: RmpSize,
    launch: Launch,
    files: BTreeMap<(GmemId, u64), FilePage>,
    /// The same by frame.
    owned: BTreeMap<Pfn, (GmemId, u64)>,
    /// Pages that could not be given back (`snp_leak_pages`).
    leaked: BTreeMap<Pfn, Gfn>,
    /// By vCPU id.
    vmsas: BTreeMap<u32, Vmsa>,
    vmpls: BTreeMap<u32, Vmpl>,
    ways: VmmWays,
    order: Order,
    /// How many of the VM's events the order has heard.
    heard: usize,
}

/// The host's frames: from 16 MiB on, 16 GiB.
const FRAMES: core::ops::Range<u64> = 0x1000..1 << 22;

impl Snp {
    /// That of a new VM, if it is of this type, on a host with NPT.
    pub(crate) fn of(vm_type: VmType, npt: bool) -> Option<Box<Self>> {
        if vm_type != VmType::Snp || !npt {
            return None;
        }
        Some(Box::new(Self {
            rmp: Rmp::new(FRAMES.end),
            asid: Asid::new(1)?,
            frames: Frames::new(Pfn::new(FRAMES.start), Pfn::new(FRAMES.end)),
            policy: RmpFaultPolicy::Upstream,
            folio: RmpSize::Size4K,
            launch: Launch::None,
            files: BTreeMap::new(),
            owned: BTreeMap::new(),
            leaked: BTreeMap::new(),
            vmsas: BTreeMap::new(),
            vmpls: BTreeMap::new(),
            ways: VmmWays::CAREFUL,
            order: Order::default(),
            heard: 0,
        }))
    }

    /// The host's reverse map.
    pub fn rmp(&self) -> &Rmp {
        &self.rmp
    }

    /// The guest's ASID.
    pub const fn asid(&self) -> Asid {
        self.asid
    }

    /// The host's frames.
    pub const fn frames(&self) -> &Frames {
        &self.frames
    }

    /// How many pages its files have.
    pub fn file_pages(&self) -> Pages {
        Pages::new(u64::try_from(self.files.len()).unwrap_or(u64::MAX))
    }
}
