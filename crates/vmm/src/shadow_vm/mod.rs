//! A whole VM on shadow pages: guests of hosts without two-dimensional paging, and ordinary guests with `kvm.tdp_mmu=0`.
//!
//! [`ShadowVm`] is to [`slat_mmu::shadow`] what [`TdpVm`](crate::tdp_vm::TdpVm) is to the TDP MMU: it does what a VM's
//! userspace, its guest, and the host's memory management do to KVM, and says what KVM would trace and answer, in order.
//! Callers that do not care which of the two they have use [`PagedVm`](crate::paged_vm::PagedVm). It follows kernel 6.12.117.
//!
//! ```
//! use slat_memslot::{Gpa, Profile, Region, SlotKey, VmType};
//! use slat_mmu::{host::Host, spte::Npt};
//! use slat_vmm::{shadow_vm::ShadowVm, tdp_vm::Activity};
//!
//! let profile = Profile::named("debian-6.12.117").unwrap();
//! let mut vm = ShadowVm::<Npt>::new(profile, VmType::Default, &Host::npt(40));
//! vm.create_vcpu(0);
//! vm.set_region(&Region::new(SlotKey::normal(0), 0, 0x10000, 0x4000_0000));
//! let _ = vm.take();
//! vm.run_guest(0, &Activity::halt(Gpa::new(0x1000)));
//! let told: Vec<String> = vm.take().iter().map(ToString::to_string).collect();
//! assert_eq!(told[0], "  kvm_mmu_get_page: sp gen 0 gfn 0 l4 8-byte q0 direct wux nxe ad root 0 sync new");
//! // Neighbours are mapped along.
//! assert_eq!(told.iter().filter(|line| line.contains("kvm_mmu_set_spte")).count(), 8);
//! ```

mod execute;
mod guest;
mod log;
mod nested;
mod notify;
mod paged;
mod pre_fault;
mod ram;
mod region;
mod vcpu;

use std::collections::BTreeMap;
use std::sync::Arc;

use slat_memslot::{AsId, Errno, Gfn, GmemId, Gpa, Memory, Pages, Profile, Slot, Vendor, VmType};
use slat_mmu::fault::{Invalidation, Settings};
use slat_mmu::host::Host;
use slat_mmu::role::TdpHost;
use slat_mmu::roots::TdpMmu;
use slat_mmu::shadow::{ShadowMmu, ShadowRules};
use slat_mmu::spte::{Format, NxHugePages};
use slat_mmu::walk::GuestVendor;

use crate::paged_vm::fault;
use crate::tdp_vm::Sink;
use crate::tdp_vm::{EagerSplit, HostMemory};
use crate::traces::Predicted;
pub(crate) use execute::place_of;
pub(crate) use nested::{Code, EmulatedAccess, L2, L2Access};
pub(crate) use ram::Ram;
use vcpu::Vcpu;

/// A VM on shadow pages.
#[derive(Debug)]
pub struct ShadowVm<F: Format> {
    memory: Memory,
    mmu: ShadowMmu<F>,
    /// With two-dimensional paging: what its roots depend on.
    tdp: Option<TdpHost>,
    vcpus: BTreeMap<u32, Vcpu>,
    host: HostMemory,
    ram: Ram,
    invalidation: Invalidation,
    nx_huge_pages: NxHugePages,
    guest_vendor: GuestVendor,
    /// What the running guest's writes leave in memory.
    written: Option<(u8, u64)>,
    /// Where the instruction is that runs.
    instruction: Option<Gpa>,
    out: Sink,
}

impl<F: Format> ShadowVm<F> {
    /// A VM of this type on a host. With a second stage it is one with `kvm.tdp_mmu=0`.
    pub fn new(profile: impl Into<Arc<Profile>>, vm_type: VmType, host: &Host) -> Self {
        let profile = profile.into();
        let host = &host.of_kernel(&profile);
        let guest_vendor = match profile.vendor.get() {
            Vendor::Amd => GuestVendor::Amd,
            Vendor::Intel | Vendor::Paravirtual => GuestVendor::Intel,
        };
        Self {
            memory: Memory::new(profile, vm_type),
            mmu: ShadowMmu::new(host, TdpMmu::Off),
            tdp: host.tdp(),
            vcpus: BTreeMap::new(),
            host: HostMemory::default(),
            ram: Ram::default(),
            invalidation: Invalidation::default(),
            nx_huge_pages: NxHugePages::Off,
            guest_vendor,
            written: None,
            instruction: None,
            out: Sink::default(),
        }
    }

    /// With `kvm.nx_huge_pages` as it is when the VM is made.
    #[must_use]
    pub fn with_nx_huge_pages(self, nx_huge_pages: NxHugePages) -> Self {
        Self {
            nx_huge_pages,
            ..self
        }
    }

