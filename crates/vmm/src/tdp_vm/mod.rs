//! A whole VM with two-dimensional paging: what userspace sets up, the page tables that follow from it, vCPUs, and the
//! host's memory behind it.
//!
//! [`TdpVm`] does what a VM's userspace, its guest, and the host's memory management do to KVM, and says what KVM would
//! trace and answer, in order, as [`Predicted`] events: [`TdpVm::take`]. It follows kernel 6.12.117.
//!
//! | operation | KVM counterpart |
//! |---|---|
//! | [`TdpVm::set_region`] | `kvm_arch_flush_shadow_memslot`, `kvm_mmu_slot_apply_flags` |
//! | [`TdpVm::run_guest`] | `vcpu_enter_guest`, `kvm_mmu_page_fault` |
//! | [`TdpVm::pre_fault`] | `kvm_vcpu_pre_fault_memory` |
//! | [`TdpVm::get_dirty_log`], [`TdpVm::clear_dirty_log`] | `kvm_arch_mmu_enable_log_dirty_pt_masked` |
//! | [`TdpVm::unmap_hva`], [`TdpVm::age_hva`] | the MMU notifier |
//! | [`TdpVm::close`] | `kvm_gmem_release`, `kvm_arch_flush_shadow_all` |
//!
//! ```
//! use slat_memslot::{Gpa, Profile, Region, SlotKey, VmType};
//! use slat_mmu::{host::Host, spte::Npt};
//! use slat_vmm::tdp_vm::{Activity, TdpVm};
//!
//! let profile = Profile::named("debian-6.12.117").unwrap();
//! let mut vm = TdpVm::<Npt>::new(profile, VmType::Default, &Host::npt(40)).unwrap();
//! vm.create_vcpu(0);
//! vm.set_region(&Region::new(SlotKey::normal(0), 0, 0x10000, 0x4000_0000));
//! let _ = vm.take();
//! vm.run_guest(0, &Activity::halt(Gpa::new(0x1000)));
//! let told: Vec<String> = vm.take().iter().map(ToString::to_string).collect();
//! assert_eq!(told.first().unwrap(), "  kvm_mmu_get_page: gfn 0 l4 8-byte q0 direct wux nxe ad cr0_wp new");
//! assert_eq!(told.last().unwrap(), "NOTE exit HLT");
//! ```

mod activity;
mod any;
mod call;
mod guest;
mod host;
mod log;
mod nested;
mod notify;
mod pre_fault;
mod private;
mod region;
mod sink;
mod vcpu;

use std::collections::BTreeMap;
use std::sync::Arc;

use slat_memslot::{AsId, Call, Errno, Gpa, Memory, Profile, Slot, VmType};
use slat_mmu::fault::{Invalidation, PrefaultOutside, Settings};
use slat_mmu::host::{Host, SecondStage};
use slat_mmu::role::TdpHost;
use slat_mmu::spte::{Format, NxHugePages};
use slat_mmu::table::Reader;
use slat_mmu::tdp::dump::{Detail, Dump};
use slat_mmu::tdp::{ExistingLeaf, Limits, Passes, Tables, Uninterrupted, ZapAll};

use crate::paged_vm::fault;
use crate::snp_vm::Snp;
use crate::traces::Predicted;
pub use activity::{Activity, Ending, Paging, SecondStageOfL2, Step};
pub use any::AnyTdpVm;
pub use host::{HostMemory, HvaRange, Supplied};
pub use pre_fault::PreFaulted;
pub(crate) use sink::Sink;
pub(crate) use vcpu::Vcpu;

/// Whether huge pages are split when a slot's log is switched on, or cleared (`kvm.eager_page_split`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum EagerSplit {
    /// They are, as the parameter has it unless it is changed.
    #[default]
    On,
    /// A write splits them.
    Off,
}

/// A VM with two-dimensional paging.
#[derive(Debug)]
pub struct TdpVm<F: Format> {
    pub(crate) memory: Memory,
    pub(crate) tables: Tables<F>,
    tdp: TdpHost,
    /// One thread does everything.
    pub(crate) reader: Reader,
    pub(crate) vcpus: BTreeMap<u32, Vcpu>,
    pub(crate) host: HostMemory,
    invalidation: Invalidation,
    nx_huge_pages: NxHugePages,
    eager_split: EagerSplit,
    passes: Passes,
    /// What L2s run on.
    nested: nested::Nested<F>,
    /// What the guest's writes leave in memory, where it matters.
    written: Option<(u8, u64)>,
    /// The instruction that is being executed, in the guest's physical addresses.
    instruction: Option<Gpa>,
    prefault_outside: PrefaultOutside,
    pub(crate) out: Sink,
    /// What an SNP guest has beside its tables.
    pub(crate) snp: Option<Box<Snp>>,
}

