//! The kernel's rules, one by one, as `mmu.c` of 6.12.117 has them.

use slat_memslot::{AsId, ChangeKind, GfnRange, Level, PageSize, Pages, SlotFlags};

use super::*;
use crate::fault::Apicv;
use crate::role::RoleFlag;
use crate::shadow::page::NxDisallowed;
use crate::spte::Spte;

fn pages_at<F: Format>(world: &World<F>, level: Level) -> usize {
    world
        .mmu
        .active()
        .filter(|page| page.role.level() == level)
        .count()
}

#[test]
fn neighbours_are_mapped_along_in_their_group_of_eight() {
    let mut world = World::<Npt>::direct(&Host::npt(40));
    world.touch(0x40_3000);
    let set: Vec<u64> = world
        .events
        .iter()
        .filter_map(|event| match event {
            Event::ShadowSpteSet { gfn, .. } => Some(gfn.raw()),
            _ => None,
        })
        .collect();
    assert_eq!(
        set,
        [0x403, 0x400, 0x401, 0x402, 0x404, 0x405, 0x406, 0x407]
    );
    assert_eq!(world.mmu.stats().pages_4k, 8);
    assert_eq!(world.audit(), []);
}

#[test]
fn a_zap_of_all_leaves_the_root_until_its_vcpu_has_left() {
    let mut world = World::<Npt>::direct(&Host::npt(40));
    world.touch(0x40_3000);
    world.mmu.lock(&mut world.events).zap_all_fast();
    assert_eq!(
        (world.mmu.used_pages().raw(), world.mmu.active().count()),
        (1, 0)
    );
    assert_eq!(world.audit(), []);
    world.enter();
    assert_eq!(world.mmu.used_pages().raw(), 1);
    assert_eq!(world.mmu.active().next().unwrap().generation.raw(), 1);
    assert_eq!(world.audit(), []);
}

/// With the limit set to 64, touching 200 separate ranges of 2 MiB recycles pages.
#[test]
fn the_oldest_pages_make_room() {
    let mut world = World::<Npt>::direct(&Host::npt(40));
    let large = Region::new(SlotKey::normal(1), 1 << 30, 1 << 30, 1 << 41);
    let _ = world.memory.set_region(&large).unwrap();
    world.mmu.lock(&mut world.events).set_limit(64).unwrap();
    for range in 0..200 {
        world.touch((1 << 30) + (range << 21));
    }
    let stats = *world.mmu.stats();
    assert!(world.mmu.used_pages().raw() <= 64);
    assert_eq!(stats.mmu_recycled, stats.mmu_shadow_zapped);
    // Whenever less than 5 are free, there are 25 afterwards.
    assert_eq!(stats.mmu_recycled % 21, 0);
    assert!(stats.mmu_recycled >= 200 - 64);
    assert_eq!(world.audit(), []);
}

/// The same in long mode with huge pages of the guest's. A 6.18 kernel with shadow paging recycled 168 pages as well; it was left
/// with 49 leaves, since no neighbour's page was there to be mapped along.
#[test]
fn two_hundred_huge_ranges_recycle_as_measured() {
    let mut world = World::paged(&Host::shadow(40));
    let large = Region::new(SlotKey::normal(1), 1 << 30, 1 << 30, 1 << 41);
    let _ = world.memory.set_region(&large).unwrap();
    world.mmu.lock(&mut world.events).set_limit(64).unwrap();
    for range in 0..200 {
        let address = 0x8000_0000 + (range << 21);
        world.map_huge(address, 0x4_0000 + (range << 9));
        world.touch(address);
    }
    let stats = *world.mmu.stats();
    assert_eq!(stats.mmu_recycled, 168);
    assert_eq!(stats.pages_4k, 40 * 8, "40 ranges with their first group");
    assert_eq!(world.audit(), []);
}

