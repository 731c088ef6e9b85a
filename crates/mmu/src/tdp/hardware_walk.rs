//! A walk of the tables as hardware makes it: entry by entry, with what it says when it stops.

use core::fmt;

use slat_memslot::{Gpa, Hpa, Level};
use thiserror::Error;

use super::descent::Reached;
use super::hooks::{AccessCheck, External, Translated};
use super::lock::{Locked, Shared};
use super::tables::Tables;
use crate::spte::{Access, Entry, Format, Mmio, Pfn, Spte};
use crate::sync::Ordering;
use crate::table::{ENTRIES, TableId, index, span};

/// Walks of a group that are under way together.
const LANES: usize = 16;

/// An entry of the second stage that hardware has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecondStep {
    /// The address that is translated.
    pub gpa: Gpa,
    /// The level of the table.
    pub level: Level,
    /// The table.
    pub table: TableId,
    /// Which entry of it.
    pub index: usize,
    /// The entry.
    pub entry: u64,
    /// What the entries down to this one allow together; reading is [`Access::USER`].
    pub rights: Access,
}

/// Hears of each entry that hardware reads. `()` hears nothing and costs nothing.
pub trait SecondObserver {
    /// Whether it hears anything.
    const OBSERVES: bool = true;

    /// An entry was read. It has not been checked yet.
    #[inline]
    fn step(&mut self, step: &SecondStep) {
        let _ = step;
    }
}

impl SecondObserver for () {
    const OBSERVES: bool = false;
}

impl SecondObserver for Vec<SecondStep> {
    fn step(&mut self, step: &SecondStep) {
        self.push(*step);
    }
}

impl<O: SecondObserver + ?Sized> SecondObserver for &mut O {
    const OBSERVES: bool = O::OBSERVES;

    #[inline]
    fn step(&mut self, step: &SecondStep) {
        (**self).step(step);
    }
}

/// Where a guest-physical address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecondPage {
    /// The address of the host, to the byte.
    pub hpa: Hpa,
    /// The level of the leaf.
    pub level: Level,
    /// What the entries allow together; reading is [`Access::USER`].
    pub rights: Access,
    /// Whether the leaf became dirty by the access: hardware that logs modified pages logs this one.
    pub became_dirty: bool,
}

/// Why hardware does not reach a page, before it says so in the words of its vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecondFault<D> {
    /// The address.
    pub gpa: Gpa,
    /// What was wanted of it; reading is [`Access::USER`].
    pub wanted: Access,
    /// What the entries down to the last one allow together; nothing if that is not present.
    pub rights: Access,
    /// The level of the last entry.
    pub level: Level,
    /// Why.
    pub cause: SecondCause<D>,
}

/// What stops a walk of the second stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum SecondCause<D> {
    /// The entry allows nothing: it is empty, frozen, or its permissions are put aside.
    #[error("nothing is mapped")]
    NotPresent,
    /// The entries do not allow it.
    #[error("{missing} is not allowed")]
    NotAllowed {
        /// What they lack.
        missing: Access,
    },
    /// The entry has reserved bits, or says what no entry may say (EPT misconfiguration).
    #[error("reserved bits {bits:#x}{}", match mmio { Some(_) => ": MMIO", None => "" })]
    Misconfigured {
        /// The bits.
        bits: u64,
        /// What KVM means by it, if it is an MMIO entry.
        mmio: Option<Mmio>,
    },
    /// The tables allow it, and the check behind them does not.
    #[error("denied")]
    Denied(D),
}

impl<D> fmt::Display for SecondFault<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, level {}: ", self.gpa, self.level as u8)?;
        match &self.cause {
            SecondCause::NotPresent => f.write_str("nothing is mapped"),
            SecondCause::NotAllowed { missing } => write!(f, "{missing} is not allowed"),
            SecondCause::Misconfigured { mmio: Some(_), .. } => f.write_str("MMIO"),
            SecondCause::Misconfigured { bits, .. } => write!(f, "reserved bits {bits:#x}"),
            SecondCause::Denied(_) => f.write_str("denied"),
        }
    }
}

