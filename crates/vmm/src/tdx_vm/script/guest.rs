//! The guest's side: what firmware and kernel do with memory.

use std::collections::BTreeSet;

use slat_memslot::{
    Access, Attributes, Call, Gfn, GfnRange, Level, MapGpaAnswer, Outcome, PAGE_SIZE, TdOp, TdSide,
    TdxCall, TdxConversion, TdxOutcome, WaitingEvent,
};
use thiserror::Error;

use super::{MapGpaExit, MemoryFaultExit, Vmm};
use crate::{CallError, CallResult, MemoryVm};

/// In which sizes the guest accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AcceptHow {
    /// 2 MiB where a range has it, and 4 KiB where the host's pages are smaller: what Linux and firmware do.
    Largest,
    /// 4 KiB.
    Small,
}

/// One thing that the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It accepts a range ahead of time.
    Accept(GfnRange, AcceptHow),
    /// It writes a private page, which it accepts if it has not before.
    Write(Gfn, u64),
    /// It reads a private page and has to find this.
    Expect(Gfn, u64),
    /// It writes a shared page.
    WriteShared(Gfn, u64),
    /// It reads a shared page and has to find this.
    ExpectShared(Gfn, u64),
    /// It asks for a range to be shared or private, and accepts what becomes private.
    Convert(GfnRange, TdxConversion),
    /// It converts a range there and back so many times, page by page.
    Storm(GfnRange, u32),
    /// The host plugs memory: a slot with a range, to be accepted before it is used.
    Plug(u16, GfnRange),
    /// The guest has given memory up, and the host unplugs it.
    Unplug(u16, GfnRange),
}

/// Why a guest got no further.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GuestError {
    /// KVM, or the VMM, gave up.
    #[error("{0}")]
    Call(#[from] CallError),
    /// Content is not what the guest left there.
    #[error("{gfn} holds {found:#x}, not {wanted:#x}")]
    Content {
        /// Where.
        gfn: Gfn,
        /// What was found.
        found: u64,
        /// What was left there.
        wanted: u64,
    },
    /// A conversion was refused.
    #[error("MapGPA of {0} gave {answer}", answer = .1.name())]
    Refused(GfnRange, MapGpaAnswer),
    /// The VMM answers, and nothing changes.
    #[error("{0} is not to be had, however often it is asked for")]
    Stuck(Gfn),
    /// Something that a guest cannot be told.
    #[error("{0:?} is no answer")]
    Unexpected(Outcome),
}

/// What a guest and its exits have been through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ran {
    /// Pages that were accepted.
    pub accepts: u64,
    /// Accepts of 2 MiB that met smaller pages.
    pub mismatches: u64,
    /// Pages that had been accepted before.
    pub accepted_before: u64,
    /// `KVM_EXIT_MEMORY_FAULT`.
    pub memory_faults: u64,
    /// `KVM_EXIT_HYPERCALL`.
    pub hypercalls: u64,
    /// MapGPA that the guest had to ask again.
    pub retries: u64,
}

/// How often the VMM may answer without getting the guest on.
const PATIENCE: u32 = 8;

/// The guest on one vCPU.
#[derive(Clone, Debug)]
pub struct Guest {
    vcpu: u32,
    /// What it has accepted; `PAGE_ALREADY_ACCEPTED` is no proof.
    accepted: BTreeSet<Gfn>,
    ran: Ran,
}

impl Guest {
    /// A guest that has accepted nothing.
    pub const fn new(vcpu: u32) -> Self {
        Self {
            vcpu,
            accepted: BTreeSet::new(),
            ran: Ran {
                accepts: 0,
                mismatches: 0,
                accepted_before: 0,
                memory_faults: 0,
                hypercalls: 0,
                retries: 0,
            },
        }
    }

    /// The same with an image that needs no accepting.
    #[must_use]
    pub fn with_image(mut self, image: GfnRange) -> Self {
        self.accepted.extend(frames(image));
        self
    }

    /// Does one thing after the other.
    ///
    /// # Errors
    /// Where it got stuck, or what it found.
    pub fn follow<V: MemoryVm>(
        &mut self,
        vm: &mut V,
        vmm: &mut impl Vmm<V>,
        script: &[Step],
    ) -> Result<Ran, GuestError> {
        for step in script {
            self.step(vm, vmm, *step)?;
        }
        Ok(self.ran)
    }

