//! Huge leaves of nested guests, split ahead of time.

use slat_memslot::{GfnRange, Pages};

use super::*;
use crate::role::RoleFlag;
use crate::spte::NxHugePages;
use crate::tdp::{SplitResult, Uninterrupted};

/// A guest whose pages are those of an L2, with a huge leaf at 8 MiB.
fn world() -> World<Npt> {
    let mut world = World::paged(&Host::npt(40)).with_host_pages(PageSize::Size2M);
    let role = world.roots.mmu.role().with(RoleFlag::GuestMode);
    world.roots = Roots::new(role);
    world.map_huge(0x80_0000, 0x600);
    assert_eq!(world.access(0x80_0000, Kind::Write), Outcome::Fixed);
    assert_eq!(world.mmu.stats().pages_2m, 1);
    world.events.clear();
    world
}

fn split(world: &mut World<Npt>) -> Vec<SplitResult> {
    let all = GfnRange::new(Gfn::new(0), Pages::new(FRAMES)).unwrap();
    let of = (slat_memslot::AsId::NORMAL, all);
    let mut locked = world.mmu.lock(&mut world.events);
    let (size, nx) = (PageSize::Size4K, NxHugePages::Off);
    let _ = locked.split_huge(of, size, nx, &mut Uninterrupted);
    let results = world.events.iter().filter_map(|event| match event {
        Event::HugePageSplit { result, .. } => Some(*result),
        _ => None,
    });
    results.collect()
}

/// Memory has to be had first, for which KVM gives the lock up (`-EAGAIN`).
#[test]
fn a_huge_leaf_becomes_512_small_ones() {
    let mut world = world();
    assert_eq!(split(&mut world), [SplitResult::Again, SplitResult::Done]);
    let stats = *world.mmu.stats();
    assert_eq!(stats.pages_2m, 0);
    assert!(stats.pages_4k >= 512);
    assert_eq!(world.audit(), []);
    let root = world.roots.current(&world.mmu).unwrap();
    for page in [0, 1, 511] {
        let reached = world.mmu.walk(root, 0x80_0000 + (page << 12)).unwrap();
        assert_eq!(reached.level, Level::L1);
        assert!(reached.spte.is_writable());
        let pfn = world.mmu.codec().pfn(reached.spte).raw();
        assert_eq!(pfn, FIRST_PFN + 0x600 + page);
    }
    world.events.clear();
    assert_eq!(split(&mut world), [], "nothing is huge any more");
}

#[test]
fn without_room_it_is_left_to_writes() {
    let mut world = world();
    let used = world.mmu.used_pages().raw();
    // The least that can be set is 64: fill up.
    world.mmu.lock(&mut world.events).set_limit(64).unwrap();
    for table in 0..64 - used - 3 {
        let address = 0x100_0000_0000 + (table << 21);
        world.map_small(address, 0x500);
        if world.mmu.limit().available(world.mmu.used_pages()).raw() > 5 {
            world.touch(address);
        }
    }
    assert!(world.mmu.limit().available(world.mmu.used_pages()).raw() <= 5);
    world.events.clear();
    assert_eq!(split(&mut world), [SplitResult::NoRoom]);
    assert_eq!(world.mmu.stats().pages_2m, 1);
    assert_eq!(world.audit(), []);
}

/// Only what nested guests run on is split: the rest is the TDP MMU's.
#[test]
fn other_pages_are_left_alone() {
    let mut world = World::paged(&Host::npt(40)).with_host_pages(PageSize::Size2M);
    world.map_huge(0x80_0000, 0x600);
    world.touch(0x80_0000);
    world.events.clear();
    assert_eq!(split(&mut world), []);
    assert_eq!(world.mmu.stats().pages_2m, 1);
}
