//! slat's own sides.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use slat_memslot::{AsId, Generation, Gfn, GfnRange, PageSize, Pages};
use slat_mmu::host::Host;
use slat_mmu::role::{VcpuState, root_role_for_tdp};
use slat_mmu::roots::RootId;
use slat_mmu::spte::{Entry, Ept, Pfn};
use slat_mmu::table::TableId;
use slat_mmu::tdp::audit::AuditContext;
use slat_mmu::tdp::{
    ByWhat, Harvest, Limits, MapRequest, Passes, Progress, Tables, Uninterrupted, Unobserved,
    Weaken, ZapInvalidated, ZapLeafs,
};

use crate::shared_floor::Exchange;
use crate::side::{self, Counts, FastZap, Filling, Job, Kind, Protection, Seen, SharedZap};

/// The job of a kind over `pages` pages: targets 1, 2, 4 (deferred free), 6, 8, 12, 13.
pub(crate) fn job(kind: Kind, pages: u64) -> Box<dyn Job> {
    Box::new(Own::new(kind, pages))
}

/// An invalid root of `pages` pages, zapped under the lock held for reading, in these passes: target 3.
pub(crate) fn shared_zap(pages: u64, exchange: Exchange) -> Box<dyn SharedZap> {
    Box::new(OwnShared::new(pages, exchange))
}

/// Tables that map `pages` pages, whose roots are invalidated: target 4.
pub(crate) fn fast_zap(pages: u64) -> Box<dyn FastZap> {
    let mut vm = Vm::new(pages);
    vm.fill(Filling::Full);
    Box::new(OwnFast { vm, generation: 0 })
}

/// Tables with one root in use.
pub(crate) struct Vm {
    pub(crate) tables: Tables<Ept>,
    host: Host,
    pub(crate) root: RootId,
    pub(crate) table: TableId,
    pages: u64,
}

impl Vm {
    pub(crate) fn new(pages: u64) -> Self {
        let host = Host::ept(46);
        // For two roots at a time.
        let tables = u32::try_from(pages / 256 + 4096).expect("tables fit 32 bits");
        let limits = Limits { tables, readers: 4 };
        let mut tables = Tables::with_limits(&host, limits);
        let (root, table) = acquire(&mut tables, &host);
        Self {
            tables,
            host,
            root,
            table,
            pages,
        }
    }

    /// The root anew: after the one before was invalidated.
    fn acquire(&mut self) {
        (self.root, self.table) = acquire(&mut self.tables, &self.host);
    }

    fn fill(&mut self, filling: Filling) {
        if filling == Filling::Full {
            let first = MapRequest::page(Gfn::new(0), PageSize::Size4K, Pfn::new(side::pfn(0)));
            let mut locked = self.tables.exclusive(Unobserved);
            let mapped = locked.map_range(self.table, &first, Pages::new(self.pages));
            mapped.expect("there are tables enough");
            return;
        }
        for gfn in 0..self.pages {
            self.fill_one(gfn, filling);
        }
    }

    fn fill_one(&mut self, gfn: u64, filling: Filling) {
        let at = Gfn::new(gfn);
        let request = match filling.at(gfn) {
            Seen::Absent | Seen::Protected(_) => return,
            Seen::Page(pfn) => MapRequest::page(at, PageSize::Size4K, Pfn::new(pfn)),
            Seen::Mmio => MapRequest::mmio(at, Generation::new(2)),
        };
        let mut locked = self.tables.exclusive(Unobserved);
        let mapped = locked.map(self.table, &request);
        let _resolution = mapped.expect("there are tables enough").resolution;
    }

    fn range(&self) -> GfnRange {
        GfnRange::new(Gfn::new(0), Pages::new(self.pages)).expect("a range that is not empty")
    }

    fn seen(&mut self, gfn: u64) -> Seen {
        seen(&mut self.tables, self.table, gfn)
    }

    /// An empty root in place of the one in use.
    pub(crate) fn empty(&mut self) {
        self.drop_root();
        let _tables = self.tables.exclusive(Unobserved).discard_invalidated();
        self.acquire();
    }

    /// Without the root that was in use, which nobody holds any more.
    fn drop_root(&mut self) {
        let mut locked = self.tables.exclusive(Unobserved);
        locked.put_root(self.root);
        locked.invalidate_roots();
    }
}