/// By bits 2 to 0 of an entry of EPT, which are those of [`Access`] the other way round.
const EPT_RIGHTS: [u8; 8] = [0, 4, 2, 6, 1, 5, 3, 7];

/// What hardware lets an entry allow: reading is bit 0 of EPT, the user bit of NPT, whose walks are made in user mode.
///
/// Mode-based execution is taken for off.
#[inline]
fn hardware_rights<F: Format>(raw: u64) -> Access {
    let [low, ..] = raw.to_le_bytes();
    if F::EXECUTE != 0 {
        return Access::from_bits_truncate(EPT_RIGHTS[usize::from(low & 7)]);
    }
    Access::from_bits_truncate(low & 6 | u8::from(raw & F::NO_EXECUTE == 0))
}

/// Whether hardware takes an entry for present.
#[inline]
fn is_present<F: Format>(raw: u64) -> bool {
    let bits = if F::EXECUTE != 0 { 7 } else { 1 };
    raw & bits != 0
}

impl<F: Format, X: External<F>, C: AccessCheck, O> Locked<Shared<'_, F, X, C>, O> {
    /// Makes an access as hardware does, and says where it goes. Reading is [`Access::USER`].
    ///
    /// The leaf is marked as accessed, and on a write as dirty, where hardware maintains these bits. Marks in links, which
    /// KVM sets ahead, are left alone. What the tables allow is put to the check behind them.
    ///
    /// # Errors
    /// Why it does not reach a page.
    #[inline]
    pub fn hardware_walk<W: SecondObserver>(
        &mut self,
        root: TableId,
        gpa: Gpa,
        wanted: Access,
        observer: &mut W,
    ) -> Result<SecondPage, SecondFault<C::Denied>> {
        let root = self.tables().at_root(root);
        let walked = self.hardware_walk_from(root, gpa, wanted, observer);
        walked.map(|(page, _)| page)
    }

    /// The same from a table that plain links lead to; gives the last such table as well.
    #[inline(always)]
    pub(crate) fn hardware_walk_from<W: SecondObserver>(
        &self,
        from: Reached,
        gpa: Gpa,
        wanted: Access,
        observer: &mut W,
    ) -> Result<(SecondPage, Reached), SecondFault<C::Denied>> {
        if W::OBSERVES {
            let page = self.examine(from, gpa, wanted, observer)?;
            return Ok((page, from));
        }
        let tables = self.tables();
        let gfn = gpa.gfn().raw();
        let mut finder = tables.finder(from.table);
        let at = tables.descend_by(&mut finder, from, gfn, Level::L1);
        if at.level == Level::L1 {
            let entry = finder.table(at.table)[index(gfn, at.level)].load(Ordering::Acquire);
            if let Some(page) = tables.smooth_leaf(Spte::from_raw(entry), gpa, wanted) {
                return Ok((page, at));
            }
        }
        let page = self.examine(at, gpa, wanted, observer)?;
        Ok((page, at))
    }

    /// The last reference of such a walk, in a table of level 1; nothing if there is more to do than to read the entry.
    #[inline(always)]
    pub(crate) fn hardware_leaf(
        &self,
        (root, table): (TableId, TableId),
        gpa: Gpa,
        wanted: Access,
    ) -> Option<SecondPage> {
        let tables = self.tables();
        // The root is known long before the table is.
        let entries = tables.finder(root).table(table);
        let leaf = entries[index(gpa.gfn().raw(), Level::L1)].load(Ordering::Acquire);
        tables.smooth_leaf(Spte::from_raw(leaf), gpa, wanted)
    }

    /// Makes the same access at many addresses, whose references to memory overlap; says nothing about those that fault,
    /// and does nothing where there is no address.
    #[inline]
    pub(crate) fn hardware_walk_group(
        &self,
        root: TableId,
        group: &[Option<Gpa>],
        wanted: Access,
        to: &mut [Option<Hpa>],
    ) {
        for (group, to) in group.chunks(LANES).zip(to.chunks_mut(LANES)) {
            self.walk_lanes(root, group, wanted, to);
        }
    }

    fn walk_lanes(
        &self,
        root: TableId,
        group: &[Option<Gpa>],
        wanted: Access,
        to: &mut [Option<Hpa>],
    ) {
        let tables = self.tables();
        let Some((first, parting)) = parting(group) else {
            to.fill(None);
            return;
        };
        let together = tables.descend(tables.at_root(root), first, parting);
        let mut lanes = [together; LANES];
        for level in [Level::L5, Level::L4, Level::L3, Level::L2] {
            if level > together.level {
                continue;
            }
            for (at, gpa) in lanes.iter_mut().zip(group) {
                if let Some(gpa) = gpa.filter(|_| at.level == level) {
                    let table = tables.arena.table(at.table);
                    tables.follow(table, level, at, gpa.gfn().raw());
                }
            }
        }
        let mut leaves = [0; LANES];
        for ((leaf, at), gpa) in leaves.iter_mut().zip(&lanes).zip(group) {
            if let Some(gpa) = gpa.filter(|_| at.level == Level::L1) {
                *leaf = tables
                    .load(at.table, index(gpa.gfn().raw(), at.level))
                    .raw();
            }
        }
        for (((to, gpa), at), leaf) in to.iter_mut().zip(group).zip(lanes).zip(leaves) {
            let page = gpa.map(|gpa| {
                let leaf = Spte::from_raw(leaf);
                let small = (at.level == Level::L1).then(|| tables.smooth_leaf(leaf, gpa, wanted));
                let examined = || self.examine(at, gpa, wanted, &mut ()).ok();
                small.flatten().or_else(examined)
            });
            *to = page.flatten().map(|page| page.hpa);
        }
    }

    /// Looks at every entry from a table on, as far as the walk goes.
    #[inline(never)]
    fn examine<W: SecondObserver>(
        &self,
        from: Reached,
        gpa: Gpa,
        wanted: Access,
        observer: &mut W,
    ) -> Result<SecondPage, SecondFault<C::Denied>> {
        let tables = self.tables();
        let gfn = gpa.gfn().raw();
        let Reached {
            mut table,
            mut level,
        } = from;
        let mut rights = Access::all();
        loop {
            let index = index(gfn, level);
            let spte = tables.load(table, index);
            rights &= hardware_rights::<F>(spte.raw());
            observer.step(&SecondStep {
                gpa,
                level,
                table,
                index,
                entry: spte.raw(),
                rights,
            });
            let at = At {
                gpa,
                wanted,
                rights,
                level,
            };
            at.check_entry(tables, spte)?;
            match (tables.child_of(spte, level), level.child()) {
                (Some(child), Some(below)) => (table, level) = (child, below),
                _ => return at.finish(tables, (table, index), spte),
            }
        }
    }
}

