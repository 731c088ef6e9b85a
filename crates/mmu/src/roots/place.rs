//! Where the facts of a root are: places that never move and are reused, each made of atomics.
//!
//! A place that is freed gets another generation, so that an old [`RootId`](super::RootId) does not reach the root that
//! comes next. The role and the references carry the generation in the same word; everything else is read
//! between two looks at it. Places are filled and emptied by one thread at a time, under the table's lock.

use std::sync::OnceLock;

use slat_memslot::Gfn;

use crate::role::{PageRole, RoleFlag};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

use super::root::RootKind;

/// Places that every table has from the start.
const FIRST: usize = if cfg!(loom) { 2 } else { 64 };

/// Chunks of further places. The first is as long as what every table has, each other one as all before it together.
const CHUNKS: usize = (u32::BITS - FIRST.ilog2()) as usize;

/// All places of a table.
#[derive(Debug)]
pub(super) struct Places {
    /// Apart from the chunks, since every switch of a root reads one of these.
    first: Box<[Place; FIRST]>,
    later: Box<[OnceLock<Box<[Place]>>]>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self {
            first: Box::new(core::array::from_fn(|_| Place::new())),
            later: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
        }
    }

    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&Place> {
        match self.first.get(index) {
            Some(place) => Some(place),
            None => self.get_later(index),
        }
    }

    #[cold]
    fn get_later(&self, index: usize) -> Option<&Place> {
        let chunk = chunk_of(index);
        self.later
            .get(chunk)?
            .get()?
            .get(index - chunk_start(chunk))
    }

    /// The place, whose chunk is made if it is not there yet.
    pub(super) fn make(&self, index: usize) -> &Place {
        if index < FIRST {
            return &self.first[index];
        }
        let chunk = chunk_of(index);
        let places = || (0..chunk_start(chunk)).map(|_| Place::new()).collect();
        &self.later[chunk].get_or_init(places)[index - chunk_start(chunk)]
    }
}

const fn chunk_of(index: usize) -> usize {
    (index / FIRST).ilog2() as usize
}

/// The number of the chunk's first place, and its length.
const fn chunk_start(chunk: usize) -> usize {
    FIRST << chunk
}

/// What is kept about a root besides its role and its references.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) kind: RootKind,
    /// The generation of shadow pages that it belongs to.
    pub(super) valid_generation: u64,
    pub(super) payload: u32,
}

/// What the word of references says, for an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// All references.
    pub(crate) references: u32,
    /// Whether the TDP MMU's own is among them.
    pub(crate) own: bool,
    /// Whether the root waits to be zapped.
    pub(crate) scheduled: bool,
}

/// One root, or none.
#[derive(Debug)]
pub(super) struct Place {
    /// The role's bits, which are never 0, and the generation above them.
    role: AtomicU64,
    /// The number of references, [`OWN`], [`SCHEDULED`], and the generation above them.
    references: AtomicU64,
    payload: AtomicU32,
    /// 0 for a root of the TDP MMU, 1 for a shadow page.
    is_shadow: AtomicU32,
    gfn: AtomicU64,
    valid_generation: AtomicU64,
}

/// The TDP MMU's own reference is among those that are counted.
const OWN: u64 = 1 << 31;
/// The root was invalidated, and nobody has begun to zap it.
const SCHEDULED: u64 = 1 << 30;
/// The references.
const COUNT: u64 = SCHEDULED - 1;

/// A word with a generation in its upper half.
#[inline]
fn tagged(generation: u32, low: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(low)
}

/// The lower half of a word, if the upper is this generation.
#[inline]
fn untagged(word: u64, generation: u32) -> Option<u32> {
    u32::try_from(word ^ tagged(generation, 0)).ok()
}

#[inline]
fn count(word: u64) -> u32 {
    u32::try_from(word & COUNT).unwrap_or_default()
}

impl Place {
    fn new() -> Self {
        Self {
            role: AtomicU64::new(0),
            references: AtomicU64::new(0),
            payload: AtomicU32::new(0),
            is_shadow: AtomicU32::new(0),
            gfn: AtomicU64::new(0),
            valid_generation: AtomicU64::new(0),
        }
    }

    // --- Reading -----------------------------------------------------------------------------------------------------

    /// The root's role, if the place is still its own.
    #[inline]
    pub(super) fn role(&self, generation: u32) -> Option<PageRole> {
        let bits = untagged(self.role.load(Ordering::Acquire), generation)?;
        (bits != 0).then_some(PageRole::from_bits(bits))
    }

    /// Whether the place is still this root's, and the role is exactly this one.
    #[inline]
    pub(super) fn has_role(&self, generation: u32, role: PageRole) -> bool {
        self.role.load(Ordering::Acquire) == tagged(generation, role.bits())
    }

    /// What else is known about the root, if the place is still its own.
    pub(super) fn entry(&self, generation: u32) -> Option<Entry> {
        self.role(generation)?;
        let kind = match self.is_shadow.load(Ordering::Relaxed) {
            0 => RootKind::Tdp,
            _ => RootKind::Shadow {
                gfn: Gfn::new(self.gfn.load(Ordering::Relaxed)),
            },
        };
        let entry = Entry {
            kind,
            valid_generation: self.valid_generation.load(Ordering::Relaxed),
            payload: self.payload.load(Ordering::Relaxed),
        };
        // With the one in `fill`: whoever has read something of the next root sees its generation here.
        fence(Ordering::Acquire);
        self.role(generation).map(|_| entry)
    }