fn acquire(tables: &mut Tables<Ept>, host: &Host) -> (RootId, TableId) {
    let tdp = host.tdp().expect("a host with EPT");
    let role = root_role_for_tdp(&VcpuState::default(), &tdp);
    let mut locked = tables.exclusive(Unobserved);
    let root = locked.acquire_root(role).expect("a table is free").root();
    let table = locked.root_table(root).expect("the root is held");
    (root, table)
}

pub(crate) fn seen(tables: &mut Tables<Ept>, root: TableId, gfn: u64) -> Seen {
    let found = tables.exclusive(Unobserved).find(root, Gfn::new(gfn));
    match tables.codec().decode(found.spte, found.level) {
        Entry::Leaf(leaf) if !leaf.writability.hardware => Seen::Protected(leaf.pfn.raw()),
        Entry::Leaf(leaf) => Seen::Page(leaf.pfn.raw()),
        Entry::Mmio(_) => Seen::Mmio,
        Entry::Absent | Entry::Frozen | Entry::Link(_) => Seen::Absent,
    }
}

/// One kind of work with the tables to itself.
struct Own {
    kind: Kind,
    vm: Vm,
    counted: Counts,
}

impl Own {
    fn new(kind: Kind, pages: u64) -> Self {
        let mut own = Self {
            kind,
            vm: Vm::new(pages),
            counted: Counts::default(),
        };
        if kind == Kind::Map {
            // Tables that were used before.
            own.vm.fill(Filling::Full);
        }
        own
    }

    fn zap(&mut self, observer: impl slat_mmu::tdp::Observer<Ept>) -> u64 {
        let mut zap = ZapLeafs::of_valid_roots(self.vm.range());
        let mut locked = self.vm.tables.exclusive(observer);
        assert_eq!(zap.run(&mut locked, &mut Uninterrupted), Progress::Done);
        zap.zapped()
    }

    fn protect(&mut self, how: Protection) {
        let mut protect = Weaken::write_protect(AsId::NORMAL, self.vm.range(), PageSize::Size4K);
        let tables = &mut self.vm.tables;
        match how {
            Protection::Exclusive => {
                let mut locked = tables.exclusive(Unobserved);
                let progress = protect.run(&mut locked, &mut Uninterrupted);
                assert_eq!(progress, Progress::Done);
            }
            Protection::Shared => {
                let mut reader = tables.reader().expect("a place is free");
                let mut locked = tables.shared(&mut reader, Unobserved);
                let progress = protect.run(&mut locked, &mut Uninterrupted);
                assert_eq!(progress, Progress::Done);
            }
            Protection::ByWord => {
                let mut locked = tables.exclusive(Unobserved);
                let mut log = locked.clear_dirty(AsId::NORMAL, ByWhat::WriteProtection);
                for first in (0..self.vm.pages).step_by(64) {
                    log.word(Gfn::new(first), u64::MAX);
                }
            }
        }
    }

    fn discard(&mut self) {
        let mut locked = self.vm.tables.exclusive(Unobserved);
        let _tables = locked.discard_invalidated();
    }
}

impl Job for Own {
    fn prepare(&mut self) {
        match self.kind {
            Kind::Zap(filling) => self.vm.fill(filling),
            Kind::Harvest | Kind::Walk | Kind::Protect(_) => self.vm.fill(Filling::Full),
            Kind::Free => {
                if self.vm.tables.roots().is_empty() {
                    self.vm.acquire();
                }
                self.vm.fill(Filling::Full);
                self.vm.drop_root();
            }
            Kind::Map => self.vm.empty(),
        }
    }

    fn run(&mut self) {
        match self.kind {
            Kind::Zap(_) => {
                let _zapped = self.zap(Unobserved);
            }
            Kind::Harvest => {
                let mut harvest = Harvest::default();
                let leaves = self.zap(&mut harvest);
                self.counted = Counts {
                    leaves,
                    accessed: harvest.accessed,
                    dirty: harvest.dirty,
                };
            }
            Kind::Free => self.discard(),
            Kind::Map => self.vm.fill(Filling::Full),
            Kind::Protect(how) => self.protect(how),
            Kind::Walk => {
                // The audit holds the count of leaves against those that it finds.
                let violations = self.vm.tables.audit(&AuditContext::default());
                assert!(violations.is_empty(), "{violations:?}");
                self.counted.leaves = self.vm.tables.totals().pages_4k;
            }
        }
    }

