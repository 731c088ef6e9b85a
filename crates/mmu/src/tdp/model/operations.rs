//! Random operations of one thread, which may be a vCPU, the one who deletes slots, or both.

use core::num::NonZeroU32;
use std::sync::Arc;

use slat_memslot::{AsId, Generation, Gfn, GfnRange, PageSize};

use super::check::{consistent, page_of};
use crate::host::Host;
use crate::role::{TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
use crate::roots::{Request, Root, RootSet, VcpuMmu};
use crate::spte::{Access, Npt, NxHugePages};
use crate::sync::{AtomicBool, Ordering, RwLock};
use crate::table::{ENTRIES, Reader, TableId};
use crate::tdp::{
    Collapse, Every, FastZap, Limits, Locked, MapRequest, NoCheck, NoExternal, Passes, Progress,
    Shared, SplitHugePages, Tables, Totals, Uninterrupted, Unobserved, Violation, ZapLeafs,
    zap_all_fast,
};

/// Memory starts at frame 0, in so many tables of level 1.
const TABLES: u64 = if cfg!(shuttle) { 2 } else { 8 };
const MEMORY: u64 = TABLES * ENTRIES as u64;
/// Here no slot is.
const MMIO: u64 = 2 * MEMORY;

/// What all threads share.
pub(super) struct World {
    lock: RwLock<Tables<Npt>>,
    /// By thread: its vCPU has to drop obsolete roots.
    obsolete: Vec<AtomicBool>,
}

impl World {
    pub(super) fn new(threads: usize) -> Arc<Self> {
        let limits = Limits {
            tables: 1 << 14,
            readers: threads,
        };
        Arc::new(Self {
            lock: RwLock::new(Tables::with_limits(&Host::npt(48), limits)),
            obsolete: (0..threads).map(|_| AtomicBool::new(false)).collect(),
        })
    }

    /// When all threads have left: everything is consistent, and gone when the last root is.
    pub(super) fn finish(self: Arc<Self>) -> Totals {
        let world = Arc::into_inner(self).unwrap();
        let mut tables = world.lock.into_inner().unwrap();
        let totals = consistent(&mut tables);
        // On tables of fewer entries no huge page starts where it should.
        #[cfg(not(any(loom, shuttle)))]
        assert_eq!(
            tables.audit(&crate::tdp::audit::AuditContext::default()),
            []
        );
        let (mut observer, mut requests) = (Unobserved, 0);
        let mut reader = tables.reader().unwrap();
        let lock = RwLock::new(tables);
        let policy = (FastZap::BeforeReturn, Passes::SmallestFirst);
        let hooks = (&mut observer, &mut Uninterrupted);
        zap_all_fast(&lock, &mut reader, hooks, policy, || requests += 1);
        let mut tables = lock.into_inner().unwrap();
        assert_eq!(consistent(&mut tables), Totals::default());
        assert_eq!((tables.arena.in_use(), requests), (0, 1));
        totals
    }
}

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It runs a guest, and logs dirty pages.
    Vcpu,
    /// It zaps, too.
    Everything,
}

type Entered<'t> = Locked<Shared<'t, Npt, NoExternal, NoCheck>, Unobserved>;

/// A thread.
pub(super) struct Worker {
    world: Arc<World>,
    number: usize,
    reader: Reader,
    vcpu: VcpuMmu,
    random: u64,
}

