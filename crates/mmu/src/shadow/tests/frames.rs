//! What is done to the leaves of some frames, and what vCPUs find of it. Oracle: the rules of `mmu.c` of 6.12.117.

use slat_memslot::{AsId, GfnRange, Pages};

use super::*;
use crate::roots::{Root, RootSet};
use crate::spte::Ept;
use crate::tdp::{ByWhat, Fast, SlotLog};

const NORMAL: AsId = AsId::NORMAL;

fn frames(start: u64, count: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), Pages::new(count)).unwrap()
}

/// A guest that does not page; so many of its frames from 0x400 on are written to.
fn written<F: Format>(host: &Host, count: u64) -> World<F> {
    let mut world = World::direct(host);
    for gfn in 0x400..0x400 + count {
        let done = world.access(gfn << 12, Kind::Write);
        assert_eq!(done, Outcome::Fixed);
    }
    world
}

fn rights<F: Format>(world: &World<F>, gfn: u64) -> Option<Access> {
    let root = world.roots.current(&world.mmu).unwrap();
    world.mmu.rights_at(root, gfn << 12 | 0x123)
}

fn is_mapped<F: Format>(world: &World<F>, gfn: u64) -> bool {
    rights(world, gfn).is_some()
}

fn is_writable<F: Format>(world: &World<F>, gfn: u64) -> bool {
    rights(world, gfn).is_some_and(|rights| rights.contains(Access::WRITE))
}

/// Whether a write by the guest makes the leaf dirty; `None` if it faults.
fn dirties<F: Format>(world: &World<F>, gfn: u64) -> Option<bool> {
    let root = world.roots.current(&world.mmu).unwrap();
    match world.mmu.hardware_access(root, gfn << 12, Access::WRITE) {
        HardwareAccess::Done { became_dirty } => Some(became_dirty),
        _ => None,
    }
}

fn fast<F: Format>(world: &mut World<F>, gfn: u64, access: Access, log: SlotLog) -> Fast {
    let root = world.roots.current(&world.mmu).unwrap();
    let gpa = Gpa::new(gfn << 12 | 0x123);
    let (mmu, out) = (&world.mmu, &mut world.events);
    mmu.fast_fault(root, gpa, access, log, out)
}

#[test]
fn a_leaf_is_found_by_any_address_in_it() {
    for size in [PageSize::Size4K, PageSize::Size2M] {
        let mut world = World::<Npt>::direct(&Host::npt(40)).with_host_pages(size);
        world.touch(0x40_3000);
        let root = world.roots.current(&world.mmu).unwrap();
        let frame = |address| world.mmu.frame_at(root, address);
        for address in [0x40_3000, 0x40_3fff] {
            assert_eq!(frame(address), Some(Gfn::new(0x403)));
        }
        let far = (size == PageSize::Size2M).then_some(Gfn::new(0x5ff));
        assert_eq!(frame(0x5f_f800), far);
        assert_eq!(frame(0x60_0000), None);
    }
}

