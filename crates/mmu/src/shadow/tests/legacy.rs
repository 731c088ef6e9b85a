//! Guests whose roots are not one page: with PAE, with entries of four bytes, without paging where there is no second stage,
//! and with CR3 where there is no memory. What is kept of earlier roots.

use super::*;
use crate::role::Quadrant;
use crate::roots::RootSet;
use crate::shadow::ShadowRoot;

/// The frame, level and quadrant of each page of a root that has four.
fn parts<F: Format>(world: &World<F>) -> Vec<(u64, Level, Quadrant)> {
    let Some(ShadowRoot::Pae(pae)) = world.roots.current(&world.mmu) else {
        panic!("the root is one page");
    };
    let of = |page| {
        let page = world.mmu.info(page);
        (page.gfn.raw(), page.role.level(), page.role.quadrant())
    };
    pae.pages().map(of).collect()
}

#[test]
fn a_directory_of_four_byte_entries_takes_four_pages() {
    let mut world = World::paged_as(GuestPages::Bits32, &Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.map_small(0x7f_f000, 0x501);
    world.touch(0x40_0000);
    let directory = world.state.cr3 >> 12;
    let quarter = |part| (directory, Level::L2, part);
    let all = [Quadrant::Q0, Quadrant::Q1, Quadrant::Q2, Quadrant::Q3];
    assert_eq!(parts(&world), all.map(quarter));
    // Each half of a table of 1024 entries has a page.
    world.touch(0x7f_f000);
    let table = world.entry_of(0x40_0000, Level::L1) >> 12;
    let halves = world.mmu.active().filter(|page| page.gfn.raw() == table);
    let mut halves: Vec<Quadrant> = halves.map(|page| page.role.quadrant()).collect();
    halves.sort_unstable();
    assert_eq!(halves, [Quadrant::Q0, Quadrant::Q1]);
    assert_eq!(world.audit(), []);
}

/// A directory's entry is followed by two: a write to it zaps both.
#[test]
fn a_directory_entry_of_four_bytes_is_two_of_a_page() {
    let mut world = World::paged_as(GuestPages::Bits32, &Host::shadow(40));
    for address in [0x40_0000, 0x7f_f000] {
        world.map_small(address, 0x500 + (address >> 22));
        world.touch(address);
    }
    let link = world.entry_of(0x40_0000, Level::L2);
    let root = world.roots.current(&world.mmu).unwrap();
    let is_mapped = |world: &World<Npt>, address| {
        let reached = world.mmu.walk(root, address).unwrap();
        reached.spte.is_leaf(reached.level)
    };
    assert!(is_mapped(&world, 0x40_0000) && is_mapped(&world, 0x7f_f000));
    world.guest_write(link, 0);
    assert!(!is_mapped(&world, 0x40_0000) && !is_mapped(&world, 0x7f_f000));
    assert_eq!(world.audit(), []);
}

#[test]
fn only_present_pointers_to_memory_have_a_page() {
    let mut world = World::paged_as(GuestPages::Pae, &Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    let first = world.word(world.state.cr3) >> 12;
    let window = world.word(world.state.cr3 + 8) >> 12;
    // The third is not present, the fourth is beyond the slot.
    world.set_word(world.state.cr3 + 16, 0x20 << 12);
    world.set_word(world.state.cr3 + 24, FRAMES << 12 | 1);
    world.touch(0x40_0000);
    let whole = |table| (table, Level::L2, Quadrant::Q0);
    assert_eq!(parts(&world), [first, window].map(whole));
    world.touch(WINDOW + 0x40_0000);
    assert_eq!(world.audit(), []);
    // Roots that are given up lose their pages only if nobody else holds them and they are on their way out.
    let pages = world.mmu.used_pages();
    let mut locked = world.mmu.lock(&mut world.events);
    locked.free_roots(&mut world.roots, RootSet::all());
    assert_eq!(world.roots.current(&world.mmu), None);
    assert_eq!(world.mmu.used_pages(), pages);
    assert_eq!(world.audit(), []);
}

/// Without a second stage a guest that does not page has four directories, 1 GiB each.
#[test]
fn a_guest_that_does_not_page_has_four_directories() {
    let state = VcpuState::default();
    let role = CpuRole::of(&state, RoleLayout::Baseline).shadow_root_role();
    let mut world = World::<Npt>::new(&Host::shadow(40), state, role);
    world.touch(0x40_0000);
    let quarter = |part: u64| (part << 18, Level::L2, Quadrant::Q0);
    assert_eq!(parts(&world), [0, 1, 2, 3].map(quarter));
    let at_2_gib = Region::new(SlotKey::normal(1), 2 << 30, 4096, 1 << 41);
    let _ = world.memory.set_region(&at_2_gib).unwrap();
    world.touch(2 << 30);
    assert_eq!(world.audit(), []);
    world.mmu.lock(&mut world.events).zap_all_fast();
    world.enter();
    assert_eq!(parts(&world), [0, 1, 2, 3].map(quarter));
    assert_eq!(world.mmu.used_pages().raw(), 4);
    assert_eq!(world.audit(), []);
}

#[test]
fn where_there_is_no_memory_the_root_is_none_of_a_table() {
    for frame in [FRAMES, 1 << 27] {
        let mut world = World::paged(&Host::shadow(40));
        world.state.cr3 = frame << 12;
        world.enter();
        assert_eq!(world.roots.current(&world.mmu), Some(ShadowRoot::Dummy));
        assert_eq!(world.mmu.used_pages().raw(), 0);
        // It goes with the next switch.
        world.load_cr3(TABLES << 12);
        world.touch(WINDOW);
        assert!(world.roots.previous(&world.mmu).is_empty());
        assert_eq!(world.audit(), []);
    }
}

/// A second top table, as large as the first.
fn copy_of_root(world: &mut World<Npt>) -> u64 {
    let (first, second) = (world.state.cr3, 0x7ff << 12);
    for at in (0..4096).step_by(8) {
        let word = world.word(first + at);
        world.set_word(second + at, word);
    }
    second
}

#[test]
fn earlier_roots_that_are_out_of_step_can_be_given_up() {
    for out_of_step in [false, true] {
        let mut world = World::paged(&Host::shadow(40));
        world.map_small(0x40_0000, 0x500);
        world.touch(0x40_0000);
        let first = world.roots.current(&world.mmu).unwrap();
        if out_of_step {
            world.write_own_table(0x40_6000, 0x40_0000);
        }
        let second = copy_of_root(&mut world);
        assert!(!world.load_cr3(second));
        assert_eq!(world.roots.previous(&world.mmu), [first]);
        let mut locked = world.mmu.lock(&mut world.events);
        locked.free_unsync_previous(&mut world.roots);
        let kept = world.roots.previous(&world.mmu);
        assert_eq!(kept.is_empty(), out_of_step);
        assert_eq!(world.audit(), []);
    }
}

#[test]
fn a_new_context_begins_without_roots() {
    let mut world = World::paged(&Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.touch(0x40_0000);
    let second = copy_of_root(&mut world);
    world.load_cr3(second);
    world.touch(0x40_0000);
    world.state.cr0 -= Cr0::WP;
    let role = CpuRole::of(&world.state, RoleLayout::Baseline).shadow_root_role();
    let mut locked = world.mmu.lock(&mut world.events);
    locked.reset_context(&mut world.roots, role);
    assert_eq!(world.roots.current(&world.mmu), None);
    assert!(world.roots.previous(&world.mmu).is_empty());
    assert_eq!(world.roots.mmu.role(), role);
    world.touch(0x40_0000);
    assert_eq!(world.audit(), []);
}

/// `invlpg` brings one entry into step, and no other.
#[test]
fn an_invalidated_address_is_brought_into_step_alone() {
    for pages in GuestPages::ALL {
        let mut world = World::paged_as(pages, &Host::shadow(40));
        let addresses = [0x40_0000, 0x40_1000];
        for address in addresses {
            world.map_small(address, 0x500);
            world.touch(address);
        }
        for address in addresses {
            let place = world.entry_of(address, Level::L1);
            world.guest_write(place, 0x600 << 12 | LINK);
        }
        let root = world.roots.current(&world.mmu).unwrap();
        let paging = world.paging();
        let guest = guest_of(&paging, &world.ram, &world.memory, world.roots.mmu.role());
        let mut locked = world.mmu.lock(&mut world.events);
        locked.invalidate_address(root, addresses[0], &guest);
        let mapped = addresses.map(|address| {
            let reached = world.mmu.walk(root, address).unwrap();
            let leaf = reached.spte.is_leaf(reached.level);
            leaf.then(|| world.mmu.codec().pfn(reached.spte).raw() - FIRST_PFN)
        });
        assert_eq!(mapped, [None, Some(0x500)], "{pages:?}");
        world.touch(addresses[0]);
        assert_eq!(world.audit(), []);
    }
}

/// An entry of MMIO that is out of step: it stays for the same frame, and goes for another.
#[test]
fn mmio_entries_are_brought_into_step_too() {
    for (frame, stays) in [(FRAMES, true), (FRAMES + 1, false), (0x500, false)] {
        let mut world = World::paged(&Host::shadow(40));
        let address = 0x40_0000;
        world.map_small(address, FRAMES);
        assert_eq!(world.access(address, Kind::Read), Outcome::Emulate);
        let place = world.entry_of(address, Level::L1);
        let root = world.roots.current(&world.mmu).unwrap();
        let mmio = |world: &World<Npt>| {
            let reached = world.mmu.walk(root, address).unwrap();
            world.mmu.codec().decode_mmio(reached.spte)
        };
        assert!(mmio(&world).is_some());
        // Only what is marked as accessed is shadowed ahead of an access.
        world.guest_write(place, frame << 12 | LINK | 1 << 5);
        world.flush_guest_tlb();
        assert_eq!(mmio(&world).is_some(), stays, "frame {frame:#x}");
        assert_eq!(world.audit(), []);
    }
}

/// The guest may write where a table was: its pages go.
#[test]
fn a_frame_of_tables_can_be_given_back_to_the_guest() {
    let mut world = World::paged(&Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.touch(0x40_0000);
    let table = Gfn::new(world.entry_of(0x40_0000, Level::L1) >> 12);
    let zapped = world.mmu.stats().mmu_shadow_zapped;
    assert!(world.mmu.lock(&mut world.events).unprotect(table));
    assert_eq!(world.mmu.stats().mmu_shadow_zapped, zapped + 1);
    assert!(!world.mmu.lock(&mut world.events).unprotect(table));
    assert_eq!(world.audit(), []);
}
