//! An access of the guest: through the tables, past the reverse map, and to whoever mends what is wrong.

use slat_coco::rmp::{
    Accessor, ErrorCode, Fault, GuestCpu, GuestError, GuestPage, RmpSize, Touch, Visibility,
};
use slat_coco::snp::{Raised, RmpFault, RmpFaultPolicy, psmash};
use slat_memslot::{AsId, Attributes, Errno, Gfn, GfnRange, Level, PAGE_SIZE, PageSize};
use slat_mmu::fault::{FilePage as Got, Kind, Outcome, Present};
use slat_mmu::roots::RootId;
use slat_mmu::spte::{Access, Format, Pfn};
use slat_mmu::tdp::{AccessCheck, NoCheck, Translated, Unobserved, Violation};

use super::{Snp, SnpStop};
use crate::tdp_vm::TdpVm;
use crate::traces::{Exit, Predicted};

/// How often hardware tries before it counts as stuck.
const ATTEMPTS: u32 = 32;

impl<F: Format> TdpVm<F> {
    /// An access of a vCPU, faults and all; then what is done with the page.
    pub(super) fn snp_access<R>(
        &mut self,
        id: u32,
        (gfn, visibility): (Gfn, Visibility),
        touch: Touch,
        then: impl Fn(&mut Snp, Pfn) -> R,
    ) -> Result<R, SnpStop> {
        self.enter_snp(id)?;
        for _ in 0..ATTEMPTS {
            let root = self.snp_root(id, gfn)?;
            let code = match self.snp_hardware(id, root, (gfn, visibility), touch) {
                Ok(pfn) => {
                    self.mark_used(root, gfn, touch);
                    let snp = self.snp.as_mut().ok_or(SnpStop::FailEntry)?;
                    return Ok(then(snp, pfn));
                }
                Err(Raised::Vc(code)) => return Err(SnpStop::Vc(code)),
                Err(Raised::Npf(code)) => code,
            };
            self.nested_fault(id, root, gfn, code)?;
        }
        Err(SnpStop::Stuck(gfn))
    }

    /// An instruction of a vCPU on one of its private pages, faults and all.
    pub(super) fn snp_instruction<R>(
        &mut self,
        id: u32,
        gfn: Gfn,
        execute: impl Fn(&Snp, GuestCpu, GuestPage) -> Result<R, GuestError>,
    ) -> Result<Result<R, GuestError>, SnpStop> {
        self.enter_snp(id)?;
        for _ in 0..ATTEMPTS {
            let root = self.snp_root(id, gfn)?;
            let page = self.translate(root, gfn, Touch::Write, &NoCheck);
            let snp = self.snp.as_ref().ok_or(SnpStop::FailEntry)?;
            let done = match page {
                Ok(page) => execute(snp, snp.cpu(id), guest_page(gfn, &page)),
                Err(violation) => {
                    let code = not_mapped(&violation, Visibility::Private, Touch::Write);
                    Err(GuestError::Fault(Fault::Nested(code)))
                }
            };
            match done {
                Err(GuestError::Fault(Fault::Nested(code))) => {
                    self.nested_fault(id, root, gfn, code)?;
                }
                Err(GuestError::Fault(Fault::Vc(code))) => return Err(SnpStop::Vc(code)),
                done => {
                    self.mark_used(root, gfn, Touch::Write);
                    return Ok(done);
                }
            }
        }
        Err(SnpStop::Stuck(gfn))
    }

    fn snp_root(&mut self, id: u32, gfn: Gfn) -> Result<RootId, SnpStop> {
        self.serve_requests(id);
        self.load_root(id).ok_or(SnpStop::NoPage(gfn))
    }

    /// One attempt of hardware.
    fn snp_hardware(
        &mut self,
        id: u32,
        root: RootId,
        (gfn, visibility): (Gfn, Visibility),
        touch: Touch,
    ) -> Result<Pfn, Raised> {
        let Some(snp) = self.snp.take() else {
            return Err(Raised::Npf(ErrorCode::RMP));
        };
        let by = Accessor::Snp(snp.cpu(id), visibility);
        let page = self.translate(root, gfn, touch, &snp.rmp().check(by, touch));
        self.snp = Some(snp);
        match page {
            Ok(page) => Ok(page.pfn),
            Err(Violation::Denied(Fault::Vc(code))) => Err(Raised::Vc(code)),
            Err(Violation::Denied(fault)) => {
                Err(Raised::Npf(fault.nested().unwrap_or(ErrorCode::RMP)))
            }
            Err(violation) => Err(Raised::Npf(not_mapped(&violation, visibility, touch))),
        }
    }

