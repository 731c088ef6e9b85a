//! Which policy deletes a slot more cheaply, and why.

use core::fmt;
use std::collections::BTreeSet;

use slat_memslot::{
    GfnRange, Gpa, Level, Memory, PageSize, Quirks, Slot, SlotKey, Zap, ZapReach, cap,
};

use slat_mmu::tdp::dump::{Content, Range, Root};

use super::cost::BASE;
use super::guest::CODE;
use super::scene::{Policy, SLOT, Scene, SceneError};
use super::subject::Subject;

/// Frames that are mapped by leaves of one size, in every root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The frames.
    pub frames: GfnRange,
    /// What maps them.
    pub leaf: PageSize,
}

impl Mapped {
    /// What a root of a dump maps: everything that any has mapped, if all have the same.
    pub fn of_root(root: &Root) -> Vec<Self> {
        let of = |range: &Range| {
            let leaf = match (range.content, range.level) {
                (Content::Leaf(_), Level::L1) => PageSize::Size4K,
                (Content::Leaf(_), Level::L2) => PageSize::Size2M,
                (Content::Leaf(_), Level::L3) => PageSize::Size1G,
                _ => return None,
            };
            let frames = range.frames;
            Some(Self { frames, leaf })
        };
        root.ranges.iter().filter_map(of).collect()
    }

    /// First frames of its leaves.
    fn leaves(&self) -> impl Iterator<Item = u64> + use<> {
        let step = self.leaf.pages().raw();
        let first = self.frames.start().raw() / step;
        let end = self.frames.end().raw().div_ceil(step);
        (first..end).map(move |leaf| leaf * step)
    }
}

/// What is to be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Goal {
    /// Everybody's time together: the call, and the faults that follow.
    #[default]
    Work,
    /// The time of the call.
    Call,
    /// The time for which the guest's vCPUs do not run: while their faults wait for `mmu_lock`, and while they fault again.
    Stall,
}

/// What single steps cost, in nanoseconds.
///
/// The default are round figures of KVM on servers, leaves by the published 52 ns (`docs/zap.md`); whoever has measured his own
/// machine puts those.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// A leaf that is zapped, with what the host's memory management is told.
    pub leaf: f64,
    /// Another entry that changes.
    pub entry: f64,
    /// A fault that maps a page, with its exit.
    pub fault: f64,
    /// A vCPU that has to leave the guest for a new root.
    pub reload: f64,
    /// A flush of all vCPUs' TLBs.
    pub flush: f64,
}

impl Default for Prices {
    fn default() -> Self {
        Self {
            leaf: 52.0,
            entry: 3.0,
            fault: 850.0,
            reload: 2_000.0,
            flush: 2_000.0,
        }
    }
}

/// What a deletion by one policy comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Leaves that go, in all roots.
    pub leaves: u64,
    /// Entries that change, those leaves among them.
    pub entries: u64,
    /// Tables that go, without roots.
    pub tables: u64,
    /// Leaves of other slots that go: faults, if the guest touches all of them again.
    pub refaults: u64,
    /// vCPUs that need a new root.
    pub reloads: u64,
    /// Flushes of all TLBs.
    pub flushes: u64,
    /// What that costs, by goal and prices.
    pub nanoseconds: f64,
}

/// A reason for an advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Others would fault so many pages in again.
    OthersRefault {
        /// Faults.
        faults: u64,
    },
    /// No other slot has anything mapped, so that nothing is lost with the roots.
    NothingElseMapped,
    /// Roots are left behind at once, while leaves of the slot are zapped with the lock held for writing: faults wait.
    FaultsWaitForLeaves {
        /// Leaves.
        leaves: u64,
    },
    /// Taking tables apart changes every entry, empty ones too.
    TablesTakenApart {
        /// Entries that are no leaves.
        entries: u64,
    },
    /// The slot's tables stay, empty, until something else takes them.
    TablesStay,
    /// Nothing of the slot is mapped: there is nothing to zap.
    SlotNotMapped,
}

impl Reason {
    /// A name that does not change.
    pub const fn code(self) -> &'static str {
        match self {
            Self::OthersRefault { .. } => "others-refault",
            Self::NothingElseMapped => "nothing-else-mapped",
            Self::FaultsWaitForLeaves { .. } => "faults-wait-for-leaves",
            Self::TablesTakenApart { .. } => "tables-taken-apart",
            Self::TablesStay => "tables-stay",
            Self::SlotNotMapped => "slot-not-mapped",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OthersRefault { faults } => {
                write!(f, "with all roots, others fault {faults} pages in again")
            }
            Self::NothingElseMapped => f.write_str("no other slot has anything mapped"),
            Self::FaultsWaitForLeaves { leaves } => {
                write!(
                    f,
                    "faults wait while {leaves} leaves are zapped, and not for roots"
                )
            }
            Self::TablesTakenApart { entries } => write!(
                f,
                "with all roots, tables go too, which changes {entries} entries that are no leaves"
            ),
            Self::TablesStay => f.write_str("zapping leaves leaves the slot's tables, empty"),
            Self::SlotNotMapped => f.write_str("nothing of the slot is mapped"),
        }
    }
}