    fn step<V: MemoryVm>(
        &mut self,
        vm: &mut V,
        vmm: &mut impl Vmm<V>,
        step: Step,
    ) -> Result<(), GuestError> {
        match step {
            Step::Accept(range, how) => self.accept(vm, vmm, range, how),
            Step::Write(gfn, value) => {
                self.accept_lazily(vm, vmm, gfn)?;
                self.touch(vm, vmm, gfn, write(gfn, TdSide::AsGiven, value))
                    .map(drop)
            }
            Step::Expect(gfn, value) => {
                self.accept_lazily(vm, vmm, gfn)?;
                let found = self.touch(vm, vmm, gfn, read(gfn, TdSide::AsGiven))?;
                check(gfn, found, value)
            }
            Step::WriteShared(gfn, value) => self
                .touch(vm, vmm, gfn, write(gfn, TdSide::Shared, value))
                .map(drop),
            Step::ExpectShared(gfn, value) => {
                let found = self.touch(vm, vmm, gfn, read(gfn, TdSide::Shared))?;
                check(gfn, found, value)
            }
            Step::Convert(range, to) => self.convert(vm, vmm, range, to),
            Step::Storm(range, rounds) => self.storm(vm, vmm, range, rounds),
            Step::Plug(slot, range) => {
                Ok(vmm.plug(vm, slot, range.start().gpa().raw(), range.pages())?)
            }
            Step::Unplug(slot, range) => {
                self.forget(range);
                Ok(vmm.unplug(vm, slot)?)
            }
        }
    }

    fn forget(&mut self, range: GfnRange) {
        self.accepted.retain(|gfn| !range.contains(*gfn));
    }

    fn call<V: MemoryVm>(&self, vm: &mut V, op: TdOp) -> CallResult {
        vm.call(&Call::Tdx(TdxCall::Guest {
            vcpu: self.vcpu,
            op,
        }))
    }

    /// One access, with as many memory faults as the VMM needs to help.
    fn touch<V: MemoryVm>(
        &mut self,
        vm: &mut V,
        vmm: &mut impl Vmm<V>,
        gfn: Gfn,
        op: TdOp,
    ) -> Result<Outcome, GuestError> {
        for _ in 0..PATIENCE {
            match self.call(vm, op)? {
                Outcome::Access(Access::MemoryFault { flags, gpa, size }) => {
                    self.ran.memory_faults += 1;
                    let private = flags & Attributes::PRIVATE.bits() != 0;
                    vmm.memory_fault(vm, &MemoryFaultExit { private, gpa, size })?;
                }
                other => return Ok(other),
            }
        }
        Err(GuestError::Stuck(gfn))
    }

    fn accept_lazily<V: MemoryVm>(
        &mut self,
        vm: &mut V,
        vmm: &mut impl Vmm<V>,
        gfn: Gfn,
    ) -> Result<(), GuestError> {
        if self.accepted.contains(&gfn) {
            return Ok(());
        }
        self.accept_page(vm, vmm, gfn, Level::L1).map(drop)
    }

    fn accept<V: MemoryVm>(
        &mut self,
        vm: &mut V,
        vmm: &mut impl Vmm<V>,
        range: GfnRange,
        how: AcceptHow,
    ) -> Result<(), GuestError> {
        let (mut at, end) = (range.start().raw(), range.end().raw());
        let large = Level::L2.pages().raw();
        while at < end {
            let fits = at % large == 0 && end - at >= large && how == AcceptHow::Largest;
            let gfn = Gfn::new(at);
            if fits && self.accept_page(vm, vmm, gfn, Level::L2)? {
                at += large;
                continue;
            }
            // What was refused as a whole is accepted in pieces, up to its end.
            let until = if fits { at + large } else { at + 1 };
            while at < until {
                self.accept_page(vm, vmm, Gfn::new(at), Level::L1)?;
                at += 1;
            }
        }
        Ok(())
    }

    /// Accepts a page; whether its size was right.
    fn accept_page<V: MemoryVm>(
        &mut self,
        vm: &mut V,
        vmm: &mut impl Vmm<V>,
        gfn: Gfn,
        level: Level,
    ) -> Result<bool, GuestError> {
        let gpa = gfn.gpa().raw();
        let pages = level.pages().raw();
        match self.touch(vm, vmm, gfn, TdOp::Accept { gpa, level })? {
            Outcome::Tdx(TdxOutcome::Accepted) => self.ran.accepts += pages,
            Outcome::Tdx(TdxOutcome::AlreadyAccepted(_)) => self.ran.accepted_before += pages,
            Outcome::Tdx(TdxOutcome::SizeMismatch(_)) => {
                self.ran.mismatches += 1;
                return Ok(false);
            }
            other => return Err(GuestError::Unexpected(other)),
        }
        let accepted = gfn.raw()..gfn.raw() + pages;
        self.accepted.extend(accepted.map(Gfn::new));
        Ok(true)
    }

