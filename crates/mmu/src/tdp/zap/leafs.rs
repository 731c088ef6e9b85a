//! Zapping leaves of a range; the tables stay (`tdp_mmu.c:tdp_mmu_zap_leafs`).

use core::ops::Range;

use slat_memslot::{AsId, Gfn, GfnRange, Level};

use crate::roots::RootSelect;
use crate::spte::{AdMasks, Format, Spte};
use crate::sync::{set_value, value};
use crate::table::{ENTRIES, TableId};
use crate::tdp::change::pass_on;
use crate::tdp::cursor::Cursor;
use crate::tdp::events::{FlushReason, FlushScope, Harvest, Harvesting, Observer};
use crate::tdp::hooks::{AccessCheck, Busy, External};
use crate::tdp::leaves::Leaves;
use crate::tdp::lock::{Exclusive, Locked};
use crate::tdp::resched::{Progress, Resched};
use crate::tdp::rootwalk::{RootTypes, RootWalk};

/// Zaps the leaves of a range.
///
/// Huge leaves that reach into the range go as a whole; MMIO entries stay, and so do tables.
///
/// ```
/// use slat_memslot::{Gfn, GfnRange, PageSize};
/// use slat_mmu::{host::Host, spte::{Npt, Pfn}, tdp::{MapRequest, Progress, Tables, Uninterrupted, Unobserved, ZapLeafs}};
/// use slat_mmu::role::{TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
///
/// let mut tables = Tables::<Npt>::new(&Host::npt(48));
/// let mut reader = tables.reader().unwrap();
/// let role = root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::Npt4));
/// let mut shared = tables.shared(&mut reader, Unobserved);
/// let root = shared.acquire_root(role).unwrap().root();
/// let table = shared.root_table(root).unwrap();
/// let request = MapRequest::page(Gfn::new(7), PageSize::Size4K, Pfn::new(0x4007));
/// shared.map(table, &request).unwrap();
/// drop(shared);
/// assert_eq!(tables.totals().pages_4k, 1);
///
/// let range = GfnRange::between(Gfn::new(0), Gfn::new(16)).unwrap();
/// let mut zap = ZapLeafs::of_valid_roots(range);
/// assert_eq!(zap.run(&mut tables.exclusive(Unobserved), &mut Uninterrupted), Progress::Done);
/// assert!(zap.needs_flush());
/// assert_eq!(tables.totals().pages_4k, 0);
/// ```
#[derive(Debug)]
#[must_use = "it does nothing until it is run"]
pub struct ZapLeafs {
    walk: RootWalk,
    flush: bool,
    zapped: u64,
    busy: Option<Gfn>,
}

impl ZapLeafs {
    /// In the valid roots of all address spaces (`tdp_mmu.c:kvm_tdp_mmu_zap_leafs`).
    pub const fn of_valid_roots(range: GfnRange) -> Self {
        Self::new(RootWalk::new(RootSelect::Valid, None, range))
    }

    /// In all roots of an address space, invalid ones too, as the host's memory management and the deletion of a slot
    /// need it (`tdp_mmu.c:kvm_tdp_mmu_unmap_gfn_range`).
    pub const fn of_address_space(as_id: AsId, range: GfnRange) -> Self {
        Self::new(RootWalk::new(RootSelect::All, Some(as_id), range))
    }

    /// In roots of these types only: what private memory loses is zapped in mirrors, what shared memory loses in direct
    /// roots (`tdp_mmu.c:kvm_gfn_range_filter_to_root_types`).
    pub const fn with_types(mut self, types: RootTypes) -> Self {
        self.walk = self.walk.with_types(types);
        self
    }

    const fn new(walk: RootWalk) -> Self {
        Self {
            walk,
            flush: false,
            zapped: 0,
            busy: None,
        }
    }

    /// Whether TLBs have to be flushed before the lock is given up: something was zapped in a valid root since it last
    /// gave way.
    pub const fn needs_flush(&self) -> bool {
        self.flush
    }

    /// How many leaves were zapped.
    pub const fn zapped(&self) -> u64 {
        self.zapped
    }

    /// The first frame that the owner of mirror tables would not let go. It is still mapped, and so may be others.
    pub const fn busy(&self) -> Option<Gfn> {
        self.busy
    }

