//! A range of leaves loses the right to write, or its dirty bits, while others go on (`tdp_mmu.c:wrprot_gfn_range`,
//! `tdp_mmu.c:clear_dirty_gfn_range`).

use core::ops::Range;

use slat_memslot::{AsId, GfnRange, Level, PageSize};

use crate::role::PageRole;
use crate::roots::RootSelect;
use crate::spte::{AdType, Codec, Format, Spte};
use crate::sync::{AtomicU64, Ordering, set_value, value};
use crate::table::{ENTRIES, TableId};
use crate::tdp::change::{At, harvest_change, report};
use crate::tdp::cursor::Cursor;
use crate::tdp::events::{Harvesting, Observer};
use crate::tdp::hooks::{AccessCheck, External};
use crate::tdp::leaves::Leaves;
use crate::tdp::lock::{Exclusive, Locked, Shared};
use crate::tdp::resched::{Progress, Resched};
use crate::tdp::rootwalk::RootWalk;
use crate::tdp::store::{NotStored, Store};

/// What leaves lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// The right to write.
    Write,
    /// The dirty bit where the hardware keeps one for this guest, else the right to write.
    Dirty,
}

/// Takes the right to write, or dirty bits, from the leaves of a range, in all valid roots of an address space.
///
/// KVM holds the lock for reading, and so does [`Weaken::run`]'s usual caller; it may as well be held for writing.
#[derive(Debug)]
#[must_use = "it does nothing until it is run"]
pub struct Weaken {
    walk: RootWalk,
    what: What,
    min_level: Level,
    changed: bool,
}

impl Weaken {
    /// Leaves of `smallest` and above lose the right to write (`tdp_mmu.c:kvm_tdp_mmu_wrprot_slot`). With
    /// page-modification logging KVM leaves 4 KiB leaves to their dirty bits.
    pub fn write_protect(as_id: AsId, range: GfnRange, smallest: PageSize) -> Self {
        Self::new(as_id, range, What::Write, smallest.level())
    }

    /// All leaves lose their dirty bits, or the right to write where the hardware keeps none for this guest
    /// (`tdp_mmu.c:kvm_tdp_mmu_clear_dirty_slot`).
    pub fn clear_dirty(as_id: AsId, range: GfnRange) -> Self {
        Self::new(as_id, range, What::Dirty, Level::L1)
    }

    fn new(as_id: AsId, range: GfnRange, what: What, min_level: Level) -> Self {
        Self {
            walk: RootWalk::new(RootSelect::Valid, Some(as_id), range),
            what,
            min_level,
            changed: false,
        }
    }

    /// Whether any leaf has changed so far.
    pub const fn has_changed(&self) -> bool {
        self.changed
    }

    /// Goes on until it is over or `resched` wants to give way.
    pub fn run<S: Store, O: Observer<S::Format>, R: Resched>(
        &mut self,
        locked: &mut Locked<S, O>,
        resched: &mut R,
    ) -> Progress {
        while let Some((root, from)) = self.walk.current(locked) {
            let lost = match self.what {
                What::Write => Loss::Write,
                What::Dirty => locked.loss_of(root),
            };
            let bit = lost.bit(&locked.tables().codec);
            let mut cursor = Cursor::start(locked.tables(), root, self.min_level, from);
            while cursor.is_before(self.walk.end()) {
                if self.walk.gives_way(&cursor, resched) {
                    return Progress::Paused;
                }
                let many = !R::ENABLED && self.min_level == Level::L1;
                if many && cursor.level() == Level::L2 && !locked.is_mirror(cursor.table()) {
                    let run = self.weaken_children(locked, &cursor, bit);
                    if !run.is_empty() {
                        cursor.finish(&run);
                        cursor.pass(locked.tables());
                        continue;
                    }
                }
                if self.visit(locked, &mut cursor, lost) == Err(NotStored::Lost) {
                    continue;
                }
                cursor.advance(locked.tables());
            }
            self.walk.next_root();
        }
        Progress::Done
    }

    /// Takes a bit from the tables of level 1 that a run of entries links to, or from the parts of them that lie in the range,
    /// from the cursor on up to a huge leaf. Gives the run.
    fn weaken_children<S: Store, O: Observer<S::Format>>(
        &mut self,
        locked: &mut Locked<S, O>,
        cursor: &Cursor<S::Format>,
        bit: u64,
    ) -> Range<usize> {
        let (at, end) = (locked.at(cursor), self.walk.end());
        let run = cursor.run(end);
        for index in run.clone() {
            let spte = locked.tables().load(cursor.table(), index);
            let Some(child) = locked.tables().child_of(spte, Level::L2) else {
                if spte.is_leaf(Level::L2) {
                    return run.start..index;
                }
                continue;
            };
            let part = cursor.part_of_child(index, end);
            let at = at.entry(index - run.start).child(part.start);
            self.changed |= match part.len() {
                // Most are whole, and a loop whose length is known is the faster one.
                ENTRIES => S::take_bit(locked, child, at, 0..ENTRIES, bit),
                _ => S::take_bit(locked, child, at, part, bit),
            };
        }
        run
    }

    fn visit<S: Store, O: Observer<S::Format>>(
        &mut self,
        locked: &mut Locked<S, O>,
        cursor: &mut Cursor<S::Format>,
        loss: Loss,
    ) -> Result<(), NotStored> {
        if !cursor.is_at_leaf() {
            return Ok(());
        }
        let weaker = loss.from(&locked.tables().codec, cursor.old);
        if weaker != cursor.old {
            S::replace(locked, cursor, weaker)?;
            self.changed = true;
        }
        Ok(())
    }
}

