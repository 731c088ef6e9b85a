//! Targets 9, 10 and 11: walks of a guest's tables in one and two dimensions, beside loops that only load.
//!
//! Every access depends on the one before it, but for target 11: the page that an access comes to chooses the next address.
//! All entries are marked already, and all is warm but for target 11, whose tables are larger than the caches.

use std::hint::black_box;
use std::time::{Duration, Instant};

use slat::memslot::{Gfn, Gva, PageSize};
use slat::mmu::host::Host;
use slat::mmu::role::{Cr0, Cr4, Efer, VcpuState, root_role_for_tdp};
use slat::mmu::spte::{Ept, Pfn};
use slat::mmu::table::{Reader, TableId};
use slat::mmu::tdp::{Limits, MapRequest, Tables, Unobserved};
use slat::mmu::walk::second::TdpStage;
use slat::mmu::walk::tlb::{AddressSpaceId, Context, Pcid, Tlb};
use slat::mmu::walk::{ErrorCode, GuestCpu, GuestPaging, VmMemory};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress, VolatileMemory,
};

use crate::paired::{Bound, Side, Target};

/// Pages that the small guest maps: 64 MiB.
const PAGES: u64 = 1 << 14;
/// Addresses that are used in turn.
const HOT: usize = 1024;
/// Pages of the large, sparse guest, and the frames that they are spread over: 16 GiB.
const SPARSE: usize = 1 << 16;
const SPREAD: u64 = 1 << 22;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Present, writable, user, accessed, dirty.
const FLAGS: u64 = 0x67;

fn random(seed: u64) -> u64 {
    let mixed = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Tables of a format that all sides read alike, in words from address 0 on: the first table is the root.
#[derive(Clone)]
struct Flat {
    words: Vec<u64>,
    /// The level of each table, from 0.
    levels: Vec<u32>,
    flags: u64,
}

impl Flat {
    fn new(flags: u64) -> Self {
        Self {
            words: vec![0; 512],
            levels: vec![3],
            flags,
        }
    }

    /// Maps a page, with tables at the end where they are missing.
    fn map(&mut self, page: u64, to: u64) {
        let mut table = 0;
        for level in (1..4).rev() {
            let place = table * 512 + index(page, level);
            if self.words[place] == 0 {
                let new = self.words.len() / 512;
                self.words[place] = (new as u64) << 12 | self.flags;
                self.words.resize(self.words.len() + 512, 0);
                self.levels.push(level - 1);
            }
            table = usize::try_from((self.words[place] & ADDRESS) >> 12).expect("small");
        }
        self.words[table * 512 + index(page, 0)] = to << 12 | self.flags;
    }

    fn tables(&self) -> u64 {
        self.words.len() as u64 / 512
    }
}

fn index(page: u64, level: u32) -> usize {
    usize::try_from(page >> (9 * level) & 511).expect("small")
}

/// Four loads, and nothing else.
#[inline]
fn load(words: &[u64], root: u64, address: u64) -> u64 {
    let mut table = root;
    for shift in [39, 30, 21, 12] {
        let place = ((table & ADDRESS) >> 3) + (address >> shift & 511);
        table = words[usize::try_from(place).unwrap_or(usize::MAX)];
    }
    table & ADDRESS | address & 0xfff
}

fn guest() -> GuestPaging {
    let vcpu = VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr4: Cr4::PAE | Cr4::SMEP,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        ..VcpuState::default()
    };
    GuestPaging::new(&vcpu, &GuestCpu::new(46))
}

/// The small guest: its pages in an order of their own, behind its tables.
fn small() -> Flat {
    let mut flat = Flat::new(FLAGS);
    for page in 0..PAGES {
        flat.map(page, PAGES + (page * 4797 + 11) % PAGES);
    }
    flat
}

fn hot() -> Vec<u64> {
    (0..HOT as u64)
        .map(|i| (random(i) % PAGES) << 12 | 0x18)
        .collect()
}

/// A chain of accesses: each goes to the address that the one before it chooses.
fn chain(label: &str, mut access: impl FnMut(u64) -> u64 + 'static) -> Side {
    let hot = hot();
    Side::timed(label, move |times| {
        let start = Instant::now();
        let mut last = 0;
        for turn in 0..times {
            let next = (last >> 12) ^ turn;
            last = access(hot[usize::try_from(next).unwrap_or(0) % HOT]);
        }
        black_box(last);
        start.elapsed()
    })
}

