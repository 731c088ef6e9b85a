//! Target 7: pages faulted in one by one, each by the whole fault path under the lock held for reading, by one thread and by
//! two.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use slat_memslot::{Gfn, Memory, PageSize, Profile, Region, Slot, SlotKey, VmType};
use slat_mmu::fault::{
    Backing, Env, Fault, FilePage, HostPage, Invalidation, Kind, MmioCache, NotTracked, Outcome,
    Settings,
};
use slat_mmu::spte::{Ept, Pfn, PfnKind};
use slat_mmu::table::{Epochs, Reader, TableId};
use slat_mmu::tdp::{Tables, Unobserved};

use crate::paired::{Bound, ROUNDS, Ratio, Side};
use crate::race::{Beside, Part, Race};
use crate::side::{Filling, GIB, Seen, pfn};
use crate::slat::{Vm, seen};
use crate::tree::{Tree, index, linked};

/// Slots that share the GiB.
const SLOTS: u16 = 16;
/// Frames of each.
const SLOT: u64 = GIB / SLOTS as u64;
/// Frames whose faults are timed together by one thread.
const SHARE: u64 = GIB / 64;
/// Rounds with two processors that are enough to tell how threads do beside each other, and how long to wait for them.
const ENOUGH_ROUNDS: usize = 61;
const PATIENCE: Duration = Duration::from_secs(20);

/// When the lock is taken for reading.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Locking {
    /// For each fault, as KVM does.
    EachFault,
    /// Once by each thread: what the threads' line of readers costs, the standard library's lock has to answer for.
    Throughout,
}

/// Faults on every page of 1 GiB from an empty root on.
trait Faults: Sync {
    /// An empty root. Not timed.
    fn prepare(&mut self);
    /// Handles one fault after the other, as one vCPU.
    fn fault(&self, vcpu: &mut Reader, gfns: Range<u64>, locking: Locking);
    /// A place for a vCPU.
    fn vcpu(&self) -> Reader;
    /// What is mapped.
    fn seen(&mut self, gfn: u64) -> Seen;
}

pub(crate) fn one_gib() {
    let (each, once) = (Locking::EachFault, Locking::Throughout);
    let label = "lock, pin, slot, walk, exchange";
    Race::new("7 fault path, 1 GiB", SHARE)
        .with_slat(by_shares("slat", each, Own::new()))
        .with(Part::Floor, by_shares(label, each, Floor::new()))
        .goal("floor", Beside::Floor, Bound::AtMost(3.0))
        .report();
    Race::new("7 fault path, lock held throughout", SHARE)
        .with_slat(by_shares("slat", once, Own::new()))
        .with(Part::Floor, by_shares("floor", once, Floor::new()))
        .report();
    // Two threads that take one lock for each fault wait for its line most of the time, the floor more than slat.
    Race::new("7 fault path, two threads", GIB)
        .with_slat(side("slat", 2, each, Own::new()))
        .with(Part::Floor, side("floor", 2, each, Floor::new()))
        .report();
    let floors = [1, 2].map(|threads| side("floor", threads, once, Floor::new()));
    let own = [1, 2].map(|threads| side("slat", threads, once, Own::new()));
    scaling("7 fault path, two threads beside one", floors, own);
}

/// Two threads beside one. A virtual machine may not have two processors all the time: only rounds count in which the floor's
/// two threads came to what is wanted of slat's. Rounds in which one thread was held up count as well, so that the figure may be
/// a little too high.
fn scaling(name: &str, mut floors: [Side; 2], mut own: [Side; 2]) {
    const WANTED: f64 = 1.8;
    let (mut of_floor, mut of_own) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while of_own.len() < ENOUGH_ROUNDS && start.elapsed() < PATIENCE {
        let seconds = [0, 1].map(|two| [floors[two].seconds(2), own[two].seconds(1)]);
        let [floor, own] = [0, 1].map(|side| seconds[0][side] / seconds[1][side]);
        of_floor.push(floor);
        if floor >= WANTED {
            of_own.push(own);
        }
    }
    let (counting, rounds) = (of_own.len(), of_floor.len());
    let floor = Ratio::of(of_floor);
    println!("floor  {name:<44} {floor}, {counting} of which with {WANTED} or more");
    match counting < *ROUNDS.start() {
        true => println!("target {name:<44} {counting} of {rounds} rounds are too few  short"),
        false => Bound::AtLeast(WANTED).report(name, &Ratio::of(of_own)),
    }
}

