//! The table: an entry for each frame of the host, made when it is first written.
//!
//! Frames come in regions of 512. A region's first entry, the head, decides for all of them if it is of 2 MiB; the 511
//! others, the tails, need memory only once one of them is written. A host whose guests have 2 MiB pages costs 32 bytes a
//! region, one with 4 KiB pages 16 bytes a page, as on hardware.
//!
//! # Who waits for whom
//! Whoever changes an entry locks it by a bit in its lower word. Nobody waits for a lock of another entry while holding
//! one; he gives up with [`Conflict`] and puts back what he has. A change of a tail looks at its head once the tail is
//! locked, a change of the head to 2 MiB looks at its tails once the head is locked: one of two that meet sees the other.
//! Readers take no lock.

use core::fmt::Debug;
use std::sync::OnceLock;

use slat_memslot::Gfn;
use slat_mmu::spte::Pfn;

use super::cell::{Cell, Held, Seen};
use super::entry::{RmpEntry, RmpSize};
use super::raw::{self, Wanted};
use super::rules::Rules;

/// Pages of a region.
pub(super) const REGION: u64 = 512;
const TAILS: usize = 511;
/// Regions that are made together: 1 GiB.
const REGIONS: usize = 512;
const GROUP: u64 = REGIONS as u64;

/// 512 entries.
#[derive(Debug)]
pub(super) struct Region {
    head: Cell,
    tails: OnceLock<Box<[Cell; TAILS]>>,
}

impl Region {
    const fn new() -> Self {
        Self {
            head: Cell::new(),
            tails: OnceLock::new(),
        }
    }

    #[inline]
    fn tails(&self) -> &[Cell] {
        self.tails.get().map_or(&[], |tails| &tails[..])
    }

    /// The cell of a frame, if it has memory.
    #[inline(always)]
    fn cell(&self, index: usize) -> Option<&Cell> {
        match index {
            0 => Some(&self.head),
            _ => self.tails.get()?.get(index - 1),
        }
    }

    /// The same, with memory.
    fn make(&self, index: usize) -> &Cell {
        match index.checked_sub(1) {
            None => &self.head,
            Some(tail) => &self.make_tails()[tail],
        }
    }

    fn make_tails(&self) -> &[Cell; TAILS] {
        self.tails.get_or_init(|| boxed(Cell::new))
    }

    /// Whether an own entry decides, is assigned, and has all that is wanted, at one moment. If that cannot be told at a
    /// glance, it has not.
    ///
    /// A tail that is assigned decides, but for the moment in which PSMASH writes: the tails first, then the head. So
    /// whoever sees the head after the tail, and not huge, has seen a tail that decides, then or already before.
    #[inline(always)]
    fn own_has(&self, index: usize, wanted: &Wanted) -> bool {
        self.cell(index).is_some_and(|own| own.has(wanted)) && !raw::is_huge(self.head.peek())
    }
}

type Group = [Region; REGIONS];

/// Two changes met. Trying again may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conflict {
    /// The entry itself is being changed.
    Entry,
    /// An entry of the same region is.
    Region,
}

