//! An access of the guest, from the tables to whoever has to do something about it.

use slat_memslot::{Gfn, GfnRange, PageSize, Pages, Slot};
use slat_mmu::fault::{
    Backing, Env, Fault as TdpFault, FilePage, HostPage, MmioCache, NotTracked, Outcome, Present,
    Settings,
};
use slat_mmu::spte::{Access, Pfn, PfnKind};
use slat_mmu::tdp::{AccessCheck, NoCheck, Translated, Unobserved, Violation};

use super::frames::{Found, Key, Value};
use super::gmem::{
    File, Folio, gmem_prepare, prepared_size, private_max_mapping_level, psmash, rmpupdate,
};
use super::policy::RmpFaultPolicy;
use super::vm::{SnpVcpu, SnpVm};
use crate::rmp::{
    Accessor, ErrorCode, Fault, GuestError, GuestPage, RmpSize, RmpState, Touch, Visibility,
};
use crate::sync::{lock, read, write};

/// Why a vCPU does not go on by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SnpExit {
    /// `KVM_EXIT_MEMORY_FAULT`: the access was private, or shared, and the attributes say otherwise.
    MemoryFault {
        /// The frame.
        gfn: Gfn,
        /// What the access was.
        access: Visibility,
    },
    /// No slot is there: MMIO.
    Mmio(Gfn),
    /// `KVM_EXIT_MEMORY_FAULT` with another error, or `EFAULT`: the host has no page.
    NoPage(Gfn),
    /// #VC in the guest, without an exit: the page is not validated.
    Vc(u32),
    /// The strict policy has told the guest that its access was wrong.
    Injected(Gfn),
    /// The access has faulted again and again: whoever mends it and whoever breaks it take turns.
    Stuck(Gfn),
}

/// What KVM did about an RMP fault (`sev_handle_rmp_fault`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RmpFault {
    /// It warned and did nothing: the frame is not private, or has no page, or its page is not assigned.
    Unexpected,
    /// Nothing was left to do: the entry is of 4 KiB already.
    Spurious,
    /// The entry was taken apart, and the leaves over it were zapped.
    Smashed,
    /// The entry was made to fit the access (only under [`RmpFaultPolicy::Rfc2021`]).
    Rewritten,
}

/// How often hardware tries before it counts as stuck.
const ATTEMPTS: u32 = 32;

/// What hardware raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// #VC.
    Vc(u32),
    /// A nested page fault.
    Npf(ErrorCode),
}

/// The page that a fault got before it took `mmu_lock`.
struct Got {
    pfn: Option<Pfn>,
    size: PageSize,
}

impl Backing for Got {
    fn host_page(&mut self, _: &Slot, _: Gfn, _: bool) -> HostPage {
        self.pfn.map_or(HostPage::Bad, |pfn| HostPage::Page {
            pfn,
            size: self.size,
            writable: true,
            kind: PfnKind::Memory,
        })
    }

    fn file_page(&mut self, _: &Slot, _: Gfn) -> FilePage {
        let size = self.size;
        self.pfn
            .map_or(FilePage::Bad, |pfn| FilePage::Page { pfn, size })
    }
}

impl SnpVm {
    /// The guest reads.
    ///
    /// # Errors
    /// Why it cannot go on.
    pub fn guest_read(
        &self,
        vcpu: &mut SnpVcpu,
        gfn: Gfn,
        visibility: Visibility,
    ) -> Result<Found, SnpExit> {
        let key = self.key(visibility);
        self.guest_access(vcpu, gfn, visibility, Touch::Read, |pfn| {
            lock(&self.frames).get(pfn, key)
        })
    }

    /// The guest writes.
    ///
    /// # Errors
    /// Why it cannot go on.
    pub fn guest_write(
        &self,
        vcpu: &mut SnpVcpu,
        gfn: Gfn,
        visibility: Visibility,
        value: Value,
    ) -> Result<(), SnpExit> {
        let key = self.key(visibility);
        self.guest_access(vcpu, gfn, visibility, Touch::Write, |pfn| {
            lock(&self.frames).put(pfn, value, key);
        })
    }