    fn translate<C: AccessCheck>(
        &mut self,
        root: RootId,
        gfn: Gfn,
        touch: Touch,
        check: &C,
    ) -> Result<Translated, Violation<C::Denied>> {
        let locked = self.tables.shared(&mut self.reader, Unobserved);
        let Some(table) = locked.root_table(root) else {
            let level = Level::L4;
            return Err(Violation::Absent { level });
        };
        let access = match touch {
            Touch::Write | Touch::TableWrite => Access::WRITE,
            Touch::Fetch { .. } => Access::EXECUTE,
            Touch::Read | Touch::Table => Access::empty(),
        };
        locked.translate_checked(table, gfn, access, check)
    }

    /// Hardware marks the leaf as accessed, and as dirty.
    fn mark_used(&mut self, root: RootId, gfn: Gfn, touch: Touch) {
        let kind = match touch {
            Touch::Write | Touch::TableWrite => Kind::Write,
            Touch::Fetch { .. } => Kind::Execute,
            Touch::Read | Touch::Table => Kind::Read,
        };
        let _marked = self.hardware(root, kind, gfn.gpa());
    }

    /// The tables first, then the reverse map, if hardware complained about it (`npf_interception`).
    fn nested_fault(
        &mut self,
        id: u32,
        root: RootId,
        gfn: Gfn,
        code: ErrorCode,
    ) -> Result<Option<RmpFault>, SnpStop> {
        // Bits that KVM makes itself do not come from hardware.
        let code = code - ErrorCode::SYNTHETIC;
        let private = code.contains(ErrorCode::ENCRYPTED);
        let what = (code.kind(), present_of(code));
        match self.fault_as(id, root, what, gfn.gpa(), private) {
            Outcome::MemoryFault => return Err(self.wrong_kind(gfn, private)),
            Outcome::Emulate | Outcome::WriteProtected => return Err(SnpStop::Mmio(gfn)),
            Outcome::BadPage | Outcome::Interrupted | Outcome::OutOfTables => {
                return Err(SnpStop::NoPage(gfn));
            }
            Outcome::Retry | Outcome::Fixed | Outcome::Spurious => {}
        }
        Ok(match code.contains(ErrorCode::RMP) {
            true => Some(self.rmp_fault(gfn)),
            false => None,
        })
    }

    /// The access was private and the attributes say otherwise, or the other way round.
    fn wrong_kind(&mut self, gfn: Gfn, private: bool) -> SnpStop {
        let policy = self.snp.as_ref().map(|snp| snp.policy);
        if policy == Some(RmpFaultPolicy::Strict) {
            return SnpStop::Injected(gfn);
        }
        let (flags, access) = match private {
            true => (Attributes::PRIVATE.bits(), Visibility::Private),
            false => (0, Visibility::Shared),
        };
        self.out.events.push(Predicted::RunFailed {
            errno: Errno::EFAULT,
        });
        self.out.events.push(Predicted::Exit(Exit::MemoryFault {
            flags,
            gpa: gfn.gpa(),
            size: PAGE_SIZE,
        }));
        SnpStop::MemoryFault(gfn, access)
    }

    /// KVM's part of an RMP fault (`sev_handle_rmp_fault`): it takes entries of 2 MiB apart, and nothing else.
    fn rmp_fault(&mut self, gfn: Gfn) -> RmpFault {
        let slot = self.memory.space(AsId::NORMAL).by_gfn(gfn);
        let Some((snp, slot)) = self.snp.as_mut().zip(slot) else {
            return RmpFault::Unexpected;
        };
        if !self.memory.is_private(gfn) {
            return RmpFault::Unexpected;
        }
        let Got::Page { pfn, .. } = snp.file_page(slot, gfn) else {
            return RmpFault::Unexpected;
        };
        let entry = snp.rmp().entry(pfn);
        if !entry.assigned {
            return RmpFault::Unexpected;
        }
        if entry.size == RmpSize::Size4K || psmash(snp.rmp(), pfn).is_err() {
            return RmpFault::Spurious;
        }
        // From the frame itself on, not from the start of its 2 MiB, as KVM does: a leaf of 2 MiB goes as a whole anyway.
        if let Some(range) = GfnRange::new(gfn, PageSize::Size2M.pages()) {
            self.zap_frames(AsId::NORMAL, range);
        }
        RmpFault::Smashed
    }
}

const fn guest_page(gfn: Gfn, page: &Translated) -> GuestPage {
    GuestPage {
        gfn,
        pfn: page.pfn,
        nested: match page.level {
            Level::L1 => PageSize::Size4K,
            Level::L2 => PageSize::Size2M,
            Level::L3 | Level::L4 | Level::L5 => PageSize::Size1G,
        },
    }
}

/// The fault of an access that the tables do not allow.
fn not_mapped<D>(violation: &Violation<D>, visibility: Visibility, touch: Touch) -> ErrorCode {
    let mut code = ErrorCode::of_access(visibility, touch);
    let present = matches!(violation, Violation::Permission { .. });
    code.set(ErrorCode::PRESENT, present);
    code
}

const fn present_of(code: ErrorCode) -> Present {
    match code.contains(ErrorCode::PRESENT) {
        true => Present::Yes,
        false => Present::No,
    }
}
