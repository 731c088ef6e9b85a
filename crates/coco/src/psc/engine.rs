//! The engine: from a buffer to the ranges that a VMM has to change.

use slat_memslot::Gfn;

use super::batch::{Batch, left_of};
use super::buffer::{MAX_ENTRIES, PscBuffer, PscEntry, PscHeader, PscOperation, offset_of};
use super::exit::{Answer, MapGpaRange, PscResult, Resize};
use super::quirks::{CursorBeyondEnd, HeaderReads, Merge, OtherOperations, PscQuirks, Reserved};
use super::scratch::Scratch;
use crate::convert::{Outcome, UnknownReturn};
use crate::rmp::RmpSize;

/// What the engine has to know of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PscSettings {
    /// Whose ways it follows.
    pub quirks: PscQuirks,
    /// Whether the VMM takes the exits (`KVM_CAP_EXIT_HYPERCALL`). If not, every event fails.
    pub exits_enabled: bool,
    /// The first frame that the guest cannot have. Entries that reach beyond it are invalid; KVM has no such limit.
    pub end_gfn: Gfn,
}

impl PscSettings {
    /// Exits enabled, and no limit but an entry's own 40 bits.
    pub const fn new(quirks: PscQuirks) -> Self {
        Self {
            quirks,
            exits_enabled: true,
            end_gfn: Gfn::new(1 << 41),
        }
    }
}

impl PscSettings {
    /// Whether a header leads to work, at the beginning of an event or later.
    #[inline]
    pub(super) fn check_header(
        &self,
        header: &PscHeader,
        capacity: u16,
        begins: bool,
    ) -> Result<(), PscResult> {
        let quirks = &self.quirks;
        // Behind the last entry is where the work ends, too.
        let beyond = header.cur_entry > header.end_entry && begins;
        let invalid = header.end_entry >= capacity
            || (header.reserved != 0 && quirks.reserved == Reserved::Refused)
            || (beyond && quirks.beyond == CursorBeyondEnd::Invalid);
        if invalid {
            return Err(PscResult::InvalidHeader);
        }
        Ok(())
    }

    #[inline]
    pub(super) fn check_entry(&self, entry: &PscEntry) -> Result<(), PscResult> {
        let quirks = &self.quirks;
        let pages = entry.size.pages();
        let unknown = matches!(entry.operation, PscOperation::Unknown(_));
        let invalid = u64::from(entry.cur_page) > pages
            || !entry.size.is_aligned(entry.gfn.raw())
            || entry.gfn.raw() + pages > self.end_gfn.raw()
            || (unknown && quirks.other != OtherOperations::Ignored)
            || (entry.reserved != 0 && quirks.reserved == Reserved::Refused);
        if invalid {
            return Err(PscResult::InvalidEntry);
        }
        Ok(())
    }

