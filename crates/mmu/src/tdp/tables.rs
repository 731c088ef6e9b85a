//! The page tables of one VM's TDP MMU.

use slat_memslot::{Gfn, Level};

use super::audit::StepCursor;
use super::count::{Counts, Totals};
use super::hooks::{NoCheck, NoExternal};
use super::lock::{Exclusive, Locked, Shared};
use super::page::{Page, Parent};
use crate::host::{AdBits, Host};
use crate::role::PageRole;
use crate::roots::{RootTable, TdpMmu};
use crate::spte::{AdType, Codec, Format, Pfn, Spte};
use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use crate::table::{Arena, ENTRIES, Epochs, Reader, TableId, span};

/// What a fault makes of a leaf that is there already and allows what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExistingLeaf {
    /// It makes the leaf anew, whatever is lost by it: a prefault takes the accessed bit away (up to 6.12).
    MadeAnew,
    /// It leaves it.
    Kept,
}

/// How much there may be of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Tables, rounded up to a multiple of 512.
    pub tables: u32,
    /// Readers at a time: vCPUs and other threads that take the shared side of the lock.
    pub readers: usize,
}

impl Default for Limits {
    /// 2^21 tables, enough for 4 TiB of 4 KiB leaves, and 64 readers.
    fn default() -> Self {
        Self {
            tables: 1 << 21,
            readers: 64,
        }
    }
}

/// The page tables of one VM's TDP MMU, with their roots.
///
/// The lock around it is the caller's, usually a [`RwLock`](std::sync::RwLock), and plays the part of `mmu_lock`: who
/// holds it for reading has a `&Tables` and enters by [`Tables::shared`]; who holds it for writing has a `&mut Tables` and
/// enters by [`Tables::exclusive`]. The compiler does not let anybody mix them up.
///
/// `X` is the owner of mirror tables, `C` the check of accesses; see [`External`](super::External) and
/// [`AccessCheck`](super::AccessCheck).
#[derive(Debug)]
pub struct Tables<F, X = NoExternal, C = NoCheck> {
    pub(super) codec: Codec<F>,
    pub(super) existing_leaf: ExistingLeaf,
    pub(super) arena: Arena<Page>,
    pub(super) epochs: Epochs,
    pub(super) roots: RootTable<TableId>,
    /// One for each reader, and the last for the exclusive side.
    pub(super) counts: Box<[Counts]>,
    pub(super) external: X,
    pub(super) check: C,
    /// Tables that could be huge leaves but for execution, oldest first.
    pub(super) possible_nx: Mutex<Vec<TableId>>,
    /// Where the audit of every step goes on.
    pub(super) audit: StepCursor,
}

impl<F: Format> Tables<F> {
    /// No tables yet, on this host, with the default limits.
    pub fn new(host: &Host) -> Self {
        Self::with(host, Limits::default(), NoExternal, NoCheck)
    }

    /// No tables yet, on this host, with these limits.
    pub fn with_limits(host: &Host, limits: Limits) -> Self {
        Self::with(host, limits, NoExternal, NoCheck)
    }
}

impl<F: Format, X, C> Tables<F, X, C> {
    /// No tables yet, with an owner of mirror tables and a check of accesses.
    pub fn with(host: &Host, limits: Limits, external: X, check: C) -> Self {
        let codec = Codec::new(host);
        Self {
            codec,
            existing_leaf: match host.ad_bits {
                AdBits::Hardware => ExistingLeaf::MadeAnew,
                AdBits::Software => ExistingLeaf::Kept,
            },
            arena: Arena::new(codec.nonpresent().raw(), limits.tables),
            epochs: Epochs::new(limits.readers),
            roots: RootTable::new(TdpMmu::On),
            counts: (0..=limits.readers).map(|_| Counts::default()).collect(),
            external,
            check,
            possible_nx: Mutex::new(Vec::new()),
            audit: StepCursor::default(),
        }
    }

    /// With another rule for leaves that are there already.
    #[must_use]
    pub const fn with_existing_leaf(mut self, rule: ExistingLeaf) -> Self {
        self.existing_leaf = rule;
        self
    }

    /// How entries are read and made.
    #[inline]
    pub const fn codec(&self) -> &Codec<F> {
        &self.codec
    }

    /// The roots. Who puts the last reference to one must hand it to
    /// [`Locked::free_root`](super::Locked::free_root).
    #[inline]
    pub const fn roots(&self) -> &RootTable<TableId> {
        &self.roots
    }

    /// The owner of mirror tables.
    pub const fn external(&self) -> &X {
        &self.external
    }

    /// The check of accesses.
    pub const fn check(&self) -> &C {
        &self.check
    }

