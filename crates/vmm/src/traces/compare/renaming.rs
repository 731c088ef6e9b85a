//! Predicted tables' numbers and recorded tables' frames, one to one.

use std::collections::BTreeMap;

use super::Mismatch;

/// Which predicted table is which recorded one.
///
/// A pair is learned when a link first shows it, holds both ways, and ends when the link is gone: then both sides may
/// use the number and the frame for other tables, each in its own order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renaming {
    frames: BTreeMap<u64, u64>,
    numbers: BTreeMap<u64, u64>,
}

impl Renaming {
    /// The recorded frame of a predicted table.
    pub fn frame(&self, number: u64) -> Option<u64> {
        self.frames.get(&number).copied()
    }

    /// The number of the predicted table at a recorded frame.
    pub fn number(&self, frame: u64) -> Option<u64> {
        self.numbers.get(&frame).copied()
    }

    /// How many tables are known now.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether no table is known now.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Predicted table `number` is the recorded one at `frame`: learned if neither was known.
    pub(super) fn same(&mut self, number: u64, frame: u64) -> Result<(), Mismatch> {
        match (self.frame(number), self.number(frame)) {
            (None, None) => {
                self.frames.insert(number, frame);
                self.numbers.insert(frame, number);
                Ok(())
            }
            (Some(known), _) if known != frame => Err(Mismatch::OtherTable {
                number,
                known,
                frame,
            }),
            (_, Some(known)) if known != number => Err(Mismatch::TableTaken {
                frame,
                known,
                number,
            }),
            _ => Ok(()),
        }
    }

    /// The table is gone.
    pub(super) fn forget(&mut self, number: u64) {
        if let Some(frame) = self.frames.remove(&number) {
            self.numbers.remove(&frame);
        }
    }
}
