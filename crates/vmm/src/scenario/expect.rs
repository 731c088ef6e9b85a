//! What a step is expected to give.

use core::fmt;

use slat_memslot::{Access, Call, Errno, MapCall, Outcome, TdxCall, TdxOutcome};

use super::lex::{self, Parsed};
use super::write::{hex, slot};
use super::{contents, sev, snp, tdx, words};
use crate::snp_vm::SnpAnswer;

/// What stands behind `=>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// `ok`: success, whatever it gave back.
    Ok,
    /// A number that the call gives; 0 also accepts a call that gives none.
    Value(u64),
    /// `dirty 0-15,99` or `dirty none`: exactly these pages, as half-open ranges, ascending and apart.
    Dirty(Vec<(u64, u64)>),
    /// `ring 0+5,1:7+6` or `ring none`: these entries in this order, slot and page.
    Ring(Vec<(u32, u64)>),
    /// `left gpa=.. size=..`: what `KVM_PRE_FAULT_MEMORY` left to do.
    Remaining {
        /// First byte not done.
        gpa: u64,
        /// Bytes not done.
        size: u64,
    },
    /// `done`, `mmio`, `no-memory`, `ring-full` or `memory-fault flags=.. gpa=.. size=..`: what a guest's access came to.
    Access(Access),
    /// `exit gpa=.. pages=.. attributes=..`: a guest that is no TD asks for a conversion.
    MapGpaRange {
        /// The first address.
        gpa: u64,
        /// How many pages of 4 KiB.
        pages: u64,
        /// Attributes, as the guest gave them.
        attributes: u64,
    },
    /// `noise`: what is read by another key than it was written with, or by none.
    Noise,
    /// What only a TD gives, such as `accepted`, `hypercall shared gpa=.. pages=..` or `report none`.
    Tdx(TdxOutcome),
    /// What an operation on an SNP guest gives.
    Snp(SnpAnswer),
    /// `ERRNO` or `ERRNO reason`.
    Fails {
        /// The error number.
        errno: Errno,
        /// Why, as the model's reason code; a kernel cannot say, so it is not part of [`accepts`](Expect::accepts).
        reason: Option<String>,
    },
}

const ACCESSES: [(&str, Access); 4] = [
    ("done", Access::Done),
    ("mmio", Access::Mmio),
    ("no-memory", Access::NoMemory),
    ("ring-full", Access::RingFull),
];

impl Expect {
    /// What `result` looks like as an expectation.
    pub fn of(result: &Result<Outcome, Errno>) -> Self {
        match result {
            Err(errno) => Self::Fails {
                errno: *errno,
                reason: None,
            },
            Ok(Outcome::Done | Outcome::Gmem(_) | Outcome::Mapped(..)) => Self::Ok,
            Ok(Outcome::Value(value)) => Self::Value(*value),
            Ok(Outcome::Dirty(pages)) => Self::Dirty(pages.ranges()),
            Ok(Outcome::Ring(entries)) => Self::Ring(entries.clone()),
            Ok(Outcome::Remaining { gpa, size }) => Self::Remaining {
                gpa: *gpa,
                size: *size,
            },
            Ok(Outcome::Access(access)) => Self::Access(*access),
            Ok(Outcome::Noise) => Self::Noise,
            Ok(Outcome::Tdx(outcome)) => Self::Tdx(outcome.clone()),
            Ok(Outcome::MapGpaRange {
                gpa,
                pages,
                attributes,
            }) => Self::MapGpaRange {
                gpa: *gpa,
                pages: *pages,
                attributes: *attributes,
            },
        }
    }

    /// Whether `result` is what was expected.
    pub fn accepts(&self, result: &Result<Outcome, Errno>) -> bool {
        match (self, result) {
            (Self::Ok, result) => result.is_ok(),
            (Self::Value(0), Ok(Outcome::Done)) => true,
            (Self::Fails { errno, .. }, Err(actual)) => errno == actual,
            (expected, result) => *expected == Self::of(result),
        }
    }

