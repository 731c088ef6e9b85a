//! The words of one line of a script.

use std::vec::IntoIter;

use slat_memslot::{Gfn, GfnRange, PageSize};

use super::ParseError;
use crate::scenario::lex::{self, Parsed, Token, TokenKind};

/// The sizes of pages.
pub(super) const SIZES: [(&str, PageSize); 3] = [
    ("4k", PageSize::Size4K),
    ("2m", PageSize::Size2M),
    ("1g", PageSize::Size1G),
];

/// A word and its column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word<'a> {
    column: u32,
    pub(super) text: &'a str,
}

/// The words of a line, taken one by one.
#[derive(Debug)]
pub(super) struct Args<'a> {
    pub(super) line: u32,
    words: std::iter::Peekable<IntoIter<Word<'a>>>,
}

impl<'a> Args<'a> {
    /// The words of a line; `None` if there are none.
    pub(super) fn new(line: u32, text: &'a str) -> Result<Option<Self>, ParseError> {
        let error = |column, message: &str| ParseError {
            line,
            column,
            message: message.to_owned(),
        };
        let tokens =
            lex::tokens(text).map_err(|column| error(column, "\": no text belongs here"))?;
        let word = |token: Token<'a>| match token.kind {
            TokenKind::Word(text) => Ok(Word {
                column: token.column,
                text,
            }),
            TokenKind::Arrow => Err(error(token.column, "=>: use a line `expect`")),
            TokenKind::Title(_) => Err(error(token.column, "\": no text belongs here")),
        };
        let words: Vec<Word<'a>> = tokens.into_iter().map(word).collect::<Result<_, _>>()?;
        Ok((!words.is_empty()).then(|| Self {
            line,
            words: words.into_iter().peekable(),
        }))
    }

    /// An error at a word.
    pub(super) fn error(&self, at: Word<'_>, why: &str) -> ParseError {
        ParseError {
            line: self.line,
            column: at.column,
            message: format!("{}: {why}", at.text),
        }
    }

    /// The next word.
    pub(super) fn word(&mut self, op: Word<'_>, what: &str) -> Result<Word<'a>, ParseError> {
        let word = self.words.next();
        word.ok_or_else(|| self.error(op, &format!("needs {what}")))
    }

    /// The next word, where there is one.
    pub(super) fn optional(&mut self) -> Option<Word<'a>> {
        self.words.next()
    }

    /// Takes the next word when it is `text`.
    pub(super) fn skip(&mut self, text: &str) -> bool {
        self.words.next_if(|word| word.text == text).is_some()
    }

    /// The next word, read by `read`.
    pub(super) fn value<T>(
        &mut self,
        op: Word<'_>,
        what: &str,
        read: impl Fn(&str) -> Parsed<T>,
    ) -> Result<(Word<'a>, T), ParseError> {
        let word = self.word(op, what)?;
        let value = read(word.text).map_err(|why| self.error(word, &why))?;
        Ok((word, value))
    }

    /// Nothing may be left.
    pub(super) fn finish(&mut self) -> Result<(), ParseError> {
        match self.words.next() {
            None => Ok(()),
            Some(word) => Err(self.error(word, "one word too many")),
        }
    }
}

/// A guest frame.
pub(super) fn gfn(text: &str) -> Parsed<Gfn> {
    lex::number(text).map(Gfn::new)
}

/// Frames, as `0x0..0x200`.
pub(super) fn frames(text: &str) -> Parsed<GfnRange> {
    let (start, end) = text.split_once("..").ok_or("no range START..END")?;
    let part = |text: &str| lex::number(text).map_err(|why| format!("{text:?} is {why}"));
    let (start, end) = (Gfn::new(part(start)?), Gfn::new(part(end)?));
    GfnRange::between(start, end).ok_or_else(|| "an empty or reversed range".to_owned())
}

/// One frame, or frames.
pub(super) fn gfn_or_frames(text: &str) -> Parsed<(Gfn, Option<GfnRange>)> {
    if text.contains("..") {
        let frames = frames(text)?;
        return Ok((frames.start(), Some(frames)));
    }
    Ok((gfn(text)?, None))
}

/// A size of pages.
pub(super) fn size(text: &str) -> Parsed<PageSize> {
    let found = SIZES.iter().find(|(name, _)| *name == text);
    let size = found.map(|(_, size)| *size);
    size.ok_or_else(|| "none of 4k, 2m, 1g".to_owned())
}
