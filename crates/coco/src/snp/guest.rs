//! A guest that does what it is told, right or wrong.

use slat_memslot::{Gfn, GfnRange, Gpa, Pages};

use super::fault::SnpExit;
use super::frames::{Found, Value};
use super::vm::{Hole, SnpVcpu, SnpVm};
use crate::psc::{
    Answer, Direction, MapGpaRange, MsrRequest, MsrResponse, Psc, PscBuffer, PscEntry, PscHeader,
    PscOperation, PscQuirks, PscResult, PscSettings, PscStep, Scratch,
};
use crate::rmp::{Adjustment, GuestError, Query, RmpSize, Validation, Visibility, Vmpl};
use crate::sync::{AtomicU64, Ordering};

/// A buffer for page-state changes that vCPUs share.
#[derive(Debug)]
pub struct SharedBuffer([AtomicU64; 254]);

impl SharedBuffer {
    /// A buffer with these entries, of which 253 count at most.
    pub fn new(entries: &[PscEntry]) -> Self {
        let count = entries.len().min(253);
        let [low, high, ..] = count.to_le_bytes();
        let header = PscHeader {
            cur_entry: u16::from(count == 0),
            end_entry: u16::from_le_bytes([low, high]).saturating_sub(1),
            reserved: 0,
        };
        let word = |index: usize| match index.checked_sub(1) {
            None => header.to_word(),
            Some(index) => entries.get(index).map_or(0, |entry| entry.to_word()),
        };
        Self(core::array::from_fn(|index| AtomicU64::new(word(index))))
    }

    /// Writes a word, as another vCPU would. Those outside do not count.
    pub fn write(&self, index: usize, word: u64) {
        if let Some(place) = self.0.get(index) {
            place.store(word, Ordering::Relaxed);
        }
    }

    /// The header.
    pub fn header(&self) -> PscHeader {
        PscHeader::from_word(self.load_u64(0))
    }
}

impl PscBuffer for SharedBuffer {
    fn load_u16(&self, offset: usize) -> u16 {
        let bytes = self.load_u64(offset).to_le_bytes();
        u16::from_le_bytes([bytes[offset % 8], bytes[offset % 8 + 1]])
    }

    fn load_u64(&self, offset: usize) -> u64 {
        self.0[offset / 8].load(Ordering::Relaxed)
    }

    fn store_u16(&self, offset: usize, value: u16) {
        let shift = offset % 8 * 8;
        let put = |word| Some(word & !(0xffff << shift) | u64::from(value) << shift);
        let _always = self.0[offset / 8].fetch_update(Ordering::Relaxed, Ordering::Relaxed, put);
    }
}

/// What a guest does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestOp {
    /// Reads a page.
    Read(Gfn, Visibility),
    /// Writes a page.
    Write(Gfn, Visibility, Value),
    /// PVALIDATE.
    Validate(Gfn, RmpSize),
    /// PVALIDATE that rescinds.
    Rescind(Gfn, RmpSize),
    /// PVALIDATE of 512 pages: in one, and page by page where that fails.
    ValidateAll(Gfn),
    /// RMPADJUST.
    Adjust(Gfn, RmpSize, Adjustment),
    /// RMPQUERY.
    Query(Gfn, Vmpl),
    /// Page-state changes through a buffer, asked again until all are done.
    Psc(Vec<PscEntry>),
    /// A value in the GHCB's MSR.
    Msr(u64),
}

/// What a guest gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestReply {
    /// What it read.
    Read(Found),
    /// It has done it.
    Done,
    /// What PVALIDATE said.
    Validated(Validation),
    /// Why an instruction did nothing.
    Refused(GuestError),
    /// What RMPQUERY said.
    Queried(Query),
    /// SW_EXITINFO2 of a page-state change.
    Psc(PscResult),
    /// The MSR as the host left it.
    Msr(u64),
    /// It did not go on.
    Exit(SnpExit),
}

impl From<SnpExit> for GuestReply {
    fn from(exit: SnpExit) -> Self {
        Self::Exit(exit)
    }
}

/// How the VMM answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vmm {
    /// What becomes of pages that the guest leaves behind in an explicit change.
    pub explicit: Hole,
    /// The same in an implicit one; `None` if the VMM does not make the change and the guest stops there.
    pub implicit: Option<Hole>,
    /// Whose page-state change engine it is.
    pub quirks: PscQuirks,
}