/// Target 9.
pub(crate) fn one_dimension() {
    let paging = guest();
    let flat = small();
    let words = flat.words.clone();
    let floor = flat.words.clone();
    Target {
        name: "9 walk, flat buffer",
        measured: chain("slat", move |address| {
            paging
                .translate(words.as_slice(), Gva::new(address), ErrorCode::READ)
                .map_or(0, |found| found.address.raw())
        }),
        beside: chain("four loads", move |address| load(&floor, 0, address)),
        bound: Bound::AtMost(1.5),
    }
    .report();

    let mmap = || {
        let bytes: Vec<u8> = flat
            .words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let ranges = [
            (GuestAddress(0), bytes.len()),
            (GuestAddress(1 << 32), 1 << 20),
        ];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("memory");
        memory.write_slice(&bytes, GuestAddress(0)).expect("inside");
        memory
    };
    let (memory, beside) = (mmap(), mmap());
    Target {
        name: "9 walk, GuestMemoryMmap",
        measured: chain("slat", move |address| {
            paging
                .translate(&VmMemory(&memory), Gva::new(address), ErrorCode::READ)
                .map_or(0, |found| found.address.raw())
        }),
        beside: chain("four region lookups and loads", move |address| {
            let mut table = 0;
            for shift in [39, 30, 21, 12] {
                let at = GuestAddress((table & ADDRESS) + ((address >> shift & 511) << 3));
                table = region_load(&beside, at).unwrap_or(0);
            }
            table & ADDRESS | address & 0xfff
        }),
        bound: Bound::AtMost(1.5),
    }
    .report();
}

#[inline]
fn region_load(memory: &GuestMemoryMmap<()>, at: GuestAddress) -> Option<u64> {
    use std::sync::atomic::{AtomicU64, Ordering};
    let region = memory.find_region(at)?;
    let offset = MemoryRegionAddress(at.0 - region.start_addr().0);
    let slice = region.get_slice(offset, 8).ok()?;
    Some(
        slice
            .get_atomic_ref::<AtomicU64>(0)
            .ok()?
            .load(Ordering::Acquire),
    )
}

/// A guest behind the tables of the TDP MMU, and the same second stage as a plain one.
struct TwoDimensions {
    tables: Tables<Ept>,
    reader: Reader,
    root: TableId,
    context: Context,
    /// The guest's tables, where the second stage puts them.
    memory: Vec<u64>,
    /// A copy of it, and of the second stage behind it.
    plain: Vec<u64>,
    plain_root: u64,
    paging: GuestPaging,
}

impl TwoDimensions {
    /// The second stage maps the guest's tables as they are, and its pages elsewhere.
    fn new(guest_tables: &Flat, pages: impl Iterator<Item = u64>) -> Self {
        let host = Host::ept(46);
        let limits = Limits {
            tables: 1 << 16,
            readers: 1,
        };
        let tables = Tables::with_limits(&host, limits);
        let mut reader = tables.reader().expect("the first");
        let mut locked = tables.shared(&mut reader, Unobserved);
        let role = root_role_for_tdp(&VcpuState::default(), &host.tdp().expect("EPT"));
        let root = locked.acquire_root(role).expect("room").root();
        let root = locked.root_table(root).expect("just made");
        let mut second = Flat::new(0x337);
        let own = (0..guest_tables.tables()).map(|gfn| (gfn, gfn));
        for (gfn, pfn) in own.chain(pages.map(|gfn| (gfn, gfn + 7))) {
            let request = MapRequest::page(Gfn::new(gfn), PageSize::Size4K, Pfn::new(pfn));
            let _mapped = locked.map(root, &request).expect("room");
            second.map(gfn, pfn);
        }
        drop(locked);
        // The plain second stage lies behind the guest's tables in one buffer.
        let base = guest_tables.words.len() as u64 / 512;
        let mut plain = guest_tables.words.clone();
        let links = second
            .words
            .iter()
            .enumerate()
            .map(|(place, entry)| match *entry {
                0 => 0,
                entry if second.levels[place / 512] == 0 => entry,
                entry => entry + (base << 12),
            });
        plain.extend(links);
        Self {
            tables,
            reader,
            root,
            context: Context {
                root,
                role,
                space: AddressSpaceId(1),
                pcid: Pcid::default(),
            },
            memory: guest_tables.words.clone(),
            plain,
            plain_root: base << 12,
            paging: guest(),
        }
    }

    fn walk(&mut self, address: u64) -> u64 {
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        let mut stage = TdpStage::new(&mut locked, self.root);
        let found = self.paging.walk(
            self.memory.as_slice(),
            &mut stage,
            &mut (),
            Gva::new(address),
            ErrorCode::READ,
        );
        found.map_or(0, |found| found.address.raw())
    }

