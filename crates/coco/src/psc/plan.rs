//! All ranges of a buffer, found in one go.

use slat_memslot::Gfn;

use super::batch::{Batch, left_of};
use super::buffer::{PscBuffer, PscEntry, PscHeader, offset_of};
use super::engine::{PscSettings, PscStep};
use super::exit::{Answer, PscResult};
use super::quirks::Merge;
use super::scratch::Scratch;
use crate::rmp::RmpSize;

/// What would go on with the run before it.
struct Next {
    word: u64,
    step: u64,
    room: u64,
}

impl Next {
    /// Nothing goes on.
    const NONE: Self = Self {
        word: 0,
        step: 0,
        room: 0,
    };
}

/// A whole event, planned before anything of it is done.
///
/// The header and each entry are read once, whatever [`HeaderReads`](super::HeaderReads) says; else the ranges and the
/// result are those of [`Psc`](super::Psc) with the same settings, and [`PscPlan::begin`] and [`PscPlan::complete`] are
/// used as those of it. [`PscPlan::steps`] shows all ranges before the first is changed: a VMM can join them, sort them,
/// or refuse the lot.
///
/// It has 2 KiB, to be kept for a vCPU's next event. Nothing is allocated.
///
/// ```
/// use std::cell::Cell;
/// use slat_coco::psc::{
///     Answer, PscBuffer, PscEntry, PscHeader, PscOperation, PscPlan, PscQuirks, PscResult, PscSettings, PscStep, Scratch,
/// };
/// use slat_coco::rmp::RmpSize;
/// use slat_memslot::{Gfn, Gpa};
///
/// /// Of one thread, for once.
/// struct Words(Vec<Cell<u64>>);
/// impl PscBuffer for Words {
///     fn load_u16(&self, at: usize) -> u16 {
///         (self.load_u64(at & !7) >> (at % 8 * 8)) as u16
///     }
///     fn load_u64(&self, at: usize) -> u64 {
///         self.0[at / 8].get()
///     }
///     fn store_u16(&self, at: usize, value: u16) {
///         let word = &self.0[at / 8];
///         word.set(word.get() & !0xffff | u64::from(value));
///     }
/// }
///
/// let header = PscHeader { cur_entry: 0, end_entry: 2, reserved: 0 };
/// let page = |gfn| PscEntry::new(Gfn::new(gfn), PscOperation::Private, RmpSize::Size4K);
/// let words = [header.to_word(), page(16).to_word(), page(17).to_word(), page(40).to_word()];
/// let buffer = Words(words.into_iter().map(Cell::new).collect());
///
/// let scratch = Scratch::in_ghcb(Gpa::new(0x7000), Gpa::new(0x7800)).unwrap();
/// let mut plan = PscPlan::new(PscSettings::new(PscQuirks::strict()));
/// let mut step = plan.begin(&buffer, scratch);
/// assert_eq!(plan.steps().count(), 2);
/// while let PscStep::Map(exit) = step {
///     println!("{:?}", exit.args());
///     step = plan.complete(&buffer, Answer::Done);
/// }
/// assert_eq!(step, PscStep::Resume(PscResult::Success));
/// assert_eq!(buffer.load_u16(0), 3);
/// ```
#[derive(Clone, Debug)]
pub struct PscPlan {
    settings: PscSettings,
    /// The entries, as they were read.
    words: [u64; CAPACITY],
    /// A bit for each entry that begins a range.
    starts: [u64; CAPACITY / 64],
    /// The range that is done next.
    at: u16,
    /// The first entry that no range has.
    stop: u16,
    /// A range is with the VMM.
    in_flight: bool,
    result: PscResult,
}

/// Places for entries: 253, rounded up, so that no index needs a check.
const CAPACITY: usize = 256;

#[inline]
const fn place(index: u16) -> usize {
    index as usize % CAPACITY
}

impl PscPlan {
    /// Nothing under way.
    pub const fn new(settings: PscSettings) -> Self {
        Self {
            settings,
            words: [0; CAPACITY],
            starts: [0; CAPACITY / 64],
            at: 0,
            stop: 0,
            in_flight: false,
            result: PscResult::Success,
        }
    }