/// What is advised, with what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    /// The cheaper policy.
    pub cheaper: Zapping,
    /// What speaks for it; the last ones may speak against it.
    pub reasons: Vec<Reason>,
    /// All roots.
    pub all_roots: Estimate,
    /// The slot's leaves.
    pub leaves: Estimate,
    /// What the kernel would do as the VM is now, and why.
    pub kernel: Zap,
}

impl Advice {
    /// Whether the kernel does what is advised, as the VM is now.
    pub const fn is_taken(&self) -> bool {
        matches!(
            (self.cheaper, self.kernel.reach),
            (Zapping::AllRoots, ZapReach::AllRoots) | (Zapping::Leaves, ZapReach::Leafs { .. })
        )
    }
}

/// A policy of deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zapping {
    /// All roots are invalidated and zapped (`kvm_mmu_zap_all_fast`).
    AllRoots,
    /// The slot's leaves are zapped (`kvm_mmu_zap_memslot_leafs`).
    Leaves,
}

/// Roots and vCPUs of a VM. Each root has everything mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roots {
    /// Valid roots of four levels.
    pub four_level: u64,
    /// Those of five.
    pub five_level: u64,
    /// vCPUs.
    pub vcpus: u64,
}

impl Roots {
    const fn all(self) -> u64 {
        self.four_level + self.five_level
    }
}

/// Says which deletion of a slot is cheaper with the TDP MMU of Linux 6.12, and why. `mapped` is what all slots have mapped;
/// `None` if there is no such slot.
///
/// ```
/// use slat_memslot::{Gfn, GfnRange, Memory, PageSize, Pages, Profile, Region, SlotKey, VmType};
/// use slat_vmm::zap::{Goal, Mapped, Prices, Roots, Zapping, advise};
///
/// let mut memory = Memory::new(Profile::named("debian-6.12.117").unwrap(), VmType::Default);
/// let (small, big) = (SlotKey::normal(1), SlotKey::normal(2));
/// memory.set_region(&Region::new(small, 0, 0x4000, 0x4000_0000)).unwrap();
/// memory.set_region(&Region::new(big, 0x20_0000, 0x20_0000, 0x5000_0000)).unwrap();
/// let mapped = [(0, 4), (0x200, 0x200)].map(|(first, pages)| Mapped {
///     frames: GfnRange::new(Gfn::new(first), Pages::new(pages)).unwrap(),
///     leaf: PageSize::Size4K,
/// });
/// let roots = Roots { four_level: 1, five_level: 0, vcpus: 1 };
/// let advice = advise(&memory, small, &mapped, roots, (Goal::Work, &Prices::default())).unwrap();
/// assert_eq!(advice.cheaper, Zapping::Leaves);
/// assert_eq!(advice.reasons[0].to_string(), "with all roots, others fault 512 pages in again");
/// // The quirk is on.
/// assert!(!advice.is_taken());
/// ```
pub fn advise(
    memory: &Memory,
    key: SlotKey,
    mapped: &[Mapped],
    roots: Roots,
    (goal, prices): (Goal, &Prices),
) -> Option<Advice> {
    let slot = memory.space(key.as_id).by_id(key.id)?;
    let tally = Tally::of(slot, mapped);
    let mut all_roots = tally.all_roots(roots);
    let mut leaves = tally.leaves(roots);
    all_roots.nanoseconds = prices.of_all_roots(&all_roots, (goal, roots));
    leaves.nanoseconds = prices.of_leaves(&leaves, goal);
    let cheaper = match all_roots.nanoseconds < leaves.nanoseconds {
        true => Zapping::AllRoots,
        false => Zapping::Leaves,
    };
    Some(Advice {
        cheaper,
        reasons: reasons(cheaper, &all_roots, &leaves, goal),
        all_roots,
        leaves,
        kernel: memory.slot_zap(slot),
    })
}

/// What is mapped, in one root.
struct Tally {
    own: u64,
    others: u64,
    /// Tables by level, without roots: those of the fourth are there under roots of five levels only.
    tables: [u64; 4],
}

const ENTRIES: u64 = 512;

impl Tally {
    fn of(slot: &Slot, mapped: &[Mapped]) -> Self {
        let (mut own, mut others) = (0, 0);
        let mut tables: [BTreeSet<u64>; 4] = Default::default();
        for part in mapped {
            for first in part.leaves() {
                let end = first + part.leaf.pages().raw();
                match first < slot.range().end().raw() && slot.range().start().raw() < end {
                    true => own += 1,
                    false => others += 1,
                }
                for level in part.leaf.level() as usize..=4 {
                    tables[level - 1].insert(first >> (9 * level));
                }
            }
        }
        Self {
            own,
            others,
            tables: tables.map(|tables| tables.len() as u64),
        }
    }

