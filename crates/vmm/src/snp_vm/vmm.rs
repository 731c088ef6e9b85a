//! What the VMM and its devices do, and what the host can see.

use slat_coco::rmp::{RmpSize, Visibility};
use slat_coco::snp::{Hole, Key, RmpFaultPolicy, Value};
use slat_memslot::{
    AsId, Attributes, Call, Errno, FileCall, Gfn, GfnRange, GmemId, PAGE_SHIFT, Slot,
};
use slat_mmu::spte::{Format, Pfn};

use super::{SnpAnswer, SnpOp};
use crate::CallError;
use crate::tdp_vm::TdpVm;

const PUNCH_HOLE: u32 = 1 | 2;

impl<F: Format> TdpVm<F> {
    /// Does something with an SNP guest.
    ///
    /// # Errors
    /// The VM is of another type, or no such vCPU is there (`EBADF`).
    pub fn snp_op(&mut self, op: &SnpOp) -> Result<SnpAnswer, CallError> {
        if self.snp.is_none() {
            return Err(CallError::NotTried {
                why: "the VM is no SNP guest on a model with an NPT host",
            });
        }
        Ok(match op {
            SnpOp::Guest(vcpu, act) => {
                let id = self.id_of(*vcpu).ok_or(CallError::errno(Errno::EBADF))?;
                self.snp_guest(id, act)
            }
            SnpOp::Convert(range, to, hole) => match self.convert(*range, *to, *hole) {
                true => SnpAnswer::Done,
                false => return Err(CallError::errno(Errno::EINVAL)),
            },
            SnpOp::Discard(range) => {
                self.discard_shared(*range);
                SnpAnswer::Done
            }
            SnpOp::HostRead(gfn) => self.host_read(*gfn),
            SnpOp::HostWrite(gfn, tag) => self.host_write(*gfn, *tag),
            SnpOp::HostPeek(gfn) => self.host_peek(*gfn),
            SnpOp::Entry(gfn) => self.private_entry(*gfn),
            SnpOp::Audit => {
                let mut codes: Vec<_> = self.audit_snp().iter().map(|one| one.code()).collect();
                codes.sort_unstable();
                codes.dedup();
                SnpAnswer::Audit(codes)
            }
            SnpOp::Vmm(_) | SnpOp::Host { .. } => self.set_ways(op)?,
        })
    }

    fn set_ways(&mut self, op: &SnpOp) -> Result<SnpAnswer, CallError> {
        let Some(snp) = &mut self.snp else {
            return Ok(SnpAnswer::Done);
        };
        match *op {
            SnpOp::Vmm(ways) => snp.ways = ways,
            SnpOp::Host { policy, folio } => {
                if policy == RmpFaultPolicy::Rfc2021 {
                    return Err(CallError::NotTried {
                        why: "the proposal of 2021 knows no files: slat_coco::snp::SnpVm shows it",
                    });
                }
                (snp.policy, snp.folio) = (policy, folio);
            }
            _ => {}
        }
        Ok(SnpAnswer::Done)
    }

    /// A conversion: attributes first, then what is left behind. Whether KVM took it.
    pub(super) fn convert(&mut self, range: GfnRange, to: Visibility, hole: Hole) -> bool {
        let attributes = match to {
            Visibility::Private => Attributes::PRIVATE.bits(),
            Visibility::Shared => 0,
        };
        let set = self.call(&Call::SetAttributes {
            address: range.start().gpa().raw(),
            size: range.pages().bytes(),
            attributes,
            flags: 0,
        });
        if set.is_err() {
            return false;
        }
        match (hole, to) {
            (Hole::Kept, _) => {}
            (Hole::Punched, Visibility::Shared) => self.punch(range),
            (Hole::Punched, Visibility::Private) => self.discard_shared(range),
        }
        true
    }

    fn slots_behind(&self, range: GfnRange) -> Vec<(&Slot, GfnRange)> {
        let slots = self.memory.space(AsId::NORMAL).in_range(range);
        let parts = slots.filter_map(|slot| Some((slot, slot.range().intersection(range)?)));
        parts.collect()
    }

