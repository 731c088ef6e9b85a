//! What a running vCPU does with private memory.

use slat_memslot::{Gpa, Level};
use slat_mmu::spte::Pfn;

use super::add::page_in;
use super::call::GpaMapping;
use super::{Module, State};
use crate::tdx::content::Content;
use crate::tdx::leaf::Tdcall;
use crate::tdx::sept::{SeptEntry, SeptState, Walked};
use crate::tdx::status::{Answer, Code, Operand, Refusal, Status};
use crate::tdx::td::{PendingAccess, Tdr, VpId};
use crate::tdx::vp::{Cached, Where};

/// Pages of 4 KiB in one of 2 MiB.
const IN_2M: u16 = 512;

/// An access of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestAccess {
    /// It reads.
    Read,
    /// It writes this value to the start of the page.
    Write(u64),
}

/// Why a private EPT violation took the vCPU out: the extended exit qualification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ViolationCause {
    /// An access (type 0).
    Access,
    /// An accept (type 1) of a page of this size.
    Accept(Level),
    /// An access to a page that waits to be accepted, in a TD that wants no #VE (type 6).
    Pending,
}

/// A private EPT violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Violation {
    /// The address.
    pub gpa: Gpa,
    /// What it was about.
    pub cause: ViolationCause,
}

/// Why an access did not reach its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestFault {
    /// The vCPU does not run.
    NotRunning,
    /// The address has the SHARED bit: other tables are in charge.
    Shared,
    /// The guest is told by a #VE that it has not accepted the page.
    Ve(Gpa),
    /// The vCPU has exited to the host.
    Exit(Violation),
}

/// After how many pages of 4 KiB an interrupt comes while a page is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Interrupt {
    /// None comes.
    #[default]
    Never,
    /// After so many; at least one is always done.
    After(u16),
}

/// What accepting came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accept {
    /// The page is the guest's, full of zeroes.
    Accepted,
    /// It was accepted before, by a page of this level. A success; but the host can take a page away and put another one
    /// there, so it says nothing of who accepted it.
    AlreadyAccepted(Level),
    /// An interrupt came when so many pages of 4 KiB had been accepted. The same call goes on from there.
    Interrupted(u16),
    /// The vCPU has exited to the host, who has to do something about the page first.
    Exit(Violation),
}

impl Accept {
    /// RAX, if the guest gets to see one.
    pub const fn status(self) -> Option<Status> {
        match self {
            Self::Accepted => Some(Status::SUCCESS),
            Self::AlreadyAccepted(level) => Some(Status::at(Code::PageAlreadyAccepted, level)),
            Self::Interrupted(_) | Self::Exit(_) => None,
        }
    }
}

impl Module {
    /// A running vCPU reads or writes private memory. Gives what is there, or was; `None` if nobody can say.
    ///
    /// # Errors
    /// Why it does not reach the page.
    pub fn vp_access(
        &self,
        td: Tdr,
        vp: VpId,
        gpa: Gpa,
        access: GuestAccess,
    ) -> Result<Option<u64>, GuestFault> {
        let mut state = self.state();
        let page = state.translate(td, vp, gpa, access)?;
        let content = state.contents.get(&page).cloned().unwrap_or_default();
        let value = content.value();
        if let GuestAccess::Write(new) = access {
            state.set_content(page, content.with_value(new));
        }
        Ok(value)
    }

    /// A running vCPU accepts a page (`TDG.MEM.PAGE.ACCEPT`).
    ///
    /// # Errors
    /// `OPERAND_INVALID`; `OPERAND_BUSY` if the host is using the entry, `OPERAND_BUSY_HOST_PRIORITY` if it waits for it;
    /// `PAGE_SIZE_MISMATCH` if the page is mapped in smaller pieces.
    pub fn tdg_mem_page_accept(
        &self,
        td: Tdr,
        vp: VpId,
        at: GpaMapping,
        interrupt: Interrupt,
    ) -> Answer<Accept> {
        let mut state = self.state();
        if state.vp(td, vp)?.place != Where::Inside {
            return Err(Status::new(Code::VcpuStateIncorrect).into());
        }
        state.check_accept(td, at)?;
        let found = state.td_ref(td).sept().walk(at.gpa, at.level);
        if found.place.level != at.level {
            return Ok(state.accept_above(td, vp, at, found));
        }
        let entry = state.td_mut(td).sept_mut().entry_mut(found.place);
        if let Err(code) = entry.lock_for_guest() {
            return Err(Status::of(code, Operand::Rcx).into());
        }
        state.vp(td, vp)?.place = Where::InCall;
        let mut state = self.paused(state);
        state.vp(td, vp)?.place = Where::Inside;
        let answer = state.accept_locked(td, vp, at, found, interrupt);
        let entry = state.td_mut(td).sept_mut().entry_mut(found.place);
        entry.unlock();
        answer
    }
}