impl Vmm {
    /// Punches holes, and takes an access for no more than a hint.
    pub const CAREFUL: Self = Self {
        explicit: Hole::Punched,
        implicit: None,
        quirks: PscQuirks::strict(),
    };

    /// Obeys KVM in everything.
    pub const OBEDIENT: Self = Self {
        explicit: Hole::Punched,
        implicit: Some(Hole::Punched),
        quirks: PscQuirks::kvm(),
    };
}

/// How often a VMM changes pages for one access, before it takes the guest for broken.
const CHANGES: u32 = 4;

impl SnpVm {
    /// Does what a guest is told to do, with the VMM's help.
    pub fn run(&self, vcpu: &mut SnpVcpu, op: &GuestOp, vmm: Vmm) -> GuestReply {
        for _ in 0..CHANGES {
            let reply = self.step(vcpu, op, vmm);
            let GuestReply::Exit(SnpExit::MemoryFault { gfn, access }) = reply else {
                return reply;
            };
            let (Some(hole), Some(range)) = (vmm.implicit, GfnRange::new(gfn, Pages::new(1)))
            else {
                return reply;
            };
            let to = match access {
                Visibility::Private => Direction::ToPrivate,
                Visibility::Shared => Direction::ToShared,
            };
            self.convert(range, to, hole);
        }
        self.step(vcpu, op, vmm)
    }

    fn step(&self, vcpu: &mut SnpVcpu, op: &GuestOp, vmm: Vmm) -> GuestReply {
        match op {
            GuestOp::Read(gfn, visibility) => match self.guest_read(vcpu, *gfn, *visibility) {
                Ok(found) => GuestReply::Read(found),
                Err(exit) => exit.into(),
            },
            GuestOp::Write(gfn, visibility, value) => {
                match self.guest_write(vcpu, *gfn, *visibility, *value) {
                    Ok(()) => GuestReply::Done,
                    Err(exit) => exit.into(),
                }
            }
            GuestOp::Validate(gfn, size) => self.validate(vcpu, *gfn, *size, true),
            GuestOp::Rescind(gfn, size) => self.validate(vcpu, *gfn, *size, false),
            GuestOp::ValidateAll(gfn) => self.validate_all(vcpu, *gfn),
            GuestOp::Adjust(gfn, size, adjustment) => {
                let done = self.instruction(vcpu, *gfn, |vm, vcpu, page| {
                    vm.rmp.rmpadjust(vcpu.cpu, page, *size, *adjustment)
                });
                reply(done, |()| GuestReply::Done)
            }
            GuestOp::Query(gfn, target) => {
                let done = self.instruction(vcpu, *gfn, |vm, vcpu, page| {
                    vm.rmp.rmpquery(vcpu.cpu, page, *target)
                });
                reply(done, GuestReply::Queried)
            }
            GuestOp::Psc(entries) => {
                GuestReply::Psc(self.page_state_change(&SharedBuffer::new(entries), vmm))
            }
            GuestOp::Msr(value) => GuestReply::Msr(self.msr(*value, vmm).to_msr()),
        }
    }

    fn validate(&self, vcpu: &mut SnpVcpu, gfn: Gfn, size: RmpSize, validate: bool) -> GuestReply {
        let done = self.instruction(vcpu, gfn, |vm, vcpu, page| {
            vm.rmp.pvalidate(vcpu.cpu, page, size, validate)
        });
        reply(done, GuestReply::Validated)
    }

    /// As Linux does it: 2 MiB at once, 512 times 4 KiB where that is a mismatch.
    fn validate_all(&self, vcpu: &mut SnpVcpu, gfn: Gfn) -> GuestReply {
        let whole = self.validate(vcpu, gfn, RmpSize::Size2M, true);
        if whole != GuestReply::Refused(GuestError::SizeMismatch) {
            return whole;
        }
        let mut all = GuestReply::Validated(Validation::Changed);
        for index in 0..RmpSize::Size2M.pages() {
            let page = Gfn::new(gfn.raw() + index);
            match self.validate(vcpu, page, RmpSize::Size4K, true) {
                GuestReply::Validated(Validation::Changed) => {}
                GuestReply::Validated(Validation::Unchanged) => {
                    all = GuestReply::Validated(Validation::Unchanged);
                }
                other => return other,
            }
        }
        all
    }