impl<F: Format, X, C: AccessCheck> Tables<F, X, C> {
    /// The page of an entry of level 1 that allows the access and has its marks. Whatever is otherwise is left to the walk
    /// that looks at everything.
    #[inline(always)]
    fn smooth_leaf(&self, leaf: Spte<F>, gpa: Gpa, wanted: Access) -> Option<SecondPage> {
        let rights = hardware_rights::<F>(leaf.raw());
        let mut marks = F::ACCESSED;
        if wanted.contains(Access::WRITE) {
            marks |= F::DIRTY;
        }
        let marked = leaf.raw() & marks == marks || self.codec.is_ad_disabled(leaf);
        let good = rights.contains(wanted)
            && marked
            && is_present::<F>(leaf.raw())
            && self.codec.reserved().is_plain_leaf(leaf);
        if !good {
            return None;
        }
        let pfn = self.codec.pfn(leaf);
        let translated = Translated {
            gfn: gpa.gfn(),
            pfn,
            level: Level::L1,
            access: wanted,
        };
        self.check.check(&translated).ok()?;
        Some(SecondPage {
            hpa: Hpa::new(pfn.address() | gpa.raw() & 0xfff),
            level: Level::L1,
            rights,
            became_dirty: false,
        })
    }
}

/// The first frame of a group, and the level of the table down to which all walks go the same way.
#[inline]
fn parting(group: &[Option<Gpa>]) -> Option<(u64, Level)> {
    let mut frames = group.iter().flatten().map(|gpa| gpa.gfn().raw());
    let first = frames.next()?;
    let differ = frames.fold(0, |differ, gfn| differ | gfn ^ first);
    let levels = [Level::L1, Level::L2, Level::L3, Level::L4];
    let parting = levels
        .into_iter()
        .find(|level| differ / span(*level) < ENTRIES as u64);
    Some((first, parting.unwrap_or(Level::L5)))
}

