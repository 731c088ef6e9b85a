//! The page-state change engine: vectors, the specification's corners, guests that write while it reads, and KVM's algorithm
//! once more.

mod engine;
mod glance;
mod msr;
mod reference;
mod vectors;

use core::cell::RefCell;

use slat_memslot::{Gfn, Gpa, Pages};

use super::*;
use crate::rmp::RmpSize;

/// What a guest does to its words before one of them is read.
type Change<'a> = Box<dyn Fn(&mut [u64; 254], usize) + 'a>;

/// A buffer that counts its reads and writes, and can change before each read.
pub(super) struct Buffer<'a> {
    pub(super) words: RefCell<[u64; 254]>,
    pub(super) loads: RefCell<[u32; 254]>,
    before_load: Change<'a>,
}

impl<'a> Buffer<'a> {
    pub(super) fn new(cur: u16, end: u16, entries: &[PscEntry]) -> Self {
        let header = PscHeader {
            cur_entry: cur,
            end_entry: end,
            reserved: 0,
        };
        let mut words = [0; 254];
        words[0] = header.to_word();
        for (word, entry) in words[1..].iter_mut().zip(entries) {
            *word = entry.to_word();
        }
        Self {
            words: RefCell::new(words),
            loads: RefCell::new([0; 254]),
            before_load: Box::new(|_, _| {}),
        }
    }

    pub(super) fn all(entries: &[PscEntry]) -> Self {
        Self::new(0, u16::try_from(entries.len()).unwrap() - 1, entries)
    }

    pub(super) fn changing(mut self, change: impl Fn(&mut [u64; 254], usize) + 'a) -> Self {
        self.before_load = Box::new(change);
        self
    }

    fn read(&self, offset: usize) -> u64 {
        let mut words = self.words.borrow_mut();
        (self.before_load)(&mut words, offset / 8);
        self.loads.borrow_mut()[offset / 8] += 1;
        words[offset / 8]
    }

    pub(super) fn header(&self) -> PscHeader {
        PscHeader::from_word(self.words.borrow()[0])
    }

    pub(super) fn entry(&self, index: usize) -> PscEntry {
        PscEntry::from_word(self.words.borrow()[index + 1])
    }
}

impl PscBuffer for Buffer<'_> {
    fn load_u16(&self, offset: usize) -> u16 {
        let bytes = self.read(offset).to_le_bytes();
        u16::from_le_bytes([bytes[offset % 8], bytes[offset % 8 + 1]])
    }

    fn load_u64(&self, offset: usize) -> u64 {
        assert_eq!(offset % 8, 0);
        self.read(offset)
    }

    fn store_u16(&self, offset: usize, value: u16) {
        let word = &mut self.words.borrow_mut()[offset / 8];
        let mut bytes = word.to_le_bytes();
        bytes[offset % 8..offset % 8 + 2].copy_from_slice(&value.to_le_bytes());
        *word = u64::from_le_bytes(bytes);
    }
}

pub(super) fn whole() -> Scratch {
    Scratch::in_ghcb(Gpa::new(0x7000), Gpa::new(0x7800)).unwrap()
}

pub(super) fn entry(gfn: u64, operation: PscOperation, size: RmpSize) -> PscEntry {
    PscEntry::new(Gfn::new(gfn), operation, size)
}

pub(super) fn private_4k(gfn: u64) -> PscEntry {
    entry(gfn, PscOperation::Private, RmpSize::Size4K)
}

pub(super) fn private_2m(gfn: u64) -> PscEntry {
    entry(gfn, PscOperation::Private, RmpSize::Size2M)
}

pub(super) fn done(entry: PscEntry, cur_page: u16) -> PscEntry {
    PscEntry { cur_page, ..entry }
}

/// Runs an event with these answers, all of them `Done` when they have run out. Gives what was asked of the VMM, and the
/// result.
pub(super) fn run(
    settings: PscSettings,
    buffer: &Buffer<'_>,
    scratch: Scratch,
    answers: &[Answer],
) -> (Vec<PscStep>, PscResult) {
    let mut psc = Psc::new(settings);
    let mut steps = Vec::new();
    let mut answers = answers.iter().copied();
    let mut step = psc.begin(buffer, scratch);
    loop {
        if let PscStep::Resume(result) = step {
            assert!(!psc.in_flight());
            return (steps, result);
        }
        steps.push(step);
        step = psc.complete(buffer, answers.next().unwrap_or(Answer::Done));
    }
}

pub(super) fn args(steps: &[PscStep]) -> Vec<[u64; 3]> {
    let arguments = |step: &PscStep| match step {
        PscStep::Map(exit) => exit.args(),
        other => panic!("{other:?}"),
    };
    steps.iter().map(arguments).collect()
}

pub(super) fn pages(count: u64) -> Pages {
    Pages::new(count)
}
