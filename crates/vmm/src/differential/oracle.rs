//! The repair oracle: an error number cannot confirm a reason, but a repair that works can.
//!
//! For a refused call the model gives a chain of reasons and repairs that ends in a call that should succeed. All of
//! it is tried on the live kernel, beside the model:
//!
//! 1. the preparatory calls of the repairs;
//! 2. for every reason whose repair changes the call, the final call with that one change taken back. The kernel
//!    must refuse it: the reason is a cause by itself, not a by-stander;
//! 3. the final call. The kernel must accept it: the causes named are all there are.
//!
//! A wrong reason fails one of these: its repair leaves the real cause in place, so that the chain does not end or
//! the kernel goes on refusing, or it removes something that was no cause.

use core::fmt;

use slat_memslot::{Call, Reason, Region, RegionError, Repair};

use super::generate::is_too_dear;
use super::pair::Pair;
use super::{Difference, Stats, WrongReason};
use crate::{CallError, MemoryVm};

/// Replaces reasons by wrong ones.
pub type Planted = fn(Reason) -> Reason;

/// How a reason was found to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasonError {
    /// The repaired call is refused for the same reason.
    RepairDoesNotHelp,
    /// The call succeeds without this repair, if the others are made.
    NotACause,
    /// The preparatory call is refused.
    PreparationFails,
    /// The chain of repairs has no end.
    Endless,
}

impl fmt::Display for ReasonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RepairDoesNotHelp => "the repaired call is refused for the same reason",
            Self::NotACause => "the call succeeds without this repair, if the others are made",
            Self::PreparationFails => "a call that the repair makes first is refused",
            Self::Endless => "the chain of repairs has no end",
        })
    }
}

/// One reason and the call before and after its repair.
struct Link {
    reason: Reason,
    before: Call,
    after: Call,
    first: Vec<Call>,
}

/// A chain from a refused call to one that the model accepts.
enum Chain {
    Complete(Vec<Link>),
    /// Some reason has no repair, or the repair is too dear to try.
    Unconfirmed,
}

const LONGEST: usize = 12;

/// Puts the model's reason for refusing `call` to the test on the kernel.
pub(super) fn confirm<K: MemoryVm>(
    pair: &mut Pair<K>,
    call: &Call,
    planted: Option<Planted>,
    stats: &mut Stats,
) -> Result<(), Difference> {
    let links = match chain(pair, call, planted)? {
        Chain::Complete(links) => links,
        Chain::Unconfirmed => {
            stats.unconfirmed += 1;
            return Ok(());
        }
    };
    for first in links.iter().flat_map(|link| &link.first) {
        let _compared = pair.call(first, stats)?;
    }
    let Some(last) = links.last().map(|link| link.after.clone()) else {
        return Ok(());
    };
    for link in &links {
        check_cause(pair, link, &last, stats)?;
    }
    if pair.call(&last, stats)?.is_ok() {
        for link in &links {
            *stats.confirmed.entry(link.reason.code()).or_default() += 1;
        }
    }
    Ok(())
}

fn wrong(call: &Call, reason: Reason, error: ReasonError) -> Difference {
    Difference::Reason(Box::new(WrongReason {
        call: call.clone(),
        reason,
        error,
    }))
}

/// Follows the model's repairs on a copy of the model.
fn chain<K: MemoryVm>(
    pair: &Pair<K>,
    call: &Call,
    planted: Option<Planted>,
) -> Result<Chain, Difference> {
    let mut memory = pair.model().memory().clone();
    let mut links: Vec<Link> = Vec::new();
    let mut call = call.clone();
    loop {
        let reason = match memory.check(&call) {
            Ok(()) => {
                return Ok(if is_too_dear(&call, &memory) {
                    Chain::Unconfirmed
                } else {
                    Chain::Complete(links)
                });
            }
            Err(refusal) => planted.map_or(refusal.reason, |plant| plant(refusal.reason)),
        };
        let wrong = |error| wrong(&call, reason, error);
        if links
            .last()
            .is_some_and(|link| link.reason.code() == reason.code())
        {
            return Err(wrong(ReasonError::RepairDoesNotHelp));
        }
        if links.len() == LONGEST {
            return Err(wrong(ReasonError::Endless));
        }
        let Repair::Calls { first, call: after } = memory.repair(&call, &reason) else {
            return Ok(Chain::Unconfirmed);
        };
        for first in &first {
            if is_too_dear(first, &memory) {
                return Ok(Chain::Unconfirmed);
            }
            memory
                .call(first)
                .map_err(|_| wrong(ReasonError::PreparationFails))?;
        }
        let before = std::mem::replace(&mut call, after.clone());
        links.push(Link {
            reason,
            before,
            after,
            first,
        });
    }
}

/// Takes one repair back from the final call: both sides must refuse.
fn check_cause<K: MemoryVm>(
    pair: &mut Pair<K>,
    link: &Link,
    last: &Call,
    stats: &mut Stats,
) -> Result<(), Difference> {
    let Some(wrong_again) = taken_back(link, last) else {
        return Ok(());
    };
    if is_too_dear(&wrong_again, pair.model().memory()) {
        return Ok(());
    }
    match pair.call(&wrong_again, stats)? {
        Ok(_) if !has_one_remedy(&link.reason) => Ok(()),
        Ok(_) => Err(wrong(&wrong_again, link.reason, ReasonError::NotACause)),
        Err(
            CallError::Refused { .. }
            | CallError::Tdx { .. }
            | CallError::NotConverted { .. }
            | CallError::Sev { .. }
            | CallError::NotTried { .. },
        ) => Ok(()),
    }
}

/// Reasons about a single value, which only their own repair takes away. Others can be taken away by a later repair as
/// well: a range cut shorter no longer overlaps, a slot deleted first can no longer differ.
fn has_one_remedy(reason: &Reason) -> bool {
    matches!(
        reason,
        Reason::Region(
            RegionError::SizeUnaligned { .. }
                | RegionError::GpaUnaligned { .. }
                | RegionError::HvaUnaligned { .. }
                | RegionError::UnknownFlags { .. }
                | RegionError::SlotId { .. }
                | RegionError::AddressSpace { .. }
                | RegionError::TooManyPages { .. }
        )
    )
}

/// The final call with the fields that one link changed set back; `None` when the link changed no field, or the call
/// is of a kind whose refusals have one cause at a time.
fn taken_back(link: &Link, last: &Call) -> Option<Call> {
    match (&link.before, &link.after, last) {
        (Call::SetRegion(before), Call::SetRegion(after), Call::SetRegion(last))
            if before != after =>
        {
            Some(Call::SetRegion(merge(before, after, last)))
        }
        _ => None,
    }
}

/// `last` with every field that differs between `before` and `after` taken from `before`.
fn merge(before: &Region, after: &Region, last: &Region) -> Region {
    fn field<T: PartialEq + Copy>(before: T, after: T, last: T) -> T {
        if before == after { last } else { before }
    }
    let changed = before.flags ^ after.flags;
    Region {
        version: field(before.version, after.version, last.version),
        slot: field(before.slot, after.slot, last.slot),
        flags: last.flags & !changed | before.flags & changed,
        gpa: field(before.gpa, after.gpa, last.gpa),
        size: field(before.size, after.size, last.size),
        hva: field(before.hva, after.hva, last.hva),
        gmem: field(before.gmem, after.gmem, last.gmem),
        gmem_offset: field(before.gmem_offset, after.gmem_offset, last.gmem_offset),
        padding: last.padding,
    }
}
