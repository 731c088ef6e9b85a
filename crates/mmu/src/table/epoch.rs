//! Who may still be walking through a removed table.
//!
//! A reader pins the current epoch before it follows a link and lets go when it is done. A table that was unlinked is
//! retired under the epoch of that moment. The epoch advances only when every pinned reader has seen the current one, so
//! two advances after a table was retired no reader can hold its number: everyone pinned now has pinned after the link was
//! gone. This is what RCU does for KVM's TDP MMU (`tdp_mmu.c:tdp_mmu_free_sp_rcu_callback`).

use std::collections::VecDeque;
use std::sync::Arc;

use super::TableId;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, fence, lock};

/// A reader that holds no epoch.
const IDLE: u64 = u64::MAX;

/// Epochs that must pass before a retired table is safe. One is not enough: a reader may have pinned the epoch before.
///
/// `--cfg slat_mutant="early_free"` frees at once, to see that the model checker notices.
const DISTANCE: u64 = if cfg!(slat_mutant = "early_free") {
    0
} else {
    2
};

/// One reader's place, on a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Place {
    taken: AtomicBool,
    epoch: AtomicU64,
}

impl Place {
    fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            epoch: AtomicU64::new(IDLE),
        }
    }
}

/// The epochs of one MMU, and the tables that wait for theirs to pass.
///
/// ```
/// use slat_mmu::table::{Epochs, TableId};
/// let epochs = Epochs::new(4);
/// let mut reader = epochs.reader().unwrap();
/// let table = TableId::new(7);
///
/// let pin = reader.pin();
/// epochs.retire(table); // after its link was removed
/// assert!(epochs.collect().is_empty());
/// drop(pin);
/// assert_eq!(epochs.collect(), [table]);
/// ```
#[derive(Debug)]
pub struct Epochs {
    shared: Arc<Shared>,
    retired: Mutex<VecDeque<(u64, TableId)>>,
}

/// What readers have to see, too.
#[derive(Debug)]
struct Shared {
    current: AtomicU64,
    places: Box<[Place]>,
}

impl Epochs {
    /// Epochs for at most `readers` readers at a time.
    pub fn new(readers: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                current: AtomicU64::new(0),
                places: (0..readers).map(|_| Place::new()).collect(),
            }),
            retired: Mutex::new(VecDeque::new()),
        }
    }

    /// A place for a reader, usually a vCPU; `None` when all are taken.
    pub fn reader(&self) -> Option<Reader> {
        let free = |place: &Place| !place.taken.swap(true, Ordering::AcqRel);
        let number = self.shared.places.iter().position(free)?;
        Some(Reader {
            shared: Arc::clone(&self.shared),
            number,
        })
    }

    /// Whether a reader's place is among these.
    #[inline]
    pub fn owns(&self, reader: &Reader) -> bool {
        Arc::ptr_eq(&self.shared, &reader.shared)
    }

    /// How many readers there can be at a time.
    pub fn places(&self) -> usize {
        self.shared.places.len()
    }

    /// Notes that a table was unlinked just now; its number comes back through [`Epochs::collect`].
    pub fn retire(&self, table: TableId) {
        // The unlinking store before, the epoch after: a reader pinned in a later epoch cannot see the link.
        fence(Ordering::SeqCst);
        let mut retired = lock(&self.retired);
        let epoch = self.shared.current.load(Ordering::SeqCst);
        retired.push_back((epoch, table));
    }

    /// Advances the epoch as far as the readers allow, at most twice, and gives the tables that nobody can reach any
    /// more.
    pub fn collect(&self) -> Vec<TableId> {
        let _far_enough = self.advance() && self.advance();
        let mut retired = lock(&self.retired);
        let current = self.shared.current.load(Ordering::SeqCst);
        let safe = |(epoch, _): &&(u64, TableId)| epoch + DISTANCE <= current;
        let count = retired.iter().take_while(safe).count();
        retired.drain(..count).map(|(_, table)| table).collect()
    }

    /// Gives all tables that wait. Right only for somebody whom no reader can meet: who has the tables to himself.
    pub fn drain(&mut self) -> impl Iterator<Item = TableId> {
        let waiting = core::mem::take(&mut *lock(&self.retired));
        waiting.into_iter().map(|(_, table)| table)
    }

    /// Visits the tables that wait. The epochs must not be used meanwhile.
    pub(crate) fn visit_waiting(&self, visit: impl FnMut(TableId)) {
        let retired = lock(&self.retired);
        retired.iter().map(|(_, table)| *table).for_each(visit);
    }

    /// How many tables wait.
    pub fn waiting(&self) -> usize {
        lock(&self.retired).len()
    }

    /// Moves on by one epoch if every pinned reader has seen the current one.
    fn advance(&self) -> bool {
        let current = self.shared.current.load(Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let seen = |place: &Place| {
            let epoch = place.epoch.load(Ordering::SeqCst);
            epoch == IDLE || epoch == current
        };
        let moved = |from| {
            let (success, failure) = (Ordering::SeqCst, Ordering::SeqCst);
            self.shared
                .current
                .compare_exchange(from, from + 1, success, failure)
                .is_ok()
        };
        self.shared.places.iter().all(seen) && moved(current)
    }
}

/// A reader's place. Dropped, it is free for another.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    number: usize,
}