    /// The bits of an entry that are compared with what may follow.
    #[inline]
    pub(super) const fn counted(&self) -> u64 {
        match self.quirks.reserved {
            Reserved::Refused => u64::MAX,
            Reserved::Ignored => !PscEntry::RESERVED,
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the guest waits for it"]
pub enum PscStep {
    /// The VMM changes a range and says how it went, with [`Psc::complete`].
    Map(MapGpaRange),
    /// The VMM may resize a range, and goes on with [`Psc::complete`] too.
    Resize(Resize),
    /// The guest is entered again, with this in SW_EXITINFO2 and 0 in SW_EXITINFO1.
    Resume(PscResult),
}

/// One vCPU's page-state change.
///
/// ```
/// use std::cell::RefCell;
/// use slat_coco::psc::{
///     Answer, Psc, PscBuffer, PscEntry, PscHeader, PscOperation, PscQuirks, PscResult, PscSettings, PscStep, Scratch,
/// };
/// use slat_coco::rmp::RmpSize;
/// use slat_memslot::{Gfn, Gpa};
///
/// /// Of one thread, for once.
/// struct Words(RefCell<Vec<u8>>);
/// impl PscBuffer for Words {
///     fn load_u16(&self, at: usize) -> u16 {
///         u16::from_le_bytes(self.0.borrow()[at..at + 2].try_into().unwrap())
///     }
///     fn load_u64(&self, at: usize) -> u64 {
///         u64::from_le_bytes(self.0.borrow()[at..at + 8].try_into().unwrap())
///     }
///     fn store_u16(&self, at: usize, value: u16) {
///         self.0.borrow_mut()[at..at + 2].copy_from_slice(&value.to_le_bytes());
///     }
/// }
///
/// let header = PscHeader { cur_entry: 0, end_entry: 1, reserved: 0 };
/// let page = |gfn| PscEntry::new(Gfn::new(gfn), PscOperation::Private, RmpSize::Size4K);
/// let words = [header.to_word(), page(16).to_word(), page(17).to_word()];
/// let buffer = Words(RefCell::new(words.iter().flat_map(|word| word.to_le_bytes()).collect()));
///
/// let scratch = Scratch::in_ghcb(Gpa::new(0x7000), Gpa::new(0x7800)).unwrap();
/// let mut psc = Psc::new(PscSettings::new(PscQuirks::strict()));
/// // Two entries, one exit.
/// let PscStep::Map(exit) = psc.begin(&buffer, scratch) else { panic!() };
/// assert_eq!(exit.args(), [0x1_0000, 2, 0x10]);
/// assert_eq!(psc.complete(&buffer, Answer::Done), PscStep::Resume(PscResult::Success));
/// assert_eq!(buffer.load_u16(0), 2);
/// ```
#[derive(Clone, Debug)]
pub struct Psc {
    settings: PscSettings,
    capacity: u16,
    header: PscHeader,
    /// Entries that may still be looked at.
    budget: u16,
    /// The entry at the header's cursor, as it was read, if it was read already.
    ahead: Option<u64>,
    batch: Option<Batch>,
}

impl Psc {
    /// Nothing under way.
    pub const fn new(settings: PscSettings) -> Self {
        Self {
            settings,
            capacity: 0,
            header: PscHeader::from_word(0),
            budget: 0,
            ahead: None,
            batch: None,
        }
    }

    /// Whether a range is with the VMM.
    pub const fn in_flight(&self) -> bool {
        self.batch.is_some()
    }

    /// The guest has made an exit (`SVM_VMGEXIT_PSC`).
    ///
    /// An event that is still under way fails, and is forgotten: the guest cannot have made an exit.
    pub fn begin(&mut self, buffer: &impl PscBuffer, scratch: Scratch) -> PscStep {
        self.ahead = None;
        let forgotten = self.batch.take();
        if !self.settings.exits_enabled || forgotten.is_some() {
            return PscStep::Resume(PscResult::Generic);
        }
        self.capacity = scratch.entries();
        self.budget = MAX_ENTRIES;
        self.header = PscHeader::from_word(buffer.load_u64(0));
        self.run(buffer, HeaderReads::Once)
    }

    /// The VMM has done what it was asked for, or has not.
    ///
    /// More pages than the range has count as all of them. Without a range the event fails.
    pub fn complete(&mut self, buffer: &impl PscBuffer, answer: Answer) -> PscStep {
        let Some(batch) = self.batch.take() else {
            return PscStep::Resume(PscResult::Generic);
        };
        match answer {
            Answer::Failed => PscStep::Resume(PscResult::Generic),
            Answer::Partly(pages) if pages.raw() < batch.pages => {
                self.mark(buffer, &batch, pages.raw());
                PscStep::Resume(PscResult::Success)
            }
            Answer::Done | Answer::Partly(_) => {
                self.mark(buffer, &batch, batch.pages);
                self.run(buffer, self.settings.quirks.header)
            }
        }
    }

    /// The same with the value that userspace left in `hypercall.ret`.
    ///
    /// # Errors
    /// The value is none of those allowed. The event has failed for the guest, and `KVM_RUN` with `EINVAL`.
    pub fn complete_ret(
        &mut self,
        buffer: &impl PscBuffer,
        ret: u64,
    ) -> Result<PscStep, UnknownReturn> {
        let answer = match Outcome::of_ret(ret, self.settings.quirks.returns) {
            Ok(Outcome::Done) => Answer::Done,
            Ok(Outcome::TryAgain | Outcome::Refused) => Answer::Failed,
            Err(unknown) => {
                self.batch = None;
                return Err(unknown);
            }
        };
        Ok(self.complete(buffer, answer))
    }

    /// Goes on to the next range that needs the VMM, or to the end.
    fn run(&mut self, buffer: &impl PscBuffer, mut header: HeaderReads) -> PscStep {
        loop {
            let batch = match self.next_range(buffer, header) {
                Ok(Some(batch)) => batch,
                Ok(None) => return PscStep::Resume(PscResult::Success),
                Err(result) => return PscStep::Resume(result),
            };
            if let Some(step) = batch.step(&self.settings.quirks) {
                self.batch = Some(batch);
                return step;
            }
            self.mark(buffer, &batch, batch.pages);
            header = self.settings.quirks.header;
        }
    }

    fn next_range(
        &mut self,
        buffer: &impl PscBuffer,
        header: HeaderReads,
    ) -> Result<Option<Batch>, PscResult> {
        if header == HeaderReads::EveryRange {
            // As KVM reads them: the guest may change the second after the first was read.
            self.header.cur_entry = buffer.load_u16(0);
            self.header.end_entry = buffer.load_u16(2);
        }
        let begins = self.budget == MAX_ENTRIES;
        self.settings
            .check_header(&self.header, self.capacity, begins)?;
        let Some(head) = self.find_head(buffer)? else {
            return Ok(None);
        };
        Ok(Some(self.gather(buffer, head)))
    }

    /// The first entry, from the cursor on, that is not done.
    fn find_head(&mut self, buffer: &impl PscBuffer) -> Result<Option<PscEntry>, PscResult> {
        while self.header.cur_entry <= self.header.end_entry && self.budget > 0 {
            self.budget -= 1;
            let index = self.header.cur_entry;
            let word = match self.ahead.take() {
                Some(word) => word,
                None => buffer.load_u64(offset_of(usize::from(index))),
            };
            let entry = PscEntry::from_word(word);
            self.settings.check_entry(&entry)?;
            if left_of(&entry) > 0 {
                return Ok(Some(entry));
            }
            self.move_cursor(buffer, index + 1);
        }
        Ok(None)
    }

    /// An entry with the neighbours that can go into the same exit.
    fn gather(&mut self, buffer: &impl PscBuffer, head: PscEntry) -> Batch {
        let quirks = self.settings.quirks;
        let done = u64::from(head.cur_page);
        let mut batch = Batch {
            first: self.header.cur_entry,
            entries: 1,
            head,
            // The rest of a half done entry is split at this point, and goes with pages of 4 KiB only.
            size: if done == 0 {
                head.size
            } else {
                RmpSize::Size4K
            },
            base: match quirks.merge {
                Merge::ToEnd => Gfn::new(head.gfn.raw() + done),
                Merge::ToFirstFrame => head.gfn,
            },
            pages: left_of(&head),
        };
        let counted = self.settings.counted();
        let most = self.budget.min(self.header.end_entry - batch.first);
        let (mut gfn, pages) = (batch.base.raw() + batch.pages, batch.size.pages());
        let end = self.settings.end_gfn.raw().min(PscEntry::END_GFN);
        // The only entry that can follow, but for its frame.
        let like = PscEntry::new(Gfn::new(0), head.operation, batch.size).to_word();
        for _ in 0..most {
            let next = buffer.load_u64(offset_of(usize::from(batch.first + batch.entries)));
            if next & counted != like | gfn << 12 || gfn + pages > end {
                if quirks.header == HeaderReads::Once {
                    self.ahead = Some(next);
                }
                break;
            }
            batch.entries += 1;
            gfn += pages;
        }
        self.budget -= batch.entries - 1;
        batch.pages += u64::from(batch.entries - 1) * pages;
        batch
    }

    /// Tells the guest that so many pages of a range are done.
    fn mark(&mut self, buffer: &impl PscBuffer, batch: &Batch, done: u64) {
        self.header.cur_entry = batch.mark(buffer, done);
    }

    fn move_cursor(&mut self, buffer: &impl PscBuffer, to: u16) {
        self.header.cur_entry = to;
        buffer.store_u16(0, to);
    }
}