    const fn key(&self, visibility: Visibility) -> Key {
        match visibility {
            Visibility::Private => Key::Guest(self.settings.asid),
            Visibility::Shared => Key::Plain,
        }
    }

    fn guest_access<R>(
        &self,
        vcpu: &mut SnpVcpu,
        gfn: Gfn,
        visibility: Visibility,
        touch: Touch,
        then: impl Fn(Pfn) -> R,
    ) -> Result<R, SnpExit> {
        for _ in 0..ATTEMPTS {
            match self.hardware(vcpu, gfn, visibility, touch, &then) {
                Ok(done) => return Ok(done),
                Err(Raised::Vc(code)) => return Err(SnpExit::Vc(code)),
                Err(Raised::Npf(code)) => {
                    self.nested_fault(vcpu, gfn, code)?;
                }
            }
        }
        Err(SnpExit::Stuck(gfn))
    }

    /// One attempt of hardware: through the tables, past the reverse map, to the page.
    ///
    /// # Errors
    /// What it raises.
    pub fn hardware<R>(
        &self,
        vcpu: &mut SnpVcpu,
        gfn: Gfn,
        visibility: Visibility,
        touch: Touch,
        then: impl Fn(Pfn) -> R,
    ) -> Result<R, Raised> {
        let by = Accessor::Snp(vcpu.cpu, visibility);
        let check = self.rmp.check(by, touch);
        let mmu = read(&self.mmu);
        match translate(&mmu.tables, vcpu, gfn, touch, &check) {
            Ok(page) => Ok(then(page.pfn)),
            Err(Violation::Denied(Fault::Vc(code))) => Err(Raised::Vc(code)),
            Err(Violation::Denied(fault)) => {
                Err(Raised::Npf(fault.nested().unwrap_or(ErrorCode::RMP)))
            }
            Err(_) => Err(Raised::Npf(ErrorCode::of_access(visibility, touch))),
        }
    }

    /// An instruction of the guest on one of its private pages, faults and all.
    ///
    /// # Errors
    /// Why it cannot go on; within, what the instruction says.
    pub fn instruction<R>(
        &self,
        vcpu: &mut SnpVcpu,
        gfn: Gfn,
        execute: impl Fn(&Self, &SnpVcpu, GuestPage) -> Result<R, GuestError>,
    ) -> Result<Result<R, GuestError>, SnpExit> {
        for _ in 0..ATTEMPTS {
            match self.instruction_once(vcpu, gfn, &execute) {
                Err(GuestError::Fault(Fault::Nested(code))) => {
                    self.nested_fault(vcpu, gfn, code)?;
                }
                Err(GuestError::Fault(Fault::Vc(code))) => return Err(SnpExit::Vc(code)),
                Err(GuestError::Busy) => crate::sync::spin(),
                done => return Ok(done),
            }
        }
        Err(SnpExit::Stuck(gfn))
    }

    fn instruction_once<R>(
        &self,
        vcpu: &mut SnpVcpu,
        gfn: Gfn,
        execute: impl Fn(&Self, &SnpVcpu, GuestPage) -> Result<R, GuestError>,
    ) -> Result<R, GuestError> {
        let mmu = read(&self.mmu);
        match translate(&mmu.tables, vcpu, gfn, Touch::Write, &NoCheck) {
            Ok(page) => {
                let page = GuestPage {
                    gfn,
                    pfn: page.pfn,
                    nested: leaf_size(&page),
                };
                execute(self, vcpu, page)
            }
            Err(_) => {
                let code = ErrorCode::of_access(Visibility::Private, Touch::Write);
                Err(GuestError::Fault(Fault::Nested(code)))
            }
        }
    }