    /// An event, with the guest's loop around it: it asks again as long as the host gets on.
    pub fn page_state_change(&self, buffer: &SharedBuffer, vmm: Vmm) -> PscResult {
        let ghcb = Gpa::new(0x1000);
        let Ok(scratch) = Scratch::in_ghcb(ghcb, Gpa::new(0x1800)) else {
            return PscResult::Generic;
        };
        let settings = PscSettings {
            end_gfn: match vmm.quirks == PscQuirks::strict() {
                true => self.range().end(),
                false => PscSettings::new(vmm.quirks).end_gfn,
            },
            ..PscSettings::new(vmm.quirks)
        };
        let mut psc = Psc::new(settings);
        let mut cursor = None;
        loop {
            let before = buffer.header();
            if before.cur_entry > before.end_entry || cursor == Some(before.cur_entry) {
                return PscResult::Success;
            }
            cursor = Some(before.cur_entry);
            let mut step = psc.begin(buffer, scratch);
            loop {
                step = match step {
                    PscStep::Map(exit) => {
                        self.map_gpa_range(&exit, vmm.explicit);
                        psc.complete(buffer, Answer::Done)
                    }
                    PscStep::Resize(_) => psc.complete(buffer, Answer::Done),
                    PscStep::Resume(PscResult::Success) => break,
                    PscStep::Resume(result) => return result,
                };
            }
        }
    }

    fn msr(&self, value: u64, vmm: Vmm) -> MsrResponse {
        match MsrRequest::from_msr(value) {
            request @ MsrRequest::PageState { .. } => match request.exit() {
                Some(exit) => {
                    self.map_gpa_range(&exit, vmm.explicit);
                    MsrResponse::PageStateChanged
                }
                None => MsrResponse::PageStateFailed,
            },
            MsrRequest::RegisterGhcb { gfn } => MsrResponse::Registered(Some(gfn)),
            MsrRequest::PreferredGhcb => MsrResponse::NoPreferredGhcb,
            _ => MsrResponse::Features(0x3),
        }
    }

    /// The exit that both forms of page-state changes end in. Under the proposal of 2021 there are no attributes, and the
    /// reverse map itself is changed when pages are touched.
    pub fn map_gpa_range(&self, exit: &MapGpaRange, hole: Hole) {
        self.convert(exit.range, exit.to, hole);
    }

    /// The right way from private to shared: rescind each page, then ask.
    pub fn share(&self, vcpu: &mut SnpVcpu, range: GfnRange, vmm: Vmm) -> GuestReply {
        for gfn in range.start().raw()..range.end().raw() {
            let rescind = GuestOp::Rescind(Gfn::new(gfn), RmpSize::Size4K);
            let done = self.run(vcpu, &rescind, vmm);
            if !matches!(done, GuestReply::Validated(_)) {
                return done;
            }
        }
        self.run(
            vcpu,
            &GuestOp::Psc(pages_of(range, PscOperation::Shared)),
            vmm,
        )
    }

    /// The right way from shared to private: ask, validate each page.
    pub fn unshare(&self, vcpu: &mut SnpVcpu, range: GfnRange, vmm: Vmm) -> GuestReply {
        let entries = pages_of(range, PscOperation::Private);
        let mut last = self.run(vcpu, &GuestOp::Psc(entries), vmm);
        if last != GuestReply::Psc(PscResult::Success) {
            return last;
        }
        for gfn in range.start().raw()..range.end().raw() {
            let validate = GuestOp::Validate(Gfn::new(gfn), RmpSize::Size4K);
            last = self.run(vcpu, &validate, vmm);
            if !matches!(last, GuestReply::Validated(_)) {
                return last;
            }
        }
        last
    }
}

/// An entry of 4 KiB for each frame.
fn pages_of(range: GfnRange, operation: PscOperation) -> Vec<PscEntry> {
    let frames = range.start().raw()..range.end().raw();
    frames
        .map(|gfn| PscEntry::new(Gfn::new(gfn), operation, RmpSize::Size4K))
        .collect()
}

fn reply<R>(
    done: Result<Result<R, GuestError>, SnpExit>,
    with: impl FnOnce(R) -> GuestReply,
) -> GuestReply {
    match done {
        Ok(Ok(done)) => with(done),
        Ok(Err(error)) => GuestReply::Refused(error),
        Err(exit) => exit.into(),
    }
}
