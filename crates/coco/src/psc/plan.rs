//! All ranges of a buffer, found in one go.

use core::ops::Range;

use slat_memslot::Gfn;

use super::batch::{Batch, left_of};
use super::buffer::{PscBuffer, PscEntry, PscHeader};
use super::engine::{PscSettings, PscStep};
use super::exit::{Answer, PscResult};
use super::glance::{Entries, Glance, PLACES, Usual, place};
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

    /// What the next entry would be; no usual entry if nothing goes on.
    const fn word(&self) -> u64 {
        match self.room {
            0 => u64::MAX,
            _ => self.word,
        }
    }
}

/// A whole event, planned before anything of it is done.
///
/// The header and each entry are read once, whatever [`HeaderReads`](super::HeaderReads) says; else the ranges and the
/// result are those of [`Psc`](super::Psc) with the same settings, and [`PscPlan::begin`] and [`PscPlan::complete`] are
/// used as those of it. [`PscPlan::steps`] shows all ranges before the first is changed: a VMM can join them, sort them,
/// or refuse the lot.
///
/// It has 6 KiB, to be kept for a vCPU's next event. Nothing is allocated.
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
    glance: Glance,
    entries: Entries,
    /// The range that is done next.
    at: u16,
    /// The first entry that no range has.
    stop: u16,
    /// A range is with the VMM.
    in_flight: bool,
    result: PscResult,
}

impl PscPlan {
    /// Nothing under way.
    pub const fn new(settings: PscSettings) -> Self {
        Self {
            settings,
            glance: Glance::new(settings.end_gfn.raw()),
            entries: Entries {
                words: [0; PLACES],
                breaks: [0; PLACES],
            },
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
            Ok(()) if header.cur_entry <= header.end_entry => {
                self.stop = header.end_entry + 1;
                self.read_entries(buffer, header.cur_entry..self.stop)
            }
            Ok(()) => PscResult::Success,
            Err(result) => result,
        };
    }

    /// Reads the entries, and finds where ranges begin.
    #[inline]
    fn read_entries(&mut self, buffer: &impl PscBuffer, range: Range<u16>) -> PscResult {
        match self.glance.read(buffer, range, &mut self.entries) {
            Usual::All => PscResult::Success,
            Usual::AllButFirst => self.look_at_first(),
            Usual::No => self.look_closer(),
        }
    }

    /// The first entry can be half done: it is what an event goes on with.
    #[inline(never)]
    fn look_at_first(&mut self) -> PscResult {
        match self.start(self.entries.words[place(self.at)]) {
            Ok(next) => {
                let second = place(self.at + 1);
                self.entries.breaks[second] = self.entries.words[second] ^ next.word();
                PscResult::Success
            }
            Err(invalid) => {
                self.stop = self.at;
                invalid
            }
        }
    }

    /// Finds where ranges begin, entry by entry, up to an invalid one.
    #[inline(never)]
    fn look_closer(&mut self) -> PscResult {
        let counted = self.settings.counted();
        let mut next = Next::NONE;
        for index in self.at..self.stop {
            let word = self.entries.words[place(index)];
            let follows = word & counted == next.word && next.room > 0;
            self.entries.breaks[place(index)] = u64::from(!follows);
            if follows {
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
        const MANY: u16 = 8;
        let mut index = first + 1;
        if self.go_on(index, 1) {
            while self.go_on(index, MANY) {
                index += MANY;
            }
            while self.go_on(index, 1) {
                index += 1;
            }
        }
        index
    }

    /// Whether so many entries go on with what is before them.
    #[inline]
    fn go_on(&self, first: u16, count: u16) -> bool {
        let end = first + count;
        let marks = self.entries.breaks.get(place(first)..usize::from(end));
        end <= self.stop
            && marks.is_some_and(|marks| marks.iter().fold(0, |all, one| all | one) == 0)
    }

    #[inline]
    fn batch_at(&self, first: u16) -> Batch {
        let head = self.entries.words[place(first)];
        self.batch(first, head, self.end_of(first) - first)
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
