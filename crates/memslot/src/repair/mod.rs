//! What would make a refused call succeed.
//!
//! A repair removes one cause: the smallest change of the request that takes the named reason away, or a call to
//! make first. A request can be wrong in several ways; after the repair the kernel either accepts it or refuses it
//! for the next reason, which [`Memory::check`] names in turn. [`Memory::repairs`] follows the chain to its end.

mod file;
mod region;
mod vm;

use crate::{Call, Gfn, GfnRange, Memory, Outcome, Pages, Reason, Refusal, SlotKey};

/// The smallest change that takes one reason away.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Repair {
    /// Make these calls first, then this one in place of the refused one.
    Calls {
        /// Calls to make first; usually none.
        first: Vec<Call>,
        /// The call, changed where it has to be.
        call: Call,
    },
    /// No change of the call helps.
    Impossible {
        /// Why, and what to do instead.
        why: &'static str,
    },
}

impl Repair {
    /// The changed call alone.
    fn edit(call: Call) -> Self {
        Self::Calls {
            first: Vec::new(),
            call,
        }
    }

    /// The same call after another one.
    fn after(first: Call, call: Call) -> Self {
        Self::Calls {
            first: vec![first],
            call,
        }
    }
}

/// One link of a chain of repairs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RepairStep {
    /// Why the call failed before this step.
    pub reason: Reason,
    /// What takes the reason away.
    pub repair: Repair,
}

/// More links than a request has ways to be wrong.
const LONGEST_CHAIN: usize = 16;

impl Memory {
    /// Answers a call without changing this VM.
    ///
    /// # Errors
    /// As [`Memory::call`]. Costs a copy of the VM for calls other than set-region.
    pub fn check(&self, call: &Call) -> Result<(), Refusal> {
        match call {
            Call::SetRegion(request) => self.check_region(request).map(drop),
            other => self.clone().call(other).map(|_outcome: Outcome| ()),
        }
    }

    /// The smallest change that takes `reason` away from `call`, in the VM's present state.
    ///
    /// Calls to make first are known to be accepted.
    pub fn repair(&self, call: &Call, reason: &Reason) -> Repair {
        match self.propose(call, reason) {
            Repair::Calls { first, .. } if !self.accepts(&first) => Repair::Impossible {
                why: "the call that would have to come first is refused as well",
            },
            repair => repair,
        }
    }

    /// Whether these calls succeed one after the other.
    fn accepts(&self, calls: &[Call]) -> bool {
        match calls {
            [] => true,
            [call] => self.check(call).is_ok(),
            several => {
                let mut memory = self.clone();
                several.iter().all(|call| memory.call(call).is_ok())
            }
        }
    }

    /// The change that speaks to `reason`, before it is known whether it can be made.
    fn propose(&self, call: &Call, reason: &Reason) -> Repair {
        match (reason, call) {
            (Reason::Region(reason), Call::SetRegion(request)) => {
                self.repair_region(request, reason)
            }
            (Reason::Region(_) | Reason::Gate(_), _) => Repair::Impossible {
                why: "the VM itself is in the way",
            },
            (Reason::Gmem(reason), _) => self.repair_create_gmem(call, reason),
            (Reason::File(reason), Call::File(file, request)) => {
                self.repair_file(*file, *request, reason)
            }
            (Reason::Map(reason), Call::Map(map, request)) => {
                file::repair_map(*map, *request, reason)
            }
            (Reason::File(_) | Reason::Map(_), _) => Repair::Impossible {
                why: "the file is gone",
            },
            (Reason::Attributes(reason), _) => self.repair_attributes(call, reason),
            (Reason::DirtyLog(reason), _) => self.repair_dirty_log(call, reason),
            (Reason::DirtyRing(reason), _) => self.repair_dirty_ring(call, reason),
            (Reason::Cap(reason), _) => vm::repair_cap(call, reason),
            (Reason::PreFault(reason), _) => self.repair_pre_fault(call, reason),
            (Reason::Vm(reason), _) => vm::repair_vm(call, reason),
        }
    }

    /// The chain of repairs from a refused call to one that succeeds, or to one that nothing helps. Empty when the
    /// call succeeds as it is.
    pub fn repairs(&self, call: &Call) -> Vec<RepairStep> {
        let mut memory = self.clone();
        let mut call = call.clone();
        let mut chain = Vec::new();
        while let (Err(refusal), true) = (memory.check(&call), chain.len() < LONGEST_CHAIN) {
            let repair = memory.repair(&call, &refusal.reason);
            let next = match &repair {
                Repair::Impossible { .. } => None,
                Repair::Calls { first, call } => {
                    let prepared = first.iter().all(|first| memory.call(first).is_ok());
                    prepared.then(|| call.clone())
                }
            };
            chain.push(RepairStep {
                reason: refusal.reason,
                repair,
            });
            match next {
                Some(next) => call = next,
                None => break,
            }
        }
        chain
    }

    /// Frames for `pages` pages that no slot of the address space holds and that the MMU can map: behind the last
    /// slot if there is room, else in the first gap.
    pub fn free_range(&self, slot: SlotKey, pages: Pages) -> Option<GfnRange> {
        let top = self.profile().max_gfn() + 1;
        let top = self.shared_bit().map_or(top, |bit| top.min(bit));
        let space = self.space(slot.as_id);
        let fits =
            |start: Gfn| GfnRange::new(start, pages).filter(|range| range.end().raw() <= top);
        let behind = space.last().map_or(Gfn::new(0), |last| last.range().end());
        if let Some(range) = fits(behind) {
            return Some(range);
        }
        let mut start = Gfn::new(0);
        for used in space.iter() {
            match fits(start) {
                Some(range) if range.end() <= used.range().start() => return Some(range),
                _ => start = used.range().end(),
            }
        }
        None
    }
}
