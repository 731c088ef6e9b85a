//! Counts of a comparison.

use std::collections::BTreeMap;
use std::fmt;

use slat_memslot::Level;
use slat_mmu::walk::{Cause, LeafSize, PagingMode, Translation, WalkFault};

/// What was translated.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Translations made on both sides.
    pub translations: u64,
    /// States of registers and tables.
    pub states: u64,
    /// States that the kernel did not take.
    pub refused_states: u64,
    /// Translations by mode and by what the model says.
    pub by_end: BTreeMap<(PagingMode, End), u64>,
}

/// How a walk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// At a page.
    Valid(LeafSize),
    /// At an entry of this level, for this reason.
    Invalid(&'static str, Level),
    /// Elsewhere.
    Other,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid(size) => write!(f, "valid, {size}"),
            Self::Invalid(why, level) => write!(f, "{why}, level {}", *level as u8),
            Self::Other => f.write_str("other"),
        }
    }
}

impl Stats {
    pub(super) fn count(&mut self, mode: PagingMode, answer: &Result<Translation, WalkFault>) {
        self.translations += 1;
        let end = match answer {
            Ok(found) => End::Valid(found.size),
            Err(WalkFault::Page(fault)) => End::Invalid(name(fault.cause), fault.level),
            Err(_) => End::Other,
        };
        *self.by_end.entry((mode, end)).or_default() += 1;
    }

    /// How many were valid.
    pub fn valid(&self) -> u64 {
        self.by_end
            .iter()
            .filter(|((_, end), _)| matches!(end, End::Valid(_)))
            .map(|(_, count)| count)
            .sum()
    }
}

fn name(cause: Cause) -> &'static str {
    match cause {
        Cause::NotPresent => "not present",
        Cause::NoMemory => "no memory",
        Cause::Reserved { .. } => "reserved bits",
        Cause::Smap => "SMAP",
        _ => "rights",
    }
}
