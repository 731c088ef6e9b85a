//! What comes of a comparison.

use core::fmt;

use slat_memslot::{Gfn, Level};

use super::Renaming;

/// Accessed and dirty bits that a recorded leaf had and the predicted one had not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The line of the recording.
    pub line: u32,
    /// The first frame.
    pub gfn: Gfn,
    /// The level; `None` in [`Traced::FastPageFault`](crate::traces::Traced::FastPageFault), which does not say it.
    pub level: Option<Level>,
    /// The bits.
    pub bits: u64,
}

/// The two sides agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// How many predicted events and results were compared.
    pub compared: usize,
    /// The bits that hardware has set since the entry was stored, for the model to adopt.
    pub adopted: Vec<Adopted>,
}

/// Why two lines, or sequences, differ.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mismatch {
    /// They are different events.
    Kind,
    /// A field has another value.
    Field(&'static str),
    /// One entry is a link to a table and the other is not.
    Shape(&'static str),
    /// A predicted table is another recorded one than before.
    OtherTable {
        /// The predicted table.
        number: u64,
        /// Where it is.
        known: u64,
        /// Where it would be now.
        frame: u64,
    },
    /// A recorded table is another predicted one than before.
    TableTaken {
        /// The frame of the recorded table.
        frame: u64,
        /// The predicted table that it is.
        known: u64,
        /// The one that it would be now.
        number: u64,
    },
    /// Bits differ that hardware may set, but not in this entry.
    NotByHardware {
        /// The bits.
        bits: u64,
    },
    /// The recording ends earlier.
    RecordingEnds,
    /// The prediction ends earlier.
    PredictionEnds,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind => write!(f, "another event"),
            Self::Field(field) => write!(f, "another {field}"),
            Self::Shape(field) => write!(f, "{field} links to a table on one side only"),
            Self::OtherTable {
                number,
                known,
                frame,
            } => {
                write!(
                    f,
                    "table {number} is at frame {known:#x}, not at {frame:#x}"
                )
            }
            Self::TableTaken {
                frame,
                known,
                number,
            } => {
                write!(f, "frame {frame:#x} is table {known}, not table {number}")
            }
            Self::NotByHardware { bits } => {
                write!(
                    f,
                    "bits {bits:#x} differ, which hardware cannot have set in this entry"
                )
            }
            Self::RecordingEnds => write!(f, "the recording has no more events"),
            Self::PredictionEnds => write!(f, "no more events are predicted"),
        }
    }
}

/// Where the two sides differ first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Difference {
    /// The line of the recording; after its last event, that event's.
    pub line: u32,
    /// The operation under way: its line and text.
    pub operation: Option<(u32, String)>,
    /// What was recorded.
    pub recorded: Option<String>,
    /// What was predicted.
    pub predicted: Option<String>,
    /// What differs.
    pub mismatch: Mismatch,
    /// The last events on which the two agree, with their lines.
    pub before: Vec<(u32, String)>,
    /// The tables that were known.
    pub renaming: Renaming,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "line {}: {}", self.line, self.mismatch)?;
        if let Some((line, text)) = &self.operation {
            writeln!(f, "in     {line:>6}  {text}")?;
        }
        for (line, text) in &self.before {
            writeln!(f, "agreed {line:>6}  {text}")?;
        }
        let nothing = "nothing";
        let recorded = self.recorded.as_deref().unwrap_or(nothing);
        let predicted = self.predicted.as_deref().unwrap_or(nothing);
        writeln!(f, "recorded       {recorded}")?;
        write!(f, "predicted      {predicted}")
    }
}
