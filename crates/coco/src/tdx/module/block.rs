//! Calls that keep everybody away from a range, and let them in again.

use super::Module;
use super::call::GpaMapping;
use crate::tdx::leaf::Seamcall;
use crate::tdx::locks::Hold;
use crate::tdx::sept::SeptState;
use crate::tdx::status::{Answer, Code, Operand, Status};
use crate::tdx::td::Tdr;

/// What blocking came to. Both are successes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Block {
    /// The range is blocked now.
    Blocked,
    /// It was blocked before; nothing has changed, its epoch neither.
    AlreadyBlocked,
}

impl Block {
    /// RAX.
    pub const fn status(self) -> Status {
        match self {
            Self::Blocked => Status::SUCCESS,
            Self::AlreadyBlocked => Status::of(Code::GpaRangeAlreadyBlocked, Operand::Rcx),
        }
    }
}

impl Module {
    /// Keeps everybody away from what an entry maps (`TDH.MEM.RANGE.BLOCK`), and notes the TD's epoch. What was accepted of
    /// a page of 2 MiB is forgotten, unless all of it was.
    ///
    /// # Errors
    /// As for any call about an entry. A range that is blocked already is no error.
    pub fn tdh_mem_range_block(&self, td: Tdr, at: GpaMapping) -> Answer<Block> {
        self.on_entry(Seamcall::MemRangeBlock, td, at, |on| {
            let Some(blocked) = on.entry.state().blocked() else {
                return Ok(Block::AlreadyBlocked);
            };
            let level = on.place.level;
            on.write(on.entry.with_state(blocked, level));
            let epoch = on.td().epochs.current();
            let page = on.entry.base(level);
            on.state.pamt.set_blocked_epoch(page, epoch);
            Ok(Block::Blocked)
        })
    }

    /// Takes a block back (`TDH.MEM.RANGE.UNBLOCK`). The content is as it was.
    ///
    /// # Errors
    /// As for any call about an entry; `TLB_TRACKING_NOT_DONE` with operand SEPT_TREE if the range was not tracked.
    pub fn tdh_mem_range_unblock(&self, td: Tdr, at: GpaMapping) -> Answer {
        self.on_entry(Seamcall::MemRangeUnblock, td, at, |on| {
            on.check_tracked(Operand::SeptTree)?;
            on.unblock();
            Ok(())
        })
    }

    /// Begins the TD's next epoch (`TDH.MEM.TRACK`).
    ///
    /// # Errors
    /// `PREVIOUS_TLB_EPOCH_BUSY` while a vCPU is inside that entered before the present epoch; `OPERAND_BUSY` with
    /// TD_EPOCH while one is entering.
    pub fn tdh_mem_track(&self, td: Tdr) -> Answer {
        self.on_td(Seamcall::MemTrack, td, Operand::Rcx, |state| {
            let td = state.td_mut(td);
            if !td.locks.epoch.acquire(Hold::Exclusive) {
                return Err(Status::of(Code::OperandBusy, Operand::TdEpoch));
            }
            let tracked = td.epochs.track();
            td.locks.epoch.release(Hold::Exclusive);
            if tracked {
                Ok(())
            } else {
                Err(Status::new(Code::PreviousTlbEpochBusy))
            }
        })
    }
}

impl super::OnEntry<'_> {
    /// Writes the entry as it was before it was blocked.
    pub(super) fn unblock(&mut self) {
        let unblocked: SeptState = self.entry.state().unblocked();
        self.write(self.entry.with_state(unblocked, self.place.level));
    }
}