/// Checks the results twice, the second time with tables that were used before.
fn check(label: &str, threads: u32, locking: Locking, faults: &mut impl Faults) {
    for _ in 0..2 {
        faults.prepare();
        assert_eq!(faults.seen(0), Seen::Absent, "{label}: an empty root");
        run(faults, threads, locking);
        for gfn in 0..GIB {
            assert_eq!(faults.seen(gfn), Filling::Full.at(gfn), "{label}: {gfn:#x}");
        }
    }
}

/// A side of so many threads, that handles all faults at a time.
fn side(label: &str, threads: u32, locking: Locking, mut faults: impl Faults + 'static) -> Side {
    check(label, threads, locking, &mut faults);
    Side::timed(label, move |times| {
        let mut total = Duration::ZERO;
        for _ in 0..times {
            faults.prepare();
            total += run(&faults, threads, locking);
        }
        total
    })
}

/// A side of one thread, that handles the faults by shares, one after the other.
fn by_shares(label: &str, locking: Locking, mut faults: impl Faults + 'static) -> Side {
    check(label, 1, locking, &mut faults);
    let mut shares = (0..GIB / SHARE).map(|share| share * SHARE).cycle();
    Side::timed(label, move |times| {
        let mut total = Duration::ZERO;
        for first in shares
            .by_ref()
            .take(usize::try_from(times).unwrap_or(usize::MAX))
        {
            if first == 0 {
                faults.prepare();
            }
            let mut vcpu = faults.vcpu();
            let start = Instant::now();
            faults.fault(&mut vcpu, first..first + SHARE, locking);
            total += start.elapsed();
        }
        total
    })
}

/// All pages, each thread a part of its own.
fn run(faults: &impl Faults, threads: u32, locking: Locking) -> Duration {
    let share = GIB / u64::from(threads);
    let ready = AtomicU32::new(0);
    let work = |number: u64| {
        let mut vcpu = faults.vcpu();
        ready.fetch_add(1, Ordering::AcqRel);
        while ready.load(Ordering::Acquire) < threads {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        faults.fault(&mut vcpu, number * share..(number + 1) * share, locking);
        (start, Instant::now())
    };
    let times: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let others = (1..u64::from(threads)).map(|number| scope.spawn(move || work(number)));
        let others: Vec<_> = others.collect();
        let own = work(0);
        let others = others
            .into_iter()
            .map(|other| other.join().expect("a vCPU"));
        others.chain([own]).collect()
    });
    let start = times.iter().map(|(start, _)| *start).min();
    let end = times.iter().map(|(_, end)| *end).max();
    end.zip(start)
        .map_or(Duration::ZERO, |(end, start)| end.duration_since(start))
}

/// slat's fault path.
struct Own {
    lock: RwLock<(Vm, Invalidation)>,
    memory: Memory,
}

/// Host memory whose pages are as large as the target wants them: 4 KiB.
struct Pages;

impl Backing for Pages {
    #[inline]
    fn host_page(&mut self, _: &Slot, gfn: Gfn, _: bool) -> HostPage {
        HostPage::Page {
            pfn: Pfn::new(pfn(gfn.raw())),
            size: PageSize::Size4K,
            writable: true,
            kind: PfnKind::Memory,
        }
    }

    fn file_page(&mut self, _: &Slot, _: Gfn) -> FilePage {
        FilePage::Bad
    }
}

