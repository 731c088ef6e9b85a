//! The caches answer as walks do, as long as they are flushed as the MMU asks; a dropped flush is found.
#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod structures;

use std::cell::Cell;

use proptest::prelude::*;
use slat_memslot::{AsId, Gfn, GfnRange, Gva, Hpa, Level, PageSize};

use super::{AddressSpaceId, Context, Contradiction, Flush, Pcid, Stale, Tlb, TlbAccess};
use crate::host::Host;
use crate::role::{Cr0, Cr4, Efer, PageRole, VcpuState, root_role_for_tdp};
use crate::roots::Request;
use crate::spte::{Ept, NxHugePages, Pfn};
use crate::table::{Reader, TableId};
use crate::tdp::{
    Collapse, Collapsed, Event, FlushScope, Limits, MapRequest, Tables, Uninterrupted, Unobserved,
    Weaken, ZapLeafs,
};
use crate::walk::second::TdpStage;
use crate::walk::{ErrorCode, GuestCpu, GuestPaging};

/// Frames 0 to 3 hold the guest's tables, 8 to 39 its pages.
const PAGES: u64 = 32;
const FIRST: u64 = 8;
/// How much further they are on the host: one huge page may map all of them.
const DISTANCE: u64 = 512;

struct World {
    tables: Tables<Ept>,
    reader: Reader,
    root: TableId,
    role: PageRole,
    memory: Vec<Cell<u64>>,
    tlb: Tlb,
    paging: GuestPaging,
}

impl World {
    fn new() -> Self {
        let host = Host::ept(46);
        let limits = Limits {
            tables: 64,
            readers: 1,
        };
        let tables = Tables::with_limits(&host, limits);
        let mut reader = tables.reader().unwrap();
        let mut locked = tables.shared(&mut reader, Unobserved);
        let role = root_role_for_tdp(&VcpuState::default(), &host.tdp().unwrap());
        let root = locked.acquire_root(role).unwrap().root();
        let root = locked.root_table(root).unwrap();
        drop(locked);
        let vcpu = VcpuState {
            cr0: Cr0::PG | Cr0::PE | Cr0::WP,
            cr4: Cr4::PAE | Cr4::PGE,
            efer: Efer::LME | Efer::LMA | Efer::NX,
            ..VcpuState::default()
        };
        let mut world = Self {
            tables,
            reader,
            root,
            role,
            memory: vec![Cell::new(0); usize::try_from(DISTANCE + 64).unwrap() * 512],
            tlb: Tlb::default(),
            paging: GuestPaging::new(&vcpu, &GuestCpu::new(46)),
        };
        for table in 0..3 {
            world.word(table << 12).set((table + 1) << 12 | 7);
        }
        for page in 0..PAGES {
            let global = u64::from(page % 4 == 3) << 8;
            world
                .word(3 << 12 | page << 3)
                .set((FIRST + page) << 12 | 7 | global);
        }
        for gfn in 0..FIRST + PAGES {
            world.map(gfn, DISTANCE);
        }
        world
    }

    fn word(&self, gpa: u64) -> &Cell<u64> {
        &self.memory[usize::try_from((gpa + (DISTANCE << 12)) >> 3).unwrap()]
    }

    /// Maps a frame to the one that is `distance` further.
    fn map(&mut self, gfn: u64, distance: u64) {
        let request = MapRequest::page(Gfn::new(gfn), PageSize::Size4K, Pfn::new(gfn + distance));
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        let _mapped = locked.map(self.root, &request).unwrap();
    }

    /// Maps all frames by one huge page; gives the flush of the table that was there.
    fn map_huge(&mut self) -> Option<Flush> {
        let request = MapRequest::page(Gfn::new(0), PageSize::Size2M, Pfn::new(DISTANCE));
        let mut events: Vec<Event<Ept>> = Vec::new();
        let mut locked = self.tables.shared(&mut self.reader, &mut events);
        let _mapped = locked.map(self.root, &request).unwrap();
        drop(locked);
        flush_among(&events)
    }

