//! What operations give, and what is expected of them.

use core::fmt;

use slat_mmu::tdp::{Collapsed, MapError, Mapped, Resolution};

use super::Operation;
use super::args::{Args, Word};
use crate::parse_error::ParseError;
use crate::scenario::lex;

/// What an operation gave.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// A root that was there already.
    Shared,
    /// A new root.
    Created,
    /// A fault.
    Fault(Mapped),
    /// So many pages were mapped, and so many of them are to be logged as dirty.
    MappedRange {
        /// Pages of 4 KiB.
        pages: u64,
        /// Pages of 4 KiB.
        dirty: u64,
    },
    /// So many leaves were zapped.
    Zapped(u64),
    /// Whether a table was there to be zapped.
    ZappedTable(bool),
    /// A table made room, or did not.
    Collapsed(Collapsed),
    /// So many tables were discarded.
    Discarded(u64),
    /// It is done.
    Done,
    /// The operation failed.
    Failed(Failure),
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It was refused.
    #[error("{0}")]
    Map(MapError),
    /// A table was needed and there was none.
    #[error("all tables are in use")]
    OutOfTables,
    /// The root could not be made before.
    #[error("the root is not there")]
    NoRoot,
}

impl Failure {
    /// The name that scripts use.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::OutOfTables | Self::Map(MapError::OutOfTables) => "out-of-tables",
            Self::Map(MapError::BeyondLastGfn { .. }) => "beyond-last-gfn",
            Self::Map(MapError::Unaligned { .. }) => "unaligned",
            Self::Map(MapError::BeyondLastPfn { .. }) => "beyond-last-pfn",
            Self::Map(MapError::PfnChanged { .. }) => "pfn-changed",
            Self::Map(MapError::NoMmioEntries) => "no-mmio-entries",
            Self::Map(_) => "other",
            Self::NoRoot => "no-root",
        }
    }
}

/// The names of failures.
const FAILURES: [&str; 7] = [
    "out-of-tables",
    "beyond-last-gfn",
    "unaligned",
    "beyond-last-pfn",
    "pfn-changed",
    "no-mmio-entries",
    "no-root",
];

/// What an operation is expected to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The word.
    word: &'static str,
    /// The failure after `error`.
    failure: Option<&'static str>,
    /// The number, where one is given.
    count: Option<u64>,
}

/// Words of results that have no number.
const PLAIN: [&str; 13] = [
    "ok",
    "new",
    "shared",
    "fixed",
    "spurious",
    "retry",
    "emulate",
    "write-protected",
    "no-table",
    "no-leaf",
    "busy",
    "done",
    "error",
];

/// Words of results that have one.
const COUNTED: [&str; 3] = ["mapped", "zapped", "discarded"];

impl Expect {
    /// Reads the words behind `expect`.
    pub(super) fn read(op: Word<'_>, args: &mut Args<'_>) -> Result<Self, ParseError> {
        let text = args.word(op, "a result")?;
        let known = |words: &[&'static str]| words.iter().copied().find(|word| *word == text.text);
        let mut expect = Self {
            word: "",
            failure: None,
            count: None,
        };
        match (known(&PLAIN), known(&COUNTED)) {
            (Some("error"), _) => {
                expect.word = "error";
                let name = args.word(op, "the name of the error")?;
                let failure = FAILURES.iter().copied().find(|known| *known == name.text);
                let why = format!("none of {}", FAILURES.join(", "));
                expect.failure = Some(failure.ok_or_else(|| args.error(name, &why))?);
            }
            (Some(word), _) => expect.word = word,
            (None, Some(word)) => {
                expect.word = word;
                if let Some(number) = args.optional() {
                    let count = lex::number(number.text);
                    expect.count = Some(count.map_err(|why| args.error(number, &why))?);
                }
            }
            (None, None) => {
                let words = [PLAIN.join(", "), COUNTED.join(", ")].join(", ");
                return Err(args.error(text, &format!("none of {words}")));
            }
        }
        Ok(expect)
    }

    /// Whether an operation can give this at all.
    pub(super) fn fits(&self, operation: &Operation) -> bool {
        let words: &[&str] = match operation {
            Operation::Root { .. } => &["new", "shared"],
            Operation::Map { .. } => &["fixed", "spurious", "retry", "write-protected"],
            Operation::Mmio { .. } => &["emulate", "retry"],
            Operation::MapRange { .. } => &["mapped"],
            Operation::Zap(_) => &["zapped"],
            Operation::ZapPage { .. } => &["done", "no-table"],
            Operation::Collapse { .. } => &["done", "no-table", "no-leaf", "busy"],
            Operation::FastZap(super::FastZap::Discard) => &["discarded"],
            Operation::Split { .. }
            | Operation::FastZap(_)
            | Operation::ZapInvalidated
            | Operation::Put(_) => &[],
        };
        self.word == "ok" || self.word == "error" || words.contains(&self.word)
    }

    /// Whether this is what is expected.
    pub fn accepts(&self, outcome: &Outcome) -> bool {
        let (word, count) = outcome.words();
        match (outcome, self.word) {
            (Outcome::Failed(failure), _) => self.failure == Some(failure.name()),
            (_, "ok") => true,
            _ => self.word == word && self.count.is_none_or(|wanted| Some(wanted) == count),
        }
    }
}

impl Outcome {
    /// The word, and the number where there is one.
    const fn words(&self) -> (&'static str, Option<u64>) {
        match self {
            Self::Shared => ("shared", None),
            Self::Created => ("new", None),
            Self::Fault(mapped) => (resolution(mapped.resolution), None),
            Self::MappedRange { pages, .. } => ("mapped", Some(*pages)),
            Self::Zapped(leaves) => ("zapped", Some(*leaves)),
            Self::ZappedTable(true) | Self::Collapsed(Collapsed::Done) => ("done", None),
            Self::ZappedTable(false) | Self::Collapsed(Collapsed::NoTable) => ("no-table", None),
            Self::Collapsed(Collapsed::NoLeaf) => ("no-leaf", None),
            Self::Collapsed(Collapsed::Busy) => ("busy", None),
            Self::Discarded(tables) => ("discarded", Some(*tables)),
            Self::Done => ("ok", None),
            Self::Failed(_) => ("error", None),
        }
    }
}

const fn resolution(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::Retry(_) => "retry",
        Resolution::Emulate => "emulate",
        Resolution::WriteProtected => "write-protected",
        Resolution::Fixed => "fixed",
        Resolution::Spurious => "spurious",
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Failed(failure) = self {
            return write!(f, "error {} ({failure})", failure.name());
        }
        match self.words() {
            (word, None) => f.write_str(word),
            (word, Some(count)) => write!(f, "{word} {count}"),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word)?;
        if let Some(failure) = self.failure {
            write!(f, " {failure}")?;
        }
        match self.count {
            Some(count) => write!(f, " {count}"),
            None => Ok(()),
        }
    }
}
