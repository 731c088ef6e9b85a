//! A guest on a host: faults under each policy, conversions, races, what authors get wrong, and the audit.

#[cfg(not(shuttle))]
mod audit;
#[cfg(not(shuttle))]
mod fault_policies;
#[cfg(not(shuttle))]
mod gmem;
#[cfg(not(shuttle))]
mod launch;
#[cfg(not(shuttle))]
mod patterns;
#[cfg(not(shuttle))]
mod races;
#[cfg(not(shuttle))]
mod random;
#[cfg(not(shuttle))]
mod reference;
#[cfg(shuttle)]
mod schedules;
#[cfg(not(shuttle))]
mod vectors;

use std::sync::Arc;

use slat_memslot::{Gfn, GfnRange, Pages};
use slat_mmu::spte::Pfn;

use super::*;
use crate::rmp::{Asid, Rmp, RmpSize, Visibility};

const PRIVATE: Visibility = Visibility::Private;
const SHARED: Visibility = Visibility::Shared;

fn asid() -> Asid {
    Asid::new(5).unwrap()
}

/// A VM of 2048 frames on a host of 16384, the guest's from 4096 on.
fn vm_with(policy: RmpFaultPolicy, folio: RmpSize) -> SnpVm {
    let settings = SnpSettings {
        policy,
        folio,
        ..SnpSettings::new(asid(), 2048)
    };
    SnpVm::new(settings, Arc::new(Rmp::new(0x4000)), Pfn::new(0x1000)).unwrap()
}

fn range(start: u64, pages: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), Pages::new(pages)).unwrap()
}

fn gfn(raw: u64) -> Gfn {
    Gfn::new(raw)
}

#[cfg(not(shuttle))]
mod with_vcpu {
    use super::*;
    use crate::psc::Direction;

    /// A VM with a vCPU, to be told what to do in few words.
    pub(super) struct One {
        pub(super) vm: SnpVm,
        pub(super) vcpu: SnpVcpu,
    }

    impl One {
        pub(super) fn new(policy: RmpFaultPolicy, folio: RmpSize) -> Self {
            let vm = vm_with(policy, folio);
            let vcpu = vm.create_vcpu().unwrap();
            Self { vm, vcpu }
        }

        pub(super) fn upstream() -> Self {
            Self::new(RmpFaultPolicy::Upstream, RmpSize::Size4K)
        }

        pub(super) fn huge() -> Self {
            Self::new(RmpFaultPolicy::Upstream, RmpSize::Size2M)
        }

        pub(super) fn run(&mut self, op: &GuestOp, vmm: Vmm) -> GuestReply {
            self.vm.run(&mut self.vcpu, op, vmm)
        }

        pub(super) fn careful(&mut self, op: &GuestOp) -> GuestReply {
            self.run(op, Vmm::CAREFUL)
        }

        pub(super) fn write(&mut self, at: u64, visibility: Visibility, tag: u64) -> GuestReply {
            self.careful(&GuestOp::Write(gfn(at), visibility, Value::Tag(tag)))
        }

        pub(super) fn read(&mut self, at: u64, visibility: Visibility) -> GuestReply {
            self.careful(&GuestOp::Read(gfn(at), visibility))
        }

        pub(super) fn validate(&mut self, at: u64) -> GuestReply {
            self.careful(&GuestOp::Validate(gfn(at), RmpSize::Size4K))
        }

        pub(super) fn rescind(&mut self, at: u64) -> GuestReply {
            self.careful(&GuestOp::Rescind(gfn(at), RmpSize::Size4K))
        }

        /// Private, validated, and written.
        pub(super) fn own(&mut self, at: u64, tag: u64) {
            self.vm.set_attributes(range(at, 1), Direction::ToPrivate);
            let _ = self.validate(at);
            assert_eq!(self.write(at, PRIVATE, tag), GuestReply::Done);
        }

        pub(super) fn pfn(&self, at: u64) -> Pfn {
            crate::sync::lock(&self.vm.file).pfn(gfn(at)).unwrap()
        }

        pub(super) fn assert_clean(&self) {
            assert_eq!(self.vm.audit(), []);
        }
    }

    pub(super) fn tag(tag: u64) -> GuestReply {
        GuestReply::Read(Found::Value(Value::Tag(tag)))
    }

    pub(super) const NOT_VALIDATED: GuestReply = GuestReply::Exit(SnpExit::Vc(0x404));
}
#[cfg(not(shuttle))]
use with_vcpu::*;