/// The entry that decides about a frame.
#[derive(Debug)]
pub(super) enum Deciding<'t> {
    /// Its own, of 4 KiB.
    Own(Held<'t>),
    /// That of the region's head, of 2 MiB.
    Head(Held<'t>),
}

/// The reverse map of a host: to whom each frame belongs.
///
/// Methods named after instructions do what those do and answer as those do. All take `&self`: many CPUs may be at it.
///
/// ```
/// use slat_coco::rmp::{Asid, Rmp, RmpSize, RmpState};
/// use slat_memslot::Gfn;
/// use slat_mmu::spte::Pfn;
/// // 1 TiB of memory, 16 KiB of table so far.
/// let rmp = Rmp::new(1 << 28);
/// let guest = Asid::new(5).unwrap();
/// let state = RmpState::private(guest, Gfn::new(0x40000), RmpSize::Size2M);
/// assert!(rmp.rmpupdate(Pfn::new(0x200), &state).is_ok());
/// // A write by the host into any of the 512 pages would fault now.
/// assert!(rmp.entry(Pfn::new(0x2ff)).assigned);
/// // One of them cannot be changed alone before the entry is taken apart.
/// let page = RmpState::shared(RmpSize::Size4K);
/// assert_eq!(rmp.rmpupdate(Pfn::new(0x210), &page).unwrap_err().code(), 4);
/// rmp.psmash(Pfn::new(0x200)).unwrap();
/// assert!(rmp.rmpupdate(Pfn::new(0x210), &page).is_ok());
/// ```
#[derive(Debug)]
pub struct Rmp {
    groups: Box<[OnceLock<Box<Group>>]>,
    end: u64,
    rules: Rules,
}

impl Rmp {
    /// A table for frames below `frames`, which all are the hypervisor's.
    pub fn new(frames: u64) -> Self {
        Self::with_rules(frames, Rules::default())
    }

    /// The same, with other switches.
    pub fn with_rules(frames: u64, rules: Rules) -> Self {
        let groups = frames.div_ceil(GROUP * REGION);
        Self {
            groups: (0..groups).map(|_| OnceLock::new()).collect(),
            end: frames,
            rules,
        }
    }

    /// The switches.
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The first frame without an entry.
    pub const fn end(&self) -> Pfn {
        Pfn::new(self.end)
    }

    /// Whether a frame has an entry.
    #[inline]
    pub const fn covers(&self, pfn: Pfn) -> bool {
        pfn.raw() < self.end
    }

    /// The entry that decides about a frame: that of the 2 MiB around it, brought down to the frame, or its own. Frames
    /// without an entry are the hypervisor's.
    pub fn entry(&self, pfn: Pfn) -> RmpEntry {
        let (entry, size) = self.deciding_entry(pfn);
        match size {
            RmpSize::Size4K => entry,
            RmpSize::Size2M => RmpEntry {
                size,
                ..entry.part(pfn.raw() % REGION)
            },
        }
    }

    /// A frame's own entry, whatever the head of its region says.
    pub fn own_entry(&self, pfn: Pfn) -> RmpEntry {
        self.own(pfn)
            .map_or(RmpEntry::HYPERVISOR, |cell| cell.read().entry())
    }

    /// Bytes of memory for the table.
    pub fn bytes(&self) -> usize {
        let regions = self.regions();
        let tails: usize = regions
            .clone()
            .map(|(_, region)| size_of_val(region.tails()))
            .sum();
        size_of_val(&*self.groups) + regions.count() * size_of::<Region>() + tails
    }

    /// All entries that are not the hypervisor's, ascending, with those of 2 MiB once.
    pub fn assigned(&self) -> impl Iterator<Item = (Pfn, RmpEntry)> + '_ {
        let cells = |(first, region): (u64, &'_ Region)| {
            let mut found = Vec::new();
            let head = region.head.read();
            if head.is_assigned() {
                found.push((Pfn::new(first), head.entry()));
            }
            if !head.is_huge() {
                let tails = (first + 1..).zip(region.tails());
                let tails = tails.map(|(pfn, cell)| (Pfn::new(pfn), cell.read()));
                let tails = tails.filter(|(_, seen)| seen.is_assigned());
                found.extend(tails.map(|(pfn, seen)| (pfn, seen.entry())));
            }
            found
        };
        self.regions().flat_map(cells)
    }

    fn regions(&self) -> impl Iterator<Item = (u64, &Region)> + Clone {
        (0..).zip(&self.groups).flat_map(|(number, group)| {
            let regions = group.get().map_or(&[][..], |group| &group[..]);
            let numbered = (number * GROUP..).zip(regions);
            numbered.map(|(number, region)| (number * REGION, region))
        })
    }

    /// The region of a frame, if it has memory.
    #[inline(always)]
    fn region(&self, pfn: Pfn) -> Option<&Region> {
        let group = self.groups.get(group_of(pfn))?.get()?;
        Some(&group[region_of(pfn)])
    }

    fn make_region(&self, pfn: Pfn) -> &Region {
        let group = &self.groups[group_of(pfn)];
        &group.get_or_init(|| boxed(Region::new))[region_of(pfn)]
    }

    fn own(&self, pfn: Pfn) -> Option<&Cell> {
        self.region(pfn)?.cell(index_of(pfn))
    }

    /// The entry that decides, as it is written, and which one it is.
    #[inline]
    pub(super) fn deciding_entry(&self, pfn: Pfn) -> (RmpEntry, RmpSize) {
        let Some(region) = self.region(pfn) else {
            return (RmpEntry::HYPERVISOR, RmpSize::Size4K);
        };
        loop {
            let head = region.head.read();
            if head.is_huge() {
                return (head.entry(), RmpSize::Size2M);
            }
            if index_of(pfn) == 0 {
                return (head.entry(), RmpSize::Size4K);
            }
            let own = region.cell(index_of(pfn)).map_or(Seen::ZERO, Cell::read);
            // The head may have become huge, and the tail means nothing then.
            if region.head.is_still(head) {
                return (own.entry(), RmpSize::Size4K);
            }
        }
    }

    /// Whether a frame's own entry decides, is assigned, and has all that is wanted. If that cannot be told at a glance, it
    /// has not.
    #[inline(always)]
    pub(super) fn own_has(&self, pfn: Pfn, wanted: &Wanted) -> bool {
        self.region(pfn)
            .is_some_and(|region| region.own_has(index_of(pfn), wanted))
    }

    /// The same for a frame that is probably in one region with another, and at a guest frame's place in it: a CPU guesses
    /// so too, and need not wait for the frame. A wrong guess at the region gives up.
    #[inline(always)]
    pub(super) fn own_has_near(&self, near: Pfn, (gfn, pfn): (Gfn, Pfn), wanted: &Wanted) -> bool {
        if (gfn.raw() ^ pfn.raw()) % REGION != 0 {
            return self.own_has(pfn, wanted);
        }
        match self.region(near) {
            Some(region) if near.raw() / REGION == pfn.raw() / REGION => {
                region.own_has(to_usize(gfn.raw() % REGION), wanted)
            }
            _ => false,
        }
    }

    /// Whether any of the 512 frames around one is assigned.
    pub fn any_assigned(&self, pfn: Pfn) -> bool {
        self.region(pfn).is_some_and(|region| {
            let assigned = |cell: &Cell| cell.peek() & raw::ASSIGNED != 0;
            assigned(&region.head) || region.tails().iter().any(assigned)
        })
    }

    /// Whether a tail of the region is assigned.
    pub(super) fn any_tail_assigned(&self, pfn: Pfn) -> bool {
        let assigned = |cell: &Cell| cell.peek() & raw::ASSIGNED != 0;
        self.region(pfn)
            .is_some_and(|region| region.tails().iter().any(assigned))
    }

    /// Locks a frame's own entry.
    pub(super) fn lock_own(&self, pfn: Pfn) -> Result<Held<'_>, Conflict> {
        let cell = self.make_region(pfn).make(index_of(pfn));
        cell.try_lock().ok_or(Conflict::Entry)
    }

    /// The head of the region of a frame whose own entry is locked.
    pub(super) fn head_beside(&self, pfn: Pfn) -> Result<Seen, Conflict> {
        let Some(region) = self.region(pfn) else {
            return Ok(Seen::ZERO);
        };
        region.head.peek_unlocked().ok_or(Conflict::Region)
    }

    /// What the tails say while the head is locked.
    pub(super) fn tails_beside(&self, pfn: Pfn) -> Tails {
        self.region(pfn)
            .map_or(Tails::Free, |region| tails_state(region.tails()))
    }

    /// Locks the entry that decides about a frame.
    pub(super) fn lock_deciding(&self, pfn: Pfn) -> Option<Deciding<'_>> {
        let region = self.make_region(pfn);
        if index_of(pfn) == 0 || raw::is_huge(region.head.peek()) {
            let head = region.head.try_lock()?;
            if head.seen().is_huge() {
                return Some(Deciding::Head(head));
            }
            return (index_of(pfn) == 0).then_some(Deciding::Own(head));
        }
        let own = region.make(index_of(pfn)).try_lock()?;
        match self.head_beside(pfn) {
            Ok(head) if !head.is_huge() => Some(Deciding::Own(own)),
            _ => None,
        }
    }

    /// Locks all tails of a region whose head is locked.
    pub(super) fn lock_tails(&self, pfn: Pfn) -> Result<Vec<Held<'_>>, Conflict> {
        let tails = self.make_region(pfn).make_tails();
        let held: Option<Vec<_>> = tails.iter().map(Cell::try_lock).collect();
        held.ok_or(Conflict::Region)
    }
}

