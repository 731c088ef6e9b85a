//! Up to 64 frames of a dirty log start anew (`tdp_mmu.c:clear_dirty_pt_masked`).

use slat_memslot::{AsId, Gfn, Level};

use super::weaken::Loss;
use crate::roots::RootSelect;
use crate::spte::{Codec, Format, Marks, Spte};
use crate::table::{TableId, first as first_frame, index, span};
use crate::tdp::change::{At, pass_on, report};
use crate::tdp::events::Observer;
use crate::tdp::hooks::{AccessCheck, External};
use crate::tdp::lock::{Exclusive, Locked, Side};

/// How the next write to a page shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ByWhat {
    /// It faults.
    WriteProtection,
    /// Its dirty bit is set, where the hardware keeps one for this guest and logs it; else it faults.
    DirtyBit,
}

/// Clears words of a dirty log, one after the other, with the lock held throughout: what they have in common is found
/// once.
#[derive(Debug)]
pub struct ClearDirty<'l, 't, F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> {
    locked: &'l mut Locked<Exclusive<'t, F, X, C>, O>,
    as_id: AsId,
    /// The valid roots of the address space, newest first.
    roots: Vec<Watched>,
}

/// A root, and the way to where the last word was.
#[derive(Clone, Copy, Debug)]
struct Watched {
    root: TableId,
    top: Level,
    /// The first frame that it cannot map.
    end: u64,
    /// What a leaf loses.
    bit: u64,
    /// Where the last table of leaves begins, and the table, if there is one.
    leaves: Option<(u64, Option<TableId>)>,
}

impl<'t, F: Format, X: External<F>, C: AccessCheck, O: Observer<F>>
    Locked<Exclusive<'t, F, X, C>, O>
{
    /// Begins to clear words of the dirty log of an address space, in all its valid roots.
    pub fn clear_dirty(&mut self, as_id: AsId, by: ByWhat) -> ClearDirty<'_, 't, F, X, C, O> {
        let tables = self.tables();
        let watched = |root| {
            let role = tables.role_of(root);
            let loss = match by {
                ByWhat::WriteProtection => Loss::Write,
                ByWhat::DirtyBit => Loss::for_role(&tables.codec, role),
            };
            Watched {
                root,
                top: role.level(),
                end: tables.end_of_level(role.level()).raw(),
                bit: loss.bit(&tables.codec),
                leaves: None,
            }
        };
        let roots = self.root_tables(RootSelect::Valid, as_id);
        ClearDirty {
            as_id,
            roots: roots.map(watched).collect(),
            locked: self,
        }
    }
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> ClearDirty<'_, '_, F, X, C, O> {
    /// Lets the next write show to each of 64 frames from `first` on whose bit is set, as far as they are mapped by 4 KiB
    /// leaves (`tdp_mmu.c:kvm_tdp_mmu_clear_dirty_pt_masked`).
    ///
    /// Pages that lose a mark are passed on as dirty. TLBs are the caller's to flush.
    pub fn word(&mut self, first: Gfn, mask: u64) {
        for number in 0..self.roots.len() {
            self.word_in(number, first.raw(), mask);
        }
    }

    /// The same in one root, as far as it can tell frames apart.
    fn word_in(&mut self, number: usize, first: u64, mask: u64) {
        let watched = &mut self.roots[number];
        let bit = watched.bit;
        let mut left = mask & ones(watched.end.saturating_sub(first));
        while left != 0 {
            let from = first + u64::from(left.trailing_zeros());
            let watched = &mut self.roots[number];
            let (begin, table) = watched.leaves_at(self.locked, from);
            let here = left & ones(begin + span(Level::L2) - first);
            left ^= here;
            if let Some(table) = table {
                self.word_of(table, first, here, bit);
            }
        }
    }

    /// The same in one table of level 1, in which all the frames of the mask are.
    fn word_of(&mut self, table: TableId, first: u64, mask: u64, bit: u64) {
        let mut left = mask;
        while left != 0 {
            // Neighbours together.
            let start = left.trailing_zeros();
            let count = (left >> start).trailing_ones();
            left &= !(ones(u64::from(count)) << start);
            let at = At {
                as_id: self.as_id,
                gfn: first + u64::from(start),
                level: Level::L1,
            };
            let index = index(at.gfn, Level::L1);
            let run = index..index + count as usize;
            self.locked.take_bit_telling(table, at, run, bit, dirtied);
        }
    }
}

impl Watched {
    /// The table of the leaves around a frame, and where it begins. Nothing is linked or unlinked while words are
    /// cleared, so one that was found is there still.
    #[inline]
    fn leaves_at<S: Side, O: Observer<S::Format>>(
        &mut self,
        locked: &Locked<S, O>,
        gfn: u64,
    ) -> (u64, Option<TableId>) {
        let begin = first_frame(gfn, Level::L2);
        match self.leaves {
            Some(found) if found.0 == begin => found,
            _ => {
                let table = locked.table_below((self.root, self.top), Gfn::new(gfn), Level::L1);
                *self.leaves.insert((begin, table))
            }
        }
    }
}

/// The lowest bits, so many of them.
const fn ones(count: u64) -> u64 {
    match count {
        0..64 => (1 << count) - 1,
        _ => u64::MAX,
    }
}

/// Reports a change without further bookkeeping, as KVM does here: whatever the leaf has lost, its page is dirty.
fn dirtied<F: Format, O: Observer<F>>(
    observer: &mut O,
    codec: &Codec<F>,
    at: At,
    (old, new): (Spte<F>, Spte<F>),
) {
    report(observer, at, old, new);
    let dirty = Marks {
        dirty: true,
        accessed: false,
    };
    pass_on(observer, codec.pfn(old), Level::L1, dirty);
}
