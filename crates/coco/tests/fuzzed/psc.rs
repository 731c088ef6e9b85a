//! Page-state changes whose buffer changes under the engine, or under a plan: what has to hold whatever the guest does.
//!
//! The input is taken as it is: settings, the header, entries, then a stream that says before each read whether the guest
//! writes a word. The engine runs twice, as KVM and strictly. A plan runs with three settings, and what it does is what the
//! engine does on a buffer that holds still with what the plan has read.

use std::cell::{Cell, RefCell};

use slat_coco::psc::{
    Answer, HeaderReads, MapGpaRange, Psc, PscBuffer, PscEntry, PscHeader, PscOperation, PscPlan,
    PscQuirks, PscResult, PscSettings, PscStep, Resize, Scratch,
};
use slat_coco::rmp::RmpSize;
use slat_memslot::{Gfn, GfnRange, Gpa, Pages};

const WORDS: usize = 254;

/// Bytes as they come; zeros when they have run out.
struct Input<'a>(Cell<&'a [u8]>);

impl Input<'_> {
    fn byte(&self) -> u8 {
        match self.0.get() {
            [first, rest @ ..] => {
                self.0.set(rest);
                *first
            }
            [] => 0,
        }
    }

    fn word(&self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
}

/// A buffer whose owner writes it.
struct Guest<'a, 'b> {
    input: &'a Input<'b>,
    words: RefCell<[u64; WORDS]>,
    /// Words that the buffer has.
    room: usize,
    /// What each read gave, in order.
    reads: RefCell<Vec<(usize, u64)>>,
    /// What was written, in order.
    writes: RefCell<Vec<(usize, u16)>>,
}

impl Guest<'_, '_> {
    fn read(&self, offset: usize) -> u64 {
        let mut words = self.words.borrow_mut();
        let choice = self.input.byte();
        if choice & 1 != 0 {
            let at = usize::from(self.input.byte()) % WORDS;
            // Another value, or the same with another cursor and progress.
            words[at] = match choice & 2 {
                0 => self.input.word(),
                _ => words[at] & !0xfff,
            };
        }
        let at = offset / 8;
        assert!(at < self.room, "read of word {at} of {}", self.room);
        self.reads.borrow_mut().push((at, words[at]));
        words[at]
    }
}

impl PscBuffer for Guest<'_, '_> {
    fn load_u16(&self, offset: usize) -> u16 {
        assert!(
            offset == 0 || offset == 2,
            "only the header is read in parts"
        );
        let bytes = self.read(offset).to_le_bytes();
        u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
    }

    fn load_u64(&self, offset: usize) -> u64 {
        assert_eq!(offset % 8, 0);
        self.read(offset)
    }

    fn store_u16(&self, offset: usize, value: u16) {
        assert_eq!(
            offset % 8,
            0,
            "only the cursor and an entry's progress are written"
        );
        assert!(offset / 8 < self.room);
        self.writes.borrow_mut().push((offset, value));
        let word = &mut self.words.borrow_mut()[offset / 8];
        *word = *word & !0xffff | u64::from(value);
    }
}

/// What takes an event apart.
pub(crate) trait Subject {
    fn new(settings: PscSettings) -> Self;
    fn begin(&mut self, buffer: &impl PscBuffer, scratch: Scratch) -> PscStep;
    fn complete(&mut self, buffer: &impl PscBuffer, answer: Answer) -> PscStep;
    /// Checks what it does with an input.
    fn check(bytes: &[u8]);
}

/// What the VMM was asked for, and how it ended.
struct Run {
    asked: Vec<(GfnRange, PscOperation)>,
    /// What it answered.
    answers: Vec<Answer>,
    /// Pages that it said it did of the last one, if not all.
    last: Option<u64>,
    result: PscResult,
    reads: Vec<(usize, u64)>,
    writes: Vec<(usize, u16)>,
    scratch: Scratch,
}