    /// Asks until all of it is converted: R11 says from where on, with the SHARED bit as it was passed.
    fn convert<V: MemoryVm>(
        &mut self,
        vm: &mut V,
        vmm: &mut impl Vmm<V>,
        range: GfnRange,
        to: TdxConversion,
    ) -> Result<(), GuestError> {
        let side = match to {
            TdxConversion::Private => TdSide::AsGiven,
            TdxConversion::Shared => TdSide::Shared,
        };
        self.forget(range);
        let (mut gpa, mut left) = (range.start().gpa().raw(), range.pages().bytes());
        loop {
            let size = left;
            let mut outcome = self.call(vm, TdOp::MapGpa { gpa, side, size })?;
            while let Outcome::Tdx(TdxOutcome::Hypercall { gpa, pages, to }) = outcome {
                self.ran.hypercalls += 1;
                let ret = vmm.map_gpa(vm, &MapGpaExit { gpa, pages, to })?;
                outcome = vm.call(&Call::Tdx(TdxCall::CompleteHypercall {
                    vcpu: self.vcpu,
                    ret,
                    event: WaitingEvent::None,
                }))?;
            }
            match outcome {
                Outcome::Tdx(TdxOutcome::MapGpa { answer, next }) => match answer {
                    MapGpaAnswer::Success => break,
                    MapGpaAnswer::Retry if self.ran.retries < RETRIES => {
                        self.ran.retries += 1;
                        let end = range.end().gpa().raw();
                        gpa = next & (SHARED_BELOW - 1);
                        left = end - gpa;
                    }
                    other => return Err(GuestError::Refused(range, other)),
                },
                other => return Err(GuestError::Unexpected(other)),
            }
        }
        match to {
            TdxConversion::Private => self.accept(vm, vmm, range, AcceptHow::Largest),
            TdxConversion::Shared => Ok(()),
        }
    }

    fn storm<V: MemoryVm>(
        &mut self,
        vm: &mut V,
        vmm: &mut impl Vmm<V>,
        range: GfnRange,
        rounds: u32,
    ) -> Result<(), GuestError> {
        for round in 0..rounds {
            for gfn in frames(range) {
                let Some(page) = GfnRange::new(gfn, slat_memslot::Pages::new(1)) else {
                    continue;
                };
                let value = u64::from(round) << 32 | gfn.raw();
                self.convert(vm, vmm, page, TdxConversion::Shared)?;
                self.step(vm, vmm, Step::WriteShared(gfn, value))?;
                self.step(vm, vmm, Step::ExpectShared(gfn, value))?;
                self.convert(vm, vmm, page, TdxConversion::Private)?;
                // What was private before is lost, and what was shared cannot be seen from here.
                self.step(vm, vmm, Step::Expect(gfn, 0))?;
                self.step(vm, vmm, Step::Write(gfn, value))?;
                self.step(vm, vmm, Step::Expect(gfn, value))?;
            }
        }
        Ok(())
    }
}

/// How many times MapGPA may be asked again in the life of a guest.
const RETRIES: u64 = 1 << 20;
/// The SHARED bit of a TD with 48 bits of address.
const SHARED_BELOW: u64 = 1 << 47;

fn frames(range: GfnRange) -> impl Iterator<Item = Gfn> {
    (range.start().raw()..range.end().raw()).map(Gfn::new)
}

fn read(gfn: Gfn, side: TdSide) -> TdOp {
    let gpa = gfn.raw() * PAGE_SIZE;
    TdOp::Read { gpa, side }
}

fn write(gfn: Gfn, side: TdSide, value: u64) -> TdOp {
    let gpa = gfn.raw() * PAGE_SIZE;
    TdOp::Write { gpa, side, value }
}

fn check(gfn: Gfn, found: Outcome, wanted: u64) -> Result<(), GuestError> {
    match found {
        Outcome::Value(found) if found == wanted => Ok(()),
        Outcome::Value(found) => Err(GuestError::Content { gfn, found, wanted }),
        other => Err(GuestError::Unexpected(other)),
    }
}
