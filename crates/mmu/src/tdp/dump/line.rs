//! One line of a dump, word by word.

use core::fmt::Display;
use core::str::SplitAsciiWhitespace;

use slat_memslot::{Gfn, GfnRange, Level};

use super::words::{self, Words};

/// Why a text is no dump: the line, the value in question, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {value}: {reason}")]
pub struct DumpError {
    /// The line, from 1.
    pub line: u32,
    /// The word, or several, that is wrong.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The frames that a host with 52 address bits can name.
pub(super) const FRAMES: u64 = 1 << 40;

/// A line's words.
#[derive(Clone, Debug)]
pub(super) struct Line<'a> {
    number: u32,
    words: SplitAsciiWhitespace<'a>,
}

impl<'a> Line<'a> {
    /// The words of a line, without its comment; `None` if there are none.
    pub(super) fn new(number: u32, text: &'a str) -> Option<Self> {
        let text = text.split('#').next().unwrap_or_default();
        let words = text.split_ascii_whitespace();
        words.clone().next()?;
        Some(Self { number, words })
    }

    pub(super) fn error(&self, value: impl Display, reason: impl Into<String>) -> DumpError {
        DumpError {
            line: self.number,
            value: value.to_string(),
            reason: reason.into(),
        }
    }

    /// The next word, where there is one.
    pub(super) fn optional(&mut self) -> Option<&'a str> {
        self.words.next()
    }

    /// The word that comes next, which stays.
    pub(super) fn peek(&self) -> Option<&'a str> {
        self.words.clone().next()
    }

    /// The next word.
    pub(super) fn word(&mut self, what: &str) -> Result<&'a str, DumpError> {
        let word = self.words.next();
        word.ok_or_else(|| self.error("end of line", format!("{what} is missing")))
    }

    /// Takes exactly this word.
    pub(super) fn keyword(&mut self, keyword: &str) -> Result<(), DumpError> {
        let word = self.word(keyword)?;
        if word == keyword {
            return Ok(());
        }
        Err(self.error(word, format!("`{keyword}` belongs here")))
    }

    /// The value of one of some words.
    pub(super) fn one_of<T: Copy>(&mut self, what: &str, words: Words<T>) -> Result<T, DumpError> {
        let word = self.word(what)?;
        words::value(words, word)
            .ok_or_else(|| self.error(word, format!("none of {}", words::all(words))))
    }

    /// Whether one word or the other is there.
    pub(super) fn either(&mut self, yes: &str, no: &str) -> Result<bool, DumpError> {
        let word = self.word(yes)?;
        match word {
            _ if word == yes => Ok(true),
            _ if word == no => Ok(false),
            _ => Err(self.error(word, format!("neither `{yes}` nor `{no}`"))),
        }
    }

    /// A number.
    pub(super) fn number(&mut self, what: &str) -> Result<u64, DumpError> {
        let word = self.word(what)?;
        self.read_number(word)
    }

    /// A number up to `last`.
    pub(super) fn number_to(&mut self, what: &str, last: u64) -> Result<u64, DumpError> {
        let word = self.word(what)?;
        let value = self.read_number(word)?;
        if value <= last {
            return Ok(value);
        }
        Err(self.error(word, format!("{what} is at most {last}")))
    }

    pub(super) fn number32(&mut self, what: &str) -> Result<u32, DumpError> {
        let value = self.number_to(what, u32::MAX.into())?;
        Ok(u32::try_from(value).unwrap_or(u32::MAX))
    }

    pub(super) fn byte(&mut self, what: &str, last: u8) -> Result<u8, DumpError> {
        let value = self.number_to(what, last.into())?;
        Ok(u8::try_from(value).unwrap_or(last))
    }

    fn read_number(&self, word: &str) -> Result<u64, DumpError> {
        let (digits, radix) = match word.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None => (word, 10),
        };
        // The standard library takes a sign, too.
        if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
            return Err(self.error(word, "not a number"));
        }
        u64::from_str_radix(digits, radix).map_err(|_| self.error(word, "larger than 64 bits"))
    }

    /// A guest frame.
    pub(super) fn gfn(&mut self) -> Result<Gfn, DumpError> {
        let word = self.word("a frame")?;
        match self.read_number(word)? {
            frame if frame < FRAMES => Ok(Gfn::new(frame)),
            _ => Err(self.error(word, "a frame of more than 40 bits")),
        }
    }

    /// A level, as `l1`.
    pub(super) fn level(&mut self) -> Result<Level, DumpError> {
        let word = self.word("a level")?;
        let named = |level: &Level| word.strip_prefix('l') == Some(digit(*level));
        let level = Level::ALL.into_iter().find(named);
        level.ok_or_else(|| self.error(word, "none of l1, l2, l3, l4, l5"))
    }

    /// Frames, as `0x0..0x200`.
    pub(super) fn frames(&mut self) -> Result<GfnRange, DumpError> {
        let word = self.word("a range of frames")?;
        let Some((start, end)) = word.split_once("..") else {
            return Err(self.error(word, "no range of frames"));
        };
        let (start, end) = (self.read_number(start)?, self.read_number(end)?);
        if end > FRAMES {
            return Err(self.error(word, "frames of more than 40 bits"));
        }
        GfnRange::between(Gfn::new(start), Gfn::new(end))
            .ok_or_else(|| self.error(word, "an empty or reversed range"))
    }

    /// Nothing may be left.
    pub(super) fn end(&mut self) -> Result<(), DumpError> {
        match self.words.next() {
            None => Ok(()),
            Some(word) => Err(self.error(word, "one word too many")),
        }
    }
}

const fn digit(level: Level) -> &'static str {
    match level {
        Level::L1 => "1",
        Level::L2 => "2",
        Level::L3 => "3",
        Level::L4 => "4",
        Level::L5 => "5",
    }
}