    fn is_huge(&mut self) -> bool {
        let locked = self.tables.shared(&mut self.reader, Unobserved);
        let found = locked.find(self.root, Gfn::new(0));
        found.level == Level::L2 && found.spte.is_leaf(found.level)
    }

    /// Replaces the table by a huge page, or zaps it; gives the flush that is due if there was one.
    fn collapse(&mut self, how: Collapse) -> Option<Flush> {
        let mut events: Vec<Event<Ept>> = Vec::new();
        let mut locked = self.tables.shared(&mut self.reader, &mut events);
        let done = locked.collapse(self.root, Gfn::new(0), PageSize::Size2M, how);
        drop(locked);
        let own = FlushScope::Frames(range(0, 512));
        let due = done == Collapsed::Done && matches!(how, Collapse::Recover(_));
        due.then_some(Flush::of_scope(own))
            .or_else(|| flush_among(&events))
    }

    fn is_writable(&mut self, gfn: u64) -> bool {
        let locked = self.tables.shared(&mut self.reader, Unobserved);
        let access = crate::access::Access::WRITE;
        locked.translate(self.root, Gfn::new(gfn), access).is_ok()
    }

    fn context(&self, pcid: u64) -> Context {
        Context {
            root: self.root,
            role: self.role,
            space: AddressSpaceId(1),
            pcid: Pcid::of_cr3(pcid),
        }
    }

    fn access(&mut self, pcid: u64, page: u64, access: ErrorCode) -> Result<TlbAccess, String> {
        let context = self.context(pcid);
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        let what = (Gva::new(page << 12 | 0x18), access);
        let memory = self.memory.as_slice();
        let found = self
            .tlb
            .access(&context, &self.paging, memory, &mut locked, what);
        found.map_err(|fault| fault.to_string())
    }

    /// The same without caches.
    fn walk(&mut self, page: u64, access: ErrorCode) -> Result<Hpa, String> {
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        let mut stage = TdpStage::new(&mut locked, self.root);
        let address = Gva::new(page << 12 | 0x18);
        let found = self
            .paging
            .walk(self.memory.as_slice(), &mut stage, &mut (), address, access);
        found
            .map(|found| found.address)
            .map_err(|fault| fault.to_string())
    }

    fn audit(&mut self) -> Vec<Stale> {
        let locked = self.tables.shared(&mut self.reader, Unobserved);
        self.tlb.audit(&locked, &[self.root])
    }

    /// Zaps frames; gives the flush that is due.
    fn zap(&mut self, range: GfnRange) -> Option<Flush> {
        let mut zap = ZapLeafs::of_valid_roots(range);
        let mut locked = self.tables.exclusive(Unobserved);
        let _progress = zap.run(&mut locked, &mut Uninterrupted);
        let scope = FlushScope::Frames(range);
        zap.needs_flush().then_some(Flush::of_scope(scope))
    }

    fn weaken(&mut self, mut weaken: Weaken, range: GfnRange) -> Option<Flush> {
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        let _progress = weaken.run(&mut locked, &mut Uninterrupted);
        let scope = FlushScope::Frames(range);
        weaken.has_changed().then_some(Flush::of_scope(scope))
    }
}

/// The flush that the MMU has told on the way.
fn flush_among(events: &[Event<Ept>]) -> Option<Flush> {
    let mut flushes = events.iter().filter_map(|event| match event {
        Event::Flushed { scope, .. } => Some(Flush::of_scope(*scope)),
        _ => None,
    });
    let first = flushes.next();
    assert_eq!(flushes.next(), None, "one flush at a time");
    first
}

fn range(first: u64, end: u64) -> GfnRange {
    GfnRange::between(Gfn::new(first), Gfn::new(end)).unwrap()
}

const READ: ErrorCode = ErrorCode::READ;
const WRITE: ErrorCode = ErrorCode::WRITE;