/// Runs one event. The input's next bytes are the buffer, and what the guest and the VMM do.
fn run<S: Subject>(input: &Input<'_>, settings: PscSettings) -> Run {
    let room = 1 + usize::from(input.byte()) % WORDS;
    let scratch = Gpa::new(0x7ff0 - 8 * room as u64);
    let scratch = Scratch::in_ghcb(Gpa::new(0x7000), scratch).expect("it is inside");
    let entries = usize::from(input.byte()) % room;
    let guest = Guest {
        input,
        words: RefCell::new([0; WORDS]),
        room,
        reads: RefCell::default(),
        writes: RefCell::default(),
    };
    for word in &mut guest.words.borrow_mut()[..=entries] {
        *word = input.word();
    }
    let mut subject = S::new(settings);
    let (mut asked, mut answers, mut last) = (Vec::new(), Vec::new(), None);
    let mut step = subject.begin(&guest, scratch);
    let result = loop {
        let (range, operation) = match wanted(step) {
            Ok(wanted) => wanted,
            Err(result) => break result,
        };
        assert!(range.end() <= settings.end_gfn, "{range} is out of range");
        assert!(range.pages() <= Pages::new(253 * 512));
        asked.push((range, operation));
        let answer = match input.byte() {
            0x80..=0x9f => Answer::Partly(Pages::new(u64::from(input.byte()))),
            0xa0..=0xa7 => Answer::Failed,
            _ => Answer::Done,
        };
        last = match answer {
            Answer::Partly(pages) if pages < range.pages() => Some(pages.raw()),
            Answer::Failed => Some(0),
            Answer::Done | Answer::Partly(_) => None,
        };
        answers.push(answer);
        step = subject.complete(&guest, answer);
    };
    let again = subject.complete(&guest, Answer::Done);
    assert_eq!(again, PscStep::Resume(PscResult::Generic));
    Run {
        asked,
        answers,
        last,
        result,
        reads: guest.reads.into_inner(),
        writes: guest.writes.into_inner(),
        scratch,
    }
}

/// What a step asks for, or how the event ends.
fn wanted(step: PscStep) -> Result<(GfnRange, PscOperation), PscResult> {
    match step {
        PscStep::Map(exit) => Ok((exit.range, operation_of(&exit))),
        PscStep::Resize(Resize { range, to }) => match to {
            RmpSize::Size4K => Ok((range, PscOperation::Psmash)),
            RmpSize::Size2M => Ok((range, PscOperation::Unsmash)),
        },
        PscStep::Resume(result) => Err(result),
    }
}

fn operation_of(exit: &MapGpaRange) -> PscOperation {
    match exit.args()[2] & 0x10 {
        0 => PscOperation::Shared,
        _ => PscOperation::Private,
    }
}

impl Subject for Psc {
    fn new(settings: PscSettings) -> Self {
        Psc::new(settings)
    }

    fn begin(&mut self, buffer: &impl PscBuffer, scratch: Scratch) -> PscStep {
        Psc::begin(self, buffer, scratch)
    }

    fn complete(&mut self, buffer: &impl PscBuffer, answer: Answer) -> PscStep {
        let step = Psc::complete(self, buffer, answer);
        assert_eq!(self.in_flight(), !matches!(step, PscStep::Resume(_)));
        step
    }

    fn check(bytes: &[u8]) {
        let input = Input(Cell::new(bytes));
        let kvm = run::<Self>(&input, PscSettings::new(PscQuirks::kvm()));
        assert!(kvm.asked.len() <= 253, "{} exits", kvm.asked.len());
        assert!(kvm.reads.len() <= 5 * 254, "{} reads", kvm.reads.len());

        let input = Input(Cell::new(bytes));
        let settings = PscSettings {
            end_gfn: Gfn::new(1 << 30),
            ..PscSettings::new(PscQuirks::strict())
        };
        let strict = run::<Self>(&input, settings);
        once(&strict);
        let rest = as_read(&strict);
        assert!(rest <= 1);
    }
}

impl Subject for PscPlan {
    fn new(settings: PscSettings) -> Self {
        PscPlan::new(settings)
    }

    fn begin(&mut self, buffer: &impl PscBuffer, scratch: Scratch) -> PscStep {
        PscPlan::begin(self, buffer, scratch)
    }