impl Worker {
    pub(super) fn new(world: &Arc<World>, number: usize, seed: u64) -> Self {
        let role = root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::Npt4));
        let reader = world.lock.read().unwrap().reader().unwrap();
        Self {
            world: Arc::clone(world),
            number,
            reader,
            vcpu: VcpuMmu::new(role),
            random: seed | 1,
        }
    }

    /// Marsaglia's xorshift.
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % end
    }

    /// Does one thing.
    pub(super) fn step(&mut self, part: Part) {
        let gfn = Gfn::new(self.below(MEMORY));
        let kinds = match part {
            Part::Vcpu => 12,
            Part::Everything => 16,
        };
        match self.below(kinds) {
            0..4 => self.fault(MapRequest::page(gfn, PageSize::Size4K, page_of(gfn.raw()))),
            4 | 5 => {
                let first = gfn.raw() - gfn.raw() % ENTRIES as u64;
                self.fault(MapRequest::page(gfn, PageSize::Size2M, page_of(first)));
            }
            6 => {
                let gfn = Gfn::new(MMIO + gfn.raw() % 4);
                self.fault(MapRequest::mmio(gfn, Generation::new(4)));
            }
            7 => self.walk(gfn),
            8 => self.split(),
            9 => self.collapse(gfn, Collapse::Zap),
            10 => self.collapse(gfn, Collapse::Recover(NxHugePages::Off)),
            11 => self.drop_roots(),
            12 | 13 => self.zap_leafs(gfn),
            14 => self.world.lock.read().unwrap().reclaim(),
            _ => self.zap_all(),
        }
    }

    /// With the lock held for reading and a valid root loaded, as a fault has it.
    fn with_root(&mut self, act: impl FnOnce(&mut Entered<'_>, TableId)) {
        if self.world.obsolete[self.number].swap(false, Ordering::AcqRel) {
            self.vcpu.request(Request::FreeObsoleteRoots);
        }
        let tables = self.world.lock.read().unwrap();
        let mut locked = tables.shared(&mut self.reader, Unobserved);
        while let Some((_, dropped)) = self.vcpu.serve(tables.roots()) {
            locked.free_roots(dropped);
        }
        let _ = locked.load(&mut self.vcpu).unwrap();
        let Root::Page(root) = self.vcpu.cache().current() else {
            panic!("a root was loaded");
        };
        if tables.roots().role(root).unwrap().is_invalid() {
            // It was invalidated after the request was looked at (`mmu.c:is_page_fault_stale`).
            return;
        }
        let table = locked.root_table(root).unwrap();
        act(&mut locked, table);
    }

    fn fault(&mut self, request: MapRequest<Npt>) {
        self.with_root(|locked, root| {
            let _ = locked.map(root, &request).unwrap();
        });
    }

    fn walk(&mut self, gfn: Gfn) {
        self.with_root(
            |locked, root| match locked.translate(root, gfn, Access::WRITE) {
                Ok(found) => assert_eq!(found.pfn, page_of(gfn.raw())),
                Err(Violation::Absent { .. } | Violation::Frozen { .. }) => {}
                Err(violation) => panic!("{violation:?}"),
            },
        );
    }

    fn collapse(&mut self, gfn: Gfn, how: Collapse) {
        self.with_root(|locked, root| {
            let _ = locked.collapse(root, gfn, PageSize::Size2M, how);
        });
    }

    fn drop_roots(&mut self) {
        let tables = self.world.lock.read().unwrap();
        let mut locked = tables.shared(&mut self.reader, Unobserved);
        let dropped = self.vcpu.free(tables.roots(), RootSet::all());
        locked.free_roots(dropped);
    }

    fn budget(&mut self) -> Every {
        let entries = u32::try_from(1 + self.below(2 * ENTRIES as u64)).unwrap();
        Every::new(NonZeroU32::new(entries).unwrap())
    }

    fn range(gfn: Gfn) -> GfnRange {
        let end = MEMORY.min(gfn.raw() + ENTRIES as u64);
        GfnRange::between(gfn, Gfn::new(end)).unwrap()
    }

    /// Gives way again and again.
    fn split(&mut self) {
        let mut budget = self.budget();
        let range = Self::range(Gfn::new(0));
        let mut split =
            SplitHugePages::new(AsId::NORMAL, range, PageSize::Size4K, NxHugePages::Off);
        loop {
            let tables = self.world.lock.read().unwrap();
            let mut locked = tables.shared(&mut self.reader, Unobserved);
            if split.run(&mut locked, &mut budget) == Ok(Progress::Done) {
                return;
            }
        }
    }

    fn zap_leafs(&mut self, gfn: Gfn) {
        let range = Self::range(gfn);
        let mut zap = if self.below(2) == 0 {
            ZapLeafs::of_valid_roots(range)
        } else {
            ZapLeafs::of_address_space(AsId::NORMAL, range)
        };
        let mut budget = self.budget();
        let interrupted = self.below(2) == 0;
        loop {
            let mut tables = self.world.lock.write().unwrap();
            let mut locked = tables.exclusive(Unobserved);
            let progress = if interrupted {
                zap.run(&mut locked, &mut budget)
            } else {
                zap.run(&mut locked, &mut Uninterrupted)
            };
            if progress == Progress::Done {
                return;
            }
        }
    }

    fn zap_all(&mut self) {
        let mut budget = self.budget();
        let passes = match self.below(2) {
            0 => Passes::SmallestFirst,
            _ => Passes::LargestFirst,
        };
        let mut observer = Unobserved;
        zap_all_fast(
            &self.world.lock,
            &mut self.reader,
            (&mut observer, &mut budget),
            (FastZap::BeforeReturn, passes),
            || {
                for each in &self.world.obsolete {
                    each.store(true, Ordering::Release);
                }
            },
        );
    }

    /// Lets go of everything.
    pub(super) fn leave(mut self) {
        self.drop_roots();
    }
}