#[test]
fn the_second_access_is_a_hit_and_a_write_walks_once_more() {
    let mut world = World::new();
    let hpa = Hpa::new((DISTANCE + FIRST + 5) << 12 | 0x18);
    assert_eq!(world.access(1, 5, READ), Ok(TlbAccess::Walked(hpa)));
    assert_eq!(world.access(1, 5, READ), Ok(TlbAccess::Hit(hpa)));
    // The leaves are not marked as dirty yet.
    assert_eq!(world.access(1, 5, WRITE), Ok(TlbAccess::Walked(hpa)));
    assert_eq!(world.access(1, 5, WRITE), Ok(TlbAccess::Hit(hpa)));
    // Another identifier has nothing; a global page belongs to all.
    assert_eq!(world.access(2, 5, READ), Ok(TlbAccess::Walked(hpa)));
    let global = Hpa::new((DISTANCE + FIRST + 7) << 12 | 0x18);
    assert_eq!(world.access(1, 7, READ), Ok(TlbAccess::Walked(global)));
    assert_eq!(world.access(2, 7, READ), Ok(TlbAccess::Hit(global)));
    // With another role nothing is found, whatever the root.
    let mut other = world.context(1);
    other.role = other.role.with_level(Level::L5);
    assert!(world.tlb.pages.find(&other, Gva::new(5 << 12)).is_none());
    assert_eq!(world.audit(), []);
}

#[test]
fn flushes_take_what_they_are_for() {
    let (space, pcid) = (AddressSpaceId(1), Pcid::of_cr3(1));
    let address = Gva::new(5 << 12);
    let mut filled = World::new();
    for (pcid, page) in [(1, 5), (1, 7), (1, 9), (2, 5)] {
        filled.access(pcid, page, READ).unwrap();
    }
    let context = filled.context(1);
    for (flush, left) in [
        (Flush::All, vec![]),
        (Flush::Root(filled.root), vec![]),
        (Flush::Root(TableId::new(9)), vec![(1, 7), (1, 9), (2, 5)]),
        (Flush::Guest(space), vec![]),
        (
            Flush::Guest(AddressSpaceId(2)),
            vec![(1, 7), (1, 9), (2, 5)],
        ),
        (Flush::Frames(range(FIRST + 5, FIRST + 8)), vec![(1, 9)]),
        (
            Flush::Address {
                space,
                pcid,
                address,
            },
            vec![(1, 7), (1, 9), (2, 5)],
        ),
        (
            Flush::Address {
                space,
                pcid: Pcid::of_cr3(2),
                address,
            },
            vec![(1, 7), (1, 9)],
        ),
        (Flush::Context { space, pcid }, vec![(1, 7), (2, 5)]),
    ] {
        // Page 5 has one place, and the last who used it is identifier 2.
        let mut tlb = filled.tlb.clone();
        tlb.flush(flush);
        let mut pages: Vec<_> = tlb
            .pages()
            .map(|page| (page.context.pcid.raw(), page.address.raw() >> 12))
            .collect();
        pages.sort_unstable();
        assert_eq!(pages, left, "{flush:?}");
    }
    for (request, flush) in [
        (Request::TlbFlush, Some(Flush::All)),
        (Request::TlbFlushCurrent, Some(Flush::Root(filled.root))),
        (Request::LoadMmuPgd, Some(Flush::Root(filled.root))),
        (Request::TlbFlushGuest, Some(Flush::Guest(space))),
        (Request::MmuSync, None),
    ] {
        assert_eq!(Flush::of_request(request, &context), flush);
    }
}

