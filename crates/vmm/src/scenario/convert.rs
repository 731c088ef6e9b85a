//! `convert`: a VMM plans a conversion and carries it out.

use slat_coco::convert::{LeftBehind, Policy, Unbacked};
use slat_coco::migration::Status;

use super::ParseError;
use super::args::Args;
use super::lex::{Parsed, number, number32};
use super::write::{Line, hex};
use crate::convert::ConvertOp;

pub(super) fn read(args: &mut Args<'_>) -> Result<ConvertOp, ParseError> {
    let default = Policy::default();
    let unbacked = |args: &mut Args<'_>, default| {
        let given = args.optional("unbacked", |text| word(UNBACKED, text))?;
        Ok(given.unwrap_or(default))
    };
    let gpa = args.required("gpa", number)?;
    let size = args.required("size", number)?;
    let to = args.required("to", |text| word(SIDES, text))?;
    let left_behind = args.optional("left", |text| word(LEFT, text))?;
    let (to_private, to_shared) = match to {
        Status::Private => (
            unbacked(args, default.unbacked_to_private)?,
            default.unbacked_to_shared,
        ),
        Status::Shared => (
            default.unbacked_to_private,
            unbacked(args, default.unbacked_to_shared)?,
        ),
    };
    Ok(ConvertOp {
        gpa,
        size,
        to,
        policy: Policy {
            left_behind: left_behind.unwrap_or_default(),
            unbacked_to_private: to_private,
            unbacked_to_shared: to_shared,
            ..default
        },
        fails_at: args.optional("fails_at", number32)?,
    })
}

const SIDES: &[(&str, Status)] = &[("private", Status::Private), ("shared", Status::Shared)];
const LEFT: &[(&str, LeftBehind)] = &[("discard", LeftBehind::Discard), ("keep", LeftBehind::Keep)];
const UNBACKED: &[(&str, Unbacked)] = &[
    ("refuse", Unbacked::Refuse),
    ("skip", Unbacked::Skip),
    ("set", Unbacked::Set),
];

fn word<T: Copy>(words: &[(&str, T)], text: &str) -> Parsed<T> {
    let found = words.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        format!("not one of {}", names.join(", "))
    })
}

fn name<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    let found = words.iter().find(|(_, known)| *known == value);
    found.map_or("", |(name, _)| name)
}

pub(super) fn line(op: &ConvertOp) -> String {
    let mut line = Line::new("convert");
    line.pair("gpa", hex(op.gpa));
    line.pair("size", hex(op.size));
    line.pair("to", name(SIDES, op.to));
    if op.policy.left_behind != LeftBehind::default() {
        line.pair("left", name(LEFT, op.policy.left_behind));
    }
    let default = Policy::default();
    let (unbacked, usual) = match op.to {
        Status::Private => (op.policy.unbacked_to_private, default.unbacked_to_private),
        Status::Shared => (op.policy.unbacked_to_shared, default.unbacked_to_shared),
    };
    if unbacked != usual {
        line.pair("unbacked", name(UNBACKED, unbacked));
    }
    if let Some(step) = op.fails_at {
        line.pair("fails_at", step.to_string());
    }
    line.text()
}