    fn all_roots(&self, roots: Roots) -> Estimate {
        let leaves = (self.own + self.others) * roots.all();
        let [first, second, third, fourth] = self.tables;
        let (below, five) = (first + second, roots.five_level);
        let tables = (below + third) * roots.all() + fourth * five;
        // Each table is taken apart entry by entry, after its link; under five levels, those of the third go with their
        // parents.
        let links = tables - third * five;
        Estimate {
            leaves,
            entries: leaves + tables * ENTRIES + links,
            tables,
            refaults: self.others * roots.all(),
            reloads: roots.vcpus,
            flushes: 0,
            nanoseconds: 0.0,
        }
    }

    fn leaves(&self, roots: Roots) -> Estimate {
        let leaves = self.own * roots.all();
        Estimate {
            leaves,
            entries: leaves,
            flushes: 1,
            ..Estimate::default()
        }
    }
}

impl Prices {
    fn zap(&self, estimate: &Estimate) -> f64 {
        let others = estimate.entries - estimate.leaves;
        estimate.leaves as f64 * self.leaf + others as f64 * self.entry
    }

    /// Everything of one policy, by goal: others' faults stall as many vCPUs at a time as there are.
    fn of_all_roots(&self, estimate: &Estimate, (goal, roots): (Goal, Roots)) -> f64 {
        let again = estimate.refaults as f64 * self.fault + estimate.reloads as f64 * self.reload;
        match goal {
            Goal::Work => self.zap(estimate) + again,
            Goal::Call => self.zap(estimate),
            Goal::Stall => again / roots.vcpus.max(1) as f64,
        }
    }

    /// The lock is held for writing all the time.
    fn of_leaves(&self, estimate: &Estimate, goal: Goal) -> f64 {
        match goal {
            Goal::Work | Goal::Call | Goal::Stall => {
                self.zap(estimate) + estimate.flushes as f64 * self.flush
            }
        }
    }
}

impl Scene {
    /// What the advice is for its slot, with the TDP MMU of Linux 6.12.
    ///
    /// # Errors
    /// It cannot be played.
    pub fn advice(&self, goal: (Goal, &Prices)) -> Result<Advice, SceneError> {
        self.check()?;
        let machine = Subject::tdp().machine_for(self);
        let mut memory = Memory::new(machine.profile, self.policy.vm_type());
        if self.policy == Policy::QuirkOff {
            let args = [Quirks::SLOT_ZAP_ALL.bits(), 0, 0, 0];
            let _disabled = memory.enable_cap(cap::DISABLE_QUIRKS2, 0, args);
        }
        for region in self.slots(BASE) {
            let _made = memory.set_region(&region);
        }
        let five_level = u64::from(self.roots.saturating_sub(2));
        let roots = Roots {
            four_level: u64::from(self.roots) - five_level,
            five_level,
            vcpus: u64::from(self.vcpus),
        };
        let advice = advise(&memory, SLOT, &self.mapped(), roots, goal);
        advice.ok_or(SceneError::Empty)
    }

    /// What all slots have mapped: one page of instructions, and what the scene says.
    fn mapped(&self) -> Vec<Mapped> {
        let of = |gfn, leaf: PageSize| {
            let frames = GfnRange::new(gfn, leaf.pages());
            frames.map(|frames| Mapped { frames, leaf })
        };
        let frames = self.others_frames().chain(self.slot_frames(self.slot_at()));
        let code = of(Gpa::new(CODE).gfn(), PageSize::Size4K);
        core::iter::once(code)
            .chain(frames.map(|gfn| of(gfn, self.leaf)))
            .flatten()
            .collect()
    }
}

fn reasons(cheaper: Zapping, all: &Estimate, leaves: &Estimate, goal: Goal) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let refault = Reason::OthersRefault {
        faults: all.refaults,
    };
    match cheaper {
        Zapping::Leaves => {
            if all.refaults > 0 && goal != Goal::Call {
                reasons.push(refault);
            }
            if leaves.leaves == 0 {
                reasons.push(Reason::SlotNotMapped);
            }
            if all.tables > 0 && goal != Goal::Stall {
                reasons.push(Reason::TablesTakenApart {
                    entries: all.entries - all.leaves,
                });
            }
            if leaves.leaves > 0 {
                reasons.push(Reason::TablesStay);
            }
        }
        Zapping::AllRoots => {
            if leaves.leaves > 0 && goal == Goal::Stall {
                reasons.push(Reason::FaultsWaitForLeaves {
                    leaves: leaves.leaves,
                });
            }
            match all.refaults {
                0 => reasons.push(Reason::NothingElseMapped),
                _ => reasons.push(refault),
            }
        }
    }
    reasons
}
