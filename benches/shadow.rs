//! What shadow pages cost by the entry, beside the same work of the TDP MMU: faults, bringing pages into step, zaps.
//!
//! A table to read, without bounds. 64 MiB of 4 KiB pages, in 32 of the guest's own tables; times are medians.

use std::cell::Cell;
use std::time::Instant;

use comfy_table::{CellAlignment, Table, presets};
use slat_memslot::{
    AsId, Gfn, GfnRange, Gva, Memory, PageSize, Pages, Profile, Region, Slot, SlotKey, VmType,
};
use slat_mmu::fault::{
    Backing, Env, Fault, FilePage, HostPage, Invalidation, Kind, MmioCache, NotTracked, Outcome,
    Present, Settings,
};
use slat_mmu::host::Host;
use slat_mmu::role::{CpuRole, Cr0, Cr4, Efer, PageRole, RoleLayout, VcpuState, root_role_for_tdp};
use slat_mmu::roots::{Request, RootId, TdpMmu};
use slat_mmu::shadow::{
    GuestWalk, MarkedTrail, ResidentPages, Roots, ShadowFault, ShadowMmu, Shadowed,
};
use slat_mmu::spte::{Access, Npt, Pfn, PfnKind};
use slat_mmu::table::Reader;
use slat_mmu::tdp::{
    HardwareAccess, Passes, Tables, Uninterrupted, Unobserved, ZapInvalidated, ZapLeafs,
};
use slat_mmu::walk::{ErrorCode, GuestCpu, GuestPaging, Pointers, Privilege, Unnested};

/// Last-level tables, and their entries.
const TABLES: u64 = 32;
const LEAVES: u64 = TABLES * 512;
/// Frames: the top table, two more, the last-level ones, one that shows these to the guest; what is mapped.
const TOP: u64 = 1;
const FIRST_TABLE: u64 = TOP + 3;
const WINDOW: u64 = FIRST_TABLE + TABLES;
const DATA: u64 = 0x1000;
const FRAMES: u64 = DATA + LEAVES;
/// Where the guest sees its own last-level tables.
const SEEN: u64 = TABLES << 21;
/// Present, writable, user, accessed, dirty; and without the right to write.
const FULL: u64 = 0x67;
const READ_ONLY: u64 = 0x65;
/// Measurements of a cell, of which the median counts; one more comes first.
const ROUNDS: usize = 7;

