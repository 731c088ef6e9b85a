//! Recordings, line by line.

use winnow::combinator::preceded;
use winnow::error::ContextError;
use winnow::prelude::*;
use winnow::token::take_till;

use super::lex::{Input, dec};
use super::{Item, ParseError, Probe, Recording, Traced, What, event, note, op, probe};
use crate::parse_error::column;

impl<'a> Recording<'a> {
    /// Reads a recording.
    ///
    /// # Errors
    /// The first line that cannot be read, with the value that is wrong there.
    pub fn parse(text: &'a str) -> Result<Self, ParseError> {
        let mut recording = Self {
            scenario: None,
            status: None,
            truncated: false,
            items: Vec::new(),
        };
        for (number, line) in (1..).zip(text.lines()) {
            recording.take(Line { number, text: line })?;
        }
        Ok(recording)
    }

    fn take(&mut self, line: Line<'a>) -> Result<(), ParseError> {
        if let Some(comment) = line.text.strip_prefix('#') {
            return self.comment(&line, comment.trim());
        }
        if !line.text.trim().is_empty() {
            self.items.push(Item {
                line: line.number,
                text: line.text,
                what: line.what()?,
            });
        }
        Ok(())
    }

    fn comment(&mut self, line: &Line<'a>, comment: &'a str) -> Result<(), ParseError> {
        if comment == "truncated" {
            self.truncated = true;
        }
        if comment.starts_with("scenario ") {
            let (name, status) = line.all(comment, "a scenario", header)?;
            (self.scenario, self.status) = (Some(name), Some(status));
        }
        Ok(())
    }
}

fn header<'a>(input: &mut Input<'a>) -> ModalResult<(&'a str, u32)> {
    let name = preceded("scenario ", take_till(1.., ' '));
    (name, preceded(" status ", dec)).parse_next(input)
}

/// A line with its number.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) number: u32,
    pub(super) text: &'a str,
}

impl<'a> Line<'a> {
    pub(super) fn what(&self) -> Result<What<'a>, ParseError> {
        if let Some(text) = self.text.strip_prefix("OP ") {
            return self.all(text, "an operation", op::op).map(What::Op);
        }
        if let Some(text) = self.text.strip_prefix("RET ") {
            return self.all(text, "a result", note::ret).map(What::Ret);
        }
        if let Some(text) = self.text.strip_prefix("NOTE ") {
            return self.all(text, "a note", note::note).map(What::Note);
        }
        if let Some(text) = self.text.strip_prefix("  fn ") {
            return self.probe(text).map(What::Probe);
        }
        if let Some(text) = self.text.strip_prefix("  ") {
            return self.event(text).map(What::Event);
        }
        Err(self.error(self.text, "no operation, result, note or event"))
    }

    fn event(&self, text: &'a str) -> Result<Traced<'a>, ParseError> {
        let (event, fields) = self.named(text)?;
        self.all(fields, event, |input: &mut Input<'a>| {
            event::fields(event, input)
        })
    }

    fn probe(&self, text: &'a str) -> Result<Probe<'a>, ParseError> {
        let (function, args) = self.named(text)?;
        self.all(args, function, |input: &mut Input<'a>| {
            probe::args(function, input)
        })
    }

    /// The name before the colon, and what stands behind it.
    fn named(&self, text: &'a str) -> Result<(&'a str, &'a str), ParseError> {
        let named = text.split_once(':');
        let (name, rest) = named.ok_or_else(|| self.error(text, "no name with a colon"))?;
        Ok((name, rest.trim()))
    }

    /// All of `text`, which is the end of the line but for blanks, with `parser`.
    pub(super) fn all<T>(
        &self,
        text: &'a str,
        name: &str,
        parser: impl ModalParser<Input<'a>, T, ContextError>,
    ) -> Result<T, ParseError> {
        let mut parser = parser;
        parser.parse(text).map_err(|error| {
            let rest = text.get(error.offset()..).unwrap_or(text);
            self.error(rest, &format!("not what {name} has here"))
        })
    }

    /// `rest`, a part of this line, is wrong.
    pub(super) fn error(&self, rest: &str, wrong: &str) -> ParseError {
        let offset = (rest.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        let word = rest.split_whitespace().next();
        let value = word.unwrap_or("the end of the line");
        ParseError {
            line: self.number,
            column: column(self.text, offset),
            message: format!("{value}: {wrong}"),
        }
    }
}
