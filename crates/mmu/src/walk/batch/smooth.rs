//! A group on the short way: all walks take a step before any takes the next.

use slat_memslot::{Gpa, Gva};

use super::{Found, LANES};
use crate::walk::format::{GuestFormat, Paging64};
use crate::walk::guest::{SmoothLeaf, TABLE};
use crate::walk::memory::TableMemory;
use crate::walk::stage::Stage;
use crate::walk::{ErrorCode, GuestPaging};

/// One walk of a group.
#[derive(Clone, Copy, Debug)]
enum Lane {
    /// It is at a table: the entry above, and what the entries on the way have in common.
    At { entry: u64, bits: u64 },
    /// It is at its page.
    Leaf(SmoothLeaf),
    /// It is left to the walk that looks at everything.
    Off,
}

impl GuestPaging {
    /// Walks of long mode in which nothing faults and nothing has to be marked. The others come to nothing.
    pub(super) fn smooth_group<M, S>(
        &self,
        memory: &M,
        stage: &mut S,
        group: &[Gva],
        access: ErrorCode,
        found: &mut [Option<Found<S>>; LANES],
    ) where
        M: TableMemory<S::Address> + ?Sized,
        S: Stage,
    {
        let top = match self.mode.top_table() {
            Some(top) => top as u32 - 1,
            None => return,
        };
        let mut lanes = [Lane::Off; LANES];
        for (lane, address) in lanes.iter_mut().zip(group) {
            if self.is_canonical(*address) {
                let (entry, bits) = (self.root, u64::MAX);
                *lane = Lane::At { entry, bits };
            }
        }
        let mut places: [Option<Gpa>; LANES] = [None; LANES];
        let mut real: [Option<S::Address>; LANES] = [None; LANES];
        let mut entries = [None; LANES];
        for level in (0..=top).rev() {
            for ((place, lane), address) in places.iter_mut().zip(&lanes).zip(group) {
                *place = match lane {
                    Lane::At { entry, .. } => Some(Self::smooth_place(*entry, *address, level)),
                    Lane::Leaf(_) | Lane::Off => None,
                };
            }
            stage.translate_group(&places, TABLE, &mut real);
            // All are read before any is looked at: a CPU has few instructions under way behind a load that waits.
            for (entry, real) in entries.iter_mut().zip(real) {
                *entry = real.and_then(|real| memory.read_u64(real));
            }
            for ((lane, entry), address) in lanes.iter_mut().zip(entries).zip(group) {
                if let Lane::At { bits, .. } = *lane {
                    *lane = self.next(entry, bits, level, (*address, access));
                }
            }
        }
        for (place, lane) in places.iter_mut().zip(&lanes) {
            *place = match lane {
                Lane::Leaf(leaf) => Some(leaf.gpa),
                Lane::At { .. } | Lane::Off => None,
            };
        }
        stage.translate_group(&places, access | ErrorCode::GUEST_FINAL, &mut real);
        for ((found, lane), real) in found.iter_mut().zip(&lanes).zip(real) {
            if let (Lane::Leaf(leaf), Some(real)) = (lane, real) {
                *found = Some(Ok(leaf.at(real)));
            }
        }
    }

    /// Where a walk is after an entry of a table of `level`, from 0.
    #[inline]
    fn next(&self, entry: Option<u64>, bits: u64, level: u32, what: (Gva, ErrorCode)) -> Lane {
        let Some(entry) = entry else {
            return Lane::Off;
        };
        let bits = bits & (entry ^ Paging64::INVERTED);
        if level > 0 && self.reserved.is_good_link(entry, level) {
            return Lane::At { entry, bits };
        }
        let leaf = self.smooth_leaf(what, (entry, bits), level);
        leaf.map_or(Lane::Off, Lane::Leaf)
    }
}