/// Tables of one VM: enough for 512 GiB of small pages.
const LIMITS: Limits = Limits {
    tables: 1 << 18,
    readers: 2,
};

impl<F: Format> TdpVm<F> {
    /// A VM of this type, if the profile has it, on a host; `None` if the host has no second stage. The rules for accessed
    /// and dirty bits are those of the profile's kernel.
    ///
    /// # Panics
    /// Not in practice: new tables have places for readers.
    pub fn new(profile: impl Into<Arc<Profile>>, vm_type: VmType, host: &Host) -> Option<Self> {
        let profile = profile.into();
        let existing = match profile.pre_fault_remakes_leaf.get() {
            true => ExistingLeaf::MadeAnew,
            false => ExistingLeaf::Kept,
        };
        let host = &host.of_kernel(&profile);
        let tables = Tables::with_limits(host, LIMITS).with_existing_leaf(existing);
        Some(Self {
            memory: Memory::new(profile, vm_type),
            reader: tables.reader().expect("nobody has taken a place"),
            tables,
            tdp: host.tdp()?,
            vcpus: BTreeMap::new(),
            host: HostMemory::default(),
            invalidation: Invalidation::default(),
            nx_huge_pages: NxHugePages::Off,
            eager_split: EagerSplit::On,
            passes: Passes::default(),
            nested: nested::Nested::new(host),
            written: None,
            instruction: None,
            prefault_outside: PrefaultOutside::default(),
            out: Sink::default(),
            snp: Snp::of(vm_type, host.second_stage == SecondStage::Npt),
        })
    }

    /// With zaps of whole roots in these passes; a kernel with `CONFIG_KVM_PROVE_MMU` zaps the largest first.
    #[must_use]
    pub fn with_passes(self, passes: Passes) -> Self {
        Self { passes, ..self }
    }

    /// What userspace has set up.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The same, to be changed by what no call can say, such as who calls ([`slat_memslot::Gate`]). The page tables do
    /// not follow changes of slots that are made here.
    pub fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// The page tables.
    pub fn tables(&self) -> &Tables<F> {
        &self.tables
    }

    /// What is in the page tables, in text form or to be loaded again ([`Tables::from_dump`]).
    pub fn dump(&mut self, detail: Detail) -> Dump {
        self.tables.dump(detail)
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
        self.forget_heard();
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
        let _ = self.call(&Call::EnableCap {
            cap,
            flags: 0,
            args: [arg, 0, 0, 0],
        });
    }

    /// `kvm.eager_page_split` changes.
    pub fn set_eager_split(&mut self, eager_split: EagerSplit) {
        self.eager_split = eager_split;
    }

    /// `kvm.nx_huge_pages` changes, which zaps everything (`mmu.c:set_nx_huge_pages`).
    pub fn set_nx_huge_pages(&mut self, nx_huge_pages: NxHugePages) {
        if core::mem::replace(&mut self.nx_huge_pages, nx_huge_pages) != nx_huge_pages {
            self.zap_all_fast();
        }
    }

    /// KVM's thread that lets pages become huge again does one round: the `ratio`th part of the tables that stand in for huge
    /// pages goes, and of the pages that L2s run on (`mmu.c:kvm_recover_nx_huge_pages`). Gives how many.
    pub fn recover_nx(&mut self, ratio: u64) -> u64 {
        let memory = &self.memory;
        let is_logged = |as_id: AsId, gfn| {
            let slot = memory.space(as_id).by_gfn(gfn);
            slot.is_some_and(Slot::is_logged)
        };
        let mut locked = self.tables.exclusive(&mut self.out);
        let zapped = locked.recover_nx(ratio, |as_id, frames| is_logged(as_id, frames.start()));
        let mut nested = self.nested.mmu.lock(&mut self.out);
        zapped + nested.recover_nx(ratio, is_logged)
    }

    fn settings(&self) -> Settings {
        fault::settings(&self.memory, self.tables.codec().host(), self.nx_huge_pages)
    }

    /// The last descriptor of the VM is closed: its guest_memfds go first, then everything that is mapped.
    pub fn close(&mut self) {
        self.close_gmem_files();
        self.nested.mmu.lock(&mut self.out).zap_all();
        let locked = &mut self.tables.exclusive(&mut self.out);
        let _ = ZapAll::new(self.passes).run(locked, &mut Uninterrupted);
        for (id, vcpu) in &mut self.vcpus {
            vcpu.unload(&self.tables, &mut self.reader);
            self.nested.unload(*id, &mut self.out);
        }
        if let Some(snp) = &mut self.snp {
            snp.free_vmsas();
        }
    }
}