impl Reader {
    /// The number of the place; two readers at a time never have the same.
    #[inline]
    pub const fn number(&self) -> usize {
        self.number
    }

    /// Pins the current epoch: links read while the pin lives lead to tables that are not used anew.
    #[inline]
    pub fn pin(&mut self) -> Pin<'_> {
        let place = &self.shared.places[self.number];
        loop {
            let epoch = self.shared.current.load(Ordering::Relaxed);
            place.epoch.store(epoch, Ordering::Relaxed);
            // The place before the check, so that an advance either sees the pin or is seen here. The fence orders the store
            // by itself.
            fence(Ordering::SeqCst);
            if self.shared.current.load(Ordering::SeqCst) == epoch {
                return Pin { place };
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let place = &self.shared.places[self.number];
        place.taken.store(false, Ordering::Release);
    }
}

/// A pinned epoch.
#[derive(Debug)]
#[must_use = "tables are kept for as long as the pin lives"]
pub struct Pin<'r> {
    place: &'r Place,
}

impl Drop for Pin<'_> {
    #[inline]
    fn drop(&mut self) {
        self.place.epoch.store(IDLE, Ordering::Release);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_pin_keeps_what_was_retired_after_it() {
        let epochs = Epochs::new(2);
        let (mut a, mut b) = (epochs.reader().unwrap(), epochs.reader().unwrap());
        assert!(epochs.reader().is_none());
        let pin = a.pin();
        epochs.retire(TableId::new(1));
        for _ in 0..4 {
            assert!(epochs.collect().is_empty());
        }
        // Another reader comes and goes; that changes nothing.
        drop(b.pin());
        assert!(epochs.collect().is_empty());
        drop(pin);
        assert_eq!(epochs.collect(), [TableId::new(1)]);
        assert_eq!(epochs.waiting(), 0);
    }

    #[test]
    fn readers_without_a_pause_keep_no_table_for_ever() {
        let epochs = Epochs::new(2);
        let (mut a, mut b) = (epochs.reader().unwrap(), epochs.reader().unwrap());
        epochs.retire(TableId::new(1));
        let first = a.pin();
        assert!(epochs.collect().is_empty());
        // The next one begins before the first one ends, and sees the epoch that the first one did not hold up.
        let second = b.pin();
        drop(first);
        assert_eq!(epochs.collect(), [TableId::new(1)]);
        drop(second);
    }

    #[test]
    fn a_place_is_free_again_after_its_reader() {
        let epochs = Epochs::new(1);
        drop(epochs.reader().unwrap());
        assert!(epochs.reader().is_some());
    }

    #[test]
    fn tables_come_back_in_the_order_of_retirement() {
        let epochs = Epochs::new(1);
        let ids = [3, 1, 2].map(TableId::new);
        for id in ids {
            epochs.retire(id);
        }
        assert_eq!(epochs.collect(), ids);
    }
}

#[cfg(all(test, loom))]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::sync::{AtomicU64, explore};

    const NONE: u64 = 0;
    const TABLE: u64 = 1;
    const REUSED: u64 = 99;

    /// A link to a table, the table's contents, and the epochs between them.
    struct World {
        link: AtomicU64,
        contents: AtomicU64,
        epochs: Epochs,
    }

    /// One thread walks through a link; another removes the link, retires the table and uses it anew once it is
    /// collected. The walker must never see the new contents.
    #[test]
    fn a_walker_never_sees_a_table_used_anew() {
        explore(3, || {
            let world = Arc::new(World {
                link: AtomicU64::new(TABLE),
                contents: AtomicU64::new(TABLE),
                epochs: Epochs::new(1),
            });
            let walker = {
                let world = world.clone();
                thread::spawn(move || {
                    let mut reader = world.epochs.reader().expect("a place");
                    let pin = reader.pin();
                    if world.link.load(Ordering::Acquire) == TABLE {
                        assert_ne!(world.contents.load(Ordering::Relaxed), REUSED);
                    }
                    drop(pin);
                })
            };
            world.link.store(NONE, Ordering::Release);
            world.epochs.retire(TableId::new(1));
            for _ in world.epochs.collect() {
                world.contents.store(REUSED, Ordering::Relaxed);
            }
            walker.join().expect("the walker is content");
        });
    }

    /// Two walkers pin one after the other while a table waits: no order of theirs frees it under one of them.
    #[test]
    fn two_walkers_hold_a_table() {
        explore(2, || {
            let world = Arc::new(World {
                link: AtomicU64::new(TABLE),
                contents: AtomicU64::new(TABLE),
                epochs: Epochs::new(2),
            });
            let walk = |world: &World| {
                let mut reader = world.epochs.reader().expect("a place");
                let pin = reader.pin();
                if world.link.load(Ordering::Acquire) == TABLE {
                    assert_ne!(world.contents.load(Ordering::Relaxed), REUSED);
                }
                drop(pin);
            };
            let threads = [0, 1].map(|_| {
                let world = world.clone();
                thread::spawn(move || walk(&world))
            });
            world.link.store(NONE, Ordering::Release);
            world.epochs.retire(TableId::new(1));
            for _ in world.epochs.collect() {
                world.contents.store(REUSED, Ordering::Relaxed);
            }
            for thread in threads {
                thread.join().expect("the walker is content");
            }
        });
    }
}
