//! The host's frames, what is in them, as symbols, and how the host itself maps them.

use std::collections::{BTreeMap, BTreeSet};

use slat_memslot::{Gfn, PageSize};
use slat_mmu::spte::Pfn;

use crate::rmp::{Accessor, Asid, Fault, Reached, Rmp, RmpSize, Touch};

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Zeros.
    Zero,
    /// Something that somebody wrote.
    Tag(u64),
}

/// How it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// As it is.
    Plain,
    /// With a guest's key.
    Guest(Asid),
}

/// What a read finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Found {
    /// What was written.
    Value(Value),
    /// Noise: it was written with another key.
    Scrambled,
}

/// Frames of the host from a first one on, and their contents.
///
/// The host maps its own memory by 2 MiB. A write through such an entry faults if any page behind it is assigned, so the
/// kernel splits the entry before it assigns or gives back a page of 4 KiB (`adjust_direct_map`):
/// [`Frames::adjust_direct_map`].
///
/// ```
/// use slat_coco::rmp::{Asid, Rmp, RmpSize, RmpState};
/// use slat_coco::snp::{Found, Frames, Key, Value};
/// use slat_memslot::Gfn;
/// use slat_mmu::spte::Pfn;
///
/// let rmp = Rmp::new(0x1000);
/// let mut frames = Frames::new(Pfn::new(0x200), rmp.end());
/// let private = frames.allocate(&rmp, RmpSize::Size4K).unwrap();
/// let neighbour = frames.allocate(&rmp, RmpSize::Size4K).unwrap();
/// let state = RmpState::private(Asid::new(5).unwrap(), Gfn::new(7), RmpSize::Size4K);
/// frames.adjust_direct_map(private, RmpSize::Size4K);
/// rmp.rmpupdate(private, &state).unwrap();
/// assert!(frames.host_write(&rmp, neighbour, Value::Tag(1)));
/// assert!(!frames.host_write(&rmp, private, Value::Tag(2)));
/// assert_eq!(frames.get(neighbour, Key::Plain), Found::Value(Value::Tag(1)));
/// ```
#[derive(Debug)]
pub struct Frames {
    next: u64,
    end: u64,
    free: Vec<Pfn>,
    contents: BTreeMap<Pfn, (Value, Key)>,
    /// Regions of 2 MiB that the host maps by 4 KiB.
    split: BTreeSet<u64>,
    /// Faults of the host itself.
    oopses: Vec<(Pfn, Fault)>,
    /// Immutable entries that the host has tried to change.
    immutable: Vec<Pfn>,
}

impl Frames {
    /// Frames from `first` on, below `end`, of which nobody has one.
    pub const fn new(first: Pfn, end: Pfn) -> Self {
        Self {
            next: first.raw(),
            end: end.raw(),
            free: Vec::new(),
            contents: BTreeMap::new(),
            split: BTreeSet::new(),
            oopses: Vec::new(),
            immutable: Vec::new(),
        }
    }

    /// Frames of a size, cleared by the host; those that were freed last come first. `None` if there are no more.
    pub fn allocate(&mut self, rmp: &Rmp, size: RmpSize) -> Option<Pfn> {
        let pfn = match (size, self.free.pop()) {
            (RmpSize::Size4K, Some(pfn)) => pfn,
            (_, kept) => {
                self.free.extend(kept);
                let first = self.next.next_multiple_of(size.pages());
                if first + size.pages() > self.end {
                    return None;
                }
                self.free.extend((self.next..first).map(Pfn::new));
                self.next = first + size.pages();
                Pfn::new(first)
            }
        };
        for frame in pfn.raw()..pfn.raw() + size.pages() {
            self.host_write(rmp, Pfn::new(frame), Value::Zero);
        }
        Some(pfn)
    }

    /// Nobody has a frame any more.
    pub fn free(&mut self, pfn: Pfn) {
        self.free.push(pfn);
    }

    /// The frames that nobody has.
    pub fn freed(&self) -> &[Pfn] {
        &self.free
    }

    /// What the kernel does to its own map before RMPUPDATE: one of 4 KiB splits the 2 MiB around it.
    pub fn adjust_direct_map(&mut self, pfn: Pfn, size: RmpSize) {
        if size == RmpSize::Size4K {
            self.split.insert(pfn.raw() / RmpSize::Size2M.pages());
        }
    }

    /// How large the host maps a frame.
    pub fn direct_map_size(&self, pfn: Pfn) -> PageSize {
        match self.split.contains(&(pfn.raw() / RmpSize::Size2M.pages())) {
            true => PageSize::Size4K,
            false => PageSize::Size2M,
        }
    }

    /// The kernel writes a page. Whether it could: if not, it has oopsed.
    pub fn host_write(&mut self, rmp: &Rmp, pfn: Pfn, value: Value) -> bool {
        let kernel = Accessor::Host { user: false };
        let reached = Reached {
            gfn: Gfn::new(0),
            pfn,
            size: self.direct_map_size(pfn),
        };
        match rmp.check_access(kernel, Touch::Write, &reached) {
            Ok(()) => {
                self.put(pfn, value, Key::Plain);
                true
            }
            Err(fault) => {
                self.oopses.push((pfn, fault));
                false
            }
        }
    }

    /// Faults that the host itself has had.
    pub fn oopses(&self) -> &[(Pfn, Fault)] {
        &self.oopses
    }

    /// The host has tried to change an immutable entry, which only firmware can.
    pub fn note_immutable(&mut self, pfn: Pfn) {
        self.immutable.push(pfn);
    }

    /// Immutable entries that the host has tried to change.
    pub fn immutable(&self) -> &[Pfn] {
        &self.immutable
    }

    /// Contents come into a frame, whatever the reverse map says.
    pub fn put(&mut self, pfn: Pfn, value: Value, key: Key) {
        self.contents.insert(pfn, (value, key));
    }

    /// What is read in a frame with a key.
    pub fn get(&self, pfn: Pfn, key: Key) -> Found {
        match self.contents.get(&pfn) {
            None => Found::Value(Value::Zero),
            Some((value, with)) if *with == key => Found::Value(*value),
            Some(_) => Found::Scrambled,
        }
    }
}
