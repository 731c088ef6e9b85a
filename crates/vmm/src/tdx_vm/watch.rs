//! What a VMM is seen to do wrong.

use std::collections::BTreeSet;

use slat_coco::tdx::mapgpa::{Conversion, MapGpa, MapGpaExit, MapGpaStatus};
use slat_coco::tdx::mirror::MemRegion;
use slat_memslot::{Attributes, Gfn, GfnRange, Pages, TdxFinding};

use super::TdxVm;

/// How many exits a conversion of memory that nobody has may take.
const MANY_EXITS: u64 = 512;
/// How often the same fault may come in a row.
const REPEATED: u32 = 3;

/// The memory fault that a vCPU exited with last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) gfn: Gfn,
    pub(super) private: bool,
    /// How often in a row.
    pub(super) times: u32,
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Watch {
    findings: BTreeSet<TdxFinding>,
    /// What interrupted regions have left.
    left: Vec<MemRegion>,
}

impl Watch {
    pub(super) fn findings(&self) -> Vec<TdxFinding> {
        self.findings.iter().copied().collect()
    }

    pub(super) fn found(&mut self, finding: TdxFinding) {
        self.findings.insert(finding);
    }

    /// A region was asked for, and this is left of it.
    pub(super) fn region(&mut self, asked: MemRegion, left: MemRegion, done: bool) {
        self.left.retain(|before| before.gpa != asked.gpa);
        if !done && left.pages > 0 && left != asked {
            self.left.push(left);
        }
    }

    /// No region can be added any more.
    pub(super) fn finalized(&mut self) {
        if !self.left.is_empty() {
            self.found(TdxFinding::RegionInterrupted);
        }
    }
}

impl TdxVm {
    /// A conversion was refused at once.
    pub(super) fn watch_refusal(&mut self, status: MapGpaStatus, gpa: u64) {
        match status {
            MapGpaStatus::SubfuncUnsupported => self.watch.found(TdxFinding::HypercallNotEnabled),
            MapGpaStatus::InvalidOperand if gpa >> self.maxphyaddr.min(63) != 0 => {
                self.watch.found(TdxFinding::SharedBitBeyondMaxphyaddr);
            }
            _ => {}
        }
    }

    /// A conversion begins.
    pub(super) fn watch_request(&mut self, gpa: u64, size: u64) {
        let range = GfnRange::new(slat_memslot::Gpa::new(gpa).gfn(), Pages::in_bytes(size));
        let held = |range| {
            let mut slots = self.memory.space(Default::default()).in_range(range);
            slots.next().is_some()
        };
        if MapGpa::exits(size) > MANY_EXITS && !range.is_some_and(held) {
            self.watch.found(TdxFinding::ApertureConverted);
        }
    }

    /// Userspace has answered one piece of a conversion. `private` frames of it were private when it was asked.
    pub(super) fn watch_answer(&mut self, exit: &MapGpaExit, ret: u64, private: u64) {
        const EAGAIN: u64 = 11;
        const EINVAL: u64 = 22;
        let Some(range) = GfnRange::new(exit.gpa.gfn(), exit.pages) else {
            return;
        };
        if !matches!(ret, 0 | EAGAIN | EINVAL) {
            self.watch.found(TdxFinding::WrongAnswer);
        }
        if ret != 0 {
            if self.private_in(range) != private {
                self.watch.found(TdxFinding::ErrorWithEffect);
            }
            return;
        }
        let wanted = match exit.to {
            Conversion::ToPrivate => Attributes::PRIVATE,
            Conversion::ToShared => Attributes::empty(),
        };
        if self.memory.attributes().has(range, wanted) {
            self.watch_converted(range, exit.to == Conversion::ToPrivate);
        } else {
            self.watch.found(TdxFinding::NotConverted);
        }
    }

    /// How many frames of a range are private.
    pub(super) fn private_in(&self, range: GfnRange) -> u64 {
        self.memory.attributes().private_pages(range).raw()
    }

    /// A range has been converted: what was behind its other side should be gone.
    fn watch_converted(&mut self, range: GfnRange, private: bool) {
        if !private {
            let has = |td: &slat_coco::tdx::mirror::TdxMmu| td.has_private_page_in(range);
            if self.td.as_ref().is_some_and(has) {
                self.watch.found(TdxFinding::PrivatePageKept);
            }
            return;
        }
        if self.host.dma_in(range) {
            self.watch.found(TdxFinding::DmaKept);
        }
        if self.host.backed_in(range) {
            self.watch.found(TdxFinding::SharedPageKept);
        }
    }

    /// A vCPU exits with a memory fault.
    pub(super) fn watch_fault(&mut self, vcpu: u32, gfn: Gfn, private: bool) {
        let backed = self.memory.is_private(gfn) == private;
        if private && backed {
            self.watch.found(TdxFinding::NoPrivateBacking);
        }
        let Some(vcpu) = self.vcpu_mut(vcpu) else {
            return;
        };
        let before = vcpu
            .fault
            .filter(|before| (before.gfn, before.private) == (gfn, private));
        let times = before.map_or(1, |before| before.times + 1);
        vcpu.fault = Some(Fault {
            gfn,
            private,
            times,
        });
        if times >= REPEATED {
            self.watch.found(TdxFinding::FaultRepeated);
        }
    }

    /// The guest got to a frame, after a memory fault perhaps: then userspace has converted it.
    pub(super) fn watch_reached(&mut self, vcpu: u32, gfn: Gfn) {
        let Some(vcpu) = self.vcpu_mut(vcpu) else {
            return;
        };
        let fault = vcpu.fault.take().filter(|fault| fault.gfn == gfn);
        let page = GfnRange::new(gfn, Pages::new(1));
        if let (Some(fault), Some(page)) = (fault, page) {
            // What the guest has reached just now has its own side backed, which is not what is asked for here.
            self.watch_converted(page, fault.private);
        }
    }
}
