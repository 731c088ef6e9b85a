//! An entry, bit for bit.

use core::fmt;

use slat_memslot::Level;
use slat_mmu::spte::Pfn;

use super::SeptState;

/// Read, write, execute (2:0).
const RWX: u64 = 0b111;
/// The memory type of a leaf (5:3): write-back.
const MT_WB: u64 = 6 << 3;
/// Ignore the PAT (6). Part of the state's encoding.
const BIT_6: u64 = 1 << 6;
/// The entry maps a page (7), at any level. Part of the state's encoding.
const LEAF: u64 = 1 << 7;
/// Dirty (9). Part of the state's encoding.
const BIT_9: u64 = 1 << 9;
/// TDEL: the entry is locked (11).
const LOCKED: u64 = 1 << 11;
/// The page or table (51:12).
const BASE: u64 = ((1 << 52) - 1) & !0xfff;
/// How much of a page of 2 MiB has been accepted (20:12), where the page's address has zeroes.
const ACCEPT_COUNTER: u64 = 0x1ff << 12;
/// HP: the host wants the entry (52).
const HOST_PRIORITY: u64 = 1 << 52;
/// TDEX, TDBW, TDB and TDP (56:53). Part of the state's encoding.
const BITS_56_53: u64 = 0xf << 53;
/// Suppress #VE (63).
const SUPPRESS_VE: u64 = 1 << 63;

const STATE: u64 = LEAF | BIT_6 | BITS_56_53 | BIT_9;
const _: () = assert!(STATE & (LOCKED | BASE | HOST_PRIORITY | SUPPRESS_VE | RWX | MT_WB) == 0);

/// An entry of the S-EPT.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct SeptEntry(u64);

impl SeptEntry {
    /// Nothing, with #VE suppressed: what a new table is full of.
    pub const FREE: Self = Self(state_bits(SeptState::Free) | SUPPRESS_VE);

    /// The raw bits.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// An entry from raw bits; `None` when they encode no state.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        match SeptState::from_encoding(encoding_of(raw)) {
            Some(_) => Some(Self(raw)),
            None => None,
        }
    }

    /// A leaf in this state.
    ///
    /// # Panics
    /// The state is none of a leaf (debug builds).
    pub const fn leaf(state: SeptState, page: Pfn) -> Self {
        debug_assert!(state.is_leaf());
        Self(Self::bits(state) | page.raw() << 12 & BASE)
    }

    /// The link to a table.
    pub const fn link(table: Pfn) -> Self {
        Self(Self::bits(SeptState::NlMapped) | table.raw() << 12 & BASE)
    }

    /// What stays of a page that was removed.
    pub const fn removed(importing: bool) -> Self {
        if importing {
            Self(state_bits(SeptState::Removed) | SUPPRESS_VE)
        } else {
            Self::FREE
        }
    }

    /// All bits that follow from the state.
    const fn bits(state: SeptState) -> u64 {
        let memory = if state.is_leaf() { MT_WB } else { 0 };
        // A page that the guest could accept may raise #VE; tables never do.
        let suppress = if state.is_acceptable() || state.is_table() {
            0
        } else {
            SUPPRESS_VE
        };
        state_bits(state) | state.permissions() | memory | suppress
    }

    /// The state.
    #[inline]
    pub const fn state(self) -> SeptState {
        match SeptState::from_encoding(encoding_of(self.0)) {
            Some(state) => state,
            // No entry is ever made with other bits.
            None => SeptState::Free,
        }
    }

    /// The same page or table in another state. Locks stay, the accept counter goes.
    #[must_use]
    pub const fn with_state(self, state: SeptState, level: Level) -> Self {
        let base = self.base(level).raw() << 12;
        Self(self.0 & (LOCKED | HOST_PRIORITY) | Self::bits(state) | base)
    }

    /// The page or table; the accept counter is no part of it.
    #[inline]
    pub const fn base(self, level: Level) -> Pfn {
        let counter = self.counter_mask(level);
        Pfn::new((self.0 & BASE & !counter) >> 12)
    }

    const fn counter_mask(self, level: Level) -> u64 {
        if matches!(level, Level::L2) && self.state().is_acceptable() {
            ACCEPT_COUNTER
        } else {
            0
        }
    }

    /// How many 4 KiB pages of a page of 2 MiB have been accepted (20:12).
    #[expect(clippy::cast_possible_truncation, reason = "nine bits")]
    pub const fn accept_counter(self, level: Level) -> u16 {
        ((self.0 & self.counter_mask(level)) >> 12) as u16
    }

    /// The same entry with another counter.
    #[must_use]
    pub const fn with_accept_counter(self, pages: u16) -> Self {
        Self(self.0 & !ACCEPT_COUNTER | (pages as u64) << 12 & ACCEPT_COUNTER)
    }

    /// Read, write, execute (2:0).
    pub const fn permissions(self) -> u64 {
        self.0 & RWX
    }

    /// Whether a call is using the entry (TDEL, bit 11).
    pub const fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    /// Whether the host has found the entry locked (HP, bit 52).
    pub const fn has_host_priority(self) -> bool {
        self.0 & HOST_PRIORITY != 0
    }

    /// Tries to lock for the host. If the entry is locked, the host gets priority.
    pub(crate) const fn lock_for_host(&mut self) -> bool {
        if self.is_locked() {
            self.0 |= HOST_PRIORITY;
            return false;
        }
        self.0 = self.0 & !HOST_PRIORITY | LOCKED;
        true
    }

    /// Tries to lock for the guest, who does not get what the host wants.
    pub(crate) const fn lock_for_guest(&mut self) -> Result<(), super::super::Code> {
        if self.is_locked() {
            return Err(super::super::Code::OperandBusy);
        }
        if self.has_host_priority() {
            return Err(super::super::Code::OperandBusyHostPriority);
        }
        self.0 |= LOCKED;
        Ok(())
    }

    pub(crate) const fn unlock(&mut self) {
        self.0 &= !LOCKED;
    }

    /// The entry without the bits of its locks.
    #[must_use]
    pub const fn unlocked(self) -> Self {
        Self(self.0 & !(LOCKED | HOST_PRIORITY))
    }
}

const fn state_bits(state: SeptState) -> u64 {
    let encoding = state.encoding() as u64;
    (encoding >> 5 & 3) << 6 | (encoding >> 1 & 0xf) << 53 | (encoding & 1) << 9
}

#[expect(clippy::cast_possible_truncation, reason = "seven bits")]
const fn encoding_of(raw: u64) -> u8 {
    ((raw >> 6 & 3) << 5 | (raw >> 53 & 0xf) << 1 | (raw >> 9 & 1)) as u8
}

impl fmt::Debug for SeptEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({:#x})", self.state(), self.0)
    }
}

/// What the host is told of an entry: its bits without what only the module may know (RCX), its level and state (RDX).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryView {
    /// The state.
    pub state: SeptState,
    /// The level of the entry.
    pub level: Level,
    /// What is mapped or linked, if anything is.
    pub base: Option<Pfn>,
}

impl EntryView {
    pub(crate) const fn of(entry: SeptEntry, level: Level) -> Self {
        let state = entry.state();
        let used = state.is_leaf() || state.is_table();
        Self {
            state,
            level,
            base: if used { Some(entry.base(level)) } else { None },
        }
    }

    /// RDX: the level in bits 2:0, 0 for 4 KiB, and the state in bits 15:8.
    pub const fn rdx(&self) -> u64 {
        (self.level as u64 - 1) | (self.state.public() as u64) << 8
    }
}