/// The recorded trap: deleting a slot lowers the limit, and pages of other slots go.
#[test]
fn a_slot_that_goes_takes_pages_of_others_along() {
    let mut world = World::<Npt>::direct(&Host::npt(40));
    world.mmu = ShadowMmu::new(&Host::npt(40), TdpMmu::Off);
    let large = Region::new(SlotKey::normal(1), 1 << 30, 1 << 30, 1 << 41);
    let _ = world.memory.set_region(&large).unwrap();
    let before = Pages::new(0x4_0000 + FRAMES);
    world
        .mmu
        .lock(&mut world.events)
        .commit_region(ChangeKind::Create, before);
    for range in 0..132 {
        world.touch((1 << 30) + (range << 21));
    }
    assert_eq!(world.mmu.used_pages().raw(), 135);
    world
        .mmu
        .lock(&mut world.events)
        .commit_region(ChangeKind::Delete, Pages::new(4608));
    assert_eq!(world.mmu.stats().mmu_recycled, 43);
    assert_eq!(world.mmu.limit().pages().raw(), 92);
    assert_eq!(world.audit(), []);
}

#[test]
fn a_table_that_is_shadowed_keeps_huge_pages_away() {
    let mut world = World::paged(&Host::shadow(40)).with_host_pages(PageSize::Size2M);
    world.map_huge(0x80_0000, 0x600);
    world.touch(0x80_0000);
    assert_eq!(world.mmu.stats().pages_2m, 1);
    // The tables are all below frame 0x200.
    world.map_huge(0xa0_0000, 0);
    world.touch(0xa0_0000);
    assert_eq!(world.mmu.stats().pages_2m, 1);
    let split = world
        .mmu
        .active()
        .find(|page| page.role.is_direct())
        .unwrap();
    assert_eq!((split.gfn, split.role.level()), (Gfn::new(0), Level::L1));
    assert_eq!(world.audit(), []);
}

/// The dirty bit of the guest's huge leaf is clear at first: the page that stands in for it is read-only, and another one
/// takes its place with the first write (`mmu.c:validate_direct_spte`).
#[test]
fn a_huge_leaf_that_becomes_dirty_gets_another_direct_page() {
    let mut world = World::paged(&Host::shadow(40));
    world.map_huge(0x80_0000, 0x600);
    world.touch(0x80_0000);
    let access = |world: &World<Npt>| {
        let mut direct = world.mmu.active().filter(|page| page.role.is_direct());
        direct.next().unwrap().role.access().to_string()
    };
    assert_eq!(access(&world), "-ux");
    assert_eq!(world.access(0x80_0000, Kind::Write), Outcome::Fixed);
    assert_eq!(access(&world), "wux");
    assert_eq!(world.audit(), []);
}

