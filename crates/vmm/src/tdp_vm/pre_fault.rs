//! `KVM_PRE_FAULT_MEMORY`.

use core::fmt;

use slat_memslot::{Errno, Gfn, Gpa, Outcome, PAGE_SHIFT, Pages};
use slat_mmu::fault::{OutsideBaseMode, Prefault, PrefaultError, PrefaultOutside};
use slat_mmu::role::{VcpuMode, VcpuState, root_role_for_tdp};
use slat_mmu::roots::RootId;
use slat_mmu::spte::Format;

use super::TdpVm;
use crate::traces::Predicted;
use crate::{CallError, CallResult};

/// How a call ended, and how much it left: more than its error number says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreFaulted {
    /// Everything is mapped.
    All,
    /// The call is refused.
    Refused(Errno),
    /// The policy refuses a vCPU in this mode (`EINVAL`).
    OutsideBaseMode(OutsideBaseMode),
    /// A page cannot be mapped, and so many are left. The call fails only if it was the first.
    Stopped {
        /// Those that are not mapped.
        left: Pages,
        /// Why.
        why: PrefaultError,
    },
}

impl fmt::Display for PreFaulted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("everything is mapped"),
            Self::Refused(errno) => write!(f, "refused: {errno}"),
            Self::OutsideBaseMode(refused) => write!(f, "refused: {refused}"),
            Self::Stopped { left, why } => write!(f, "{} pages are left: {why}", left.raw()),
        }
    }
}

/// A call that was made: how it ended, what it answers, and what is left.
struct Done {
    ended: PreFaulted,
    answer: Result<(), Errno>,
    at: Gfn,
    left: Pages,
}

impl<F: Format> TdpVm<F> {
    /// What becomes of pre-faults by a vCPU in SMM or L2, of the three ways that were argued about; upstream is
    /// [`PrefaultOutside::CurrentRoot`].
    pub fn set_prefault_outside(&mut self, outside: PrefaultOutside) {
        self.prefault_outside = outside;
    }

    /// Maps pages ahead, into the root that the vCPU would run on, or as the policy has it
    /// ([`TdpVm::set_prefault_outside`]). `flags` must be 0.
    ///
    /// What KVM tries for ever ends here, as if by a signal: [`PrefaultError::Endless`].
    pub fn pre_fault(&mut self, vcpu: u32, gfn: Gfn, pages: Pages, flags: u64) -> PreFaulted {
        let index = self.vcpus.get(&vcpu).map_or(u32::MAX, |vcpu| vcpu.index);
        let (gpa, size) = (gfn.gpa().raw(), pages.raw() << PAGE_SHIFT);
        let checked = self.memory.check_pre_fault(index, gpa, size, flags);
        let refused = checked.err().map(|refusal| refusal.errno());
        self.pre_fault_checked(vcpu, (gfn, pages), refused).ended
    }

    /// The same by the vCPU's index, answered as a call is.
    pub(super) fn pre_fault_call(
        &mut self,
        index: u32,
        gpa: u64,
        size: u64,
        flags: u64,
    ) -> CallResult {
        let refused = self.memory.check_pre_fault(index, gpa, size, flags).err();
        let pages = (Gpa::new(gpa).gfn(), Pages::new(size >> PAGE_SHIFT));
        let vcpu = self.id_of(index).unwrap_or(u32::MAX);
        let done = self.pre_fault_checked(vcpu, pages, refused.map(|refusal| refusal.errno()));
        match (refused, done.answer) {
            (Some(refusal), _) => Err(refusal.into()),
            (None, Err(errno)) => Err(CallError::errno(errno)),
            (None, Ok(())) => Ok(Outcome::Remaining {
                gpa: done.at.gpa().raw(),
                size: done.left.raw() << PAGE_SHIFT,
            }),
        }
    }