    /// The guest has made an exit: the buffer is read, and the first range given.
    ///
    /// An event that is still under way fails, and is forgotten.
    pub fn begin(&mut self, buffer: &impl PscBuffer, scratch: Scratch) -> PscStep {
        let forgotten = core::mem::take(&mut self.in_flight);
        if !self.settings.exits_enabled || forgotten {
            (self.at, self.stop) = (0, 0);
            return PscStep::Resume(PscResult::Generic);
        }
        self.read(buffer, scratch);
        self.next(buffer)
    }

    /// Reads a buffer and finds its ranges, without telling the guest anything.
    #[inline]
    pub fn read(&mut self, buffer: &impl PscBuffer, scratch: Scratch) {
        let header = PscHeader::from_word(buffer.load_u64(0));
        (self.at, self.stop) = (header.cur_entry, header.cur_entry);
        let checked = self.settings.check_header(&header, scratch.entries(), true);
        self.result = match checked {
            // The last entry is one of 253.
            Ok(()) if header.cur_entry <= header.end_entry => {
                self.stop = header.end_entry + 1;
                match self.read_entries(buffer) {
                    true => PscResult::Success,
                    false => self.look_closer(),
                }
            }
            Ok(()) => PscResult::Success,
            Err(result) => result,
        };
    }

    /// Reads the entries, and finds where ranges begin if all of them are whole pages, private or shared, with nothing
    /// reserved; whether they are.
    ///
    /// What goes on with the entry before it is as good as that one, but for where the range ends.
    #[inline]
    fn read_entries(&mut self, buffer: &impl PscBuffer) -> bool {
        const ADDRESS: u64 = (PscEntry::END_GFN - 1) << 12;
        const FIRST_OPERATION: u64 = 1 << 52;
        const LARGE: u64 = 1 << 56;
        /// What an entry may have beside its size, once the first of the two operations counts as 0.
        const KNOWN: u64 = ADDRESS | FIRST_OPERATION | LARGE;
        // The very last frame has none behind it, and is for a closer look.
        let limit = (self.settings.end_gfn.raw() << 12).min(ADDRESS | 0xfff);
        // Nothing goes on with what is before the first: its range would end far beyond any limit.
        let (mut follows, mut step, mut kind) = (u64::MAX, 1_u64 << 60, 0);
        // In the first any bit is wrong, in the second the sign.
        let (mut odd, mut beyond) = (0, 0);
        let mut index = self.at;
        while index < self.stop {
            let (block, end) = (place(index) / 64, self.stop.min((index | 63) + 1));
            let mut bits = 0_u64;
            for index in index..end {
                let word = buffer.load_u64(offset_of(index));
                self.words[place(index)] = word;
                if word != follows {
                    beyond |= limit.wrapping_sub(follows.wrapping_sub(kind));
                    // The frames inside a large page, as a mask: nothing for a small one.
                    let inside = ((word & LARGE) >> 56).wrapping_neg() & (0x1ff << 12);
                    odd |= word.wrapping_sub(FIRST_OPERATION) & !KNOWN | word & inside;
                    (step, kind) = (inside + 0x1000, word & !ADDRESS);
                    bits |= 1 << (index % 64);
                }
                follows = word.wrapping_add(step);
            }
            self.starts[block] = bits;
            index = end;
        }
        beyond |= limit.wrapping_sub(follows.wrapping_sub(kind));
        odd | beyond >> 63 == 0
    }

    #[inline]
    fn set_start(&mut self, index: u16) {
        self.starts[place(index) / 64] |= 1 << (index % 64);
    }

    /// Finds where ranges begin, entry by entry, up to an invalid one.
    #[inline(never)]
    fn look_closer(&mut self) -> PscResult {
        let counted = self.settings.counted();
        let mut next = Next::NONE;
        self.starts = [0; CAPACITY / 64];
        for index in self.at..self.stop {
            let word = self.words[place(index)];
            if word & counted == next.word && next.room > 0 {
                next.word = next.word.wrapping_add(next.step);
                next.room -= 1;
                continue;
            }
            match self.start(word) {
                Ok(follows) => next = follows,
                Err(invalid) => {
                    self.stop = index;
                    return invalid;
                }
            }
            self.set_start(index);
        }
        PscResult::Success
    }

