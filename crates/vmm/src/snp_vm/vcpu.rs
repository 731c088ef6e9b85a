//! vCPUs run on VMSAs: those that were launched, and those that the guest makes itself.

use slat_coco::rmp::{GuestCpu, LaunchPage, RmpSize, Vmpl};
use slat_coco::snp::{ApCreation, ApRequest, Value};
use slat_memslot::{AsId, Gfn, Gpa};
use slat_mmu::fault::FilePage as Got;
use slat_mmu::spte::{Format, Pfn};

use super::launch::PageRefused;
use super::{Snp, SnpAnswer, SnpStop};
use crate::tdp_vm::TdpVm;

/// Where KVM says that the VMSAs of its own vCPUs are (`INITIAL_VMSA_GPA`): all of them at once, at no memory.
const INITIAL_VMSA: Gfn = Gfn::new(0xf_ffff_ffff);
/// SEV_FEATURES of the VM: SNP is on, and no injection mode.
const FEATURES: u64 = 1;

/// The page that a vCPU runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vmsa {
    /// One of KVM's own, launched.
    Own(Pfn),
    /// The guest's, to be found when the vCPU is entered next.
    Pending(Gpa),
    /// The guest's.
    Guests(Pfn),
    /// The guest's, as soon as the vCPU gets an INIT; until then it runs on what it has.
    OnInit {
        /// The new one.
        gpa: Gpa,
        /// The one it has.
        now: Option<Pfn>,
    },
    /// The guest has stopped the vCPU.
    Halted,
}

impl Vmsa {
    const fn page(self) -> Option<Pfn> {
        match self {
            Self::Own(pfn) | Self::Guests(pfn) => Some(pfn),
            Self::OnInit { now, .. } => now,
            Self::Pending(_) | Self::Halted => None,
        }
    }
}

impl Snp {
    /// The registers of a vCPU go into a page of KVM's own and are measured.
    pub(super) fn launch_vmsa(&mut self, id: u32) -> Result<(), PageRefused> {
        let pfn = self.frames.allocate(&self.rmp, RmpSize::Size4K);
        let pfn = pfn.ok_or(PageRefused::NoPage(INITIAL_VMSA))?;
        self.launch_frame((pfn, INITIAL_VMSA), LaunchPage::Vmsa, Value::Zero)?;
        self.vmsas.insert(id, Vmsa::Own(pfn));
        Ok(())
    }

    /// Pages of KVM's own that were launched as VMSAs.
    pub(super) fn own_vmsas(&self) -> Vec<Pfn> {
        let launched = |(pfn, entry): (Pfn, slat_coco::rmp::RmpEntry)| {
            (entry.asid == self.asid && entry.gfn == INITIAL_VMSA).then_some(pfn)
        };
        self.rmp.assigned().filter_map(launched).collect()
    }

    /// The privilege level that a vCPU runs at.
    pub(super) fn cpu(&self, id: u32) -> GuestCpu {
        GuestCpu {
            asid: self.asid,
            vmpl: self.vmpls.get(&id).copied().unwrap_or_default(),
        }
    }

    pub(super) fn set_vmpl(&mut self, id: u32, vmpl: Vmpl) {
        self.vmpls.insert(id, vmpl);
    }

    /// KVM's own pages go when the VM does.
    pub(crate) fn free_vmsas(&mut self) {
        for pfn in self.own_vmsas() {
            self.free_own(pfn);
        }
        self.vmsas.clear();
    }
}

impl<F: Format> TdpVm<F> {
    /// VMRUN: the vCPU's page is a VMSA of this guest.
    pub(super) fn enter_snp(&mut self, id: u32) -> Result<(), SnpStop> {
        self.reload_vmsa(id);
        let snp = self.snp.as_mut().ok_or(SnpStop::FailEntry)?;
        let vmsa = snp.vmsas.get(&id).copied();
        if vmsa == Some(Vmsa::Halted) {
            return Err(SnpStop::Halted);
        }
        let pfn = vmsa.and_then(Vmsa::page).ok_or(SnpStop::FailEntry)?;
        let runs = snp
            .rmp
            .vmrun(snp.asid, pfn)
            .and_then(|()| snp.rmp.vmexit(pfn));
        runs.map_err(|_| SnpStop::FailEntry)
    }

    /// A page that the guest has named is taken from its slot's file (`sev_snp_reload_vmsa`).
    fn reload_vmsa(&mut self, id: u32) {
        let Some(snp) = &mut self.snp else { return };
        let Some(Vmsa::Pending(gpa)) = snp.vmsas.get(&id).copied() else {
            return;
        };
        let slot = self.memory.space(AsId::NORMAL).by_gfn(gpa.gfn());
        let page = slot.map(|slot| snp.file_page(slot, gpa.gfn()));
        match page {
            Some(Got::Page { pfn, .. }) => drop(snp.vmsas.insert(id, Vmsa::Guests(pfn))),
            Some(Got::Bad) | None => drop(snp.vmsas.remove(&id)),
        }
    }

    /// VMGEXIT `0x80000013` (`sev_snp_ap_creation`).
    pub(super) fn create_ap(&mut self, request: &ApCreation) -> SnpAnswer {
        let bits = u32::from(self.tables.codec().host().maxphyaddr);
        let checked = request.check(|id| self.vcpus.contains_key(&id), FEATURES, bits);
        let asked = match checked {
            Ok(asked) => asked,
            Err(error) => return SnpAnswer::ApRefused(error.code()),
        };
        let [.., a, b, c, d] = request.exit_info_1.to_le_bytes();
        let target = u32::from_le_bytes([a, b, c, d]);
        if let Some(snp) = &mut self.snp {
            let now = snp.vmsas.get(&target).copied().and_then(Vmsa::page);
            let vmsa = match asked {
                ApRequest::CreateOnInit(gpa) => Vmsa::OnInit { gpa, now },
                ApRequest::Create(gpa) => Vmsa::Pending(gpa),
                ApRequest::Destroy => Vmsa::Halted,
            };
            snp.vmsas.insert(target, vmsa);
        }
        SnpAnswer::Done
    }

    /// The vCPU gets an INIT.
    pub(super) fn init_vcpu(&mut self, id: u32) -> SnpAnswer {
        if let Some(snp) = &mut self.snp {
            if let Some(Vmsa::OnInit { gpa, .. }) = snp.vmsas.get(&id).copied() {
                snp.vmsas.insert(id, Vmsa::Pending(gpa));
            }
        }
        SnpAnswer::Done
    }
}
