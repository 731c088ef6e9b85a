//! Walks with the reverse map behind them beside walks without: by a miss of the TLB with all other caches on, by a hit, and
//! through the nested tables alone.
//!
//! Both go to the same addresses: every page of 64 MiB in turn, in an order that has no neighbours. Each page has an entry
//! of 4 KiB of its own: 256 KiB of reverse map are read, more than a first-level cache holds, in pages of 4 KiB. Inside of
//! 2 MiB the host has the pages as the guest has them, as after PSMASH; then as well all mixed up, where no guess finds an
//! entry.

use std::hint::black_box;

use slat_coco::rmp::{
    Asid, GuestCpu as RmpCpu, GuestPage, Rmp, RmpGuard, RmpSize, RmpState, Visibility, Vmpl,
};
use slat_memslot::{Gfn, Gva, PageSize};
use slat_mmu::host::Host;
use slat_mmu::role::{Cr0, Cr4, Efer, VcpuState, root_role_for_tdp};
use slat_mmu::spte::{Access, Npt, Pfn};
use slat_mmu::table::{Reader, TableId};
use slat_mmu::tdp::{AccessCheck, Limits, MapRequest, NoCheck, NoExternal, Tables, Unobserved};
use slat_mmu::walk::tlb::{AddressSpaceId, Context, Pcid, Tlb};
use slat_mmu::walk::{ErrorCode, GuestCpu, GuestPaging};

use crate::{compare, time};

/// Pages of the guest: four for each place of the TLB.
const PAGES: u64 = 1 << 14;
/// Frames in front of them, for the guest's tables.
const TABLES: u64 = 64;
/// Where the guest's pages are on the host, or from where on. Its tables are where it thinks they are.
const MOVED: u64 = 0x1_0000;
/// Present, writable, user, accessed, dirty.
const FLAGS: u64 = 0x67;
const CPU: RmpCpu = RmpCpu {
    asid: match Asid::new(5) {
        Some(asid) => asid,
        None => Asid::HOST,
    },
    vmpl: Vmpl::Vmpl0,
};

/// The guest's own tables of four levels, from frame 0 on: 32 of the lowest level, and one of each other.
fn guest_tables() -> Vec<u64> {
    let mut words = vec![0; 512 * 64];
    let link = |table: u64| table << 12 | FLAGS;
    (words[0], words[512]) = (link(1), link(2));
    for page in 0..PAGES {
        let lowest = 3 + page / 512;
        let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX);
        words[at(2 * 512 + page / 512)] = link(lowest);
        words[at(lowest * 512 + page % 512)] = link(TABLES + (page * 4797 + 11) % PAGES);
    }
    words
}

/// Where the host has the guest's pages.
#[derive(Clone, Copy)]
enum Layout {
    /// As the guest has them.
    Whole,
    /// Each in another 2 MiB than its neighbours, and at another place of it than of its own.
    Mixed,
}

impl Layout {
    fn frame(self, gfn: u64) -> Pfn {
        let Some(page) = gfn.checked_sub(TABLES) else {
            return Pfn::new(gfn);
        };
        Pfn::new(match self {
            Self::Whole => gfn + MOVED,
            Self::Mixed => (page * 5683 + 77) % PAGES + MOVED,
        })
    }
}

/// All of the guest's frames are its own, and validated.
fn reverse_map(layout: Layout) -> Rmp {
    let rmp = Rmp::new(1 << 20);
    for gfn in 0..TABLES + PAGES {
        let (gfn, pfn) = (Gfn::new(gfn), layout.frame(gfn));
        let state = RmpState::private(CPU.asid, gfn, RmpSize::Size4K);
        rmp.rmpupdate(pfn, &state).expect("the page is free");
        let page = GuestPage {
            gfn,
            pfn,
            nested: PageSize::Size4K,
        };
        let _ = rmp.pvalidate(CPU, page, RmpSize::Size4K, true);
    }
    rmp
}

struct Guest<C: AccessCheck> {
    tables: Tables<Npt, NoExternal, C>,
    reader: Reader,
    root: TableId,
    context: Context,
    memory: Vec<u64>,
    paging: GuestPaging,
    tlb: Tlb,
}