fn main() {
    // `cargo test --all-targets` runs benches too, and wants no measurements.
    if std::env::args().all(|argument| argument != "--bench") {
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["ns an entry", "shadow pages", "TDP MMU"]);
    let fault = (median(shadow_faults), Some(median(tdp_faults)));
    let notifier = (median(shadow_notifier), Some(median(tdp_notifier)));
    let all = (median(shadow_zap_all), Some(median(tdp_zap_all)));
    for (name, (shadow, tdp)) in [
        ("fault on each page, neighbours mapped along", fault),
        (
            "bring into step, each entry as it was",
            (median(|| sync(FULL)), None),
        ),
        (
            "bring into step, each entry changed",
            (median(|| sync(READ_ONLY)), None),
        ),
        ("zap all leaves by frame", notifier),
        ("zap everything", all),
    ] {
        let tdp = tdp.map_or("-".to_owned(), |ns: f64| format!("{ns:.1}"));
        table.add_row([name.to_owned(), format!("{shadow:.1}"), tdp]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}

/// The median of some measurements.
fn median(mut once: impl FnMut() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..=ROUNDS).map(|_| once()).skip(1).collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

/// Nanoseconds an entry.
fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e9 / LEAVES as f64
}

fn everything() -> GfnRange {
    GfnRange::new(Gfn::new(0), Pages::new(FRAMES)).expect("a slot is not empty")
}

fn memory() -> Memory {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    let ram = Region::new(SlotKey::normal(0), 0, FRAMES << 12, 0x7f00_0000_0000);
    let _effects = memory.set_region(&ram).expect("a sound region");
    memory
}

/// Host pages follow guest frames in a line.
struct Line;

impl Backing for Line {
    fn host_page(&mut self, _: &Slot, gfn: Gfn, _: bool) -> HostPage {
        HostPage::Page {
            pfn: Pfn::new(gfn.raw()),
            size: PageSize::Size4K,
            writable: true,
            kind: PfnKind::Memory,
        }
    }

    fn file_page(&mut self, _: &Slot, _: Gfn) -> FilePage {
        FilePage::Bad
    }
}

impl ResidentPages for Line {
    fn resident_page(&mut self, _: &Slot, gfn: Gfn) -> Option<(Pfn, PfnKind)> {
        Some((Pfn::new(gfn.raw()), PfnKind::Memory))
    }
}

/// A guest in long mode on a host without two-dimensional paging.
struct Shadow {
    mmu: ShadowMmu<Npt>,
    roots: Roots,
    paging: GuestPaging,
    memory: Memory,
    ram: Vec<Cell<u64>>,
}

impl Shadow {
    fn new() -> Self {
        let state = VcpuState {
            cr0: Cr0::PE | Cr0::PG | Cr0::WP,
            cr3: TOP << 12,
            cr4: Cr4::PAE,
            efer: Efer::LME | Efer::LMA | Efer::NX,
            ..VcpuState::default()
        };
        let mut mmu = ShadowMmu::new(&Host::shadow(40), TdpMmu::Off);
        let limit = mmu.lock(Unobserved).set_limit(10_000);
        limit.expect("enough pages");
        let shadow = Self {
            mmu,
            roots: Roots::new(CpuRole::of(&state, RoleLayout::Baseline).shadow_root_role()),
            paging: GuestPaging::new(&state, &GuestCpu::new(40)),
            memory: memory(),
            ram: vec![Cell::new(0); usize::try_from((WINDOW + 1) * 512).expect("a few tables")],
        };
        shadow.set(TOP, 0, (TOP + 1) << 12 | FULL);
        shadow.set(TOP + 1, 0, (TOP + 2) << 12 | FULL);
        for table in 0..TABLES {
            shadow.set(TOP + 2, table, (FIRST_TABLE + table) << 12 | FULL);
            shadow.set(WINDOW, table, (FIRST_TABLE + table) << 12 | FULL);
        }
        shadow.set(TOP + 2, TABLES, WINDOW << 12 | FULL);
        shadow.set_leaves(FULL);
        shadow
    }

    fn set(&self, table: u64, index: u64, entry: u64) {
        let word = usize::try_from(table * 512 + index).expect("a word of a table");
        self.ram[word].set(entry);
    }

    fn set_leaves(&self, rights: u64) {
        for leaf in 0..LEAVES {
            let table = FIRST_TABLE + leaf / 512;
            self.set(table, leaf % 512, (DATA + leaf) << 12 | rights);
        }
    }

    fn guest<'g>(
        (paging, ram, memory, role): (&'g GuestPaging, &'g [Cell<u64>], &'g Memory, PageRole),
    ) -> Shadowed<'g, [Cell<u64>]> {
        Shadowed {
            paging,
            tables: ram,
            memory,
            settings: Settings::default(),
            role,
        }
    }

    fn enter(&mut self) {
        if self
            .mmu
            .take_requests()
            .contains(Request::FreeObsoleteRoots)
        {
            self.mmu
                .lock(Unobserved)
                .free_obsolete_roots(&mut self.roots);
        }
        let role = self.roots.mmu.role();
        let guest = Self::guest((&self.paging, &self.ram, &self.memory, role));
        let mut locked = self.mmu.lock(Unobserved);
        let loaded = locked.load_shadow(&mut self.roots, Pointers::default(), &guest);
        loaded.expect("room for a root");
    }

    /// One access, with the fault it takes.
    fn access(&mut self, address: u64, kind: Kind) {
        let root = self.roots.current(&self.mmu).expect("a root is loaded");
        let access = match kind {
            Kind::Write => Access::WRITE,
            Kind::Read | Kind::Execute => Access::empty(),
        };
        let present = match self.mmu.hardware_access(root, address, access) {
            HardwareAccess::Done { .. } => return,
            HardwareAccess::NotAllowed => Present::Yes,
            HardwareAccess::NotPresent | HardwareAccess::Mmio { .. } => Present::No,
        };
        let mut trail = MarkedTrail::default();
        let wanted = ErrorCode::of(kind, Privilege::Supervisor);
        let ram = self.ram.as_slice();
        let at = Gva::new(address);
        let walked = self.paging.walk(ram, &mut Unnested, &mut trail, at, wanted);
        let found = walked.expect("the guest maps it");
        let walk = GuestWalk {
            trail: &trail,
            found: &found,
        };
        let fault = ShadowFault {
            address,
            kind,
            privilege: Privilege::Supervisor,
            present,
        };
        let mut env = Env {
            memory: &self.memory,
            backing: &mut Line,
            invalidation: &Invalidation::default(),
            settings: Settings::default(),
            mmio: &mut MmioCache::default(),
            shadow: NotTracked,
        };
        let guest = Self::guest((&self.paging, ram, &self.memory, self.roots.mmu.role()));
        let (roots, of) = (&mut self.roots, (&walk, &guest));
        let handled = self
            .mmu
            .shadow_page_fault(roots, &fault, of, &mut env, &mut Unobserved);
        assert_eq!(handled.outcome, Outcome::Fixed, "{address:#x}");
    }

    fn access_all(&mut self) {
        self.enter();
        for leaf in 0..LEAVES {
            self.access(leaf << 12, Kind::Write);
        }
    }
}

