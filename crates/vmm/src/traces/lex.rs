//! The values that stand in a line.

use slat_memslot::{AsId, Gfn, Gpa, Level, Pages};
use winnow::ascii::digit1;
use winnow::combinator::{alt, opt, preceded};
use winnow::error::ContextError;
use winnow::prelude::*;
use winnow::token::{literal, take_while};

/// A part of a line.
pub(super) type Input<'a> = &'a str;

/// A number in base 16, with or without `0x`.
pub(super) fn hex(input: &mut Input<'_>) -> ModalResult<u64> {
    let digits = take_while(1.., |c: char| c.is_ascii_hexdigit());
    preceded(opt("0x"), digits)
        .try_map(|text| u64::from_str_radix(text, 16))
        .parse_next(input)
}

/// The same, of at most 32 bits.
pub(super) fn hex32(input: &mut Input<'_>) -> ModalResult<u32> {
    hex.try_map(u32::try_from).parse_next(input)
}

/// A number in base 10.
pub(super) fn dec<T>(input: &mut Input<'_>) -> ModalResult<T>
where
    T: core::str::FromStr,
    T::Err: core::error::Error + Send + Sync + 'static,
{
    digit1.try_map(str::parse).parse_next(input)
}

/// The same with a sign.
pub(super) fn signed<T>(input: &mut Input<'_>) -> ModalResult<T>
where
    T: core::str::FromStr,
    T::Err: core::error::Error + Send + Sync + 'static,
{
    (opt('-'), digit1)
        .take()
        .try_map(str::parse)
        .parse_next(input)
}

/// A number, `0x` hex or decimal.
pub(super) fn number(input: &mut Input<'_>) -> ModalResult<u64> {
    if input.starts_with("0x") {
        hex(input)
    } else {
        dec(input)
    }
}

/// `0` or `1`.
pub(super) fn bit(input: &mut Input<'_>) -> ModalResult<bool> {
    alt(('0'.value(false), '1'.value(true))).parse_next(input)
}

/// A level in base 10.
pub(super) fn level(input: &mut Input<'_>) -> ModalResult<Level> {
    dec::<u8>.verify_map(level_of).parse_next(input)
}

pub(super) fn level_of(number: u8) -> Option<Level> {
    Level::ALL.into_iter().find(|level| *level as u8 == number)
}

pub(super) fn as_id(input: &mut Input<'_>) -> ModalResult<AsId> {
    dec::<u8>.verify_map(AsId::new).parse_next(input)
}

pub(super) fn gfn(input: &mut Input<'_>) -> ModalResult<Gfn> {
    hex.map(Gfn::new).parse_next(input)
}

pub(super) fn gpa(input: &mut Input<'_>) -> ModalResult<Gpa> {
    hex.map(Gpa::new).parse_next(input)
}

pub(super) fn pages(input: &mut Input<'_>) -> ModalResult<Pages> {
    hex.map(Pages::new).parse_next(input)
}

/// Letters, digits and `_`.
pub(super) fn name<'a>(input: &mut Input<'a>) -> ModalResult<&'a str> {
    take_while(1.., |c: char| c.is_ascii_alphanumeric() || c == '_').parse_next(input)
}

/// A remark in brackets at the end, if there is one.
pub(super) fn remark(input: &mut Input<'_>) -> ModalResult<()> {
    let inside = take_while(0.., |c: char| c != ')');
    opt((" (", inside, ')')).void().parse_next(input)
}

/// Whether `text` stands here.
pub(super) fn flag<'a>(text: &'static str) -> impl ModalParser<Input<'a>, bool, ContextError> {
    opt(literal(text)).map(|found| found.is_some())
}

/// `vcpu=N`.
pub(super) fn vcpu(input: &mut Input<'_>) -> ModalResult<u32> {
    preceded("vcpu=", dec).parse_next(input)
}