    /// `npf_interception`: the tables first, then the reverse map, if hardware complained about it.
    ///
    /// # Errors
    /// Why the guest is not entered again at once.
    pub fn nested_fault(
        &self,
        vcpu: &mut SnpVcpu,
        gfn: Gfn,
        code: ErrorCode,
    ) -> Result<Option<RmpFault>, SnpExit> {
        // Bits that KVM makes itself do not come from hardware.
        let code = code - ErrorCode::SYNTHETIC;
        let rmp = code.contains(ErrorCode::RMP);
        if rmp && self.settings.policy == RmpFaultPolicy::Rfc2021 {
            return Ok(Some(self.rewrite(vcpu, gfn, code)));
        }
        match self.page_fault(vcpu, gfn, code) {
            Outcome::MemoryFault => {
                let access = code.visibility();
                return Err(match self.settings.policy {
                    RmpFaultPolicy::Strict => SnpExit::Injected(gfn),
                    _ if read(&self.memory).is_private(gfn) != (access == Visibility::Private) => {
                        SnpExit::MemoryFault { gfn, access }
                    }
                    // The attributes have come to fit in between: userspace would have nothing to do.
                    _ => return Ok(None),
                });
            }
            Outcome::Emulate | Outcome::WriteProtected => return Err(SnpExit::Mmio(gfn)),
            Outcome::BadPage | Outcome::Interrupted | Outcome::OutOfTables => {
                return Err(SnpExit::NoPage(gfn));
            }
            Outcome::Retry | Outcome::Fixed | Outcome::Spurious => {}
        }
        if rmp {
            return Ok(Some(self.rmp_fault(gfn)));
        }
        Ok(None)
    }

    /// The fault as far as the tables go (`kvm_mmu_page_fault`).
    fn page_fault(&self, vcpu: &mut SnpVcpu, gfn: Gfn, code: ErrorCode) -> Outcome {
        let since = read(&self.mmu).invalidation.sequence();
        let (has_file, in_slot) = (self.settings.policy.has_file(), self.range().contains(gfn));
        let private = has_file && code.contains(ErrorCode::ENCRYPTED);
        if in_slot && has_file && read(&self.memory).is_private(gfn) != private {
            return Outcome::MemoryFault;
        }
        // Before mmu_lock is taken, as the page may have to be made.
        let mut got = match private {
            true => self.file_page(&mut lock(&self.file), gfn),
            false => Got {
                pfn: self.shared_page(gfn),
                size: PageSize::Size4K,
            },
        };
        let fault = TdpFault {
            gfn,
            kind: code.kind(),
            present: match code.contains(ErrorCode::PRESENT) {
                true => Present::Yes,
                false => Present::No,
            },
            private,
            prefetch: false,
        };
        let mmu = read(&self.mmu);
        if in_slot && mmu.invalidation.must_retry(since, gfn) {
            return Outcome::Retry;
        }
        let memory = read(&self.memory);
        let mut env = Env {
            memory: &memory,
            backing: &mut got,
            invalidation: &mmu.invalidation,
            settings: Settings::default(),
            mmio: &mut MmioCache::default(),
            shadow: NotTracked,
        };
        let mut locked = mmu.tables.shared(&mut vcpu.reader, Unobserved);
        locked.page_fault(vcpu.root, &fault, &mut env).outcome
    }

    /// A page of the file, prepared (`kvm_gmem_get_pfn`).
    fn file_page(&self, file: &mut File, gfn: Gfn) -> Got {
        let none = Got {
            pfn: None,
            size: PageSize::Size4K,
        };
        if !self.range().contains(gfn) {
            return none;
        }
        let Some((first, folio)) = file.folio(gfn).or_else(|| self.make_folio(file, gfn)) else {
            return none;
        };
        let pfn = Pfn::new(folio.pfn.raw() + (gfn - first).raw());
        if !folio.prepared {
            let asid = self.settings.asid;
            let prepared = prepared_size(&self.rmp, pfn, folio.size);
            lock(&self.frames).adjust_direct_map(pfn, prepared);
            if gmem_prepare(&self.rmp, asid, gfn, pfn, folio.size).is_err() {
                return none;
            }
            file.set_prepared(first);
        }
        let size = folio
            .size
            .page_size()
            .min(private_max_mapping_level(&self.rmp, pfn));
        Got {
            pfn: Some(pfn),
            size,
        }
    }

    fn make_folio(&self, file: &mut File, gfn: Gfn) -> Option<(Gfn, Folio)> {
        let pages = self.settings.folio.pages();
        let first = Gfn::new(gfn.raw() & !(pages - 1));
        let whole = GfnRange::new(first, Pages::new(pages))?;
        let free = self.range().covers(whole) && file.is_empty(whole);
        let (first, size) = match free {
            true => (first, self.settings.folio),
            false => (gfn, RmpSize::Size4K),
        };
        let pfn = lock(&self.frames).allocate(&self.rmp, size)?;
        let folio = Folio {
            pfn,
            size,
            prepared: false,
        };
        file.insert(first, folio);
        Some((first, folio))
    }