    fn seen(&mut self, gfn: u64) -> Seen {
        if self.vm.tables.roots().is_empty() {
            return Seen::Absent;
        }
        self.vm.seen(gfn)
    }

    fn counted(&self) -> Counts {
        self.counted
    }
}

/// A root that was invalidated, and the one in its place.
struct OwnShared {
    lock: RwLock<Tables<Ept>>,
    host: Host,
    pages: u64,
    /// The new root.
    root: RootId,
    table: TableId,
    passes: Passes,
}

impl OwnShared {
    fn new(pages: u64, exchange: Exchange) -> Self {
        let Vm {
            tables,
            host,
            root,
            table,
            ..
        } = Vm::new(pages);
        Self {
            lock: RwLock::new(tables),
            host,
            pages,
            root,
            table,
            passes: match exchange {
                // Tables go with what is in them: each entry is frozen, and that is all.
                Exchange::Once => Passes::LargestFirst,
                // Leaves go first; then their empty tables are frozen.
                Exchange::Twice => Passes::SmallestFirst,
            },
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables<Ept>> {
        self.lock.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedZap for OwnShared {
    fn prepare(&mut self) {
        let tables = self.lock.get_mut().unwrap_or_else(PoisonError::into_inner);
        // What the last round has mapped below the root in use goes first.
        let mut locked = tables.exclusive(Unobserved);
        locked.put_root(self.root);
        locked.invalidate_roots();
        let _tables = locked.discard_invalidated();
        let (root, full) = acquire(tables, &self.host);
        let first = MapRequest::page(Gfn::new(0), PageSize::Size4K, Pfn::new(side::pfn(0)));
        let mut locked = tables.exclusive(Unobserved);
        let mapped = locked.map_range(full, &first, Pages::new(self.pages));
        mapped.expect("there are tables enough");
        locked.put_root(root);
        locked.invalidate_roots();
        (self.root, self.table) = acquire(tables, &self.host);
    }

    fn zap(&self) {
        let tables = self.read();
        let mut reader = tables.reader().expect("a place is free");
        let mut locked = tables.shared(&mut reader, Unobserved);
        let mut zap = ZapInvalidated::new(self.passes);
        assert_eq!(zap.run(&mut locked, &mut Uninterrupted), Progress::Done);
    }

    fn vcpu(&self) -> Box<dyn FnMut(u64) + '_> {
        let mut reader = self.read().reader().expect("a place is free");
        let table = self.table;
        Box::new(move |gfn| {
            let tables = self.read();
            let mut locked = tables.shared(&mut reader, Unobserved);
            let page = Pfn::new(side::pfn(gfn));
            let request = MapRequest::page(Gfn::new(gfn), PageSize::Size4K, page);
            let mapped = locked.map(table, &request);
            let _resolution = mapped.expect("there are tables enough").resolution;
        })
    }

    fn seen(&self, gfn: u64) -> Seen {
        let tables = self.read();
        let mut reader = tables.reader().expect("a place is free");
        let locked = tables.shared(&mut reader, Unobserved);
        let found = locked.find(self.table, Gfn::new(gfn));
        match tables.codec().decode(found.spte, found.level) {
            Entry::Leaf(leaf) => Seen::Page(leaf.pfn.raw()),
            Entry::Mmio(_) => Seen::Mmio,
            Entry::Absent | Entry::Frozen | Entry::Link(_) => Seen::Absent,
        }
    }

    fn left(&self) -> u64 {
        let tables = self.read();
        let invalid = tables.roots().iter().filter(|(_, role)| role.is_invalid());
        // Those of the new root are another thread's.
        invalid.count() as u64
    }
}

/// All roots invalidated, and made valid again.
struct OwnFast {
    vm: Vm,
    generation: u64,
}

impl FastZap for OwnFast {
    fn invalidate(&mut self, times: u64) -> Duration {
        // What makes the roots valid again counts, too: a clock for each would cost more.
        let start = Instant::now();
        for _ in 0..times {
            self.vm.tables.exclusive(Unobserved).invalidate_roots();
            self.vm.tables.revive_roots();
        }
        self.generation += times;
        start.elapsed()
    }

    fn generation(&self) -> u64 {
        self.generation
    }
}