#[test]
fn each_contradiction_is_found_and_gone_after_the_flush() {
    type Change = fn(&mut World) -> Option<Flush>;
    let zapped: Change = |world| world.zap(range(FIRST + 5, FIRST + 6));
    let moved: Change = |world| {
        let flush = world.zap(range(FIRST + 5, FIRST + 6));
        world.map(FIRST + 5, DISTANCE + 6);
        flush
    };
    let protected: Change = |world| {
        let range = range(FIRST, FIRST + PAGES);
        let weaken = Weaken::write_protect(AsId::NORMAL, range, PageSize::Size4K);
        world.weaken(weaken, range)
    };
    let cleaned: Change = |world| {
        let range = range(FIRST, FIRST + PAGES);
        world.weaken(Weaken::clear_dirty(AsId::NORMAL, range), range)
    };
    let lost = crate::access::Access::WRITE;
    for (change, expected, words) in [
        (
            zapped,
            Contradiction::Gone,
            "kept, and the tables map nothing",
        ),
        (
            moved,
            Contradiction::Moved,
            "kept, and the tables map another page",
        ),
        (
            protected,
            Contradiction::Weakened { lost },
            "kept with w--, which the tables do not allow",
        ),
        (
            cleaned,
            Contradiction::Clean,
            "kept as dirty, and the leaf is clean",
        ),
    ] {
        let mut world = World::new();
        world.access(1, 5, WRITE).unwrap();
        assert_eq!(world.audit(), []);
        let flush = change(&mut world).expect("a flush is due");
        let stale = world.audit();
        let found: Vec<_> = stale.iter().map(|stale| stale.contradiction).collect();
        assert_eq!(found, [expected], "{stale:?}");
        let (address, gpa) = (stale[0].address.unwrap(), stale[0].gpa);
        assert_eq!(stale[0].to_string(), format!("{address}, {gpa}: {words}"));
        // A root that is not in use cannot be reached.
        let locked = world.tables.shared(&mut world.reader, Unobserved);
        assert_eq!(world.tlb.audit(&locked, &[]), []);
        drop(locked);
        world.tlb.flush(flush);
        assert_eq!(world.audit(), []);
    }
}

/// Linux 6.12 makes a leaf anew that was writable already, and the new one is clean. No flush follows, so that a CPU which
/// keeps it as dirty writes on without a mark. It needs a fault that the tables did not call for.
#[test]
fn a_leaf_made_anew_is_clean_and_nobody_is_told() {
    let mut world = World::new();
    world.access(1, 5, WRITE).unwrap();
    world.map(FIRST + 5, DISTANCE);
    let stale = world.audit();
    assert!(
        stale
            .iter()
            .all(|stale| stale.contradiction == Contradiction::Clean)
    );
    assert_eq!(stale.len(), 1);
}

/// What happens in a random run.
#[derive(Clone, Copy, Debug)]
enum Op {
    Access {
        pcid: u64,
        page: u64,
        write: bool,
    },
    Map {
        gfn: u64,
        distance: u64,
    },
    Zap {
        first: u64,
        count: u64,
    },
    Protect {
        first: u64,
        count: u64,
    },
    Clean {
        first: u64,
        count: u64,
    },
    /// The guest links a page elsewhere and flushes it.
    Remap {
        page: u64,
        to: u64,
    },
    SwitchContext {
        pcid: u64,
    },
    /// A fault of a frame puts a huge page there.
    Huge {
        gfn: u64,
    },
    Collapse {
        how: Collapse,
    },
}

const COLLAPSES: [Collapse; 2] = [Collapse::Zap, Collapse::Recover(NxHugePages::Off)];

fn any_op() -> impl Strategy<Value = Op> {
    let frames = || (0..FIRST + PAGES, 1..12_u64);
    prop_oneof![
        12 => (1..3_u64, 0..PAGES, any::<bool>()).prop_map(|(pcid, page, write)| Op::Access { pcid, page, write }),
        3 => (0..FIRST + PAGES).prop_map(|gfn| Op::Map { gfn, distance: DISTANCE }),
        2 => frames().prop_map(|(first, count)| Op::Zap { first, count }),
        1 => frames().prop_map(|(first, count)| Op::Protect { first, count }),
        1 => frames().prop_map(|(first, count)| Op::Clean { first, count }),
        1 => (0..PAGES, 0..PAGES).prop_map(|(page, to)| Op::Remap { page, to }),
        1 => (1..3_u64).prop_map(|pcid| Op::SwitchContext { pcid }),
        1 => (0..FIRST + PAGES).prop_map(|gfn| Op::Huge { gfn }),
        1 => prop::sample::select(COLLAPSES.to_vec()).prop_map(|how| Op::Collapse { how }),
    ]
}

