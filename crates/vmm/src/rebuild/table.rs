//! One page table as far as a trace has told.

use std::collections::BTreeMap;

use slat_memslot::{AsId, Level};
use slat_mmu::role::PageRole;

/// The entries of a table.
pub(super) const ENTRIES: usize = 512;

/// What is known about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) enum State {
    /// Nothing.
    #[default]
    Unknown,
    /// A table is below; the link itself was not told.
    Linked,
    /// Events were lost since it was told.
    Doubtful,
    /// It follows from the huge leaf that was split, which no event tells.
    Split,
    /// An event told it, or the table was new.
    Known,
}

/// Where a table stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    /// A root.
    Root {
        /// Whether all roots of the VM were invalidated since.
        invalid: bool,
    },
    /// An entry leads to it.
    Linked,
    /// The entry that led to it is gone; what is left in it is about to be told.
    Removed,
}

/// The number of a table while a trace is read. Numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TableNo(pub(super) usize);

/// The number of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct VmNo(pub(super) usize);

/// A table.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) vm: VmNo,
    /// `None` for a root of which no entry was told.
    pub(super) as_id: Option<AsId>,
    pub(super) level: Level,
    /// The first frame that it covers.
    pub(super) first: u64,
    /// Where it is in the host's memory, if that was told.
    pub(super) frame: Option<u64>,
    pub(super) parent: Option<(TableNo, usize)>,
    pub(super) standing: Standing,
    /// The role, and whether it is the whole word.
    pub(super) role: Option<(PageRole, bool)>,
    /// Whether entries were frozen that were empty: then all are, one by one.
    pub(super) freezes_all: bool,
    /// The last entry that was frozen: that happens in order.
    pub(super) frozen_to: Option<usize>,
    /// What it was below before it was removed.
    pub(super) was_below: Option<TableNo>,
    /// Whether `kvm_mmu_prepare_zap_page` told that it went.
    pub(super) zap_told: bool,
    /// The line that told of it first.
    pub(super) since: u32,
    pub(super) children: BTreeMap<usize, TableNo>,
    values: Box<[u64]>,
    states: Box<[State]>,
}

impl Table {
    /// A table whose entries are all this.
    pub(super) fn new(
        (vm, as_id): (VmNo, Option<AsId>),
        (level, first): (Level, u64),
        (value, state): (u64, State),
    ) -> Self {
        Self {
            vm,
            as_id,
            level,
            first,
            frame: None,
            parent: None,
            standing: Standing::Linked,
            role: None,
            freezes_all: false,
            frozen_to: None,
            was_below: None,
            zap_told: false,
            since: 0,
            children: BTreeMap::new(),
            values: vec![value; ENTRIES].into(),
            states: vec![state; ENTRIES].into(),
        }
    }

    pub(super) fn get(&self, index: usize) -> (u64, State) {
        let value = self.values.get(index).copied().unwrap_or_default();
        (value, self.states.get(index).copied().unwrap_or_default())
    }

    pub(super) fn set(&mut self, index: usize, value: u64, state: State) {
        if let (Some(old), Some(was)) = (self.values.get_mut(index), self.states.get_mut(index)) {
            (*old, *was) = (value, state);
        }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (usize, u64, State)> + '_ {
        let values = self.values.iter().zip(self.states.iter()).enumerate();
        values.map(|(index, (value, state))| (index, *value, *state))
    }

    /// Nothing that was told is certain any more.
    pub(super) fn doubt(&mut self) {
        for state in &mut self.states {
            if matches!(state, State::Known | State::Split) {
                *state = State::Doubtful;
            }
        }
    }

    /// The first frame of an entry.
    pub(super) fn frame_of(&self, index: usize) -> u64 {
        self.first + index as u64 * self.level.pages().raw()
    }

    pub(super) const fn is_valid_root(&self) -> bool {
        matches!(self.standing, Standing::Root { invalid: false })
    }
}

/// The first frame of the table of this level that has a frame's entry.
pub(super) const fn first_of(gfn: u64, level: Level) -> u64 {
    let covered = level.pages().raw() * ENTRIES as u64;
    gfn & !(covered - 1)
}

/// The number of a frame's entry in its table.
#[expect(
    clippy::cast_possible_truncation,
    reason = "less than the number of entries"
)]
pub(super) const fn index_of(gfn: u64, level: Level) -> usize {
    (gfn / level.pages().raw() % ENTRIES as u64) as usize
}