    /// An entry begins a range. Gives what may follow.
    fn start(&self, word: u64) -> Result<Next, PscResult> {
        let entry = PscEntry::from_word(word);
        self.settings.check_entry(&entry)?;
        if left_of(&entry) == 0 {
            return Ok(Next::NONE);
        }
        let batch = self.batch(0, word, 1);
        let (follows, pages) = (batch.base.raw() + batch.pages, batch.size.pages());
        let end = self.settings.end_gfn.raw().min(PscEntry::END_GFN);
        if follows >= end {
            return Ok(Next::NONE);
        }
        let like = PscEntry::new(Gfn::new(follows), entry.operation, batch.size);
        Ok(Next {
            word: like.to_word(),
            step: pages << 12,
            room: (end - follows) / pages,
        })
    }

    /// Where the range ends that an entry begins.
    #[inline]
    fn end_of(&self, first: u16) -> u16 {
        let mut index = first + 1;
        while index < self.stop {
            let rest = self.starts[place(index) / 64] >> (index % 64);
            let [zeros, ..] = rest.trailing_zeros().to_le_bytes();
            let to_next = 64 - index % 64;
            if rest != 0 && u16::from(zeros) < to_next {
                return self.stop.min(index + u16::from(zeros));
            }
            index += to_next;
        }
        self.stop
    }

    #[inline]
    fn batch_at(&self, first: u16) -> Batch {
        self.batch(first, self.words[place(first)], self.end_of(first) - first)
    }

    #[inline]
    fn batch(&self, first: u16, word: u64, entries: u16) -> Batch {
        let head = PscEntry::from_word(word);
        let done = u64::from(head.cur_page);
        // The rest of a half done entry is split at this point, and goes with pages of 4 KiB only.
        let size = match done {
            0 => head.size,
            _ => RmpSize::Size4K,
        };
        Batch {
            first,
            entries,
            head,
            size,
            base: match self.settings.quirks.merge {
                Merge::ToEnd => Gfn::new(head.gfn.raw() + done),
                Merge::ToFirstFrame => head.gfn,
            },
            pages: left_of(&head) + u64::from(entries - 1) * size.pages(),
        }
    }

    /// The ranges that are not done, in order. What is done by doing nothing is left out.
    pub fn steps(&self) -> impl Iterator<Item = PscStep> + '_ {
        let mut at = self.at;
        let batches = core::iter::from_fn(move || {
            let first = at;
            (first < self.stop).then(|| {
                let batch = self.batch_at(first);
                at = first + batch.entries;
                batch
            })
        });
        let open = batches.filter(|batch| left_of(&batch.head) > 0);
        open.filter_map(|batch| batch.step(&self.settings.quirks))
    }

    /// How the event will end if all ranges are changed.
    pub const fn result(&self) -> PscResult {
        self.result
    }

    /// The VMM has done what it was asked for, or has not. As [`Psc::complete`](super::Psc::complete).
    #[inline]
    pub fn complete(&mut self, buffer: &impl PscBuffer, answer: Answer) -> PscStep {
        if !core::mem::take(&mut self.in_flight) {
            return PscStep::Resume(PscResult::Generic);
        }
        let batch = self.batch_at(self.at);
        match answer {
            Answer::Failed => PscStep::Resume(PscResult::Generic),
            Answer::Partly(pages) if pages.raw() < batch.pages => {
                batch.mark(buffer, pages.raw());
                PscStep::Resume(PscResult::Success)
            }
            Answer::Done | Answer::Partly(_) => {
                batch.mark(buffer, batch.pages);
                self.at += batch.entries;
                self.next(buffer)
            }
        }
    }

    /// The next range that needs the VMM, or the end.
    #[inline]
    fn next(&mut self, buffer: &impl PscBuffer) -> PscStep {
        while self.at < self.stop {
            let batch = self.batch_at(self.at);
            if left_of(&batch.head) == 0 {
                buffer.store_u16(0, self.at + 1);
            } else if let Some(step) = batch.step(&self.settings.quirks) {
                self.in_flight = true;
                return step;
            } else {
                batch.mark(buffer, batch.pages);
            }
            self.at += batch.entries;
        }
        PscStep::Resume(self.result)
    }
}