    fn punch(&mut self, range: GfnRange) {
        let holes: Vec<(GmemId, FileCall)> = self
            .slots_behind(range)
            .into_iter()
            .filter_map(|(slot, part)| {
                let (file, page) = super::backing::place(slot, part.start())?;
                let call = FileCall::Fallocate {
                    mode: PUNCH_HOLE,
                    offset: page << PAGE_SHIFT,
                    len: part.pages().bytes(),
                };
                Some((file, call))
            })
            .collect();
        for (file, call) in holes {
            // What cannot be punched stays, as a VMM that only logs the error leaves it.
            let _left_behind = self.call(&Call::File(file, call));
        }
    }

    /// `MADV_DONTNEED` on the host memory of frames, with the notifier it calls.
    fn discard_shared(&mut self, range: GfnRange) {
        let parts: Vec<(u64, GfnRange)> = self
            .slots_behind(range)
            .into_iter()
            .filter_map(|(slot, part)| Some((slot.hva_of(part.start())?.raw(), part)))
            .collect();
        for (hva, part) in parts {
            let gone = hva..hva + part.pages().bytes();
            self.unmap_hva(gone.clone());
            let pages = (gone.start >> PAGE_SHIFT..gone.end >> PAGE_SHIFT).filter_map(|page| {
                self.host
                    .page_at(slat_memslot::Hva::new(page << PAGE_SHIFT))
            });
            let frames: Vec<u64> = pages.map(|(pfn, ..)| pfn).collect();
            self.host.discard(gone);
            if let Some(snp) = &mut self.snp {
                frames
                    .into_iter()
                    .for_each(|pfn| snp.frames.free(Pfn::new(pfn)));
            }
        }
    }

    /// The page of host memory behind a frame, made if need be.
    fn shared_page(&mut self, gfn: Gfn) -> Option<Pfn> {
        let slot = self.memory.space(AsId::NORMAL).by_gfn(gfn)?;
        self.snp.as_mut()?.find_host_page(&mut self.host, slot, gfn)
    }

    fn host_read(&mut self, gfn: Gfn) -> SnpAnswer {
        let pfn = self.shared_page(gfn);
        match pfn.zip(self.snp.as_ref()) {
            Some((pfn, snp)) => SnpAnswer::Found(snp.frames.get(pfn, Key::Plain)),
            None => SnpAnswer::NoPage,
        }
    }

    fn host_write(&mut self, gfn: Gfn, tag: u64) -> SnpAnswer {
        let pfn = self.shared_page(gfn);
        match pfn.zip(self.snp.as_mut()) {
            Some((pfn, snp)) => match snp.frames.host_write(&snp.rmp, pfn, Value::Tag(tag)) {
                true => SnpAnswer::Done,
                false => SnpAnswer::Oops,
            },
            None => SnpAnswer::NoPage,
        }
    }

    /// The page of the file behind a frame, if it is there.
    pub(super) fn private_page(&self, gfn: Gfn) -> Option<Pfn> {
        let slot = self.memory.space(AsId::NORMAL).by_gfn(gfn)?;
        let at = super::backing::place(slot, gfn)?;
        Some(self.snp.as_ref()?.files.get(&at)?.pfn)
    }

    fn host_peek(&self, gfn: Gfn) -> SnpAnswer {
        match self.private_page(gfn).zip(self.snp.as_ref()) {
            Some((pfn, snp)) => SnpAnswer::Found(snp.frames.get(pfn, Key::Plain)),
            None => SnpAnswer::NoPage,
        }
    }

    fn private_entry(&self, gfn: Gfn) -> SnpAnswer {
        match self.private_page(gfn).zip(self.snp.as_ref()) {
            Some((pfn, snp)) => {
                let entry = snp.rmp.entry(pfn);
                let size = match entry.assigned {
                    true => entry.size,
                    false => RmpSize::Size4K,
                };
                SnpAnswer::Entry(entry.state(), size)
            }
            None => SnpAnswer::NoPage,
        }
    }
}