    fn access(&mut self, tlb: &mut Tlb, address: u64) -> u64 {
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        let what = (Gva::new(address), ErrorCode::READ);
        let memory = self.memory.as_slice();
        let found = tlb.access(&self.context, &self.paging, memory, &mut locked, what);
        found.map_or(0, |found| found.hpa().raw())
    }

    /// 24 loads.
    fn load(&self, address: u64) -> u64 {
        let mut table = 0;
        for shift in [39, 30, 21, 12] {
            let gpa = (table & ADDRESS) + ((address >> shift & 511) << 3);
            let hpa = load(&self.plain, self.plain_root, gpa);
            table = self.plain[usize::try_from(hpa >> 3).unwrap_or(usize::MAX)];
        }
        load(
            &self.plain,
            self.plain_root,
            table & ADDRESS | address & 0xfff,
        )
    }
}

/// A translation cache as plain as can be: one comparison of page and tag, one of rights.
struct PlainTlb {
    entries: Vec<(u64, u64, u64)>,
}

impl PlainTlb {
    fn find(&self, address: u64, tag: u64) -> Option<u64> {
        let page = address >> 12;
        let (kept, of, hpa) = self.entries[usize::try_from(page).unwrap_or(0) % self.entries.len()];
        (kept == page && of == tag && hpa & 1 != 0).then_some(hpa & ADDRESS | address & 0xfff)
    }
}

/// Target 10.
pub(crate) fn two_dimensions() {
    let flat = small();
    let world = || TwoDimensions::new(&flat, (0..PAGES).map(|page| PAGES + page));
    let (mut walks, loads) = (world(), world());
    for address in hot() {
        assert_eq!(walks.walk(address), loads.load(address), "{address:#x}");
    }
    Target {
        name: "10 2-D walk, 24 loads",
        measured: chain("slat", move |address| walks.walk(address)),
        beside: chain("24 loads", move |address| loads.load(address)),
        bound: Bound::AtMost(1.3),
    }
    .report();

    let mut cached = world();
    let mut tlb = Tlb::default();
    let mut plain = PlainTlb {
        entries: vec![(u64::MAX, 0, 0); 4096],
    };
    for address in hot() {
        let hpa = cached.load(address);
        let place = usize::try_from(address >> 12).expect("small") % 4096;
        plain.entries[place] = (address >> 12, 1, hpa & ADDRESS | 1);
    }
    let fill = hot();
    for address in &fill {
        cached.access(&mut tlb, *address);
    }
    let misses = world();
    Target {
        name: "10 2-D, TLB hit",
        measured: chain("slat", move |address| cached.access(&mut tlb, address)),
        beside: chain("a packed table of 4096", move |address| {
            plain
                .find(address, 1)
                .unwrap_or_else(|| misses.load(address))
        }),
        bound: Bound::AtMost(1.3),
    }
    .report();
}

/// Target 11.
pub(crate) fn batch() {
    let mut flat = Flat::new(FLAGS);
    let pages: Vec<u64> = (0..SPARSE as u64).map(|i| random(i) % SPREAD).collect();
    for page in &pages {
        flat.map(*page, SPREAD + random(*page) % SPREAD);
    }
    let frames: Vec<u64> = pages
        .iter()
        .map(|page| SPREAD + random(*page) % SPREAD)
        .collect();
    let addresses: Vec<Gva> = pages.iter().map(|page| Gva::new(page << 12)).collect();
    let mut one = TwoDimensions::new(&flat, frames.iter().copied());
    let mut many = TwoDimensions::new(&flat, frames.iter().copied());
    let singly = addresses.clone();
    Target {
        name: "11 batch 2-D, 65536 pages of 16 GiB",
        measured: all("slat, one batch", move || {
            let mut locked = many.tables.shared(&mut many.reader, Unobserved);
            let mut stage = TdpStage::new(&mut locked, many.root);
            let mut sum = 0_u64;
            many.paging.walk_batch(
                many.memory.as_slice(),
                &mut stage,
                addresses.iter().copied(),
                ErrorCode::READ,
                |_, found| sum = sum.wrapping_add(found.map_or(0, |found| found.address.raw())),
            );
            sum
        }),
        beside: all("slat, one by one", move || {
            singly
                .iter()
                .fold(0, |sum, address| sum.wrapping_add(one.walk(address.raw())))
        }),
        bound: Bound::AtLeast(2.0),
    }
    .report();
}

fn all(label: &str, mut work: impl FnMut() -> u64 + 'static) -> Side {
    Side::timed(label, move |times| {
        let start = Instant::now();
        for _ in 0..times {
            black_box(work());
        }
        let took: Duration = start.elapsed();
        took
    })
}