    fn complete(&mut self, buffer: &impl PscBuffer, answer: Answer) -> PscStep {
        let shown = self.steps().nth(1);
        let step = PscPlan::complete(self, buffer, answer);
        if !matches!(step, PscStep::Resume(_)) {
            assert_eq!(Some(step), shown, "another range than was shown");
        }
        step
    }

    fn check(bytes: &[u8]) {
        let kvm = PscQuirks {
            header: HeaderReads::Once,
            ..PscQuirks::kvm()
        };
        let strict = PscSettings::new(PscQuirks::strict());
        let limited = |end| PscSettings {
            end_gfn: Gfn::new(end),
            ..strict
        };
        // As KVM in all it does; below a power of two; below none.
        for settings in [PscSettings::new(kvm), limited(1 << 30), limited(3 << 9)] {
            let input = Input(Cell::new(bytes));
            let plan = run::<Self>(&input, settings);
            once(&plan);
            if settings.quirks == strict.quirks {
                let _ = as_read(&plan);
            }
            as_the_engine(&plan, settings);
        }
    }
}

/// A buffer that holds still.
struct Still {
    words: Vec<u64>,
    writes: RefCell<Vec<(usize, u16)>>,
}

impl PscBuffer for Still {
    fn load_u16(&self, _: usize) -> u16 {
        unreachable!("the header is read once, as a whole")
    }

    fn load_u64(&self, offset: usize) -> u64 {
        self.words[offset / 8]
    }

    fn store_u16(&self, offset: usize, value: u16) {
        self.writes.borrow_mut().push((offset, value));
    }
}

/// What was asked for and written is what the engine asks for and writes, with the same words and answers.
fn as_the_engine(plan: &Run, settings: PscSettings) {
    let mut still = Still {
        words: vec![0; WORDS],
        writes: RefCell::default(),
    };
    for (at, word) in &plan.reads {
        still.words[*at] = *word;
    }
    let mut psc = Psc::new(settings);
    let mut step = psc.begin(&still, plan.scratch);
    for (asked, answer) in plan.asked.iter().zip(&plan.answers) {
        assert_eq!(wanted(step), Ok(*asked));
        step = psc.complete(&still, *answer);
    }
    assert_eq!(step, PscStep::Resume(plan.result));
    assert_eq!(still.writes.into_inner(), plan.writes);
}

/// Checks one input.
pub(crate) fn check<S: Subject>(bytes: &[u8]) {
    S::check(bytes);
}

/// The header first, then entries in order, each at most once, none behind the end.
fn once(run: &Run) {
    let capacity = run.scratch.entries();
    let (first, rest) = run.reads.split_first().expect("the header is read");
    assert_eq!(first.0, 0);
    let header = PscHeader::from_word(first.1);
    let start = usize::from(header.cur_entry) + 1;
    assert!(rest.len() <= 253);
    for (expected, (at, _)) in (start..).zip(rest) {
        assert_eq!(*at, expected, "an entry is read out of order or again");
        assert!(*at <= usize::from(capacity));
        assert!(*at <= usize::from(header.end_entry) + 1);
    }
}

/// What is asked for is what the entries said when they were read, page by page. Gives how many entries have asked for
/// something and were not heard: one that is not valid, and what comes after it.
fn as_read(run: &Run) -> usize {
    let mut entries = run.reads[1..]
        .iter()
        .map(|(_, word)| PscEntry::from_word(*word));
    for (range, operation) in &run.asked {
        let mut at = range.start();
        while at < range.end() {
            let entry = entries.next().expect("no entry asked for it");
            let done = u64::from(entry.cur_page);
            if done == entry.size.pages() {
                // It was done before.
                continue;
            }
            assert_eq!(entry.operation, *operation);
            assert_eq!(entry.gfn.raw() + done, at.raw());
            at = Gfn::new(entry.gfn.raw() + entry.size.pages());
        }
        assert_eq!(at, range.end());
    }
    let rest = entries
        .filter(|entry| u64::from(entry.cur_page) != entry.size.pages())
        .count();
    if run.result == PscResult::Success && run.last.is_none() {
        assert_eq!(rest, 0);
    }
    rest
}