/// What the leaves of one tree lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Write,
    Dirty,
}

impl Loss {
    #[inline]
    pub(super) const fn from<F: Format>(self, codec: &Codec<F>, leaf: Spte<F>) -> Spte<F> {
        match self {
            Self::Write => codec.write_protect(leaf),
            Self::Dirty => codec.clear_dirty(leaf),
        }
    }

    /// The bit that is lost.
    #[inline]
    pub(super) const fn bit<F: Format>(self, codec: &Codec<F>) -> u64 {
        let all = Spte::from_raw(u64::MAX);
        !self.from(codec, all).raw()
    }

    /// What shows writes in the leaves below a table of this role (`tdp_mmu.c:tdp_mmu_need_write_protect`).
    pub(super) const fn for_role<F: Format>(codec: &Codec<F>, role: PageRole) -> Self {
        match (codec.ad_type_of_table(role), codec.host().ad_enabled()) {
            (AdType::Enabled, true) => Self::Dirty,
            _ => Self::Write,
        }
    }
}

impl<S: Store, O> Locked<S, O> {
    pub(super) fn loss_of(&self, root: TableId) -> Loss {
        let tables = self.tables();
        Loss::for_role(&tables.codec, tables.page(root).role())
    }
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Shared<'_, F, X, C>, O> {
    /// Takes a bit from each leaf of a run. One that changes meanwhile is looked at again.
    pub(in crate::tdp) fn take_bit_by_exchange(
        &mut self,
        table: TableId,
        mut at: At,
        run: Range<usize>,
        bit: u64,
    ) -> bool {
        let (tables, mut changed) = (self.side.tables, false);
        for entry in &tables.arena.table(table)[run] {
            if let Some(old) = take_bit::<F>(entry, bit) {
                changed = true;
                let new = Spte::from_raw(old.raw() & !bit);
                weakened(&mut self.observer, &tables.codec, at, (old, new));
            }
            at.gfn += 1;
        }
        changed
    }
}

/// Takes a bit from an entry while it is a leaf that has it, and gives what it was.
#[inline]
fn take_bit<F: Format>(entry: &AtomicU64, bit: u64) -> Option<Spte<F>> {
    let mut old = Spte::from_raw(entry.load(Ordering::Relaxed));
    while old.is_leaf(Level::L1) && old.raw() & bit != 0 {
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        match entry.compare_exchange(old.raw(), old.raw() & !bit, success, failure) {
            Ok(_) => return Some(old),
            Err(now) => old = Spte::from_raw(now),
        }
    }
    None
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Exclusive<'_, F, X, C>, O> {
    /// The same by plain stores; `tell` tells the observer of each change. Where nobody is to be told, nothing branches on an
    /// entry.
    #[inline]
    pub(in crate::tdp) fn take_bit_telling(
        &mut self,
        table: TableId,
        at: At,
        run: Range<usize>,
        bit: u64,
        tell: impl Fn(&mut O, &Codec<F>, At, (Spte<F>, Spte<F>)),
    ) -> bool {
        let tables = &mut *self.side.tables;
        let (codec, full) = (&tables.codec, tables.knows(table, Leaves::All));
        let entries = &mut tables.arena.table_mut(table)[run];
        if !O::EVENTS && O::HARVEST == Harvesting::Nothing {
            return if full {
                take_from_all(entries, bit)
            } else {
                take_from_leaves(entries, bit)
            };
        }
        let mut changed = false;
        for (index, entry) in entries.iter_mut().enumerate() {
            let old = Spte::<F>::from_raw(value(entry));
            if old.is_leaf(Level::L1) && old.raw() & bit != 0 {
                changed = true;
                set_value(entry, old.raw() & !bit);
                let new = Spte::from_raw(old.raw() & !bit);
                tell(&mut self.observer, codec, at.entry(index), (old, new));
            }
        }
        changed
    }
}

/// Takes a bit from entries that are all leaves. Says whether any had it.
#[inline]
fn take_from_all(entries: &mut [AtomicU64], bit: u64) -> bool {
    let mut all = 0;
    for entry in entries {
        let old = value(entry);
        all |= old;
        set_value(entry, old & !bit);
    }
    all & bit != 0
}

/// Takes a bit from the leaves among these entries. Shifts instead of comparisons, so that the compiler does several
/// entries at a time.
#[inline]
fn take_from_leaves(entries: &mut [AtomicU64], bit: u64) -> bool {
    const PRESENT: u64 = Spte::<()>::leaf_mask(Level::L1);
    // What is lost lies below the bit that tells a leaf.
    let (shift, mut taken) = (bit.leading_zeros() - PRESENT.leading_zeros(), 0);
    for entry in entries {
        let old = value(entry);
        let lost = old & (old >> shift) & bit;
        taken |= lost;
        set_value(entry, old ^ lost);
    }
    taken != 0
}

/// Reports a leaf that is a leaf still, and passes on the mark that it has lost.
#[inline]
pub(in crate::tdp) fn weakened<F: Format, O: Observer<F>>(
    observer: &mut O,
    codec: &Codec<F>,
    at: At,
    (old, new): (Spte<F>, Spte<F>),
) {
    report(observer, at, old, new);
    if O::HARVEST != Harvesting::Nothing {
        harvest_change(observer, codec, at.level, old, new);
    }
}