impl World {
    /// Does it, and gives the flush that the MMU asks for.
    fn play(&mut self, op: Op) -> Option<Flush> {
        // What is done to a part of a huge page is done to all of it; KVM's callers keep to whole ones.
        let huge = self.is_huge();
        let frames = |first: u64, count: u64| match huge {
            true => range(0, 512),
            false => range(first, first + count),
        };
        match op {
            Op::Access { .. } => None,
            Op::Map { gfn, distance } => {
                // A fault only comes where the tables do not allow a write.
                if !self.is_writable(gfn) {
                    self.map(gfn, distance);
                }
                None
            }
            Op::Zap { first, count } => self.zap(frames(first, count)),
            Op::Protect { first, count } => {
                let range = frames(first, count);
                self.weaken(
                    Weaken::write_protect(AsId::NORMAL, range, PageSize::Size4K),
                    range,
                )
            }
            Op::Clean { first, count } => {
                let range = frames(first, count);
                self.weaken(Weaken::clear_dirty(AsId::NORMAL, range), range)
            }
            Op::Remap { page, to } => {
                let leaf = self.word(3 << 12 | page << 3);
                leaf.set(leaf.get() & 0xfff | (FIRST + to) << 12);
                for pcid in [1, 2].map(Pcid::of_cr3) {
                    let (space, address) = (AddressSpaceId(1), Gva::new(page << 12));
                    self.tlb.flush(Flush::Address {
                        space,
                        pcid,
                        address,
                    });
                }
                None
            }
            Op::Huge { gfn } => match self.is_writable(gfn) {
                true => None,
                false => self.map_huge(),
            },
            Op::Collapse { how } => self.collapse(how),
            Op::SwitchContext { pcid } => {
                let (space, pcid) = (AddressSpaceId(1), Pcid::of_cr3(pcid));
                self.tlb.flush(Flush::Context { space, pcid });
                None
            }
        }
    }
}

/// Whether an access through the caches came to what a walk comes to. A hit needs no table of the guest, so that it is right
/// even where the second stage would not let the walk read one.
fn agree(found: &Result<TlbAccess, String>, walked: &Result<Hpa, String>) -> bool {
    match (found, walked) {
        (Ok(TlbAccess::Hit(_)), Err(fault)) if fault.contains("a table of level") => true,
        (Ok(found), walked) => Ok(found.hpa()) == *walked,
        (Err(found), walked) => Err(found) == walked.as_ref(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn with_every_flush_the_caches_answer_as_walks_do(ops in prop::collection::vec(any_op(), 60)) {
        let mut world = World::new();
        for op in ops {
            let flush = world.play(op);
            if let Some(flush) = flush {
                world.tlb.flush(flush);
            }
            prop_assert_eq!(world.audit(), [], "{:?}", op);
            if let Op::Access { pcid, page, write } = op {
                let access = if write { WRITE } else { READ };
                let found = world.access(pcid, page, access);
                let walked = world.walk(page, access);
                prop_assert!(agree(&found, &walked), "{:?}: {:?}, {:?}", op, found, walked);
            }
        }
    }

    #[test]
    fn a_wrong_answer_never_comes_without_a_finding(
        ops in prop::collection::vec(any_op(), 60),
        dropped in 0..4_u32,
    ) {
        let mut world = World::new();
        let mut flushes = 0;
        for op in ops {
            if let Some(flush) = world.play(op) {
                flushes += 1;
                if flushes % 4 != dropped {
                    world.tlb.flush(flush);
                }
            }
            let findings = world.audit();
            if let Op::Access { pcid, page, write } = op {
                let access = if write { WRITE } else { READ };
                let found = world.access(pcid, page, access);
                let walked = world.walk(page, access);
                if !agree(&found, &walked) {
                    prop_assert!(!findings.is_empty(), "{:?}: {:?}, {:?}", op, found, walked);
                }
            }
        }
    }
}
