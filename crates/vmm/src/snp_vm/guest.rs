//! A guest that does what it is told, right or wrong.

use slat_coco::rmp::{GuestError, RmpSize, Touch, Validation, Visibility};
use slat_coco::snp::{Key, Value};
use slat_memslot::{Gfn, GfnRange, Pages};
use slat_mmu::spte::Format;

use super::{GuestAct, SnpAnswer, SnpStop};
use crate::tdp_vm::TdpVm;

/// How often a VMM changes pages for one access, before it takes the guest for broken.
const CHANGES: u32 = 4;

impl<F: Format> TdpVm<F> {
    /// A vCPU, by its id, does something. A VMM that obeys converts what KVM asks it for.
    pub(super) fn snp_guest(&mut self, id: u32, act: &GuestAct) -> SnpAnswer {
        for _ in 0..CHANGES {
            let answer = self.snp_step(id, act);
            let implicit = self.snp.as_ref().and_then(|snp| snp.ways.implicit);
            let (SnpAnswer::Stopped(SnpStop::MemoryFault(gfn, access)), Some(hole)) =
                (&answer, implicit)
            else {
                return answer;
            };
            let converted = GfnRange::new(*gfn, Pages::new(1))
                .is_some_and(|range| self.convert(range, *access, hole));
            if !converted {
                return answer;
            }
        }
        self.snp_step(id, act)
    }

    fn snp_step(&mut self, id: u32, act: &GuestAct) -> SnpAnswer {
        match act {
            GuestAct::Read(gfn, visibility) => self.snp_read(id, *gfn, *visibility),
            GuestAct::Write(gfn, visibility, tag) => self.snp_write(id, (*gfn, *visibility), *tag),
            GuestAct::Execute(gfn) => {
                let touch = Touch::Fetch { user: false };
                done(self.snp_access(id, (*gfn, Visibility::Private), touch, |_, _| ()))
            }
            GuestAct::Validate(gfn, size) => self.validate(id, *gfn, *size, true),
            GuestAct::Rescind(gfn, size) => self.validate(id, *gfn, *size, false),
            GuestAct::ValidateAll(gfn) => self.validate_all(id, *gfn),
            GuestAct::Adjust(gfn, size, adjustment) => {
                let ran = self.snp_instruction(id, *gfn, |snp, cpu, page| {
                    snp.rmp().rmpadjust(cpu, page, *size, *adjustment)
                });
                ended(ran, |()| SnpAnswer::Done)
            }
            GuestAct::Query(gfn, target) => {
                let ran = self.snp_instruction(id, *gfn, |snp, cpu, page| {
                    snp.rmp().rmpquery(cpu, page, *target)
                });
                ended(ran, |query| {
                    SnpAnswer::Allows(query.permissions, query.size)
                })
            }
            GuestAct::Psc(entries) => self.entered(id, |vm| vm.page_state_change(entries)),
            GuestAct::Msr(value) => self.entered(id, |vm| vm.ghcb_msr(*value)),
            GuestAct::ApCreate(request) => self.entered(id, |vm| vm.create_ap(request)),
            GuestAct::Init => self.init_vcpu(id),
            GuestAct::RunVmpl(vmpl) => self.entered(id, |vm| {
                if let Some(snp) = &mut vm.snp {
                    snp.set_vmpl(id, *vmpl);
                }
                SnpAnswer::Done
            }),
        }
    }

    /// What needs no more of a vCPU than that it runs.
    fn entered(&mut self, id: u32, act: impl FnOnce(&mut Self) -> SnpAnswer) -> SnpAnswer {
        match self.enter_snp(id) {
            Ok(()) => act(self),
            Err(stop) => stop.into(),
        }
    }

    fn snp_read(&mut self, id: u32, gfn: Gfn, visibility: Visibility) -> SnpAnswer {
        let read = self.snp_access(id, (gfn, visibility), Touch::Read, |snp, pfn| {
            snp.frames.get(pfn, snp.key(visibility))
        });
        match read {
            Ok(found) => SnpAnswer::Found(found),
            Err(stop) => stop.into(),
        }
    }

    fn snp_write(&mut self, id: u32, at: (Gfn, Visibility), tag: u64) -> SnpAnswer {
        let written = self.snp_access(id, at, Touch::Write, |snp, pfn| {
            let key = snp.key(at.1);
            snp.frames.put(pfn, Value::Tag(tag), key);
        });
        done(written)
    }

    fn validate(&mut self, id: u32, gfn: Gfn, size: RmpSize, validate: bool) -> SnpAnswer {
        let ran = self.snp_instruction(id, gfn, |snp, cpu, page| {
            snp.rmp().pvalidate(cpu, page, size, validate)
        });
        ended(ran, |validation| match validation {
            Validation::Changed => SnpAnswer::Changed,
            Validation::Unchanged => SnpAnswer::Unchanged,
        })
    }

    fn validate_all(&mut self, id: u32, gfn: Gfn) -> SnpAnswer {
        let whole = self.validate(id, gfn, RmpSize::Size2M, true);
        if Some(whole.clone()) != GuestError::SizeMismatch.code().map(SnpAnswer::Refused) {
            return whole;
        }
        let mut all = SnpAnswer::Changed;
        for index in 0..RmpSize::Size2M.pages() {
            let page = Gfn::new(gfn.raw() + index);
            match self.validate(id, page, RmpSize::Size4K, true) {
                SnpAnswer::Changed => {}
                SnpAnswer::Unchanged => all = SnpAnswer::Unchanged,
                other => return other,
            }
        }
        all
    }
}

impl super::Snp {
    /// The key of the guest's own accesses.
    const fn key(&self, visibility: Visibility) -> Key {
        match visibility {
            Visibility::Private => Key::Guest(self.asid),
            Visibility::Shared => Key::Plain,
        }
    }
}

fn done(ran: Result<(), SnpStop>) -> SnpAnswer {
    match ran {
        Ok(()) => SnpAnswer::Done,
        Err(stop) => stop.into(),
    }
}

fn ended<R>(
    ran: Result<Result<R, GuestError>, SnpStop>,
    with: impl FnOnce(R) -> SnpAnswer,
) -> SnpAnswer {
    match ran {
        Ok(Ok(result)) => with(result),
        // Whoever is at the entry is gone by the time that the guest tries again.
        Ok(Err(error)) => error
            .code()
            .map_or(SnpAnswer::Refused(0), SnpAnswer::Refused),
        Err(stop) => stop.into(),
    }
}
