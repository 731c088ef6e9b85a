//! The host's frames and what is in them, as symbols.

use std::collections::BTreeMap;

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
#[derive(Debug)]
pub(super) struct Frames {
    next: u64,
    end: u64,
    free: Vec<Pfn>,
    contents: BTreeMap<Pfn, (Value, Key)>,
    /// Faults of the host itself.
    oopses: Vec<(Pfn, Fault)>,
}

impl Frames {
    pub(super) const fn new(first: Pfn, end: Pfn) -> Self {
        Self {
            next: first.raw(),
            end: end.raw(),
            free: Vec::new(),
            contents: BTreeMap::new(),
            oopses: Vec::new(),
        }
    }

    /// Frames of a size, cleared by the host; those that were freed last come first. `None` if there are no more.
    pub(super) fn allocate(&mut self, rmp: &Rmp, size: RmpSize) -> Option<Pfn> {
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

    pub(super) fn free(&mut self, pfn: Pfn) {
        self.free.push(pfn);
    }

    /// The frames that nobody has.
    pub(super) fn freed(&self) -> &[Pfn] {
        &self.free
    }

    /// The kernel writes a page. Whether it could: if not, it has oopsed.
    pub(super) fn host_write(&mut self, rmp: &Rmp, pfn: Pfn, value: Value) -> bool {
        let kernel = Accessor::Host { user: false };
        match rmp.check_access(kernel, Touch::Write, &Reached::by_host(pfn)) {
            Ok(()) => self.put(pfn, value, Key::Plain),
            Err(fault) => self.oopses.push((pfn, fault)),
        }
        self.oopses.last().is_none_or(|(oops, _)| *oops != pfn)
    }

    pub(super) fn oopses(&self) -> &[(Pfn, Fault)] {
        &self.oopses
    }

    pub(super) fn put(&mut self, pfn: Pfn, value: Value, key: Key) {
        self.contents.insert(pfn, (value, key));
    }

    pub(super) fn get(&self, pfn: Pfn, key: Key) -> Found {
        match self.contents.get(&pfn) {
            None => Found::Value(Value::Zero),
            Some((value, with)) if *with == key => Found::Value(*value),
            Some(_) => Found::Scrambled,
        }
    }
}