#[test]
fn last_level_tables_fall_out_of_step_and_upper_ones_are_emulated() {
    let mut world = World::paged(&Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.touch(0x40_0000);
    let last = world.entry_of(0x40_5000, Level::L1);
    world.guest_write(last, 0x501 << 12 | LINK);
    assert_eq!(
        (
            world.mmu.stats().mmu_unsync,
            world.mmu.stats().mmu_pte_write
        ),
        (1, 0)
    );
    // The window's own entry is in a table of its own, which nobody writes to.
    let upper = world.entry_of(0x60_0000, Level::L2);
    world.guest_write(upper, 0);
    assert_eq!(world.mmu.stats().mmu_pte_write, 1);
    assert_eq!(world.audit(), []);
    world.flush_guest_tlb();
    assert_eq!(world.mmu.stats().mmu_unsync, 0);
    assert_eq!(world.audit(), []);
}

/// Only a page of a higher level for the same frame would take a page out of step along (`mmu.c:kvm_mmu_find_shadow_page`).
#[test]
fn a_page_out_of_step_stays_beside_one_of_its_own_level() {
    let mut world = World::paged(&Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.map_small(0x40_5000, 0x501);
    world.write_own_table(0x40_6000, 0x40_0000);
    assert_eq!(world.mmu.stats().mmu_unsync, 1);
    // The same table once more, read-only: another role.
    let table = world.entry_of(0x40_0000, Level::L1) & !0xfff;
    let link = world.entry_of(0x60_0000, Level::L2);
    world.guest_write(link, table | LINK & !2);
    world.touch(0x60_5000);
    let same = |gfn: u64| {
        let of_frame = world.mmu.active().filter(|page| page.gfn.raw() == gfn);
        of_frame.count()
    };
    assert_eq!(same(table >> 12), 2);
    assert_eq!(world.mmu.stats().mmu_unsync, 1);
    assert_eq!(world.mmu.stats().mmu_shadow_zapped, 0);
    assert_eq!(world.audit(), []);
}

/// What is found out of step is brought into it before it is used (`mmu.c:kvm_mmu_find_shadow_page`).
#[test]
fn a_page_out_of_step_is_synchronised_where_it_is_linked_again() {
    let mut world = World::paged(&Host::shadow(40));
    for page in 0..3 {
        world.map_small(0x40_0000 + (page << 12), 0x500 + page);
        world.touch(0x40_0000 + (page << 12));
    }
    let changed = world.entry_of(0x40_1000, Level::L1);
    world.guest_write(changed, 0x600 << 12 | LINK);
    assert_eq!(world.mmu.stats().mmu_unsync, 1);
    let table = changed & !0xfff;
    let link = world.entry_of(0x60_0000, Level::L2);
    world.guest_write(link, table | LINK | 1 << 5);
    world.touch(0x60_0000);
    let of_table = world
        .mmu
        .active()
        .filter(|page| page.gfn.raw() == table >> 12);
    assert_eq!(of_table.count(), 1, "one page, linked twice");
    let root = world.roots.current(&world.mmu).unwrap();
    let frames = [0, 1, 2].map(|page: u64| {
        let reached = world.mmu.walk(root, 0x60_0000 + (page << 12)).unwrap();
        let leaf = reached.spte.is_leaf(reached.level);
        leaf.then(|| world.mmu.codec().pfn(reached.spte).raw() - FIRST_PFN)
    });
    assert_eq!(frames, [Some(0x500), None, Some(0x502)]);
    assert_eq!(world.audit(), []);
}

/// As the tracepoints print them.
#[test]
fn events_of_shadow_pages_are_told_as_kvm_tells_them() {
    let mut world = World::paged(&Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.write_own_table(0x40_6000, 0x40_0000);
    world.flush_guest_tlb();
    world.mmu.lock(&mut world.events).zap_all_fast();
    let told: Vec<String> = world.events.iter().map(ToString::to_string).collect();
    let table = world.entry_of(0x40_0000, Level::L1) >> 12;
    let last = format!("sp gen 0 gfn {table:x} l1 8-byte q0 wux nxe ad root 0");
    for (times, words) in [
        (1, format!("kvm_mmu_get_page: {last} sync new")),
        (1, format!("kvm_mmu_unsync_page: {last} sync")),
        (1, format!("kvm_mmu_sync_page: {last} unsync")),
        (1, format!("kvm_mmu_prepare_zap_page: {last} sync")),
        (
            1,
            "kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 0 used_pages 6".into(),
        ),
    ] {
        let found = told.iter().filter(|line| **line == words).count();
        assert_eq!(found, times, "{words} in {told:#?}");
    }
    let set = told
        .iter()
        .find(|line| line.contains("gfn 500 spte 100500"));
    let set = set.unwrap();
    assert!(
        set.starts_with("kvm_mmu_set_spte: gfn 500 spte 100500"),
        "{set}"
    );
    assert!(set.contains(" level 1 in sp "), "{set}");
}

/// The host lets a page be written to if its own mapping and the slot do.
#[test]
fn host_and_slot_both_have_to_allow_writes() {
    for (writable, flags, expected) in [
        (true, SlotFlags::empty(), true),
        (false, SlotFlags::empty(), false),
        (true, SlotFlags::READONLY, false),
    ] {
        let mut world = World::paged(&Host::shadow(40));
        let other = Region::new(SlotKey::normal(1), FRAMES << 12, 0x10_000, 1 << 41);
        let _ = world.memory.set_region(&other.with_flags(flags)).unwrap();
        world.backing.writable = writable;
        world.map_small(0x40_0000, FRAMES);
        world.touch(0x40_0000);
        let root = world.roots.current(&world.mmu).unwrap();
        let leaf = world.mmu.walk(root, 0x40_0000).unwrap().spte;
        let codec = world.mmu.codec();
        assert_eq!(
            codec.is_host_writable(leaf),
            expected,
            "{writable} {flags:?}"
        );
        if flags == SlotFlags::READONLY {
            assert_eq!(world.access(0x40_0000, Kind::Write), Outcome::Emulate);
        }
        assert_eq!(world.audit(), []);
    }
}

#[test]
fn at_the_end_of_the_vm_every_page_goes() {
    let mut world = World::paged(&Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.write_own_table(0x40_6000, 0x40_0000);
    let pages = world.mmu.used_pages().raw();
    world.mmu.lock(&mut world.events).zap_all();
    assert_eq!(world.mmu.stats().mmu_shadow_zapped, pages);
    assert_eq!(
        (world.mmu.stats().mmu_unsync, world.mmu.stats().pages_4k),
        (0, 0)
    );
    // The root stays until its vCPU has left it.
    assert_eq!(world.mmu.used_pages().raw(), 1);
    let mut locked = world.mmu.lock(&mut world.events);
    locked.free_roots(&mut world.roots, crate::roots::RootSet::all());
    assert_eq!(world.mmu.used_pages().raw(), 0);
}

/// What a leaf loses is still in TLBs, and what it gains is not (`mmu.c:mmu_spte_update`).
#[test]
fn a_leaf_that_loses_something_asks_for_a_flush() {
    const LOSSES: [u64; 3] = [1 << 1, Npt::ACCESSED, Npt::DIRTY];
    let mut world = World::<Npt>::direct(&Host::npt(40));
    assert_eq!(world.access(0x40_3000, Kind::Write), Outcome::Fixed);
    let head = world
        .mmu
        .frames
        .leafs(AsId::NORMAL, Level::L1, Gfn::new(0x403));
    let at = world.mmu.lists.iter(head).next().unwrap();
    let mut locked = world.mmu.lock(&mut world.events);
    let full = locked.entry(at).raw() | Npt::ACCESSED | Npt::DIRTY;
    let _ = locked.update(at, Spte::from_raw(full));
    assert!(!locked.update(at, Spte::from_raw(full)), "the same");
    for lost in LOSSES {
        assert!(
            locked.update(at, Spte::from_raw(full & !lost)),
            "{lost:#x} goes"
        );
        assert!(!locked.update(at, Spte::from_raw(full)), "{lost:#x} comes");
    }
}

#[test]
fn a_table_written_three_times_without_a_walk_is_taken_for_none() {
    let mut world = World::paged(&Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.touch(0x40_0000);
    let place = world.entry_of(0x60_0000, Level::L2);
    let write = EmulatedWrite {
        gpa: Gpa::new(place),
        len: 8,
        present: EntryWritten::Zero,
    };
    let before = pages_at(&world, Level::L2);
    for times in 1..=3 {
        world.mmu.lock(&mut world.events).track_write(&write);
        let gone = before - pages_at(&world, Level::L2);
        assert_eq!(gone, usize::from(times == 3), "after {times} writes");
    }
    assert_eq!(world.mmu.stats().mmu_flooded, 1);
    assert_eq!(world.audit(), []);
}

/// A write across two entries is none of a table's.
#[test]
fn an_odd_write_zaps_the_page() {
    let mut world = World::paged(&Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.touch(0x40_0000);
    let place = world.entry_of(0x40_0000, Level::L1);
    for (offset, len, gone) in [(0, 1, false), (0, 8, false), (4, 8, true)] {
        world.touch(0x40_0000);
        let before = world.mmu.stats().mmu_flooded;
        let write = EmulatedWrite {
            gpa: Gpa::new(place + offset),
            len,
            present: EntryWritten::NotZero,
        };
        world.mmu.lock(&mut world.events).track_write(&write);
        assert_eq!(
            world.mmu.stats().mmu_flooded - before,
            u64::from(gone),
            "{offset} {len}"
        );
        assert_eq!(world.audit(), []);
    }
}

#[test]
fn without_cr0_wp_a_supervisor_writes_to_what_user_mode_must_not_reach_then() {
    let mut world = World::paged(&Host::shadow(40));
    world.state.cr0 -= Cr0::WP;
    let role = CpuRole::of(&world.state, RoleLayout::Baseline).shadow_root_role();
    world.roots = Roots::new(role);
    world.map_small(0x40_0000, 0x500);
    let place = world.entry_of(0x40_0000, Level::L1);
    world.set_word(place, 0x500 << 12 | LINK & !2);
    assert_eq!(world.access(0x40_0000, Kind::Write), Outcome::Fixed);
    let root = world.roots.current(&world.mmu).unwrap();
    let leaf = world.mmu.walk(root, 0x40_0000).unwrap().spte;
    assert!(leaf.is_writable());
    assert_eq!(leaf.raw() & 1 << 2, 0, "user mode reaches it");
    assert_eq!(world.audit(), []);
}

#[test]
fn what_the_host_takes_away_is_zapped_wherever_it_is_mapped() {
    let mut world = World::paged(&Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.map_small(0x60_0000, 0x500);
    world.touch(0x40_0000);
    world.touch(0x60_0000);
    let before = world.mmu.stats().pages_4k;
    let frame = GfnRange::new(Gfn::new(0x500), Pages::new(1)).unwrap();
    let as_id = slat_memslot::AsId::NORMAL;
    assert!(world.mmu.lock(&mut world.events).zap_frames(as_id, frame));
    assert_eq!(before - world.mmu.stats().pages_4k, 2);
    assert_eq!(world.audit(), []);
}

#[test]
fn a_page_in_place_of_a_huge_one_is_counted_until_it_goes() {
    let mut world = World::<Npt>::direct(&Host::npt(40));
    world.touch(0x40_0000);
    let page = world.mmu.active().next().unwrap().page;
    world.mmu.lock(&mut world.events).account_nx(page, true);
    assert_eq!(world.mmu.pages.get(page).nx, NxDisallowed::Recoverable);
    assert_eq!(world.mmu.stats().nx_lpage_splits, 1);
    world.mmu.lock(&mut world.events).zap_all();
    assert_eq!(world.mmu.stats().nx_lpage_splits, 0);
}

#[test]
fn a_guest_with_four_byte_entries_takes_quadrants() {
    let state = VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr3: 0x10_000,
        cr4: Cr4::PSE,
        ..VcpuState::default()
    };
    let role = CpuRole::of(&state, RoleLayout::Baseline).shadow_root_role();
    let mut world = World::<Npt>::new(&Host::shadow(40), state, role);
    // Directory entry 2 covers 8 MiB; its table is in frame 0x11. Two entries in each word.
    let entry = |frame: u64| frame << 12 | LINK;
    world.ram[0x10_008 / 8].set(entry(0x11));
    world.ram[0x11_000 / 8].set(entry(0x300) | entry(0x301) << 32);
    // Entry 512 of the table: the second half, at 10 MiB.
    world.ram[0x11_800 / 8].set(entry(0x302));
    world.touch(0x80_0000);
    world.touch(0xa0_0000);
    let mut pages: Vec<(u64, u8, u8)> = world
        .mmu
        .active()
        .map(|page| {
            let role = page.role;
            assert!(role.has(RoleFlag::FourByteGpte));
            (page.gfn.raw(), role.level() as u8, role.quadrant() as u8)
        })
        .collect();
    pages.sort_unstable();
    let directories = [(0x10, 2, 0), (0x10, 2, 1), (0x10, 2, 2), (0x10, 2, 3)];
    assert_eq!(pages[..4], directories);
    assert_eq!(pages[4..], [(0x11, 1, 0), (0x11, 1, 1)]);
    assert_eq!(world.audit(), []);
    // A write to the directory's entry empties both halves.
    let write = EmulatedWrite {
        gpa: Gpa::new(0x10_008),
        len: 4,
        present: EntryWritten::Zero,
    };
    world.mmu.lock(&mut world.events).track_write(&write);
    for address in [0x80_0000, 0xa0_0000] {
        let root = world.roots.current(&world.mmu).unwrap();
        assert!(!world.mmu.walk(root, address).unwrap().spte.is_present());
    }
    assert_eq!(world.audit(), []);
}

/// KVM's own slot for the APIC access page: mapped while hardware virtualises the APIC, emulated while that is inhibited,
/// and no slot at all to L2 (`mmu.c:kvm_mmu_faultin_pfn`).
#[test]
fn the_apic_is_mapped_for_l1_while_hardware_has_it() {
    const APIC: u64 = 0xfee0_0000;
    let write = |apicv, guest_mode: bool| {
        let mut world = World::<Npt>::direct(&Host::npt(40));
        world.memory.create_irqchip().unwrap();
        let _vcpu = world.memory.create_vcpu().unwrap();
        world.settings.apicv = apicv;
        if guest_mode {
            let role = world.roots.mmu.role().with(RoleFlag::GuestMode);
            world.roots = Roots::new(role);
        }
        let outcome = world.access(APIC, Kind::Write);
        assert_eq!(world.audit(), []);
        (outcome, world.mmu.stats().pages_4k)
    };
    assert_eq!(write(Apicv::Active, false), (Outcome::Fixed, 1));
    assert_eq!(write(Apicv::Inhibited, false), (Outcome::Emulate, 0));
    for apicv in [Apicv::Active, Apicv::Inhibited] {
        assert_eq!(write(apicv, true), (Outcome::Emulate, 0));
    }
}
