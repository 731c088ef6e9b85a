//! Faults that need a bit or two.

use super::*;
use crate::spte::Ept;
use crate::tdp::{Fast, Progress, SlotLog, Uninterrupted, Weaken};

fn write_protect<F: Format>(world: &mut World<F>, smallest: PageSize) {
    let mut weaken = Weaken::write_protect(AsId::NORMAL, range(0, 1 << 18), smallest);
    let mut locked = world.tables.shared(&mut world.reader, Unobserved);
    assert_eq!(weaken.run(&mut locked, &mut Uninterrupted), Progress::Done);
    assert!(weaken.has_changed());
}

#[test]
fn a_write_to_a_protected_page_is_fixed_and_logged_once() {
    for (flags, marked) in [
        (SlotFlags::LOG_DIRTY_PAGES, true),
        (SlotFlags::empty(), false),
    ] {
        let mut world = World::<Ept>::new(&Host::ept(40)).with_slot(0, 16, flags);
        let _handled = world.fault(3, Kind::Read);
        let before = world.find(3).spte;
        write_protect(&mut world, PageSize::Size4K);
        assert!(!world.is_writable(3));
        // What is behind the slot is not asked.
        world.backing.host = HostPage::Bad;
        let handled = world.handle(&on_present(3, Kind::Write));
        assert_eq!(handled.outcome, Outcome::Fixed);
        let expected = marked.then_some((SlotKey::normal(1), Gfn::new(3)));
        assert_eq!(handled.mark_dirty, expected);
        assert_eq!(world.find(3).spte, before);
        let again = world.handle(&on_present(3, Kind::Write));
        assert_eq!((again.outcome, again.mark_dirty), (Outcome::Spurious, None));
    }
}

#[test]
fn reads_and_faults_on_nothing_take_the_long_way_with_hardware_bits() {
    let mut world = World::<Ept>::new(&Host::ept(40)).with_slot(0, 16, SlotFlags::empty());
    let _handled = world.fault(3, Kind::Read);
    world.backing.host = HostPage::Bad;
    for fault in [
        on_present(3, Kind::Read),
        on_present(3, Kind::Execute),
        Fault::new(Gfn::new(3), Kind::Write),
    ] {
        assert_eq!(world.handle(&fault).outcome, Outcome::BadPage, "{fault:?}");
    }
}

#[test]
fn no_huge_page_becomes_writable_while_writes_are_logged() {
    let world = World::<Ept>::new(&Host::ept(40)).backed_by(PageSize::Size2M);
    let mut world = world.with_slot(0, 1 << 18, SlotFlags::empty());
    assert_eq!(world.fault(0x205, Kind::Write).size, PageSize::Size2M);
    world.set_slot(0, 1 << 18, SlotFlags::LOG_DIRTY_PAGES);
    write_protect(&mut world, PageSize::Size2M);
    let table = world.table();
    for (log, expected) in [
        (SlotLog::On, Fast::NotFast),
        (SlotLog::Off, Fast::Fixed { mark_dirty: true }),
        (SlotLog::On, Fast::Spurious),
    ] {
        let mut locked = world.tables.shared(&mut world.reader, Unobserved);
        let fast = locked.fast_fault(table, Gfn::new(0x205), Kind::Write.access(), log);
        assert_eq!(fast, expected, "{log:?}");
    }
    write_protect(&mut world, PageSize::Size2M);
    // The whole path splits the page.
    let handled = world.handle(&on_present(0x205, Kind::Write));
    assert_eq!(
        (handled.outcome, handled.size),
        (Outcome::Fixed, PageSize::Size4K)
    );
    assert!(world.is_writable(0x205) && !world.is_writable(0x206));
    assert_eq!(world.tables.totals().pages_4k, 512);
}

#[test]
fn an_access_tracked_leaf_gets_its_permissions_back_but_for_writing() {
    let host = Host::ept(40).without_ad();
    let mut world = World::<Ept>::new(&host).with_slot(0, 16, SlotFlags::LOG_DIRTY_PAGES);
    assert_eq!(
        world.prefault(3, 1).unwrap().handled.outcome,
        Outcome::Fixed
    );
    let codec = *world.tables.codec();
    assert!(codec.is_access_tracked(world.find(3).spte));
    world.backing.host = HostPage::Bad;
    let handled = world.fault(3, Kind::Read);
    assert_eq!(
        (handled.outcome, handled.mark_dirty),
        (Outcome::Fixed, None)
    );
    let restored = world.find(3).spte;
    assert!(!codec.is_access_tracked(restored) && codec.is_executable(restored));
    assert!(!restored.is_writable());
    // The write comes next, and is seen.
    let handled = world.handle(&on_present(3, Kind::Write));
    assert_eq!(handled.outcome, Outcome::Fixed);
    assert!(handled.mark_dirty.is_some() && world.is_writable(3));
}

#[test]
fn frames_that_a_root_cannot_tell_apart_do_not_share_a_leaf() {
    let mut world = World::<Ept>::new(&Host::ept(40)).with_slot(0, 16, SlotFlags::empty());
    let _handled = world.fault(3, Kind::Read);
    let table = world.table();
    let mut locked = world.tables.shared(&mut world.reader, Unobserved);
    let alias = Gfn::new((1 << 36) + 3);
    let fast = locked.fast_fault(table, alias, Kind::Write.access(), SlotLog::Off);
    assert_eq!(fast, Fast::NotFast);
}