    /// A place for a thread that takes the shared side; `None` when all are taken.
    pub fn reader(&self) -> Option<Reader> {
        self.epochs.reader()
    }

    /// Enters with the lock held for reading.
    ///
    /// # Panics
    /// The reader has its place in other tables.
    #[inline]
    pub fn shared<'t, O>(
        &'t self,
        reader: &'t mut Reader,
        observer: O,
    ) -> Locked<Shared<'t, F, X, C>, O> {
        assert!(self.epochs.owns(reader), "the reader of other tables");
        Locked::new(Shared::new(self, reader), observer)
    }

    /// Enters with the lock held for writing.
    #[inline]
    pub fn exclusive<O>(&mut self, observer: O) -> Locked<Exclusive<'_, F, X, C>, O> {
        self.reclaim_all();
        Locked::new(Exclusive::new(self), observer)
    }

    /// How many leaves there are of each size, and how many linked tables (`kvm->stat.pages_*`, `tdp_mmu_pages`).
    pub fn totals(&self) -> Totals {
        Totals::of(&self.counts)
    }

    /// How many huge pages are split for the sake of execution (`nx_lpage_splits`).
    pub fn nx_splits(&self) -> u64 {
        lock(&self.possible_nx).len() as u64
    }

    /// Memory for entries and for what is known about tables, in bytes, whether in use or not.
    pub fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// The first frame that no table maps (`tdp_mmu_max_gfn_exclusive`).
    #[inline]
    pub const fn end_gfn(&self) -> Gfn {
        Gfn::new(self.codec.host().max_gfn().raw() + 1)
    }

    /// Makes roots valid again that were invalidated and not zapped, so that invalidation can be measured again and
    /// again.
    #[doc(hidden)]
    pub fn revive_roots(&mut self) {
        let arena = &self.arena;
        self.roots
            .revive_each(|table, role| arena.meta(table).set_role(role));
    }

    /// The role of a table.
    #[inline]
    pub(crate) fn role_of(&self, table: TableId) -> PageRole {
        self.page(table).role()
    }

    /// The first frame that a root cannot map, or tell from a lower one.
    #[inline]
    pub(super) fn end_of(&self, root: TableId) -> Gfn {
        self.end_of_level(self.page(root).role().level())
    }

    /// The same of a root of this level.
    #[inline]
    pub(super) fn end_of_level(&self, level: Level) -> Gfn {
        let frames = span(level) * ENTRIES as u64;
        self.end_gfn().min(Gfn::new(frames))
    }

    /// Lets removed tables be used again that no reader can reach any more.
    pub fn reclaim(&self) {
        for table in self.epochs.collect() {
            self.arena.recycle(table);
        }
    }

    /// The same for all of them: with the tables to oneself there is no reader.
    fn reclaim_all(&mut self) {
        if self.epochs.waiting() > 0 {
            for table in self.epochs.drain() {
                self.arena.recycle(table);
            }
        }
    }

    #[inline]
    pub(super) fn page(&self, table: TableId) -> &Page {
        self.arena.meta(table)
    }

    /// Describes a table that nobody else can reach yet.
    pub(super) fn describe(
        &self,
        table: TableId,
        role: PageRole,
        gfn: Gfn,
        parent: Option<Parent>,
    ) {
        self.page(table).describe(role, gfn, parent);
        self.forget_all(table);
    }

    #[inline]
    pub(super) fn entry(&self, table: TableId, index: usize) -> &AtomicU64 {
        &self.arena.table(table)[index]
    }

    /// An entry's value. What was stored before a link was is seen through the link.
    #[inline]
    pub(super) fn load(&self, table: TableId, index: usize) -> Spte<F> {
        Spte::from_raw(self.entry(table, index).load(Ordering::Acquire))
    }

    #[inline]
    pub(super) fn read(&self, place: Parent) -> Spte<F> {
        self.load(place.table, place.index)
    }

    /// The table that an entry links to (`tdp_iter.c:spte_to_child_pt`).
    #[inline]
    pub(super) fn child_of(&self, spte: Spte<F>, level: Level) -> Option<TableId> {
        spte.is_link(level).then(|| table_at(self.codec.pfn(spte)))
    }

    /// The link to a table. A table's number is its frame.
    pub(super) fn link_to(&self, table: TableId) -> Spte<F> {
        let ad = if self.codec.host().ad_enabled() {
            AdType::Enabled
        } else {
            AdType::Disabled
        };
        self.codec.make_link(Pfn::new(u64::from(table.raw())), ad)
    }
}

/// The number of a table from its frame.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "only numbers of tables become frames of links"
)]
pub(super) const fn table_at(frame: Pfn) -> TableId {
    TableId::new(frame.raw() as u32)
}
