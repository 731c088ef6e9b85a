//! What differs between two dumps.

use core::fmt;

use slat_memslot::{Gfn, GfnRange};

use super::write::{HostLine, RoleLine, RootLine};
use super::{Dump, Range, Root, push};
use crate::host::Host;
use crate::role::RoleFlag;

/// What differs between two dumps; empty if nothing does. Raw entries are not compared.
///
/// [`Display`](core::fmt::Display) writes it like a patch: what is gone behind `-`, what has come behind `+`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Diff {
    /// The host, if it is another.
    pub host: Option<HostChange>,
    /// The roots that differ: those of the new dump in its order, then those that are gone.
    pub roots: Vec<RootDiff>,
}

/// Two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostChange {
    /// That of the first dump.
    pub old: Host,
    /// That of the second.
    pub new: Host,
}

/// What differs in one root. Where it is in one dump only, all that it maps differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootDiff {
    /// The root in the first dump, without what it maps.
    pub old: Option<Root>,
    /// The root in the second, without what it maps.
    pub new: Option<Root>,
    /// What only the first maps, cut to the frames that differ.
    pub removed: Vec<Range>,
    /// What only the second maps.
    pub added: Vec<Range>,
}

impl Dump {
    /// What has to change to make the other dump of this one.
    #[must_use]
    pub fn diff(&self, other: &Self) -> Diff {
        let host = (self.host != other.host).then_some(HostChange {
            old: self.host,
            new: other.host,
        });
        let new = other.roots.iter();
        let come =
            new.map(|new| root_diff(self.roots.iter().find(|old| same(old, new)), Some(new)));
        let old = self.roots.iter();
        let gone = old.filter(|old| !other.roots.iter().any(|new| same(old, new)));
        let gone = gone.map(|old| root_diff(Some(old), None));
        Diff {
            host,
            roots: come.chain(gone).flatten().collect(),
        }
    }
}

/// Whether this is the same root: it may have become invalid.
fn same(old: &Root, new: &Root) -> bool {
    let valid = |root: &Root| root.role.without(RoleFlag::Invalid);
    old.number == new.number && valid(old) == valid(new)
}

fn root_diff(old: Option<&Root>, new: Option<&Root>) -> Option<RootDiff> {
    let ranges = |root: Option<&'_ Root>| root.map_or(Vec::new(), |root| root.ranges.clone());
    let (removed, added) = sweep(&ranges(old), &ranges(new));
    let head = |root: Option<&Root>| root.map(head);
    let (old, new) = (head(old), head(new));
    let differs = old != new || !removed.is_empty() || !added.is_empty();
    differs.then_some(RootDiff {
        old,
        new,
        removed,
        added,
    })
}

/// The root without what it maps.
fn head(root: &Root) -> Root {
    Root {
        ranges: Vec::new(),
        entries: Vec::new(),
        ..*root
    }
}

/// What only one of two lists says, each in the order of frames.
fn sweep(old: &[Range], new: &[Range]) -> (Vec<Range>, Vec<Range>) {
    let ends = |range: &Range| [range.frames.start(), range.frames.end()];
    let mut cuts: Vec<Gfn> = old.iter().chain(new).flat_map(ends).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    for (start, end) in cuts.iter().zip(cuts.iter().skip(1)) {
        let Some(frames) = GfnRange::between(*start, *end) else {
            continue;
        };
        let part = |ranges: &mut core::iter::Peekable<core::slice::Iter<'_, Range>>| {
            while ranges
                .next_if(|range| range.frames.end() <= frames.start())
                .is_some()
            {}
            ranges.peek().and_then(|range| range.within(frames))
        };
        let (before, after) = (part(&mut old), part(&mut new));
        if before == after {
            continue;
        }
        if let Some(range) = before {
            push(&mut removed, range);
        }
        if let Some(range) = after {
            push(&mut added, range);
        }
    }
    (removed, added)
}

impl Diff {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.host.is_none() && self.roots.is_empty()
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(HostChange { old, new }) = &self.host {
            writeln!(f, "-{}\n+{}", HostLine(old), HostLine(new))?;
        }
        self.roots.iter().try_for_each(|root| write!(f, "{root}"))
    }
}

impl fmt::Display for RootDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |root: &Option<Root>| root.as_ref().map(|root| RootLine(root).to_string());
        match (line(&self.old), line(&self.new)) {
            (Some(old), Some(new)) if old == new => writeln!(f, " {old}")?,
            (old, new) => {
                for (sign, line) in [('-', old), ('+', new)] {
                    if let Some(line) = line {
                        writeln!(f, "{sign}{line}")?;
                    }
                }
            }
        }
        self.write_details(f)?;
        let mut added = self.added.iter().peekable();
        for range in &self.removed {
            while let Some(new) = added.next_if(|new| new.frames.start() < range.frames.start()) {
                writeln!(f, "+  {new}")?;
            }
            writeln!(f, "-  {range}")?;
        }
        added.try_for_each(|new| writeln!(f, "+  {new}"))
    }
}

impl RootDiff {
    /// Role and tables, where they differ.
    fn write_details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let details = |root: &Root| [RoleLine(root.role).to_string(), root.tables_line()];
        let old = self.old.as_ref().map(details).unwrap_or_default();
        let new = self.new.as_ref().map(details).unwrap_or_default();
        for (old, new) in old.iter().zip(&new).filter(|(old, new)| old != new) {
            for (sign, line) in [('-', old), ('+', new)] {
                if !line.is_empty() {
                    writeln!(f, "{sign}{line}")?;
                }
            }
        }
        Ok(())
    }
}