/// `kvm_mmu_zap_memslot`: leaves of the slot, and pages that follow tables in it.
#[test]
fn a_slot_takes_its_leaves_and_the_followers_of_its_tables() {
    let mut world = World::<Npt>::direct(&Host::npt(40));
    let other = Region::new(SlotKey::normal(1), 1 << 30, 1 << 20, 1 << 41);
    let _effects = world.memory.set_region(&other).unwrap();
    world.touch(0x40_3000);
    world.touch(1 << 30);
    world
        .mmu
        .lock(&mut world.events)
        .zap_slot(NORMAL, frames(1 << 18, 0x100));
    assert!(is_mapped(&world, 0x403) && !is_mapped(&world, 1 << 18));
    assert_eq!(world.audit(), []);

    let mut world = World::paged(&Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.touch(0x40_0000);
    let top = world.state.cr3 >> 12;
    let in_slot = |world: &World<Npt>| {
        let pages = world.mmu.active();
        pages
            .filter(|page| page.gfn.raw() > top && page.gfn.raw() < top + 0x40)
            .count()
    };
    assert_eq!(in_slot(&world), 3);
    let tables = frames(top + 1, 0x3f);
    world.mmu.lock(&mut world.events).zap_slot(NORMAL, tables);
    assert_eq!(in_slot(&world), 0);
    assert_eq!(world.audit(), []);
    world.touch(0x40_0000);
}

fn age<F: Format>(world: &mut World<F>, gfn: u64, count: u64) -> bool {
    let mut locked = world.mmu.lock(&mut world.events);
    locked.age(NORMAL, frames(gfn, count))
}

/// `kvm_age_rmap`: a page that was used is young once.
fn uses_are_seen_once<F: Format>(host: &Host) {
    let mut world = World::<F>::direct(host);
    world.touch(0x40_0000);
    world.touch(0x50_0000);
    assert!(age(&mut world, 0x400, 1));
    assert!(!age(&mut world, 0x400, 1));
    world.touch(0x40_0000);
    assert!(age(&mut world, 0x3f0, 0x100));
    assert!(age(&mut world, 0x3f0, 0x200), "the other page is young yet");
    assert!(!age(&mut world, 0x3f0, 0x200));
    assert_eq!(world.audit(), []);
}

/// By accessed bits, or by taking away what the leaf allows.
#[test]
fn a_page_is_young_once_after_each_use() {
    uses_are_seen_once::<Npt>(&Host::npt(40));
    uses_are_seen_once::<Ept>(&Host::ept(40));
    uses_are_seen_once::<Ept>(&Host::ept(40).without_ad());
}

/// Only hardware says which of them are used, so that they are mapped along with accessed bits only.
#[test]
fn neighbours_that_are_mapped_along_are_old() {
    let mut world = World::<Npt>::direct(&Host::npt(40));
    world.touch(0x40_0000);
    assert!(is_mapped(&world, 0x401));
    assert!(!age(&mut world, 0x401, 0x80));
    let mut world = World::<Ept>::direct(&Host::ept(40).without_ad());
    world.touch(0x40_0000);
    assert!(!is_mapped(&world, 0x401));
}

/// `kvm_mmu_clear_dirty_pt_masked` and `kvm_mmu_write_protect_pt_masked`: the next write to these frames shows.
#[test]
fn what_a_mask_names_shows_its_next_write() {
    let mut world = written::<Npt>(&Host::npt(40), 4);
    let clear = |world: &mut World<Npt>, mask, by| {
        let mut locked = world.mmu.lock(&mut world.events);
        locked.clear_dirty_masked(NORMAL, Gfn::new(0x400), mask, by);
    };
    let next = |world: &World<Npt>| [0x400, 0x401, 0x402, 0x403].map(|gfn| dirties(world, gfn));
    let (dirty, clean) = (Some(false), Some(true));
    assert_eq!(next(&world), [dirty; 4]);
    clear(&mut world, 0b0101, ByWhat::DirtyBit);
    assert_eq!(next(&world), [clean, dirty, clean, dirty]);
    assert_eq!(next(&world), [dirty; 4]);
    clear(&mut world, 0b1010, ByWhat::WriteProtection);
    assert_eq!(next(&world), [dirty, None, dirty, None]);
    assert_eq!(world.audit(), []);
}

/// `kvm_mmu_slot_leaf_clear_dirty`: by dirty bits where hardware keeps them, else by faults.
#[test]
fn a_range_shows_its_next_writes_by_what_hardware_has() {
    let clear = |host: &Host| {
        let mut world = written::<Ept>(host, 3);
        let mut locked = world.mmu.lock(&mut world.events);
        locked.clear_dirty_range(NORMAL, frames(0x401, 5));
        assert_eq!(world.audit(), []);
        [0x400, 0x401, 0x402].map(|gfn| dirties(&world, gfn))
    };
    let host = Host::ept(40);
    assert_eq!(clear(&host), [Some(false), Some(true), Some(true)]);
    let faults = clear(&host.without_ad());
    assert_eq!(faults[1..], [None, None]);
    assert!(faults[0].is_some());
}

/// `fast_page_fault`: what was taken for a while is given back, what is protected for good is not.
#[test]
fn a_fast_fault_gives_back_what_was_taken_for_a_while() {
    let mut world = written::<Npt>(&Host::npt(40), 2);
    let (small, off) = (PageSize::Size4K, SlotLog::Off);
    let protect = |world: &mut World<Npt>| {
        let mut locked = world.mmu.lock(&mut world.events);
        locked.write_protect_range(NORMAL, frames(0x400, 1), small);
    };
    protect(&mut world);
    assert!(!is_writable(&world, 0x400) && is_writable(&world, 0x401));
    let write = Access::WRITE;
    let fixed = Fast::Fixed { mark_dirty: true };
    assert_eq!(fast(&mut world, 0x400, write, off), fixed);
    assert!(is_writable(&world, 0x400));
    assert_eq!(fast(&mut world, 0x400, write, off), Fast::Spurious);
    assert_eq!(
        fast(&mut world, 0x400, Access::EXECUTE, off),
        Fast::Spurious
    );
    assert_eq!(fast(&mut world, 0x400, Access::USER, off), Fast::Spurious);
    assert_eq!(fast(&mut world, 0x600, write, off), Fast::NotFast);
    // In a logged slot too: the page is marked dirty then.
    protect(&mut world);
    assert_eq!(fast(&mut world, 0x400, write, SlotLog::On), fixed);
    let last = world.events.last();
    assert!(
        matches!(last, Some(Event::FastFault { gfn, old, new, fast })
            if gfn.raw() == 0x400 && !old.is_writable() && new.is_writable() && *fast == fixed),
        "{last:?}"
    );
    let mut locked = world.mmu.lock(&mut world.events);
    assert!(locked.write_track(NORMAL, Gfn::new(0x400), small));
    assert_eq!(fast(&mut world, 0x400, write, off), Fast::NotFast);
    assert!(!is_writable(&world, 0x400));
    assert_eq!(fast(&mut world, 0x400, Access::USER, off), Fast::Spurious);
}

/// A huge leaf of a logged slot has to be split first.
#[test]
fn a_huge_leaf_of_a_logged_slot_stays_read_only() {
    let mut world = World::<Npt>::direct(&Host::npt(40)).with_host_pages(PageSize::Size2M);
    assert_eq!(world.access(0x40_0000, Kind::Write), Outcome::Fixed);
    let mut locked = world.mmu.lock(&mut world.events);
    locked.write_protect_range(NORMAL, frames(0x400, 0x200), PageSize::Size2M);
    assert!(!is_writable(&world, 0x400));
    assert_eq!(
        fast(&mut world, 0x400, Access::WRITE, SlotLog::On),
        Fast::NotFast
    );
    let fixed = Fast::Fixed { mark_dirty: true };
    assert_eq!(fast(&mut world, 0x400, Access::WRITE, SlotLog::Off), fixed);
}

/// Without accessed bits, use is seen by faults, which give back what the leaf allowed.
#[test]
fn an_aged_leaf_is_restored_by_a_fast_fault() {
    let mut world = written::<Ept>(&Host::ept(40).without_ad(), 1);
    let before = rights(&world, 0x400);
    assert!(age(&mut world, 0x400, 1));
    let root = world.roots.current(&world.mmu).unwrap();
    let used = world.mmu.hardware_access(root, 0x400 << 12, Access::USER);
    assert_eq!(used, HardwareAccess::NotPresent);
    let restored = fast(&mut world, 0x400, Access::USER, SlotLog::Off);
    assert!(matches!(restored, Fast::Fixed { .. }), "{restored:?}");
    let after = rights(&world, 0x400);
    let write = Access::WRITE;
    assert_eq!(after.map(|r| r | write), before.map(|r| r | write));
    assert_eq!(
        fast(&mut world, 0x400, Access::USER, SlotLog::Off),
        Fast::Spurious
    );
    assert_eq!(world.audit(), []);
}

/// `kvm_rmap_zap_collapsible_sptes`: small leaves go where the host has a huge page and nothing else forbids one.
#[test]
fn small_leaves_go_where_the_host_has_a_huge_page() {
    let collapse = |world: &mut World<Npt>, backed: PageSize| {
        let slot = world.memory.space(NORMAL).by_gfn(Gfn::new(0)).unwrap();
        let mut locked = world.mmu.lock(&mut world.events);
        locked.zap_collapsible(&world.memory, slot, |_| backed);
        assert_eq!(world.audit(), []);
    };
    let mut world = written(&Host::npt(40), 3);
    collapse(&mut world, PageSize::Size4K);
    assert!(is_mapped(&world, 0x401));
    collapse(&mut world, PageSize::Size2M);
    assert!((0x400..0x403).all(|gfn| !is_mapped(&world, gfn)));
    // A page of a guest's table is as large as the guest's.
    let mut world = World::paged(&Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.touch(0x40_0000);
    let leaves = world.mmu.stats().pages_4k;
    collapse(&mut world, PageSize::Size2M);
    assert_eq!(world.mmu.stats().pages_4k, leaves);
    // A leaf that is as large as can be stays.
    let mut world = World::<Npt>::direct(&Host::npt(40)).with_host_pages(PageSize::Size2M);
    world.touch(0x40_0000);
    collapse(&mut world, PageSize::Size2M);
    assert!(is_mapped(&world, 0x400));
}

/// `kvm_mmu_free_roots`, `kvm_mmu_reset_context`, `kvm_mmu_free_obsolete_roots`.
#[test]
fn roots_that_a_vcpu_gives_up_are_not_loaded_any_more() {
    let mut world = World::<Npt>::direct(&Host::npt(40));
    world.touch(0x40_0000);
    let mut locked = world.mmu.lock(&mut world.events);
    locked.free_roots(&mut world.roots, RootSet::PREVIOUS_0);
    assert_ne!(world.roots.mmu.cache().current(), Root::None);
    let mut locked = world.mmu.lock(&mut world.events);
    locked.free_obsolete_roots(&mut world.roots);
    assert_ne!(world.roots.mmu.cache().current(), Root::None);
    world.mmu.lock(&mut world.events).zap_all_fast();
    assert_eq!(world.mmu.used_pages().raw(), 1);
    let mut locked = world.mmu.lock(&mut world.events);
    locked.free_obsolete_roots(&mut world.roots);
    assert_eq!(world.roots.mmu.cache().current(), Root::None);
    assert_eq!(world.mmu.used_pages().raw(), 0);

    world.touch(0x40_0000);
    let role = world.roots.mmu.role();
    let mut locked = world.mmu.lock(&mut world.events);
    locked.reset_context(&mut world.roots, role);
    assert_eq!(world.roots.mmu.cache().current(), Root::None);
    assert_eq!(world.roots.mmu.role(), role);
    world.touch(0x40_0000);
    let mut locked = world.mmu.lock(&mut world.events);
    locked.free_roots(&mut world.roots, RootSet::CURRENT);
    assert!(world.roots.current(&world.mmu).is_none());
    assert_eq!(world.audit(), []);
}
