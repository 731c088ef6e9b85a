//! The words of one line, taken one by one.

use std::collections::{BTreeSet, VecDeque};

use super::ParseError;
use super::lex::{Parsed, Token, TokenKind};

/// A word and its column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word<'a> {
    pub(super) column: u32,
    pub(super) text: &'a str,
}

/// `key=value`.
#[derive(Clone, Copy, Debug)]
struct Pair<'a> {
    column: u32,
    key: &'a str,
    value: &'a str,
}

/// What stands between an operation and `=>`.
#[derive(Debug)]
pub(super) struct Args<'a> {
    line: u32,
    op: Word<'a>,
    title: Option<(u32, String)>,
    words: VecDeque<Word<'a>>,
    pairs: Vec<Pair<'a>>,
    keys: BTreeSet<&'a str>,
}

impl<'a> Args<'a> {
    /// Sorts the words behind `op` into plain ones and pairs.
    pub(super) fn new(line: u32, op: Word<'a>, rest: Vec<Token<'a>>) -> Result<Self, ParseError> {
        let mut args = Self {
            line,
            op,
            title: None,
            words: VecDeque::new(),
            pairs: Vec::new(),
            keys: BTreeSet::new(),
        };
        for token in rest {
            args.add(token)?;
        }
        Ok(args)
    }

    fn add(&mut self, token: Token<'a>) -> Result<(), ParseError> {
        let column = token.column;
        let text = match token.kind {
            TokenKind::Word(text) => text,
            TokenKind::Arrow => return Err(self.error(column, "=>: a second one".to_owned())),
            TokenKind::Title(title) => return self.add_title(column, title),
        };
        let Some((key, value)) = text.split_once('=') else {
            self.words.push_back(Word { column, text });
            return Ok(());
        };
        if !self.keys.insert(key) {
            return Err(self.error(column, format!("{key}=: given twice")));
        }
        self.pairs.push(Pair { column, key, value });
        Ok(())
    }

    fn add_title(&mut self, column: u32, title: String) -> Result<(), ParseError> {
        if self.title.is_some() {
            return Err(self.error(column, format!("{title:?}: a second title")));
        }
        self.title = Some((column, title));
        Ok(())
    }

    /// An error in this line.
    pub(super) fn error(&self, column: u32, message: String) -> ParseError {
        ParseError {
            line: self.line,
            column,
            message,
        }
    }

    /// An error of the line as a whole.
    pub(super) fn fault(&self, message: &str) -> ParseError {
        self.error(self.op.column, format!("{}: {message}", self.op.text))
    }

    /// The title.
    pub(super) fn title(&mut self) -> Result<String, ParseError> {
        let title = self.title.take().map(|(_, title)| title);
        title.ok_or_else(|| self.fault("needs a \"title\""))
    }

    /// The next plain word, read by `read`.
    pub(super) fn word<T>(
        &mut self,
        what: &str,
        read: impl Fn(&str) -> Parsed<T>,
    ) -> Result<T, ParseError> {
        let value = self.optional_word(read)?;
        value.ok_or_else(|| self.fault(&format!("needs {what}")))
    }

    /// The next plain word, where there is one.
    pub(super) fn optional_word<T>(
        &mut self,
        read: impl Fn(&str) -> Parsed<T>,
    ) -> Result<Option<T>, ParseError> {
        let Some(word) = self.words.pop_front() else {
            return Ok(None);
        };
        let value = read(word.text);
        let value =
            value.map_err(|why| self.error(word.column, format!("{}: {why}", word.text)))?;
        Ok(Some(value))
    }

    /// Takes the next plain word when it is `text`.
    pub(super) fn skip(&mut self, text: &str) -> bool {
        let found = self.words.front().is_some_and(|word| word.text == text);
        if found {
            self.words.pop_front();
        }
        found
    }

    /// The value of `key`, where it is given.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        read: impl Fn(&str) -> Parsed<T>,
    ) -> Result<Option<T>, ParseError> {
        let Some(at) = self.pairs.iter().position(|pair| pair.key == key) else {
            return Ok(None);
        };
        let pair = self.pairs.remove(at);
        let value = read(pair.value);
        let value =
            value.map_err(|why| self.error(pair.column, format!("{key}={}: {why}", pair.value)))?;
        Ok(Some(value))
    }

    /// The value of `key`.
    pub(super) fn required<T>(
        &mut self,
        key: &str,
        read: impl Fn(&str) -> Parsed<T>,
    ) -> Result<T, ParseError> {
        let value = self.optional(key, read)?;
        value.ok_or_else(|| self.fault(&format!("needs {key}=")))
    }

    /// The value of `key`, or its type's default.
    pub(super) fn defaulted<T: Default>(
        &mut self,
        key: &str,
        read: impl Fn(&str) -> Parsed<T>,
    ) -> Result<T, ParseError> {
        Ok(self.optional(key, read)?.unwrap_or_default())
    }

    /// Whether nothing is left over.
    pub(super) fn finish(&self) -> Result<(), ParseError> {
        if let Some(pair) = self.pairs.first() {
            let message = format!("{}=: {} has no such argument", pair.key, self.op.text);
            return Err(self.error(pair.column, message));
        }
        if let Some(word) = self.words.front() {
            return Err(self.error(word.column, format!("{}: one word too many", word.text)));
        }
        if let Some((column, title)) = &self.title {
            return Err(self.error(*column, format!("{title:?}: no title belongs here")));
        }
        Ok(())
    }
}