    /// KVM's part of an RMP fault (`sev_handle_rmp_fault`): it takes entries of 2 MiB apart, and nothing else.
    pub fn rmp_fault(&self, gfn: Gfn) -> RmpFault {
        if !self.range().contains(gfn) || !read(&self.memory).is_private(gfn) {
            return RmpFault::Unexpected;
        }
        let mut file = lock(&self.file);
        let Some(pfn) = self.file_page(&mut file, gfn).pfn else {
            return RmpFault::Unexpected;
        };
        // KVM holds a reference of the page: it is not given back, in whatever size it is, before this is over.
        let reference = (!cfg!(slat_mutant = "no_page_reference")).then(|| read(&self.references));
        drop(file);
        let entry = self.rmp.entry(pfn);
        if !entry.assigned {
            return RmpFault::Unexpected;
        }
        if entry.size == RmpSize::Size4K {
            return RmpFault::Spurious;
        }
        let smashed = psmash(&self.rmp, pfn);
        if smashed.is_err() && self.rmp.entry(pfn).size == RmpSize::Size4K {
            return RmpFault::Spurious;
        }
        drop(reference);
        // From the frame itself on, not from the start of its 2 MiB, as KVM does: a leaf of 2 MiB goes as a whole anyway.
        if let Some(range) = GfnRange::new(gfn, RmpSize::Size2M.page_size().pages()) {
            write(&self.mmu).zap(range);
        }
        RmpFault::Smashed
    }

    /// The proposal of 2021: walk the tables, then make the reverse map fit the access, with no lock held.
    fn rewrite(&self, vcpu: &mut SnpVcpu, gfn: Gfn, code: ErrorCode) -> RmpFault {
        let page = {
            let mmu = read(&self.mmu);
            translate(&mmu.tables, vcpu, gfn, Touch::Read, &NoCheck)
        };
        let Ok(page) = page else {
            return RmpFault::Unexpected;
        };
        // From here on the page may be anybody's.
        crate::sync::spin();
        let entry = self.rmp.entry(page.pfn);
        let private = code.contains(ErrorCode::ENCRYPTED);
        if entry.assigned && entry.size == RmpSize::Size2M {
            let _smashed = psmash(&self.rmp, page.pfn);
        }
        let state = match (entry.assigned, private) {
            (true, false) => RmpState::shared(RmpSize::Size4K),
            (false, true) => RmpState::private(self.settings.asid, gfn, RmpSize::Size4K),
            _ => return RmpFault::Spurious,
        };
        lock(&self.frames).adjust_direct_map(page.pfn, RmpSize::Size4K);
        match rmpupdate(&self.rmp, page.pfn, &state) {
            Ok(()) => RmpFault::Rewritten,
            Err(_) => RmpFault::Unexpected,
        }
    }
}

fn translate<C: AccessCheck>(
    tables: &slat_mmu::tdp::Tables<slat_mmu::spte::Npt>,
    vcpu: &mut SnpVcpu,
    gfn: Gfn,
    touch: Touch,
    check: &C,
) -> Result<Translated, Violation<C::Denied>> {
    let root = tables.roots().payload(vcpu.root);
    let locked = tables.shared(&mut vcpu.reader, Unobserved);
    let Some(root) = root else {
        let level = slat_memslot::Level::L4;
        return Err(Violation::Absent { level });
    };
    let access = match touch {
        Touch::Write | Touch::TableWrite => Access::WRITE,
        Touch::Fetch { .. } => Access::EXECUTE,
        Touch::Read | Touch::Table => Access::empty(),
    };
    locked.translate_checked(root, gfn, access, check)
}

const fn leaf_size(page: &Translated) -> PageSize {
    use slat_memslot::Level;
    match page.level {
        Level::L1 => PageSize::Size4K,
        Level::L2 => PageSize::Size2M,
        Level::L3 | Level::L4 | Level::L5 => PageSize::Size1G,
    }
}