impl State {
    /// The page that an access reaches, through the TLB or the tables.
    fn translate(
        &mut self,
        td: Tdr,
        vp: VpId,
        gpa: Gpa,
        access: GuestAccess,
    ) -> Result<Pfn, GuestFault> {
        let not_running = |_| GuestFault::NotRunning;
        let running = self.vp(td, vp).map_err(not_running)?;
        if running.place != Where::Inside {
            return Err(GuestFault::NotRunning);
        }
        if let Some(cached) = running.cached(gpa.gfn()) {
            if cached.writable || access == GuestAccess::Read {
                let first = gpa.gfn().round_down(cached.level);
                let within = (gpa.gfn() - first).raw();
                return Ok(Pfn::new(cached.page.raw() + within));
            }
        }
        let rip = running.rip;
        let params = self.td_ref(td).params;
        if !params.gpaw.is_private(gpa) {
            return Err(GuestFault::Shared);
        }
        let found = self.td_ref(td).sept().walk(gpa, Level::L1);
        match reach(found, access) {
            Reach::Page(cached) => {
                let first = gpa.gfn().round_down(cached.level);
                let vp = self.vp(td, vp).map_err(not_running)?;
                vp.tlb.insert(first, cached);
                vp.stepping.exited_at(rip);
                Ok(page_in(found.entry, cached.level, gpa))
            }
            Reach::Pending if params.pending_access == PendingAccess::Ve => {
                Err(GuestFault::Ve(gpa))
            }
            Reach::Pending => Err(self.violate(td, vp, gpa, ViolationCause::Pending)),
            Reach::Nothing => Err(self.violate(td, vp, gpa, ViolationCause::Access)),
        }
    }

    /// Takes a vCPU out for a private EPT violation.
    fn violate(&mut self, td: Tdr, vp: VpId, gpa: Gpa, cause: ViolationCause) -> GuestFault {
        let violation = self.exit_for(td, vp, gpa, cause);
        GuestFault::Exit(violation)
    }

    fn exit_for(&mut self, td: Tdr, vp: VpId, gpa: Gpa, cause: ViolationCause) -> Violation {
        let page = gpa.gfn().gpa();
        let state = &mut self.td_mut(td).vps[usize::from(vp.0)];
        let rip = state.rip;
        // An accept says itself that it wants the page.
        if !matches!(cause, ViolationCause::Accept(_)) {
            state.stepping.violation(rip, page);
        }
        self.leave_guest(td, vp);
        Violation { gpa, cause }
    }

    fn check_accept(&self, td: Tdr, at: GpaMapping) -> Result<(), Refusal> {
        let aligned = at.gpa.raw() % at.level.pages().bytes() == 0;
        let level = matches!(at.level, Level::L1 | Level::L2);
        if level && aligned && self.td_ref(td).params.gpaw.is_private(at.gpa) {
            Ok(())
        } else {
            Err(Status::of(Code::OperandInvalid, Operand::Rcx).into())
        }
    }

    /// The walk ended above the entry that the guest means.
    fn accept_above(&mut self, td: Tdr, vp: VpId, at: GpaMapping, found: Walked) -> Accept {
        if found.entry.state().is_accessible() {
            return Accept::AlreadyAccepted(found.place.level);
        }
        Accept::Exit(self.exit_for(td, vp, at.gpa, ViolationCause::Accept(at.level)))
    }

    fn accept_locked(
        &mut self,
        td: Tdr,
        vp: VpId,
        at: GpaMapping,
        found: Walked,
        interrupt: Interrupt,
    ) -> Answer<Accept> {
        let entry = self.td_ref(td).sept().entry(found.place);
        let state = entry.state();
        // What an import has removed counts as a table here.
        if !state.is_leaf() && state != SeptState::Free {
            return Err(Status::at(Code::PageSizeMismatch, at.level).into());
        }
        if state.is_accessible() {
            return Ok(Accept::AlreadyAccepted(at.level));
        }
        if !Tdcall::MemPageAccept.allows_state(state) {
            let cause = ViolationCause::Accept(at.level);
            return Ok(Accept::Exit(self.exit_for(td, vp, at.gpa, cause)));
        }
        Ok(self.accept_pending(td, at, found, entry, interrupt))
    }

    /// Fills a page with zeroes, 4 KiB at a time, and makes it the guest's.
    fn accept_pending(
        &mut self,
        td: Tdr,
        at: GpaMapping,
        found: Walked,
        entry: SeptEntry,
        interrupt: Interrupt,
    ) -> Accept {
        let pages = if at.level == Level::L1 { 1 } else { IN_2M };
        let first = entry.base(at.level);
        let begun = entry.accept_counter(at.level);
        let end = match interrupt {
            Interrupt::Never => pages,
            Interrupt::After(done) => pages.min(begun.saturating_add(done.max(1))),
        };
        for page in begun..end {
            let page = Pfn::new(first.raw() + u64::from(page));
            self.set_content(page, Content::Zero);
        }
        let slot = self.td_mut(td).sept_mut().entry_mut(found.place);
        if end < pages {
            *slot = entry.with_accept_counter(end);
            return Accept::Interrupted(end);
        }
        let accepted = match entry.state() {
            SeptState::Pending => SeptState::Mapped,
            _ => SeptState::ExportedDirty,
        };
        *slot = entry.with_state(accepted, at.level);
        Accept::Accepted
    }
}

/// What an access finds.
enum Reach {
    Page(Cached),
    Pending,
    Nothing,
}

fn reach(found: Walked, access: GuestAccess) -> Reach {
    let (state, level) = (found.entry.state(), found.place.level);
    let writes = matches!(access, GuestAccess::Write(_));
    if state.is_writable() || state.is_accessible() && !writes {
        Reach::Page(Cached {
            page: found.entry.base(level),
            level,
            writable: state.is_writable(),
        })
    } else if state.is_acceptable() {
        Reach::Pending
    } else {
        Reach::Nothing
    }
}
