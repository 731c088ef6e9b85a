//! What a root is called, what it points at, and what became of it.

use core::fmt;

use slat_memslot::Gfn;

use crate::role::PageRole;
use crate::table::TableId;

/// A root of one [`RootTable`](super::RootTable). No two roots ever have the same one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootId {
    pub(super) index: u32,
    /// How often the place had been used before.
    pub(super) generation: u32,
}

impl fmt::Debug for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootId({}.{})", self.index, self.generation)
    }
}

impl RootId {
    /// The place in the table, and how often it had been used before.
    pub const fn parts(self) -> (u32, u32) {
        (self.index, self.generation)
    }

    /// The place in the table.
    #[inline]
    pub(super) const fn place(self) -> usize {
        self.index as usize
    }

    /// Another root for the same place; `None` when its generations are used up.
    pub(super) fn next(self) -> Option<Self> {
        let generation = self.generation.checked_add(1)?;
        Some(Self { generation, ..self })
    }
}

/// What a root points at: anything that has a number of 32 bits, so that it can be read without a lock.
pub trait Payload: Copy {
    /// The number.
    fn into_raw(self) -> u32;
    /// What has this number. Only ever called with one that [`Payload::into_raw`] gave.
    fn from_raw(raw: u32) -> Self;
}

impl Payload for () {
    fn into_raw(self) -> u32 {
        0
    }

    fn from_raw(_raw: u32) -> Self {}
}

impl Payload for u32 {
    fn into_raw(self) -> u32 {
        self
    }

    fn from_raw(raw: u32) -> Self {
        raw
    }
}

impl Payload for TableId {
    fn into_raw(self) -> u32 {
        self.raw()
    }

    fn from_raw(raw: u32) -> Self {
        Self::new(raw)
    }
}

/// Whether the TDP MMU is on (`kvm.tdp_mmu`); without it direct roots are shadow pages, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TdpMmu {
    /// Direct roots belong to the TDP MMU.
    #[default]
    On,
    /// All roots are shadow pages.
    Off,
}

/// Who manages a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RootKind {
    /// The TDP MMU, which holds a reference of its own until the root has been zapped.
    Tdp,
    /// The shadow MMU, which keeps a root without references for later use.
    Shadow {
        /// The guest frame of the table that is shadowed; 0 for a direct root.
        gfn: Gfn,
    },
}

/// How a root was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Acquired {
    /// It was there already, with the same role.
    Shared(RootId),
    /// There was none.
    Created(RootId),
}

impl Acquired {
    /// The root.
    #[inline]
    pub const fn root(self) -> RootId {
        match self {
            Self::Shared(root) | Self::Created(root) => root,
        }
    }
}

/// A root that is gone, with what it pointed at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freed<P> {
    /// The root; it names nothing any more.
    pub root: RootId,
    /// Its role when it went.
    pub role: PageRole,
    /// What it pointed at.
    pub payload: P,
}

/// What giving up a reference did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a root that was freed takes its page tables along"]
pub enum Released<P> {
    /// The root is still there, or goes with another reference.
    Kept(RootId),
    /// It was the last reference to an invalid root.
    Freed(Freed<P>),
}

impl<P> Released<P> {
    /// The root that is gone, if it is.
    pub fn freed(self) -> Option<Freed<P>> {
        match self {
            Self::Kept(_) => None,
            Self::Freed(freed) => Some(freed),
        }
    }
}

/// Which roots an iteration visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RootSelect {
    /// Those that are not invalid.
    Valid,
    /// Invalid ones, too.
    All,
}

/// A step of an iteration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the next root is held, and a root that was freed takes its page tables along"]
pub struct NextRoot<P> {
    /// The next root, which is held now; `None` at the end.
    pub root: Option<RootId>,
    /// The one before, if giving it up has freed it.
    pub freed: Option<Freed<P>>,
}