    /// Zaps until it is over or `resched` wants to give way.
    pub fn run<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>, R: Resched>(
        &mut self,
        locked: &mut Locked<Exclusive<'_, F, X, C>, O>,
        resched: &mut R,
    ) -> Progress {
        while let Some((root, from)) = self.walk.current(locked) {
            if self.run_root(locked, resched, root, from) == Progress::Paused {
                if self.flush {
                    locked.flush_now(FlushScope::All, FlushReason::Yield);
                    self.flush = false;
                }
                return Progress::Paused;
            }
            self.walk.next_root();
        }
        locked.audit_after_step();
        Progress::Done
    }

    fn run_root<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>, R: Resched>(
        &mut self,
        locked: &mut Locked<Exclusive<'_, F, X, C>, O>,
        resched: &mut R,
        root: TableId,
        from: u64,
    ) -> Progress {
        let end = self.walk.end();
        let invalid = locked.tables().page(root).role().is_invalid();
        let before = self.zapped;
        // One role for all tables below the root, so one meaning of accessed and dirty.
        let masks = locked.ad_masks(root);
        let mut cursor = Cursor::start(locked.tables(), root, Level::L1, from);
        let mut progress = Progress::Done;
        while cursor.is_before(end) {
            if self.walk.gives_way(&cursor, resched) {
                progress = Progress::Paused;
                break;
            }
            if cursor.level() == Level::L2 && !R::ENABLED {
                let run = self.zap_children(locked, &cursor, end, masks);
                if !run.is_empty() {
                    cursor.finish(&run);
                    cursor.pass(locked.tables());
                    continue;
                }
            }
            if cursor.level() == Level::L1 && !R::ENABLED {
                let run = cursor.run(end);
                self.zap_one_by_one(locked, cursor, run.clone());
                cursor.finish(&run);
            } else if cursor.is_at_leaf() {
                let _busy = self.zap_entry(locked, &cursor);
            }
            cursor.advance(locked.tables());
        }
        self.flush |= !invalid && self.zapped != before;
        progress
    }

    /// Empties the tables of level 1 that a run of entries links to, or the parts of them that lie in the range, from the
    /// cursor on up to a huge leaf. Where each change has to be told, only tables that are known to be empty are passed. Gives
    /// the run; it is empty where the cursor has to go down.
    fn zap_children<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>>(
        &mut self,
        locked: &mut Locked<Exclusive<'_, F, X, C>, O>,
        cursor: &Cursor<F>,
        end: u64,
        masks: AdMasks,
    ) -> Range<usize> {
        let (table, run) = (cursor.table(), cursor.run(end));
        let one_by_one = O::EVENTS || locked.is_mirror(table);
        for index in run.clone() {
            let spte = locked.tables().load(table, index);
            let Some(child) = locked.tables().child_of(spte, Level::L2) else {
                if spte.is_leaf(Level::L2) {
                    return run.start..index;
                }
                continue;
            };
            if locked.tables().knows(child, Leaves::None) {
                continue;
            }
            if one_by_one {
                return run.start..index;
            }
            let part = cursor.part_of_child(index, end);
            let whole = part.len() == ENTRIES;
            self.zapped += match whole {
                // Most are, and a loop whose length is known is the faster one.
                true => locked.zap_at_once(child, 0..ENTRIES, masks),
                false => locked.zap_at_once(child, part, masks),
            };
            locked.zapped_leaves_of(child, whole);
        }
        run
    }

    fn zap_entry<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>>(
        &mut self,
        locked: &mut Locked<Exclusive<'_, F, X, C>, O>,
        cursor: &Cursor<F>,
    ) -> Result<(), Busy> {
        let (at, empty) = (locked.at(cursor), locked.tables().codec.nonpresent());
        let gone = locked.set(cursor.place(), at, cursor.old, empty);
        match gone {
            Ok(()) => self.zapped += 1,
            Err(Busy) => self.busy = self.busy.or(Some(Gfn::new(at.gfn))),
        }
        gone
    }

