//! Both formats, for a host that is known when the program runs.

use std::sync::Arc;

use slat_memslot::{Call, Errno, Gfn, GmemId, Memory, Pages, Profile, Region, VmType};
use slat_mmu::fault::PrefaultOutside;
use slat_mmu::host::{Host, SecondStage};
use slat_mmu::role::VcpuMode;
use slat_mmu::spte::{Ept, Npt, NxHugePages};
use slat_mmu::tdp::audit::{AuditContext, Violation};
use slat_mmu::tdp::{Passes, Totals};

use super::{Activity, EagerSplit, HostMemory, HvaRange, Paging, PreFaulted, TdpVm};
use crate::CallResult;
use crate::paged_vm::ControlBits;
use crate::traces::Predicted;

/// A [`TdpVm`] of either format.
///
/// ```
/// use slat_memslot::{Profile, VmType};
/// use slat_mmu::host::Host;
/// use slat_vmm::tdp_vm::AnyTdpVm;
/// let profile = Profile::named("linux-6.12").unwrap();
/// let vm = |host| AnyTdpVm::new(profile.clone(), VmType::Default, &host);
/// assert!(matches!(vm(Host::ept(46)), Some(AnyTdpVm::Ept(_))));
/// assert!(vm(Host::shadow(46)).is_none());
/// ```
#[derive(Debug)]
pub enum AnyTdpVm {
    /// On an Intel host.
    Ept(TdpVm<Ept>),
    /// On an AMD host.
    Npt(TdpVm<Npt>),
}

impl AnyTdpVm {
    /// As [`TdpVm::new`], in the host's format.
    pub fn new(profile: impl Into<Arc<Profile>>, vm_type: VmType, host: &Host) -> Option<Self> {
        match host.second_stage {
            SecondStage::Ept => TdpVm::new(profile, vm_type, host).map(Self::Ept),
            SecondStage::Npt => TdpVm::new(profile, vm_type, host).map(Self::Npt),
            SecondStage::Off => None,
        }
    }

    /// As [`TdpVm::with_passes`].
    #[must_use]
    pub fn with_passes(self, passes: Passes) -> Self {
        match self {
            Self::Ept(vm) => Self::Ept(vm.with_passes(passes)),
            Self::Npt(vm) => Self::Npt(vm.with_passes(passes)),
        }
    }

    /// As [`TdpVm::host`].
    pub fn host(&self) -> &HostMemory {
        match self {
            Self::Ept(vm) => vm.host(),
            Self::Npt(vm) => vm.host(),
        }
    }

    /// As [`TdpVm::memory_mut`].
    pub fn memory_mut(&mut self) -> &mut Memory {
        match self {
            Self::Ept(vm) => vm.memory_mut(),
            Self::Npt(vm) => vm.memory_mut(),
        }
    }

    /// As [`slat_mmu::tdp::Tables::totals`].
    pub fn totals(&self) -> Totals {
        match self {
            Self::Ept(vm) => vm.tables().totals(),
            Self::Npt(vm) => vm.tables().totals(),
        }
    }

    /// As [`slat_mmu::tdp::Tables::audit`].
    pub fn audit(&self, context: &AuditContext) -> Vec<Violation> {
        match self {
            Self::Ept(vm) => vm.tables().audit(context),
            Self::Npt(vm) => vm.tables().audit(context),
        }
    }

    /// As [`TdpVm::memory`].
    pub fn memory(&self) -> &Memory {
        match self {
            Self::Ept(vm) => vm.memory(),
            Self::Npt(vm) => vm.memory(),
        }
    }
}

macro_rules! either_format {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        impl AnyTdpVm {
            $(
                #[doc = concat!("As [`TdpVm::", stringify!($name), "`].")]
                pub fn $name(&mut self $(, $arg: $type)*) $(-> $result)? {
                    match self {
                        Self::Ept(vm) => vm.$name($($arg),*),
                        Self::Npt(vm) => vm.$name($($arg),*),
                    }
                }
            )*
        }
    };
}

either_format! {
    fn call(call: &Call) -> CallResult;
    fn take() -> Vec<Predicted>;
    fn host_mut() -> &mut HostMemory;
    fn create_vcpu(id: u32);
    fn set_max_phys_addr(id: u32, bits: u8);
    fn set_paging(id: u32, paging: Paging);
    fn set_registers(id: u32, bits: Option<ControlBits<'_>>);
    fn set_mode(id: u32, mode: VcpuMode);
    fn enable_cap(cap: u32, arg: u64);
    fn set_eager_split(eager_split: EagerSplit);
    fn set_nx_huge_pages(nx_huge_pages: NxHugePages);
    fn set_region(request: &Region);
    fn create_gmem(size: u64) -> Option<GmemId>;
    fn close_gmem(file: GmemId) -> Result<(), Errno>;
    fn punch_hole(file: GmemId, offset: u64, len: u64);
    fn set_attributes(gfn: Gfn, pages: Pages, attributes: u64);
    fn run_guest(vcpu: u32, activity: &Activity);
    fn set_prefault_outside(outside: PrefaultOutside);
    fn pre_fault(vcpu: u32, gfn: Gfn, pages: Pages, flags: u64) -> PreFaulted;
    fn get_dirty_log(slot: u32);
    fn clear_dirty_log(slot: u32, first: u64, pages: Pages);
    fn unmap_hva(range: HvaRange);
    fn age_hva(range: HvaRange) -> bool;
    fn close();
}
