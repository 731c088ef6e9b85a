//! Floors: the shortest loops over tables in slat's own arena, with slat's own entries. Tables are found by number, as slat
//! finds them.

use slat_mmu::spte::bits;

use crate::side::{Counts, Filling, Job, Kind, Seen};
use crate::tree::Tree;

/// A floor that has the tables to itself.
pub(crate) struct Floor<R> {
    tree: Tree,
    kind: Kind,
    run: R,
    counts: Counts,
}

impl<R: Pass> Floor<R> {
    pub(crate) fn new(kind: Kind, pages: u64, run: R) -> Self {
        Self {
            tree: Tree::new(pages),
            kind,
            run,
            counts: Counts::default(),
        }
    }
}

impl<R: Pass> Job for Floor<R> {
    fn prepare(&mut self) {
        match self.kind {
            Kind::Zap(filling) => self.tree.fill(filling),
            Kind::Harvest | Kind::Free | Kind::Protect(_) => self.tree.fill(Filling::Full),
            // Nothing to do again after the first time.
            Kind::Walk if self.counts != Counts::default() => (),
            Kind::Walk => self.tree.fill(Filling::Full),
            Kind::Map => self.tree.free(),
        }
    }

    fn run(&mut self) {
        self.counts = self.run.over(&mut self.tree);
    }

    fn seen(&mut self, gfn: u64) -> Seen {
        self.tree.seen(self.tree.root, gfn)
    }

    fn counted(&self) -> Counts {
        self.counts
    }
}

/// One way over all tables.
pub(crate) trait Pass {
    fn over(&self, tree: &mut Tree) -> Counts;
}

/// Writes the empty value over every entry: for tables known to be full of plain leaves.
pub(crate) struct PlainStores;

impl Pass for PlainStores {
    fn over(&self, tree: &mut Tree) -> Counts {
        let absent = tree.values.absent;
        tree.each_leaf_table(|table| {
            for entry in table {
                *entry.get_mut() = absent;
            }
        });
        Counts::default()
    }
}

/// Loads, tests and stores each entry, without a branch.
pub(crate) struct Select;

impl Pass for Select {
    fn over(&self, tree: &mut Tree) -> Counts {
        let absent = tree.values.absent;
        tree.each_leaf_table(|table| {
            for entry in table {
                let raw = entry.get_mut();
                let keep = u64::from(*raw & bits::MMU_PRESENT != 0).wrapping_sub(1);
                *raw = *raw & keep | absent & !keep;
            }
        });
        Counts::default()
    }
}

/// Counts a leaf; anything else counts as nothing.
#[inline]
pub(crate) fn count(counts: &mut Counts, raw: u64) {
    let leaf = raw >> 11 & 1;
    counts.leaves += leaf;
    counts.accessed += leaf & raw >> 8;
    counts.dirty += leaf & raw >> 9;
}

/// [`Select`] that counts leaves, accessed and dirty ones.
pub(crate) struct SelectCounted;

impl Pass for SelectCounted {
    fn over(&self, tree: &mut Tree) -> Counts {
        let absent = tree.values.absent;
        let mut counts = Counts::default();
        tree.each_leaf_table(|table| {
            for entry in table {
                let raw = entry.get_mut();
                count(&mut counts, *raw);
                let keep = u64::from(*raw & bits::MMU_PRESENT != 0).wrapping_sub(1);
                *raw = *raw & keep | absent & !keep;
            }
        });
        counts
    }
}

/// Gives all tables back, leaves unseen.
pub(crate) struct TearDown;

impl Pass for TearDown {
    fn over(&self, tree: &mut Tree) -> Counts {
        tree.free();
        Counts::default()
    }
}
