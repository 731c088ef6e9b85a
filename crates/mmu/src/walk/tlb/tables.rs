//! Tables of the guest that walks begin at.

use slat_memslot::{Gpa, Gva, Hpa, Level};

use super::context::Context;
use crate::walk::guest::Start;

/// How many tables are kept of each level.
const SLOTS: usize = 32;

/// A table of the guest, as a walk to it leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    context: Context,
    /// The part of the address that leads to the table.
    prefix: u64,
    start: Start,
}

impl Kept {
    #[inline]
    fn is_for(&self, context: &Context, prefix: u64) -> bool {
        self.prefix == prefix && self.context.is(context)
    }
}

/// A table of level 1 of the guest with where it is on the host: what the manuals call a combined mapping. The second stage
/// lets the guest's walks read and mark it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LastTable {
    kept: Kept,
    hpa: Hpa,
}

impl LastTable {
    /// Where the entry is that an address selects.
    #[inline]
    pub(super) const fn entry(&self, address: Gva) -> Hpa {
        Hpa::new(self.hpa.raw() | (address.raw() >> 12 & 511) << 3)
    }

    /// What the entries above have in common.
    #[inline]
    pub(super) const fn bits(&self) -> u64 {
        self.kept.start.bits
    }

    /// Whose it is.
    pub(super) const fn context(&self) -> &Context {
        &self.kept.context
    }

    /// The first address that it is for.
    pub(super) const fn address(&self) -> Gva {
        Gva::new(self.kept.prefix << 21)
    }

    /// Where it is for the guest.
    pub(super) const fn gpa(&self) -> Gpa {
        self.kept.start.table()
    }

    /// Where it is.
    pub(super) const fn hpa(&self) -> Hpa {
        self.hpa
    }
}

/// Tables of levels 1 to 4, each direct-mapped by the address. Flushes of the guest and of the second stage empty all of it,
/// as hardware may.
#[derive(Clone, Debug)]
pub(super) struct GuestTables {
    last: Box<[Option<LastTable>; SLOTS]>,
    levels: Box<[[Option<Kept>; SLOTS]; 4]>,
}

impl Default for GuestTables {
    fn default() -> Self {
        Self {
            last: Box::new([None; SLOTS]),
            levels: Box::new([[None; SLOTS]; 4]),
        }
    }
}

/// The part of an address that leads to a table of a level, and its place.
#[inline]
fn place(address: Gva, level: usize) -> (u64, usize) {
    let prefix = match level {
        0 => address.raw() >> 21,
        1 => address.raw() >> 30,
        2 => address.raw() >> 39,
        _ => address.raw() >> 48,
    };
    let [low, ..] = prefix.to_le_bytes();
    (prefix, usize::from(low) % SLOTS)
}

impl GuestTables {
    /// The table of level 1 for an address, if it is kept with where it is.
    #[inline]
    pub(super) fn last(&self, context: &Context, address: Gva) -> Option<&LastTable> {
        let (prefix, slot) = place(address, 0);
        let last = self.last[slot].as_ref()?;
        last.kept.is_for(context, prefix).then_some(last)
    }

    /// The lowest table that is kept for an address.
    #[inline]
    pub(super) fn find(&self, context: &Context, address: Gva) -> Option<Start> {
        self.levels.iter().enumerate().find_map(|(level, tables)| {
            let (prefix, slot) = place(address, level);
            let kept = tables[slot].as_ref()?;
            kept.is_for(context, prefix).then_some(kept.start)
        })
    }

    /// Keeps a table.
    pub(super) fn insert(&mut self, context: &Context, address: Gva, level: Level, start: Start) {
        let level = level as usize - 1;
        let Some(tables) = self.levels.get_mut(level) else {
            return;
        };
        let (prefix, slot) = place(address, level);
        tables[slot] = Some(Kept {
            context: *context,
            prefix,
            start,
        });
    }

    /// Keeps where a table of level 1 is.
    pub(super) fn insert_last(&mut self, context: &Context, address: Gva, start: Start, hpa: Hpa) {
        let (prefix, slot) = place(address, 0);
        let kept = Kept {
            context: *context,
            prefix,
            start,
        };
        self.last[slot] = Some(LastTable { kept, hpa });
    }

    pub(super) fn clear(&mut self) {
        *self.last = [None; SLOTS];
        *self.levels = [[None; SLOTS]; 4];
    }

    /// The tables whose place on the host is kept.
    pub(super) fn last_tables(&self) -> impl Iterator<Item = &LastTable> {
        self.last.iter().flatten()
    }
}
