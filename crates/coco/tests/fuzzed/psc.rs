//! Page-state changes whose buffer changes under the engine: what has to hold whatever the guest does.
//!
//! The input is taken as it is: settings, the header, entries, then a stream that says before each read whether the guest
//! writes a word. It runs twice, as KVM and strictly.

use std::cell::{Cell, RefCell};

use slat_coco::psc::{
    Answer, MapGpaRange, Psc, PscBuffer, PscEntry, PscHeader, PscOperation, PscQuirks, PscResult,
    PscSettings, PscStep, Resize, Scratch,
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
        let word = &mut self.words.borrow_mut()[offset / 8];
        *word = *word & !0xffff | u64::from(value);
    }
}

/// What the VMM was asked for, and how it ended.
struct Run {
    asked: Vec<(GfnRange, PscOperation)>,
    /// Pages that it said it did of the last one, if not all.
    last: Option<u64>,
    result: PscResult,
}

/// Runs one event. The input's next bytes are the buffer, and what the guest and the VMM do.
fn run(input: &Input<'_>, settings: PscSettings) -> (Run, Vec<(usize, u64)>, u16) {
    let room = 1 + usize::from(input.byte()) % WORDS;
    let scratch = Gpa::new(0x7ff0 - 8 * room as u64);
    let scratch = Scratch::in_ghcb(Gpa::new(0x7000), scratch).expect("it is inside");
    let entries = usize::from(input.byte()) % room;
    let guest = Guest {
        input,
        words: RefCell::new([0; WORDS]),
        room,
        reads: RefCell::default(),
    };
    for word in &mut guest.words.borrow_mut()[..=entries] {
        *word = input.word();
    }
    let mut psc = Psc::new(settings);
    let mut asked = Vec::new();
    let mut last = None;
    let mut step = psc.begin(&guest, scratch);
    let result = loop {
        let (range, operation) = match step {
            PscStep::Map(exit) => (exit.range, operation_of(&exit)),
            PscStep::Resize(Resize { range, to }) => match to {
                RmpSize::Size4K => (range, PscOperation::Psmash),
                RmpSize::Size2M => (range, PscOperation::Unsmash),
            },
            PscStep::Resume(result) => break result,
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
        step = psc.complete(&guest, answer);
    };
    assert!(!psc.in_flight());
    let again = psc.complete(&guest, Answer::Done);
    assert_eq!(again, PscStep::Resume(PscResult::Generic));
    let run = Run {
        asked,
        last,
        result,
    };
    (run, guest.reads.into_inner(), scratch.entries())
}

fn operation_of(exit: &MapGpaRange) -> PscOperation {
    match exit.args()[2] & 0x10 {
        0 => PscOperation::Shared,
        _ => PscOperation::Private,
    }
}

/// Checks one input.
pub(crate) fn check(bytes: &[u8]) {
    let input = Input(Cell::new(bytes));
    let (kvm, reads, _) = run(&input, PscSettings::new(PscQuirks::kvm()));
    assert!(kvm.asked.len() <= 253, "{} exits", kvm.asked.len());
    assert!(reads.len() <= 5 * 254, "{} reads", reads.len());

    let input = Input(Cell::new(bytes));
    let settings = PscSettings {
        end_gfn: Gfn::new(1 << 30),
        ..PscSettings::new(PscQuirks::strict())
    };
    let (strict, reads, capacity) = run(&input, settings);
    once(&reads, capacity);
    as_read(&strict, &reads);
}

/// The header first, then entries in order, each at most once, none behind the end.
fn once(reads: &[(usize, u64)], capacity: u16) {
    let (first, rest) = reads.split_first().expect("the header is read");
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

/// What is asked for is what the entries said when they were read, page by page.
fn as_read(run: &Run, reads: &[(usize, u64)]) {
    let mut entries = reads[1..]
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
    // What else was read is one entry that is not valid, or not needed any more, and such as were done before.
    let rest: Vec<PscEntry> = entries
        .filter(|entry| u64::from(entry.cur_page) != entry.size.pages())
        .collect();
    assert!(rest.len() <= 1);
    if run.result == PscResult::Success && run.last.is_none() {
        assert!(rest.is_empty());
    }
}