fn shadow_faults() -> f64 {
    let mut shadow = Shadow::new();
    timed(|| shadow.access_all())
}

/// The guest writes to each of its tables, so that all pages fall out of step, and flushes its TLB.
fn sync(rights: u64) -> f64 {
    let mut shadow = Shadow::new();
    shadow.access_all();
    for table in 0..TABLES {
        shadow.access(SEEN + (table << 12), Kind::Write);
    }
    assert_eq!(shadow.mmu.stats().mmu_unsync, TABLES);
    shadow.set_leaves(rights);
    let time = timed(|| {
        let role = shadow.roots.mmu.role();
        let of = (&shadow.paging, shadow.ram.as_slice(), &shadow.memory, role);
        let mut locked = shadow.mmu.lock(Unobserved);
        locked.sync_roots(&shadow.roots, &Shadow::guest(of));
    });
    assert_eq!(shadow.mmu.stats().mmu_unsync, 0);
    time
}

fn shadow_notifier() -> f64 {
    let mut shadow = Shadow::new();
    shadow.access_all();
    timed(|| {
        let mut locked = shadow.mmu.lock(Unobserved);
        locked.zap_frames(AsId::NORMAL, everything());
    })
}

fn shadow_zap_all() -> f64 {
    let mut shadow = Shadow::new();
    shadow.access_all();
    timed(|| shadow.mmu.lock(Unobserved).zap_all_fast())
}

/// The same memory in the TDP MMU.
struct Tdp {
    tables: Tables<Npt>,
    reader: Reader,
    root: RootId,
    memory: Memory,
}

impl Tdp {
    fn new() -> Self {
        let host = Host::npt(40);
        let tables = Tables::<Npt>::new(&host);
        let mut reader = tables.reader().expect("a place");
        let tdp = host.tdp().expect("a second stage");
        let role = root_role_for_tdp(&VcpuState::default(), &tdp);
        let acquired = tables.shared(&mut reader, Unobserved).acquire_root(role);
        let root = acquired.expect("a table").root();
        Self {
            tables,
            reader,
            root,
            memory: memory(),
        }
    }

    fn fault_all(&mut self) {
        let (mut mmio, invalidation) = (MmioCache::default(), Invalidation::default());
        let mut env = Env {
            memory: &self.memory,
            backing: &mut Line,
            invalidation: &invalidation,
            settings: Settings::default(),
            mmio: &mut mmio,
            shadow: NotTracked,
        };
        for leaf in 0..LEAVES {
            let fault = Fault::new(Gfn::new(DATA + leaf), Kind::Write);
            let mut locked = self.tables.shared(&mut self.reader, Unobserved);
            let handled = locked.page_fault(self.root, &fault, &mut env);
            assert_eq!(handled.outcome, Outcome::Fixed);
        }
    }
}

fn tdp_faults() -> f64 {
    let mut tdp = Tdp::new();
    timed(|| tdp.fault_all())
}

fn tdp_notifier() -> f64 {
    let mut tdp = Tdp::new();
    tdp.fault_all();
    timed(|| {
        let mut zap = ZapLeafs::of_address_space(AsId::NORMAL, everything());
        let locked = &mut tdp.tables.exclusive(Unobserved);
        let _ = zap.run(locked, &mut Uninterrupted);
    })
}

fn tdp_zap_all() -> f64 {
    let mut tdp = Tdp::new();
    tdp.fault_all();
    timed(|| {
        tdp.tables.exclusive(Unobserved).invalidate_roots();
        let mut locked = tdp.tables.shared(&mut tdp.reader, Unobserved);
        let mut zap = ZapInvalidated::new(Passes::SmallestFirst);
        let _ = zap.run(&mut locked, &mut Uninterrupted);
    })
}
