//! Random guests against a naive reference: after each TLB flush of the guest's, hardware must find nothing that a walk of
//! the guest's own tables does not allow, and everything else is a matter of the audit.

use super::*;
use crate::walk::ReadOnly;

/// Random numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
}

/// Addresses that the guest uses: some pages in each of four tables of the last level.
fn address(random: &mut Random) -> u64 {
    0x40_0000 + random.below(4) * 0x20_0000 + random.below(12) * 0x1000
}

fn entry(random: &mut Random) -> u64 {
    let rights = [7, 5, 3, 1, 0, 0x67, 0x27, 1 << 63 | 7];
    let chosen = rights[usize::try_from(random.below(8)).unwrap()];
    match chosen {
        0 => 0,
        // Beyond the slot.
        _ if random.below(16) == 0 => (FRAMES + random.below(4)) << 12 | chosen,
        // Never a frame of tables, which only the window shows.
        _ => (0x400 + random.below(64)) << 12 | chosen,
    }
}

/// What a naive walk allows: the frame, and whether a supervisor may write to it.
fn naive(world: &World<Npt>, address: u64, kind: Kind) -> Option<u64> {
    let tables = ReadOnly(world.ram.as_slice());
    let wanted = ErrorCode::of(kind, Privilege::Supervisor);
    let found = world.paging().translate(&tables, Gva::new(address), wanted);
    found.ok().map(|found| found.gpa.gfn().raw())
}

fn check(world: &World<Npt>, seed: u64) {
    let root = world.roots.current(&world.mmu).unwrap();
    for table in 0..4 {
        for page in 0..12 {
            let address = 0x40_0000 + table * 0x20_0000 + page * 0x1000;
            let reached = world.mmu.walk(root, address).unwrap();
            if !reached.spte.is_leaf(reached.level) {
                continue;
            }
            let first = world.mmu.codec().pfn(reached.spte).raw() - FIRST_PFN;
            let inside = (address >> 12) & (reached.level.pages().raw() - 1);
            let frame = Some(first + inside);
            let read = naive(world, address, Kind::Read);
            assert_eq!(read, frame, "seed {seed:#x}: reading {address:#x}");
            if reached.spte.is_writable() {
                let written = naive(world, address, Kind::Write);
                assert_eq!(written, frame, "seed {seed:#x}: writing to {address:#x}");
            }
            if world.mmu.codec().is_executable(reached.spte) {
                let fetched = naive(world, address, Kind::Execute);
                assert_eq!(fetched, frame, "seed {seed:#x}: fetching from {address:#x}");
            }
        }
    }
}

fn step(world: &mut World<Npt>, random: &mut Random) {
    let at = address(random);
    match random.below(16) {
        0..6 => {
            let kind = [Kind::Read, Kind::Write, Kind::Execute];
            let kind = kind[usize::try_from(random.below(3)).unwrap()];
            let _ = world.access(at, kind);
        }
        6..11 => {
            let (place, word) = (world.entry_of(at, Level::L1), entry(random));
            world.guest_write(place, word);
        }
        11 => {
            let place = world.entry_of(at, Level::L2);
            let word = world.word(place);
            // A link goes away and comes back.
            world.guest_write(place, 0);
            world.guest_write(place, word);
        }
        12 => {
            let frame = Gfn::new(0x400 + random.below(64));
            let range = slat_memslot::GfnRange::new(frame, slat_memslot::Pages::new(4)).unwrap();
            let as_id = slat_memslot::AsId::NORMAL;
            world.mmu.lock(&mut world.events).zap_frames(as_id, range);
        }
        13 => {
            let range = slat_memslot::GfnRange::new(Gfn::new(0), slat_memslot::Pages::new(FRAMES));
            let (as_id, size) = (slat_memslot::AsId::NORMAL, PageSize::Size4K);
            let mut locked = world.mmu.lock(&mut world.events);
            locked.write_protect_range(as_id, range.unwrap(), size);
        }
        14 if random.below(8) == 0 => world.mmu.lock(&mut world.events).zap_all_fast(),
        _ => world.flush_guest_tlb(),
    }
}

#[test]
fn shadow_pages_allow_what_the_guest_s_tables_do() {
    let first = std::env::var("SLAT_SEED").ok();
    let first = first.and_then(|seed| u64::from_str_radix(seed.trim_start_matches("0x"), 16).ok());
    let seeds = match first {
        Some(seed) => vec![seed],
        None => (1..=12)
            .map(|n| 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(n))
            .collect(),
    };
    for seed in seeds {
        println!("SLAT_SEED={seed:#x}");
        for pages in GuestPages::ALL {
            run(pages, seed);
        }
    }
}

fn run(pages: GuestPages, seed: u64) {
    let mut random = Random(seed);
    let mut world = World::paged_as(pages, &Host::shadow(40));
    for table in 0..4 {
        world.entry_of(0x40_0000 + table * 0x20_0000, Level::L1);
    }
    for number in 0..400 {
        step(&mut world, &mut random);
        world.events.clear();
        let violations = world.audit();
        assert_eq!(violations, [], "{pages:?}, seed {seed:#x}, step {number}");
        if number % 10 == 9 {
            world.flush_guest_tlb();
            check(&world, seed);
        }
    }
    assert!(world.mmu.stats().mmu_shadow_zapped > 0);
}