    /// The number of references, if the place is still the root's.
    pub(super) fn references(&self, generation: u32) -> Option<u32> {
        let word = self.references.load(Ordering::Acquire);
        self.role(generation)?;
        untagged(word, generation).map(|_| count(word))
    }

    /// The word of references, if the place is still the root's.
    pub(super) fn standing(&self, generation: u32) -> Option<Standing> {
        let word = self.references.load(Ordering::Acquire);
        let low = untagged(word, generation)?;
        let low = u64::from(low);
        Some(Standing {
            references: count(low),
            own: low & OWN != 0,
            scheduled: low & SCHEDULED != 0,
        })
    }

    // --- References --------------------------------------------------------------------------------------------------

    /// Changes the word of references while it is of this generation; gives what it was before.
    fn update(&self, generation: u32, change: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let change = |word| untagged(word, generation).and_then(|_| change(word));
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.references.fetch_update(success, failure, change).ok()
    }

    /// Takes a reference, unless there is none left: then the root is about to go (`refcount_inc_not_zero`).
    ///
    /// `--cfg slat_mutant="get_zero"` takes it all the same, to see that the model checker notices.
    #[inline]
    pub(super) fn hold(&self, generation: u32) -> bool {
        let not_zero = |word| cfg!(slat_mutant = "get_zero") || word & COUNT != 0;
        self.update(generation, |word| not_zero(word).then(|| one_more(word)))
            .is_some()
    }

    /// Takes a reference to a shadow page, which may have none. Only under the table's lock.
    pub(super) fn hold_shadow(&self, generation: u32) -> bool {
        self.update(generation, |word| Some(one_more(word)))
            .is_some()
    }

    /// Gives up a reference that is not the TDP MMU's own. Gives how many are left, or `None` if there was no such one.
    pub(super) fn put(&self, generation: u32) -> Option<u32> {
        let others = |word| count(word) - u32::from(word & OWN != 0);
        let word = self.update(generation, |word| (others(word) > 0).then(|| word - 1))?;
        Some(count(word) - 1)
    }

    /// Gives up the TDP MMU's own reference. Gives how many are left, or `None` if it was given up before.
    pub(super) fn put_own(&self, generation: u32) -> Option<u32> {
        let without = |word| (word & !(OWN | SCHEDULED)) - 1;
        let word = self.update(generation, |word| (word & OWN != 0).then(|| without(word)))?;
        Some(count(word) - 1)
    }

    /// Takes the root off those that wait to be zapped; says whether it was one.
    pub(super) fn take_scheduled(&self, generation: u32) -> bool {
        let off = |word| (word & SCHEDULED != 0).then_some(word & !SCHEDULED);
        self.update(generation, off).is_some()
    }

    // --- Under the table's lock, or by whoever has the table to itself ------------------------------------------------

    /// Puts a root into the empty place.
    pub(super) fn fill(&self, generation: u32, role: PageRole, entry: Entry) {
        // The generation before, the root's facts after: see `entry`.
        fence(Ordering::Release);
        let (gfn, references) = match entry.kind {
            RootKind::Tdp => (None, OWN | 2),
            RootKind::Shadow { gfn } => (Some(gfn), 1),
        };
        self.is_shadow
            .store(u32::from(gfn.is_some()), Ordering::Relaxed);
        self.gfn.store(gfn.map_or(0, Gfn::raw), Ordering::Relaxed);
        self.valid_generation
            .store(entry.valid_generation, Ordering::Relaxed);
        self.payload.store(entry.payload, Ordering::Relaxed);
        let references = tagged(generation, 0) | references;
        self.references.store(references, Ordering::Release);
        self.role
            .store(tagged(generation, role.bits()), Ordering::Release);
    }

    /// Empties the place for a root of this generation.
    pub(super) fn empty(&self, generation: u32) {
        self.role.store(tagged(generation, 0), Ordering::Release);
        self.references
            .store(tagged(generation, 0), Ordering::Release);
    }

    /// Makes the root invalid.
    pub(super) fn invalidate(&self) {
        let invalid = u64::from(RoleFlag::Invalid.bit());
        self.role.fetch_or(invalid, Ordering::AcqRel);
    }

    /// Takes back [`Place::invalidate`].
    pub(super) fn revive(&self) {
        let invalid = u64::from(RoleFlag::Invalid.bit());
        self.role.fetch_and(!invalid, Ordering::AcqRel);
    }

    /// Notes that the root waits to be zapped.
    pub(super) fn schedule(&self) {
        self.references.fetch_or(SCHEDULED, Ordering::AcqRel);
    }
}

fn one_more(word: u64) -> u64 {
    assert!(word & COUNT != COUNT, "a root is held too often");
    word + 1
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_each_other_without_gaps() {
        let places = Places::new();
        assert!(places.get(FIRST).is_none());
        for index in 0..9 * FIRST {
            let made: *const Place = places.make(index);
            assert!(
                places
                    .get(index)
                    .is_some_and(|place| core::ptr::eq(place, made))
            );
        }
        assert!(places.get(16 * FIRST - 1).is_some());
        assert!(places.get(16 * FIRST).is_none());
        assert!(places.get(u32::MAX as usize).is_none());
        assert_eq!(chunk_of(u32::MAX as usize), CHUNKS - 1);
    }
}