    fn pre_fault_checked(
        &mut self,
        vcpu: u32,
        (gfn, pages): (Gfn, Pages),
        refused: Option<Errno>,
    ) -> Done {
        let (mut at, mut left) = (gfn, pages);
        let mut ended = match refused {
            Some(errno) => PreFaulted::Refused(errno),
            None if self.runs_on_l1_tables(vcpu) => PreFaulted::Refused(Errno::EOPNOTSUPP),
            None => self.check_mode(vcpu),
        };
        while ended == PreFaulted::All && left.raw() > 0 {
            match self.pre_fault_one(vcpu, at, left) {
                Ok(done) => {
                    at = Gfn::new(at.raw() + done.raw());
                    left = Pages::new(left.raw() - done.raw());
                }
                Err(why) => ended = PreFaulted::Stopped { left, why },
            }
        }
        // What was mapped is not taken back by an error.
        let answer = match ended {
            _ if left != pages => Ok(()),
            PreFaulted::All => Ok(()),
            PreFaulted::Refused(errno) => Err(errno),
            PreFaulted::OutsideBaseMode(_) => Err(Errno::EINVAL),
            PreFaulted::Stopped { why, .. } => Err(errno_of(why)),
        };
        self.answer(answer.map(|()| 0));
        self.out.events.push(Predicted::PreFaultLeft {
            gfn: at,
            pages: left,
        });
        Done {
            ended,
            answer,
            at,
            left,
        }
    }

    /// Whether the policy takes the vCPU's mode.
    fn check_mode(&self, vcpu: u32) -> PreFaulted {
        match (self.mode_of(vcpu), self.prefault_outside) {
            (mode @ (VcpuMode::Smm | VcpuMode::Guest), PrefaultOutside::Refused) => {
                PreFaulted::OutsideBaseMode(OutsideBaseMode(mode))
            }
            _ => PreFaulted::All,
        }
    }

    fn mode_of(&self, vcpu: u32) -> VcpuMode {
        let vcpu = self.vcpus.get(&vcpu);
        vcpu.map_or(VcpuMode::Normal, |vcpu| vcpu.state.mode)
    }

    fn pre_fault_one(&mut self, id: u32, gfn: Gfn, left: Pages) -> Result<Pages, PrefaultError> {
        let base = self.prefault_outside == PrefaultOutside::BaseRoot;
        let done = if base && self.mode_of(id) != VcpuMode::Normal {
            let root = self.hold_base_root(id)?;
            let done = self.pre_fault_into(root, id, (gfn, left));
            self.tables
                .shared(&mut self.reader, &mut self.out)
                .put_root(root);
            done
        } else {
            // Up to 6.14 requests are served on the way into the guest only: an obsolete root stays, and every try is
            // stale.
            if !self.memory.profile().pre_fault_spins.get() {
                self.serve_requests(id);
            }
            let root = self.load_root(id).ok_or(PrefaultError::OutOfTables)?;
            self.pre_fault_into(root, id, (gfn, left))
        };
        let done = done?;
        if let Some((slot, gfn)) = done.handled.mark_dirty {
            let index = self.vcpus.get(&id).map_or(u32::MAX, |vcpu| vcpu.index);
            let _ = self.memory.mark_dirty(index, slot.as_id, gfn);
        }
        Ok(done.done)
    }

    /// The root that a vCPU would have in the base mode, with a reference that has to be given back.
    fn hold_base_root(&mut self, id: u32) -> Result<RootId, PrefaultError> {
        let vcpu = self.vcpus.get(&id).ok_or(PrefaultError::BadPage)?;
        let state = VcpuState {
            mode: VcpuMode::Normal,
            ..vcpu.state
        };
        let role = root_role_for_tdp(&state, &self.tdp);
        let mut locked = self.tables.shared(&mut self.reader, &mut self.out);
        let root = locked.acquire_root(role);
        root.map(|root| root.root())
            .map_err(|_| PrefaultError::OutOfTables)
    }

    fn pre_fault_into(
        &mut self,
        root: RootId,
        id: u32,
        (gfn, left): (Gfn, Pages),
    ) -> Result<Prefault, PrefaultError> {
        let done = self.in_tables(id, gfn.gpa(), |locked, env| {
            locked.prefault(root, gfn, left, env)
        });
        done.unwrap_or(Err(PrefaultError::BadPage))
    }
}

const fn errno_of(error: PrefaultError) -> Errno {
    match error {
        PrefaultError::NoSlot => Errno::ENOENT,
        PrefaultError::BadPage => Errno::EFAULT,
        PrefaultError::Interrupted | PrefaultError::Endless { .. } => Errno::EINTR,
        PrefaultError::InvalidSlot => Errno::EAGAIN,
        PrefaultError::OutOfTables => Errno::ENOMEM,
    }
}

#[cfg(test)]
mod tests;