impl Own {
    fn new() -> Self {
        let mut memory = Memory::new(Profile::latest(), VmType::Default);
        for number in 0..SLOTS {
            let first = u64::from(number) * SLOT;
            let (start, size) = (first << 12, SLOT << 12);
            let region = Region::new(
                SlotKey::normal(number),
                start,
                size,
                0x7000_0000_0000 + start,
            );
            let _effects = memory
                .set_region(&region)
                .expect("a slot beside the others");
        }
        Self {
            lock: RwLock::new((Vm::new(GIB), Invalidation::default())),
            memory,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, (Vm, Invalidation)> {
        self.lock.read().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn fault_one(
        &self,
        (vm, invalidation): &(Vm, Invalidation),
        vcpu: &mut Reader,
        mmio: &mut MmioCache,
        gfn: u64,
    ) -> Outcome {
        let fault = Fault::new(Gfn::new(gfn), Kind::Write);
        let mut env = Env {
            memory: &self.memory,
            backing: &mut Pages,
            invalidation,
            settings: Settings::default(),
            mmio,
            shadow: NotTracked,
        };
        let tables: &Tables<Ept> = &vm.tables;
        let mut locked = tables.shared(vcpu, Unobserved);
        locked.page_fault(vm.root, &fault, &mut env).outcome
    }

    fn vm(&mut self) -> &mut Vm {
        &mut self
            .lock
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

impl Faults for Own {
    fn prepare(&mut self) {
        self.vm().empty();
    }

    fn fault(&self, vcpu: &mut Reader, gfns: Range<u64>, locking: Locking) {
        let mut mmio = MmioCache::default();
        let held = (locking == Locking::Throughout).then(|| self.read());
        for gfn in gfns {
            loop {
                let taken = held.is_none().then(|| self.read());
                let guarded = held
                    .as_ref()
                    .or(taken.as_ref())
                    .expect("one of them is there");
                if self.fault_one(guarded, vcpu, &mut mmio, gfn) != Outcome::Retry {
                    break;
                }
            }
        }
    }

    fn vcpu(&self) -> Reader {
        self.read().0.tables.reader().expect("a place is free")
    }

    fn seen(&mut self, gfn: u64) -> Seen {
        let vm = self.vm();
        seen(&mut vm.tables, vm.table, gfn)
    }
}

/// A packed slot: first frame, the frame behind the last, and the first page.
type Packed = (u64, u64, u64);

/// The least that a fault takes: lock, pin, slot, walk, compare-exchange.
struct Floor {
    tree: Tree,
    lock: RwLock<()>,
    epochs: Epochs,
    slots: Vec<Packed>,
    /// Tables below the root.
    grown: Mutex<Vec<TableId>>,
}

impl Floor {
    fn new() -> Self {
        let slots = (0..u64::from(SLOTS)).map(|number| number * SLOT);
        Self {
            tree: Tree::new(GIB),
            lock: RwLock::new(()),
            epochs: Epochs::new(4),
            slots: slots
                .map(|first| (first, first + SLOT, pfn(first)))
                .collect(),
            grown: Mutex::default(),
        }
    }

    fn page(&self, gfn: u64) -> Option<u64> {
        let number = self.slots.partition_point(|(first, _, _)| *first <= gfn);
        let (first, end, page) = *self.slots.get(number.checked_sub(1)?)?;
        (gfn < end).then_some(page + (gfn - first))
    }

    /// Whether the page was mapped.
    fn install(&self, gfn: u64, page: u64) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        let (arena, values) = (&self.tree.arena, &self.tree.values);
        let mut table = self.tree.root;
        for level in [4, 3, 2] {
            let entry = &arena.table(table)[index(gfn, level)];
            let old = entry.load(Ordering::Acquire);
            if let Some(child) = linked(old) {
                table = child;
                continue;
            }
            let child = arena.allocate().expect("tables for all pages");
            let link = values.link_to(child);
            if entry.compare_exchange(old, link, success, failure).is_err() {
                arena.recycle(child);
                return false;
            }
            let mut grown = self.grown.lock().unwrap_or_else(PoisonError::into_inner);
            grown.push(child);
            table = child;
        }
        let entry = &arena.table(table)[index(gfn, 1)];
        let leaf = values.entry(Seen::Page(page));
        let exchanged = entry.compare_exchange(values.absent, leaf, success, failure);
        exchanged.is_ok()
    }
}

impl Faults for Floor {
    fn prepare(&mut self) {
        let grown = self.grown.get_mut().unwrap_or_else(PoisonError::into_inner);
        for table in grown.drain(..) {
            self.tree.arena.recycle(table);
        }
        let root = self.tree.root;
        for entry in self.tree.arena.table_mut(root) {
            *entry.get_mut() = self.tree.values.absent;
        }
    }

    fn fault(&self, vcpu: &mut Reader, gfns: Range<u64>, locking: Locking) {
        let held = (locking == Locking::Throughout).then(|| self.lock.read());
        for gfn in gfns {
            loop {
                let _taken = held.is_none().then(|| self.lock.read());
                let _pin = vcpu.pin();
                let page = self.page(gfn).expect("all frames are in slots");
                if self.install(gfn, page) {
                    break;
                }
            }
        }
    }

    fn vcpu(&self) -> Reader {
        self.epochs.reader().expect("a place is free")
    }

    fn seen(&mut self, gfn: u64) -> Seen {
        self.tree.seen(self.tree.root, gfn)
    }
}