/// Where a walk is.
struct At {
    gpa: Gpa,
    wanted: Access,
    rights: Access,
    level: Level,
}

impl At {
    #[inline]
    fn check_entry<F: Format, X, C: AccessCheck>(
        &self,
        tables: &Tables<F, X, C>,
        spte: Spte<F>,
    ) -> Result<(), SecondFault<C::Denied>> {
        if !is_present::<F>(spte.raw()) {
            return Err(SecondFault {
                rights: Access::empty(),
                ..self.fault(SecondCause::NotPresent)
            });
        }
        match tables.codec.reserved().violations(spte, self.level) {
            0 => Ok(()),
            bits => Err(self.misconfigured(tables, spte, bits)),
        }
    }

    #[cold]
    fn misconfigured<F: Format, X, C: AccessCheck>(
        &self,
        tables: &Tables<F, X, C>,
        spte: Spte<F>,
        bits: u64,
    ) -> SecondFault<C::Denied> {
        let mmio = match tables.codec.decode(spte, self.level) {
            Entry::Mmio(mmio) => Some(mmio),
            _ => None,
        };
        self.fault(SecondCause::Misconfigured { bits, mmio })
    }

    /// The leaf: rights, the check behind the tables, marks.
    #[inline]
    fn finish<F: Format, X, C: AccessCheck>(
        &self,
        tables: &Tables<F, X, C>,
        (table, place): (TableId, usize),
        spte: Spte<F>,
    ) -> Result<SecondPage, SecondFault<C::Denied>> {
        let missing = self.wanted - self.rights;
        if !missing.is_empty() {
            return Err(self.fault(SecondCause::NotAllowed { missing }));
        }
        let gfn = self.gpa.gfn();
        let pfn = Pfn::new(tables.codec.pfn(spte).raw() + (gfn.raw() & (span(self.level) - 1)));
        let translated = Translated {
            gfn,
            pfn,
            level: self.level,
            access: self.wanted,
        };
        let checked = tables.check.check(&translated);
        checked.map_err(|denied| self.fault(SecondCause::Denied(denied)))?;
        Ok(SecondPage {
            hpa: Hpa::new(pfn.address() | self.gpa.raw() & 0xfff),
            level: self.level,
            rights: self.rights,
            became_dirty: self.mark(tables, (table, place), spte),
        })
    }

    /// Marks the leaf; whether it became dirty.
    #[inline]
    fn mark<F: Format, X, C>(
        &self,
        tables: &Tables<F, X, C>,
        (table, place): (TableId, usize),
        spte: Spte<F>,
    ) -> bool {
        if tables.codec.is_ad_disabled(spte) {
            return false;
        }
        let mut marks = F::ACCESSED;
        if self.wanted.contains(Access::WRITE) {
            marks |= F::DIRTY;
        }
        if spte.raw() & marks == marks {
            return false;
        }
        let before = tables.entry(table, place).fetch_or(marks, Ordering::AcqRel);
        marks & !before & F::DIRTY != 0
    }

    #[inline]
    fn fault<D>(&self, cause: SecondCause<D>) -> SecondFault<D> {
        SecondFault {
            gpa: self.gpa,
            wanted: self.wanted,
            rights: self.rights,
            level: self.level,
            cause,
        }
    }
}
