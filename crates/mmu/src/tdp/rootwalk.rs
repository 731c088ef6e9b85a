//! Going through the roots of a VM while the lock may be given up in between (`tdp_mmu.c:tdp_mmu_next_root`): the root that
//! an operation is on is held, and nothing else is kept.

use slat_memslot::{AsId, GfnRange};

use super::cursor::Cursor;
use super::events::Observer;
use super::lock::{Locked, Side};
use super::resched::Resched;
use crate::role::{PageRole, RoleFlag};
use crate::roots::{RootId, RootSelect};
use crate::spte::Format;
use crate::table::TableId;

/// Which kinds of roots an operation visits (`enum kvm_tdp_mmu_root_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum RootTypes {
    /// Both.
    #[default]
    All,
    /// Those that hardware walks: where TDX is on, those of shared memory.
    Direct,
    /// Those that reflect somebody else's tables: of private memory.
    Mirror,
}

impl RootTypes {
    const fn has(self, role: PageRole) -> bool {
        match self {
            Self::All => true,
            Self::Direct => !role.has(RoleFlag::IsMirror),
            Self::Mirror => role.has(RoleFlag::IsMirror),
        }
    }
}

/// Which root an operation is on, and where in it.
#[derive(Debug)]
pub(super) struct RootWalk {
    select: RootSelect,
    as_id: Option<AsId>,
    types: RootTypes,
    start: u64,
    /// Where the range ends.
    range_end: u64,
    /// The same, or what the root that it is on cannot map any more.
    end: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the root that follows this one, which is still held.
    Before(Option<RootId>),
    /// On this root, at this frame.
    On(RootId, u64),
    Over,
}

impl RootWalk {
    /// Through all roots of this kind, each for this range.
    pub(super) const fn new(select: RootSelect, as_id: Option<AsId>, range: GfnRange) -> Self {
        Self {
            select,
            as_id,
            types: RootTypes::All,
            start: range.start().raw(),
            range_end: range.end().raw(),
            end: 0,
            state: State::Before(None),
        }
    }

    /// Through roots of these types only.
    pub(super) const fn with_types(mut self, types: RootTypes) -> Self {
        self.types = types;
        self
    }

    /// The frame to stop before, in the root that it is on.
    ///
    /// KVM goes on to the last frame of the host even in a root that has fewer levels than the host, and takes frames
    /// there for lower ones. Here a root ends where its levels do.
    #[inline]
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// The root that it is on.
    pub(super) const fn root(&self) -> Option<RootId> {
        match self.state {
            State::On(root, _) => Some(root),
            State::Before(_) | State::Over => None,
        }
    }

    /// The table to start from and the frame to start at; goes on to the next root if need be. `None` at the end.
    pub(super) fn current<S: Side, O: Observer<S::Format>>(
        &mut self,
        locked: &mut Locked<S, O>,
    ) -> Option<(TableId, u64)> {
        loop {
            match self.state {
                State::Over => return None,
                State::On(root, at) => {
                    let table = locked.root_table(root)?;
                    self.end = self.range_end.min(locked.tables().end_of(table).raw());
                    return Some((table, at));
                }
                State::Before(last) => self.step(locked, last),
            }
        }
    }

    fn step<S: Side, O: Observer<S::Format>>(
        &mut self,
        locked: &mut Locked<S, O>,
        last: Option<RootId>,
    ) {
        let next = locked
            .tables()
            .roots
            .next_root(last, self.select, self.as_id);
        if let Some(freed) = next.freed {
            locked.free_root(freed);
        }
        self.state = match next.root {
            Some(root) if !self.visits(locked, root) => State::Before(Some(root)),
            Some(root) => State::On(root, self.start),
            None => State::Over,
        };
    }

    fn visits<S: Side, O>(&self, locked: &Locked<S, O>, root: RootId) -> bool {
        let role = locked.tables().roots.role(root);
        role.is_some_and(|role| self.types.has(role))
    }

    /// Leaves the root that it is on.
    pub(super) const fn next_root(&mut self) {
        if let State::On(root, _) = self.state {
            self.state = State::Before(Some(root));
        }
    }

    /// Starts at the root's first frame again.
    pub(super) const fn rewind(&mut self) {
        if let State::On(root, _) = self.state {
            self.state = State::On(root, self.start);
        }
    }

    /// Ends before all roots were visited.
    pub(super) fn stop<S: Side, O: Observer<S::Format>>(&mut self, locked: &mut Locked<S, O>) {
        let held = match self.state {
            State::On(root, _) | State::Before(Some(root)) => Some(root),
            State::Before(None) | State::Over => None,
        };
        if let Some(root) = held {
            locked.put_root(root);
        }
        self.state = State::Over;
    }

    /// Whether to give way now (`tdp_mmu.c:tdp_mmu_iter_cond_resched`). If so, the place is remembered.
    #[inline]
    pub(super) fn gives_way<F: Format, R: Resched>(
        &mut self,
        cursor: &Cursor<F>,
        resched: &mut R,
    ) -> bool {
        if !R::ENABLED || !cursor.has_progressed() || !resched.is_needed() {
            return false;
        }
        if let State::On(root, _) = self.state {
            self.state = State::On(root, cursor.position());
        }
        true
    }
}
