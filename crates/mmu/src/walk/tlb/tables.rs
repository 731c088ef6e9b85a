//! Tables of the guest that walks begin at.

use slat_memslot::{Gva, Level};

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

/// Tables of levels 1 to 4, each direct-mapped by the address. Flushes of the guest empty all of it, as hardware may.
#[derive(Clone, Debug)]
pub(super) struct GuestTables(Box<[[Option<Kept>; SLOTS]; 4]>);

impl Default for GuestTables {
    fn default() -> Self {
        Self(Box::new([[None; SLOTS]; 4]))
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
    /// The lowest table that is kept for an address.
    #[inline]
    pub(super) fn find(&self, context: &Context, address: Gva) -> Option<Start> {
        self.0.iter().enumerate().find_map(|(level, tables)| {
            let (prefix, slot) = place(address, level);
            let kept = tables[slot].as_ref()?;
            (kept.prefix == prefix && kept.context == *context).then_some(kept.start)
        })
    }

    /// Keeps a table.
    #[inline]
    pub(super) fn insert(&mut self, context: &Context, address: Gva, level: Level, start: Start) {
        let level = level as usize - 1;
        let Some(tables) = self.0.get_mut(level) else {
            return;
        };
        let (prefix, slot) = place(address, level);
        tables[slot] = Some(Kept {
            context: *context,
            prefix,
            start,
        });
    }

    pub(super) fn clear(&mut self) {
        *self.0 = [[None; SLOTS]; 4];
    }
}