    /// Zaps a run of entries of a table of level 1, each change by itself.
    fn zap_one_by_one<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>>(
        &mut self,
        locked: &mut Locked<Exclusive<'_, F, X, C>, O>,
        mut cursor: Cursor<F>,
        run: Range<usize>,
    ) {
        let (table, mut gone) = (cursor.table(), Ok(()));
        for _ in run.clone() {
            if cursor.is_at_leaf() {
                gone = gone.and(self.zap_entry(locked, &cursor));
            }
            cursor.advance(locked.tables());
        }
        // The owner of mirror tables may not have let a leaf go.
        locked.zapped_leaves_of(table, gone.is_ok() && run.len() == ENTRIES);
    }
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Exclusive<'_, F, X, C>, O> {
    /// Leaves of a table of level 1 have been zapped. If it was all, it is not looked at again before it has one.
    fn zapped_leaves_of(&mut self, table: TableId, all: bool) {
        if all {
            self.side.tables.learn(table, Leaves::None);
        } else {
            self.tables().forget(table, Leaves::All);
        }
    }

    /// Zaps a run of entries of a table of level 1, as fast as the observer allows, and gives how many leaves it had.
    fn zap_at_once(&mut self, table: TableId, run: Range<usize>, masks: AdMasks) -> u64 {
        let zapped = match O::HARVEST {
            Harvesting::Nothing => self.zap_plainly(table, run),
            Harvesting::Numbers => self.zap_counting(table, run, masks),
            Harvesting::EveryPage => self.zap_harvesting(table, run, masks),
        };
        if zapped > 0 {
            let difference = i64::try_from(zapped).unwrap_or(0);
            self.counts().add_leaves(Level::L1, -difference);
        }
        zapped
    }

    /// Empties the leaves of a run and gives their number. A table that is known to hold nothing but leaves is not read.
    fn zap_plainly(&mut self, table: TableId, run: Range<usize>) -> u64 {
        let tables = &mut *self.side.tables;
        let empty = tables.codec.nonpresent().raw();
        let full = tables.knows(table, Leaves::All);
        let entries = &mut tables.arena.table_mut(table)[run];
        if full {
            for entry in entries.iter_mut() {
                set_value(entry, empty);
            }
            return entries.len() as u64;
        }
        let mut zapped = 0_u64;
        for entry in entries {
            let (old, mask) = (value(entry), leaf_mask(value(entry)));
            zapped = zapped.wrapping_sub(mask);
            set_value(entry, old ^ (old ^ empty) & mask);
        }
        zapped
    }

    /// The same, and passes on how many accessed and dirty leaves there were.
    fn zap_counting(&mut self, table: TableId, run: Range<usize>, masks: AdMasks) -> u64 {
        let Some((accessed, dirty)) = masks.single_bits() else {
            return self.zap_harvesting(table, run, masks);
        };
        let tables = &mut *self.side.tables;
        let empty = tables.codec.nonpresent().raw();
        let (mut zapped, mut numbers) = (0, Harvest::default());
        for entry in &mut tables.arena.table_mut(table)[run] {
            let (old, mask) = (value(entry), leaf_mask(value(entry)));
            let leaf = old & mask;
            zapped += mask & 1;
            numbers.accessed += leaf >> accessed & 1;
            numbers.dirty += leaf >> dirty & 1;
            set_value(entry, old ^ (old ^ empty) & mask);
        }
        self.observer.harvest_numbers(numbers);
        zapped
    }

    /// The same, and passes on what hardware has noted, page by page.
    fn zap_harvesting(&mut self, table: TableId, run: Range<usize>, masks: AdMasks) -> u64 {
        let tables = &mut *self.side.tables;
        let codec = tables.codec;
        let empty = codec.nonpresent().raw();
        let mut zapped = 0;
        for entry in &mut tables.arena.table_mut(table)[run] {
            let old = Spte::<F>::from_raw(value(entry));
            if old.is_leaf(Level::L1) {
                set_value(entry, empty);
                zapped += 1;
                pass_on::<F, O>(
                    &mut self.observer,
                    codec.pfn(old),
                    Level::L1,
                    masks.marks(old),
                );
            }
        }
        zapped
    }
}

/// All bits for a leaf of level 1, else none. Without a comparison, so that the compiler does several entries at a time.
#[inline]
const fn leaf_mask(raw: u64) -> u64 {
    const SHIFT: u32 = Spte::<()>::leaf_mask(Level::L1).trailing_zeros();
    (raw >> SHIFT & 1).wrapping_neg()
}