/// What the 511 tails of a region are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tails {
    /// None is assigned.
    Free,
    /// One is being changed.
    Changing,
    /// One is assigned.
    Assigned,
    /// One is fixed to the hypervisor.
    Fixed,
}

fn tails_state(tails: &[Cell]) -> Tails {
    let mut state = Tails::Free;
    for tail in tails {
        let low = tail.peek();
        if tail.is_fixed() {
            return Tails::Fixed;
        }
        if low & raw::ASSIGNED != 0 {
            state = Tails::Assigned;
        } else if low & raw::LOCK != 0 && state == Tails::Free {
            state = Tails::Changing;
        }
    }
    state
}

/// An array that is made where it stays, since it is too large for a stack.
fn boxed<T: Debug, const N: usize>(make: fn() -> T) -> Box<[T; N]> {
    let all: Box<[T]> = (0..N).map(|_| make()).collect();
    all.try_into().expect("there are as many")
}

/// Numbers that are looked up in tables, where those that are too large are not found.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "frames of hosts with 32 bits fit"
)]
const fn to_usize(number: u64) -> usize {
    number as usize
}

#[inline]
const fn group_of(pfn: Pfn) -> usize {
    to_usize(pfn.raw() / (GROUP * REGION))
}

#[inline]
const fn region_of(pfn: Pfn) -> usize {
    to_usize(pfn.raw() / REGION % GROUP)
}

#[inline]
const fn index_of(pfn: Pfn) -> usize {
    to_usize(pfn.raw() % REGION)
}

/// Somebody else at an entry: firmware, or a CPU in the middle of an instruction. Until it is dropped the host's
/// instructions find the entry in use, or an overlap beside it, and the guest's have to be tried again.
#[derive(Debug)]
#[must_use = "the entry is in use only as long as this is kept"]
pub struct InUse<'t> {
    _held: Held<'t>,
}

#[cfg(test)]
impl Rmp {
    /// Makes a frame's own entry what it shall be, whatever the rules say.
    pub(crate) fn plant(&self, pfn: Pfn, entry: RmpEntry) {
        self.lock_own(pfn).expect("nobody is at it").set(entry);
    }
}

impl Rmp {
    /// Takes a frame's own entry as somebody else would, changing nothing; `None` if it is taken already, or if there is
    /// none.
    pub fn occupy(&self, pfn: Pfn) -> Option<InUse<'_>> {
        if !self.covers(pfn) {
            return None;
        }
        let held = self.lock_own(pfn).ok()?;
        Some(InUse { _held: held })
    }
}