    /// The reason code, where one is expected.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Fails { reason, .. } => reason.as_deref(),
            _ => None,
        }
    }

    /// Whether the call can have succeeded.
    pub(super) fn is_success(&self) -> bool {
        !matches!(self, Self::Fails { .. })
    }

    /// Whether `call` can give this.
    pub(super) fn fits(&self, call: &Call) -> bool {
        match self {
            Self::Ok | Self::Value(_) | Self::Fails { .. } => true,
            Self::Dirty(_) => matches!(call, Call::GetDirtyLog { .. }),
            Self::Ring(_) => matches!(call, Call::HarvestDirtyRing { .. }),
            Self::Remaining { .. } => matches!(call, Call::PreFault { .. }),
            Self::Access(Access::MemoryFault { .. }) => {
                let of_guest = matches!(call, Call::Guest(_) | Call::Tdx(TdxCall::Guest { .. }));
                of_guest || contents::is_of_guest(call) || sev::is_of_guest(call)
            }
            Self::Access(_) => {
                let of_guest = contents::is_of_guest(call) || sev::is_of_guest(call);
                of_guest || matches!(call, Call::Guest(_))
            }
            Self::Noise => sev::reads(call),
            Self::MapGpaRange { .. } => contents::is_of_guest(call),
            Self::Tdx(outcome) => {
                matches!(call, Call::Tdx(call) if tdx::fits(outcome, call))
            }
            Self::Snp(_) => false,
        }
    }

    /// The text behind `=>`; the value of a touch is a signal and has a name.
    pub(super) fn text(&self, call: Option<&Call>) -> String {
        let touch = matches!(call, Some(Call::Map(_, MapCall::Touch { .. })));
        match self {
            Self::Value(value) if touch => match words::name(words::SIGNALS, *value) {
                Some(name) => name.to_owned(),
                None => value.to_string(),
            },
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Value(value) => write!(f, "{value}"),
            Self::Dirty(ranges) => write!(f, "dirty {}", list(ranges, range)),
            Self::Ring(entries) => write!(f, "ring {}", list(entries, entry)),
            Self::Remaining { gpa, size } => {
                write!(f, "left gpa={} size={}", hex(*gpa), hex(*size))
            }
            Self::Access(Access::MemoryFault { flags, gpa, size }) => {
                let flags = words::join(words::ATTRIBUTES, *flags);
                write!(
                    f,
                    "memory-fault flags={flags} gpa={} size={}",
                    hex(*gpa),
                    hex(*size)
                )
            }
            Self::Noise => f.write_str("noise"),
            Self::Access(access) => f.write_str(access_name(*access)),
            Self::MapGpaRange {
                gpa,
                pages,
                attributes,
            } => {
                let (gpa, attributes) = (hex(*gpa), hex(*attributes));
                write!(f, "exit gpa={gpa} pages={pages} attributes={attributes}")
            }
            Self::Tdx(outcome) => tdx::write_outcome(outcome, f),
            Self::Snp(answer) => f.write_str(&snp::answer_text(answer)),
            Self::Fails { errno, reason } => match reason {
                Some(reason) => write!(f, "{errno} {reason}"),
                None => write!(f, "{errno}"),
            },
        }
    }
}

fn list<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    let parts: Vec<String> = items.iter().map(text).collect();
    parts.join(",")
}

fn range(&(first, end): &(u64, u64)) -> String {
    match end.saturating_sub(first) {
        0 | 1 => first.to_string(),
        _ => format!("{first}-{}", end - 1),
    }
}

fn entry(&(key, page): &(u32, u64)) -> String {
    format!("{}+{page}", slot(key))
}

fn access_name(access: Access) -> &'static str {
    let found = ACCESSES.iter().find(|(_, known)| *known == access);
    found.map_or("done", |(name, _)| name)
}