impl<C: AccessCheck> Guest<C> {
    fn new(check: C, layout: Layout) -> Self {
        let host = Host::npt(48);
        let limits = Limits {
            tables: 1 << 12,
            readers: 1,
        };
        let tables = Tables::with(&host, limits, NoExternal, check);
        let mut reader = tables.reader().expect("nobody has taken a place");
        let mut locked = tables.shared(&mut reader, Unobserved);
        let role = root_role_for_tdp(&VcpuState::default(), &host.tdp().expect("NPT"));
        let root = locked.acquire_root(role).expect("there is room").root();
        let root = locked.root_table(root).expect("it is held");
        for gfn in 0..TABLES + PAGES {
            let request = MapRequest::page(Gfn::new(gfn), PageSize::Size4K, layout.frame(gfn));
            let _ = locked.map(root, &request).expect("there is room");
        }
        drop(locked);
        let vcpu = VcpuState {
            cr0: Cr0::PG | Cr0::PE | Cr0::WP,
            cr4: Cr4::PAE,
            efer: Efer::LME | Efer::LMA | Efer::NX,
            ..VcpuState::default()
        };
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
            memory: guest_tables(),
            paging: GuestPaging::new(&vcpu, &GuestCpu::new(48)),
            tlb: Tlb::default(),
        }
    }

    fn access(&mut self, page: u64) -> bool {
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        let what = (Gva::new(page << 12), ErrorCode::WRITE);
        let memory = self.memory.as_slice();
        let found = self
            .tlb
            .access(&self.context, &self.paging, memory, &mut locked, what);
        black_box(found).is_ok()
    }

    fn translate(&mut self, page: u64) -> bool {
        let locked = self.tables.shared(&mut self.reader, Unobserved);
        let gfn = Gfn::new(TABLES + page);
        black_box(locked.translate(self.root, gfn, Access::WRITE)).is_ok()
    }
}

/// Every page in turn, in an order that never comes back to a place of the TLB before three others were there.
fn all_miss(number: u64) -> u64 {
    number.wrapping_mul(4797) % PAGES
}

/// Pages that all stay in the TLB.
fn all_hit(number: u64) -> u64 {
    number.wrapping_mul(4797) % 1024
}

pub(crate) fn walks(rounds: u32, times: u64) {
    for (layout, name) in [(Layout::Whole, ""), (Layout::Mixed, ", pages mixed up")] {
        let rmp = reverse_map(layout);
        let mut plain = Guest::new(NoCheck, layout);
        let guard: RmpGuard<'_> = rmp.guard(CPU, Visibility::Private);
        let mut checked = Guest::new(guard, layout);
        assert!((0..PAGES).all(|page| plain.access(page) && checked.access(page)));
        let mut accesses = |name: &str, page: fn(u64) -> u64, goal: &str| {
            for number in 0..PAGES {
                let _ = (plain.access(page(number)), checked.access(page(number)));
            }
            let (without, with, ratio) = compare(rounds, || {
                let without = time(times, |number| {
                    black_box(plain.access(page(number)));
                });
                let with = time(times, |number| {
                    black_box(checked.access(page(number)));
                });
                (without, with)
            });
            print(name, (without, with, ratio), goal);
        };
        accesses(&format!("access, TLB miss{name}"), all_miss, "goal 1.5");
        accesses(&format!("access, TLB hit{name}"), all_hit, "goal 1.0");
        let ratio = compare(rounds, || {
            let without = time(times, |number| {
                black_box(plain.translate(all_miss(number)));
            });
            let with = time(times, |number| {
                black_box(checked.translate(all_miss(number)));
            });
            (without, with)
        });
        print(&format!("nested tables alone{name}"), ratio, "no goal");
    }
}

fn print(name: &str, (without, with, ratio): (f64, f64, f64), goal: &str) {
    println!(
        "{name}: {without:.1} ns, with the reverse map {with:.1} ns, ratio {ratio:.2} ({goal})"
    );
}
