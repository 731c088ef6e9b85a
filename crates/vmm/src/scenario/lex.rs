//! Words of a line, and the values that stand in them.

use winnow::LocatingSlice;
use winnow::ascii::{digit1, hex_digit1};
use winnow::combinator::{alt, delimited, eof, opt, preceded, repeat, terminated};
use winnow::prelude::*;
use winnow::token::{one_of, take_till, take_while};

use super::words::{self, Words};
use crate::parse_error::column;

/// A value, or what is wrong with the text that should hold it.
pub(crate) type Parsed<T> = Result<T, String>;

type Input<'a> = LocatingSlice<&'a str>;

/// One word of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    /// The column of its first character, from 1.
    pub(crate) column: u32,
    /// What it is.
    pub(crate) kind: TokenKind<'a>,
}

/// What a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind<'a> {
    /// Anything between blanks.
    Word(&'a str),
    /// A text between quotes.
    Title(String),
    /// `=>`.
    Arrow,
}

/// The words of `line`, without its comment; else the column of an unfinished title.
pub(crate) fn tokens(line: &str) -> Result<Vec<Token<'_>>, u32> {
    let words = repeat(0.., preceded(blanks, token.with_span()));
    let mut whole = terminated(words, (blanks, opt(comment), eof));
    let found: Vec<(TokenKind<'_>, core::ops::Range<usize>)> = whole
        .parse(LocatingSlice::new(line))
        .map_err(|e| column(line, e.offset()))?;
    let (mut at, mut column) = (0, 1);
    let mut tokens = Vec::with_capacity(found.len());
    for (kind, span) in found {
        let between = line.get(at..span.start).unwrap_or_default();
        column =
            u32::try_from(between.chars().count()).map_or(u32::MAX, |n| n.saturating_add(column));
        at = span.start;
        tokens.push(Token { column, kind });
    }
    Ok(tokens)
}

fn blanks(input: &mut Input<'_>) -> ModalResult<()> {
    take_while(0.., char::is_whitespace)
        .void()
        .parse_next(input)
}

fn comment(input: &mut Input<'_>) -> ModalResult<()> {
    ('#', take_while(0.., |_| true)).void().parse_next(input)
}

fn token<'a>(input: &mut Input<'a>) -> ModalResult<TokenKind<'a>> {
    alt((title.map(TokenKind::Title), word)).parse_next(input)
}

fn word<'a>(input: &mut Input<'a>) -> ModalResult<TokenKind<'a>> {
    let ends = |c: char| c.is_whitespace() || c == '#' || c == '"';
    let text = take_till(1.., ends).parse_next(input)?;
    Ok(match text {
        "=>" => TokenKind::Arrow,
        text => TokenKind::Word(text),
    })
}

fn title(input: &mut Input<'_>) -> ModalResult<String> {
    let escape = preceded('\\', one_of(['"', '\\', 'n']));
    let escaped = escape.map(|c| if c == 'n' { '\n' } else { c });
    let plain = one_of(|c: char| c != '"' && c != '\\');
    delimited('"', repeat(0.., alt((escaped, plain))), '"').parse_next(input)
}

/// The digits of a number, their base, and the shift of a suffix.
fn digits<'a>(input: &mut &'a str) -> ModalResult<(u32, &'a str, u32)> {
    let hex = preceded("0x", hex_digit1).map(|text| (16, text));
    let ((radix, text), suffix) =
        (alt((hex, digit1.map(|text| (10, text)))), opt(suffix)).parse_next(input)?;
    Ok((radix, text, suffix.unwrap_or(0)))
}

fn suffix(input: &mut &str) -> ModalResult<u32> {
    alt(('K'.value(10), 'M'.value(20), 'G'.value(30), 'T'.value(40))).parse_next(input)
}

/// A number: decimal or with `0x`, with `K`, `M`, `G` or `T` behind it for powers of 1024.
pub(crate) fn number(text: &str) -> Parsed<u64> {
    let (radix, text, shift) = digits.parse(text).map_err(|_| "not a number".to_owned())?;
    let value = u64::from_str_radix(text, radix).ok();
    let scaled = value.and_then(|v| v.checked_mul(1 << shift));
    scaled.ok_or_else(|| "larger than 64 bits".to_owned())
}

/// A number of at most 32 bits.
pub(super) fn number32(text: &str) -> Parsed<u32> {
    narrow(number(text)?)
}

fn narrow(value: u64) -> Parsed<u32> {
    u32::try_from(value).map_err(|_| "larger than 32 bits".to_owned())
}

/// An address space and a slot id, `as:id`, or the ioctl's number.
pub(super) fn slot(text: &str) -> Parsed<u32> {
    let Some((as_id, id)) = text.split_once(':') else {
        return number32(text);
    };
    Ok(half(as_id)? << 16 | half(id)?)
}

fn half(text: &str) -> Parsed<u32> {
    let value = number32(text)?;
    if value > 0xffff {
        return Err("larger than 16 bits".to_owned());
    }
    Ok(value)
}

/// Names or numbers joined by `|`.
pub(super) fn bits(words: Words, text: &str) -> Parsed<u64> {
    let mut all = 0;
    for part in text.split('|') {
        all |= value(words, part)?;
    }
    Ok(all)
}

/// The same, of at most 32 bits.
pub(super) fn bits32(words: Words, text: &str) -> Parsed<u32> {
    narrow(bits(words, text)?)
}

/// A name or a number.
pub(super) fn value(words: Words, text: &str) -> Parsed<u64> {
    match words::value(words, text) {
        Some(value) => Ok(value),
        None => number_or_word(text, words),
    }
}

fn number_or_word(text: &str, words: Words) -> Parsed<u64> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return number(text);
    }
    let known: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    Err(format!("{text:?} is none of {}", known.join(", ")))
}

/// A capability: its name without `KVM_CAP_`, or its number.
pub(super) fn capability(text: &str) -> Parsed<u32> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return number32(text);
    }
    crate::capability::number(text).ok_or_else(|| "no known capability".to_owned())
}

/// Whether `text` can name a file, a mapping, an area or a VM.
pub(super) fn is_name(text: &str) -> bool {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A name of a file, a mapping, an area or a VM.
pub(crate) fn name(text: &str) -> Parsed<String> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    Err("not a name: a letter, then letters, digits and _".to_owned())
}

/// A place in host memory: `NAME`, `NAME+number` or a number, as the name and the offset.
pub(super) fn host(text: &str) -> Parsed<(Option<String>, u64)> {
    let (base, offset) = match text.split_once('+') {
        Some((base, offset)) => (base, number(offset)?),
        None => (text, 0),
    };
    if is_name(base) {
        return Ok((Some(base.to_owned()), offset));
    }
    let address = number(text).map_err(|why| format!("{why}, nor a name with an offset"))?;
    Ok((None, address))
}