/// Reads the words behind `=>`.
pub(super) fn read(words: &[&str]) -> Parsed<Expect> {
    if let Some(outcome) = tdx::read_outcome(words) {
        return outcome.map(Expect::Tdx);
    }
    match *words {
        ["ok"] => Ok(Expect::Ok),
        ["noise"] => Ok(Expect::Noise),
        ["dirty", "none"] => Ok(Expect::Dirty(Vec::new())),
        ["dirty", ranges] => dirty(ranges).map(Expect::Dirty),
        ["ring", "none"] => Ok(Expect::Ring(Vec::new())),
        ["ring", entries] => ring(entries).map(Expect::Ring),
        ["left", first, second] => left(first, second),
        ["memory-fault", ref fields @ ..] => memory_fault(fields),
        ["exit", ref fields @ ..] => {
            let exit = contents::read_exit(fields)?;
            Ok(Expect::of(&Ok(exit)))
        }
        [word] => single(word),
        [errno, reason] => fails(errno, Some(reason)),
        _ => Err("not a result".to_owned()),
    }
}

fn single(word: &str) -> Parsed<Expect> {
    if let Some((_, access)) = ACCESSES.iter().find(|(name, _)| *name == word) {
        return Ok(Expect::Access(*access));
    }
    if let Some(signal) = words::value(words::SIGNALS, word) {
        return Ok(Expect::Value(signal));
    }
    if word.starts_with('E') {
        return fails(word, None);
    }
    let value = lex::number(word);
    value.map(Expect::Value).map_err(|why| match why.as_str() {
        "not a number" => "not a result".to_owned(),
        _ => why,
    })
}

fn fails(errno: &str, reason: Option<&str>) -> Parsed<Expect> {
    let errno = errno.parse::<Errno>().map_err(|why| why.to_string())?;
    if let Some(reason) = reason.filter(|code| !is_code(code)) {
        return Err(format!("{reason:?} is not a reason code"));
    }
    Ok(Expect::Fails {
        errno,
        reason: reason.map(str::to_owned),
    })
}

/// Whether `text` can be a reason code: words in lower case, joined by `-`.
pub(super) fn is_code(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(inner)
}

fn dirty(text: &str) -> Parsed<Vec<(u64, u64)>> {
    let mut ranges = text.split(',').map(pages).collect::<Parsed<Vec<_>>>()?;
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (first, end) in ranges {
        match merged.last_mut() {
            Some((_, last)) if first <= *last => *last = end.max(*last),
            _ => merged.push((first, end)),
        }
    }
    Ok(merged)
}

fn pages(text: &str) -> Parsed<(u64, u64)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (lex::number(first)?, lex::number(last)?);
    match last.checked_add(1) {
        Some(end) if first <= last => Ok((first, end)),
        _ => Err(format!("{text} is no range of pages")),
    }
}

fn ring(text: &str) -> Parsed<Vec<(u32, u64)>> {
    text.split(',').map(ring_entry).collect()
}

fn ring_entry(text: &str) -> Parsed<(u32, u64)> {
    let parts = text.split_once('+');
    let (key, page) = parts.ok_or_else(|| format!("{text} is not SLOT+PAGE"))?;
    Ok((lex::slot(key)?, lex::number(page)?))
}

fn memory_fault(fields: &[&str]) -> Parsed<Expect> {
    const NEEDS: &str = "memory-fault needs flags=, gpa= and size=";
    let value = |key: &str| {
        let mut pairs = fields.iter().filter_map(|field| field.split_once('='));
        let found = pairs.find(|(known, _)| *known == key);
        found.map(|(_, value)| value).ok_or(NEEDS)
    };
    if fields.len() != 3 {
        return Err(NEEDS.to_owned());
    }
    Ok(Expect::Access(Access::MemoryFault {
        flags: lex::bits(words::ATTRIBUTES, value("flags")?)?,
        gpa: lex::number(value("gpa")?)?,
        size: lex::number(value("size")?)?,
    }))
}

fn left(first: &str, second: &str) -> Parsed<Expect> {
    let (gpa, size) = match (first.split_once('='), second.split_once('=')) {
        (Some(("gpa", gpa)), Some(("size", size))) | (Some(("size", size)), Some(("gpa", gpa))) => {
            (gpa, size)
        }
        _ => return Err("left needs gpa= and size=".to_owned()),
    };
    Ok(Expect::Remaining {
        gpa: lex::number(gpa)?,
        size: lex::number(size)?,
    })
}