    /// With the CPUID of this vendor for its vCPUs. Without it they have that of the processors that the backend is for; a
    /// paravirtual one is for any, and says nothing.
    #[must_use]
    pub fn with_guest_vendor(self, guest_vendor: GuestVendor) -> Self {
        Self {
            guest_vendor,
            ..self
        }
    }

    /// With the shadow MMU of another kernel.
    #[must_use]
    pub fn with_rules(self, rules: ShadowRules) -> Self {
        let mmu = self.mmu.with_rules(rules);
        Self { mmu, ..self }
    }

    /// What userspace has set up.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The shadow pages.
    pub fn mmu(&self) -> &ShadowMmu<F> {
        &self.mmu
    }

    /// The host's memory.
    pub fn host(&self) -> &HostMemory {
        &self.host
    }

    /// The same, to be changed.
    pub fn host_mut(&mut self) -> &mut HostMemory {
        &mut self.host
    }

    /// What happened since this was last asked.
    pub fn take(&mut self) -> Vec<Predicted> {
        core::mem::take(&mut self.out.events)
    }

    /// Adds something that happened outside the VM, in its place.
    pub fn tell(&mut self, what: Predicted) {
        self.out.events.push(what);
    }

    /// Adds a result to what happened.
    fn answer(&mut self, result: Result<i64, Errno>) {
        self.out.events.push(Predicted::Returned(result.map(Some)));
    }

    /// `KVM_ENABLE_CAP` on the VM.
    pub fn enable_cap(&mut self, cap: u32, arg: u64) {
        let result = self.memory.enable_cap(cap, 0, [arg, 0, 0, 0]);
        self.answer(result.map(|()| 0).map_err(|refusal| refusal.errno()));
    }

    /// `kvm.eager_page_split` changes. Only the TDP MMU splits ahead.
    pub fn set_eager_split(&mut self, _eager_split: EagerSplit) {}

    /// `kvm.nx_huge_pages` changes, which zaps everything (`mmu.c:set_nx_huge_pages`).
    pub fn set_nx_huge_pages(&mut self, nx_huge_pages: NxHugePages) {
        if core::mem::replace(&mut self.nx_huge_pages, nx_huge_pages) != nx_huge_pages {
            self.zap_all_fast();
        }
    }

    /// KVM's thread that lets pages become huge again does one round: the `ratio`th part of the pages that stand in for huge ones
    /// goes (`mmu.c:kvm_recover_nx_huge_pages`). Gives how many.
    pub fn recover_nx(&mut self, ratio: u64) -> u64 {
        let memory = &self.memory;
        let is_logged = |as_id: AsId, gfn| {
            let slot = memory.space(as_id).by_gfn(gfn);
            slot.is_some_and(Slot::is_logged)
        };
        let zapped = self.mmu.lock(&mut self.out).recover_nx(ratio, is_logged);
        self.spread_requests();
        zapped
    }

    fn settings(&self) -> Settings {
        fault::settings(&self.memory, self.mmu.codec().host(), self.nx_huge_pages)
    }

    /// `KVM_CREATE_GUEST_MEMFD`, for VMs that have private memory: none with shadow pages.
    pub fn create_gmem(&mut self, size: u64) -> Option<GmemId> {
        let made = self.memory.create_gmem(size, 0).map_err(|r| r.errno());
        self.tell(Predicted::Returned(made.map(|_| None)));
        made.ok()
    }

    /// The descriptor of a guest_memfd is closed.
    ///
    /// # Errors
    /// It is not open.
    pub fn close_gmem(&mut self, file: GmemId) -> Result<(), Errno> {
        let closed = self.memory.file_call(file, slat_memslot::FileCall::Close);
        closed.map(|_| ()).map_err(|refusal| refusal.errno())
    }

    /// A hole is punched into a guest_memfd, of which shadow pages map nothing.
    pub fn punch_hole(&mut self, file: GmemId, offset: u64, len: u64) {
        const PUNCH_HOLE_KEEP_SIZE: u32 = 3;
        let call = slat_memslot::FileCall::Fallocate {
            mode: PUNCH_HOLE_KEEP_SIZE,
            offset,
            len,
        };
        let done = self.memory.file_call(file, call);
        self.answer(done.map(|_| 0).map_err(|refusal| refusal.errno()));
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`, which VMs with shadow pages do not have.
    pub fn set_attributes(&mut self, gfn: Gfn, pages: Pages, attributes: u64) {
        let (gpa, size) = (gfn.raw() << 12, pages.raw() << 12);
        let changed = self.memory.set_attributes(gpa, size, attributes, 0);
        self.answer(changed.map(|_| 0).map_err(|refusal| refusal.errno()));
    }

    /// The last descriptor of the VM is closed: all pages go, then vCPUs leave their roots.
    pub fn close(&mut self) {
        self.mmu.lock(&mut self.out).zap_all();
        for vcpu in self.vcpus.values_mut() {
            vcpu.unload(&mut self.mmu, &mut self.out);
        }
    }
}
