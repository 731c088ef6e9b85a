//! Floors of the targets that the table of zaps has no row for.

use std::sync::atomic::Ordering;

use slat_mmu::spte::bits;
use slat_mmu::table::ENTRIES;

use crate::floor::{Pass, count};
use crate::side::{Counts, Filling};
use crate::tree::{Tree, index};

/// Loads and tests each entry; stores over leaves only.
pub(crate) struct Branch;

impl Pass for Branch {
    fn over(&self, tree: &mut Tree) -> Counts {
        let absent = tree.values.absent;
        tree.each_leaf_table(|table| {
            for entry in table {
                if entry.load(Ordering::Relaxed) & bits::MMU_PRESENT != 0 {
                    entry.store(absent, Ordering::Relaxed);
                }
            }
        });
        Counts::default()
    }
}

/// [`Branch`] that counts leaves, accessed and dirty ones.
pub(crate) struct BranchCounted;

impl Pass for BranchCounted {
    fn over(&self, tree: &mut Tree) -> Counts {
        let absent = tree.values.absent;
        let mut counts = Counts::default();
        tree.each_leaf_table(|table| {
            for entry in table {
                let raw = entry.load(Ordering::Relaxed);
                if raw & bits::MMU_PRESENT != 0 {
                    count(&mut counts, raw);
                    entry.store(absent, Ordering::Relaxed);
                }
            }
        });
        counts
    }
}

/// Maps every frame from an empty root; each table of leaves is written once.
pub(crate) struct MapAll;

impl Pass for MapAll {
    fn over(&self, tree: &mut Tree) -> Counts {
        let values = tree.values;
        let first = values.entry(Filling::Full.at(0));
        for (base, directory) in tree.directories() {
            for at in 0..ENTRIES {
                let leaves = tree.take();
                let mut raw = first + ((base + ((at as u64) << 9)) << 12);
                for entry in tree.arena.table_mut(leaves) {
                    *entry.get_mut() = raw;
                    raw += 1 << 12;
                }
                *tree.arena.table_mut(directory)[at].get_mut() = values.link_to(leaves);
            }
        }
        Counts::default()
    }
}

/// Counts leaves.
pub(crate) struct CountLeaves;

impl Pass for CountLeaves {
    fn over(&self, tree: &mut Tree) -> Counts {
        let mut leaves = 0;
        tree.each_leaf_table(|table| {
            for entry in table {
                leaves += *entry.get_mut() >> 11 & 1;
            }
        });
        Counts {
            leaves,
            ..Counts::default()
        }
    }
}

/// Takes the right to write from every entry of full tables, by plain stores.
pub(crate) struct ProtectPlainly;

impl Pass for ProtectPlainly {
    fn over(&self, tree: &mut Tree) -> Counts {
        tree.each_leaf_table(|table| {
            for entry in table {
                *entry.get_mut() &= !bits::WRITABLE;
            }
        });
        Counts::default()
    }
}

/// The same by one atomic operation for each entry.
pub(crate) struct ProtectAtomically;

impl Pass for ProtectAtomically {
    fn over(&self, tree: &mut Tree) -> Counts {
        tree.each_leaf_table(|table| {
            for entry in &*table {
                let _old = entry.fetch_and(!bits::WRITABLE, Ordering::AcqRel);
            }
        });
        Counts::default()
    }
}

/// The same by plain stores, the table being found for each 64 frames.
pub(crate) struct ProtectWords;

impl Pass for ProtectWords {
    fn over(&self, tree: &mut Tree) -> Counts {
        for first in (0..tree.pages).step_by(64) {
            let mut table = Some(tree.root);
            for level in [4, 3, 2] {
                table = table.and_then(|table| tree.child(table, index(first, level)));
            }
            let Some(leaves) = table else { continue };
            let at = index(first, 1);
            for entry in &mut tree.arena.table_mut(leaves)[at..at + 64] {
                *entry.get_mut() &= !bits::WRITABLE;
            }
        }
        Counts::default()
    }
}
