//! Calls that are to find something busy.

use crate::tdx::leaf::Seamcall;
use crate::tdx::status::Operand;

/// Which calls are told `OPERAND_BUSY` although nobody is there.
///
/// ```
/// use slat_coco::tdx::{BusyPlan, Operand, Seamcall};
/// // The second removal of a page finds the tree taken, once.
/// let plan = BusyPlan::once(Seamcall::MemPageRemove, 1, Operand::SeptTree);
/// assert!(!plan.is_spent());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BusyPlan {
    strikes: Vec<Strike>,
    /// One in so many calls, chosen by a generator with this state.
    random: Option<(u32, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Strike {
    leaf: Option<Seamcall>,
    skip: u32,
    times: u32,
    operand: Operand,
}

impl BusyPlan {
    /// One call of `leaf`, after `skip` others.
    pub fn once(leaf: Seamcall, skip: u32, operand: Operand) -> Self {
        Self::times(leaf, skip, 1, operand)
    }

    /// So many calls of `leaf`, after `skip` others.
    pub fn times(leaf: Seamcall, skip: u32, times: u32, operand: Operand) -> Self {
        let strike = Strike {
            leaf: Some(leaf),
            skip,
            times,
            operand,
        };
        Self {
            strikes: vec![strike],
            ..Self::default()
        }
    }

    /// The call after `skip` others, whichever it is.
    pub fn any(skip: u32, operand: Operand) -> Self {
        let strike = Strike {
            leaf: None,
            skip,
            times: 1,
            operand,
        };
        Self {
            strikes: vec![strike],
            ..Self::default()
        }
    }

    /// One in `calls` calls, by a generator that begins with `seed`. Calls that take something away are disturbed by vCPUs
    /// alone: they are busy only while one is inside.
    pub const fn random(calls: u32, seed: u64) -> Self {
        Self {
            strikes: Vec::new(),
            random: Some((calls, seed)),
        }
    }

    /// Both plans.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.strikes.extend(other.strikes);
        self.random = self.random.or(other.random);
        self
    }

    /// Whether nothing will be busy any more.
    pub fn is_spent(&self) -> bool {
        self.random.is_none() && self.strikes.iter().all(|strike| strike.times == 0)
    }

    /// Whether this call finds something busy, and what; `inside` says whether any vCPU runs.
    pub(super) fn strikes(&mut self, leaf: Seamcall, inside: bool) -> Option<Operand> {
        let concerned =
            |strike: &&mut Strike| strike.times > 0 && strike.leaf.is_none_or(|of| of == leaf);
        for strike in self.strikes.iter_mut().filter(concerned) {
            if strike.skip > 0 {
                strike.skip -= 1;
            } else {
                strike.times -= 1;
                return Some(strike.operand);
            }
        }
        let (calls, state) = self.random.as_mut()?;
        *state = next(*state);
        let struck = (*state >> 33) % u64::from(*calls).max(1) == 0;
        let disturbed = inside || !takes_away(leaf);
        (struck && disturbed).then_some(Operand::Rcx)
    }
}

/// Whether a call is one that KVM makes with the lock held for writing, and that must not fail.
const fn takes_away(leaf: Seamcall) -> bool {
    matches!(
        leaf,
        Seamcall::MemRangeBlock
            | Seamcall::MemTrack
            | Seamcall::MemPageRemove
            | Seamcall::PhymemPageWbinvd
    )
}

/// The next state of a linear congruential generator (Knuth's MMIX).
const fn next(state: u64) -> u64 {
    state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407)
}
