//! Floors of the zaps that share their tables with other threads, or look at no table.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use slat_mmu::spte::bits;
use slat_mmu::table::{ENTRIES, TableId};

use crate::side::{FastZap, Filling, GIB, Seen, SharedZap};
use crate::tree::{Tree, index, linked};

/// How [`SharedFloor`] takes a leaf table's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// One swap to the frozen value for each entry.
    Once,
    /// A pass over all leaves with a compare-exchange to the empty value, then a swap to the frozen value for each entry.
    Twice,
}

/// Zaps an invalid root with atomic operations, another root of the same arena being in use.
pub(crate) struct SharedFloor {
    tree: Tree,
    exchange: Exchange,
    lock: RwLock<()>,
    new_root: TableId,
    /// Tables below the new root.
    grown: Mutex<Vec<TableId>>,
    /// Tables of the invalid root that were frozen.
    removed: Mutex<Vec<TableId>>,
}

impl SharedFloor {
    pub(crate) fn new(exchange: Exchange, pages: u64) -> Self {
        let tree = Tree::new(pages);
        let new_root = tree.arena.allocate().expect("the second table");
        Self {
            tree,
            exchange,
            lock: RwLock::new(()),
            new_root,
            grown: Mutex::default(),
            removed: Mutex::default(),
        }
    }

    /// Freezes one entry and gives the table that it led to.
    #[inline]
    fn freeze(&self, entry: &AtomicU64) -> Option<TableId> {
        linked(entry.swap(self.tree.values.frozen, Ordering::AcqRel))
    }

    fn zap_leaves(&self) {
        let absent = self.tree.values.absent;
        for gfn in (0..self.tree.pages).step_by(1 << 18) {
            let pointers = self.tree.child(self.tree.root, index(gfn, 4));
            let directory = pointers.and_then(|table| self.tree.child(table, index(gfn, 3)));
            let Some(directory) = directory else { continue };
            for at in 0..ENTRIES {
                let Some(leaves) = self.tree.child(directory, at) else {
                    continue;
                };
                for entry in self.tree.arena.table(leaves) {
                    let raw = entry.load(Ordering::Relaxed);
                    if raw & bits::MMU_PRESENT != 0 {
                        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
                        let _old = entry.compare_exchange(raw, absent, success, failure);
                    }
                }
            }
        }
    }

    /// Freezes all entries of a table at `level` and of the tables below it.
    fn remove(&self, table: TableId, level: u32, removed: &mut Vec<TableId>) {
        for entry in self.tree.arena.table(table) {
            let old = self.freeze(entry);
            if level > 1 {
                if let Some(child) = old {
                    self.remove(child, level - 1, removed);
                }
            }
        }
        removed.push(table);
    }

    fn fault(&self, gfn: u64) {
        let _shared = self.lock.read();
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        let (arena, values) = (&self.tree.arena, &self.tree.values);
        let mut table = self.new_root;
        for level in [4, 3, 2] {
            let entry = &arena.table(table)[index(gfn, level)];
            let old = entry.load(Ordering::Acquire);
            table = linked(old).unwrap_or_else(|| {
                // Nobody else faults, so the exchange does not fail.
                let child = arena.allocate().expect("tables for two roots");
                self.grown
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(child);
                let _old = entry.compare_exchange(old, values.link_to(child), success, failure);
                child
            });
        }
        let entry = &arena.table(table)[index(gfn, 1)];
        let old = entry.load(Ordering::Relaxed);
        if old == values.absent {
            let leaf = values.entry(Filling::Full.at(gfn));
            let _old = entry.compare_exchange(old, leaf, success, failure);
        }
    }
}

impl SharedZap for SharedFloor {
    fn prepare(&mut self) {
        let poisoned = PoisonError::into_inner;
        for table in self.removed.get_mut().unwrap_or_else(poisoned).drain(..) {
            self.tree.free.push(table);
        }
        // All of the root's own entries are frozen; the root itself is used again.
        let root = self.tree.root;
        self.tree.free.retain(|table| *table != root);
        for root in [root, self.new_root] {
            for entry in self.tree.arena.table_mut(root) {
                *entry.get_mut() = self.tree.values.absent;
            }
        }
        let poisoned = PoisonError::into_inner;
        for table in self.grown.get_mut().unwrap_or_else(poisoned).drain(..) {
            self.tree.arena.recycle(table);
        }
        self.tree.fill(Filling::Full);
    }

    fn zap(&self) {
        let _shared = self.lock.read();
        if self.exchange == Exchange::Twice {
            self.zap_leaves();
        }
        let mut removed = Vec::with_capacity(1024);
        self.remove(self.tree.root, 4, &mut removed);
        self.removed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .append(&mut removed);
    }

    fn vcpu(&self) -> Box<dyn FnMut(u64) + '_> {
        Box::new(|gfn| self.fault(gfn))
    }

    fn seen(&self, gfn: u64) -> Seen {
        self.tree.seen(self.new_root, gfn)
    }

    fn left(&self) -> u64 {
        let gfns = (0..self.tree.pages).step_by(if self.tree.pages > GIB { 61 } else { 1 });
        let seen = gfns.filter(|gfn| self.tree.seen(self.tree.root, *gfn) != Seen::Absent);
        // Nothing leads to removed tables any more, but none of them may have been left unfrozen.
        let removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = removed.iter().flat_map(|id| self.tree.arena.table(*id));
        let unfrozen = entries.filter(|e| e.load(Ordering::Relaxed) != self.tree.values.frozen);
        (seen.count() + unfrozen.count()) as u64
    }
}

/// Fast zap reduced to its core: mark a root invalid, count the generation up.
#[derive(Default)]
pub(crate) struct MarkAndBump {
    invalid: AtomicU64,
    generation: AtomicU64,
}

impl FastZap for MarkAndBump {
    fn invalidate(&mut self, times: u64) -> Duration {
        let start = Instant::now();
        for time in 0..times {
            let floor = std::hint::black_box(&*self);
            floor.invalid.store(time, Ordering::Relaxed);
            floor.generation.fetch_add(1, Ordering::SeqCst);
        }
        start.elapsed()
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }
}
