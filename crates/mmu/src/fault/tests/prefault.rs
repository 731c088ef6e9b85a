//! Pages mapped before anybody asks for them.

use super::*;
use crate::spte::Ept;

#[test]
fn progress_ends_with_the_page_and_with_what_was_asked_for() {
    for (backing, gfn, left, done) in [
        (PageSize::Size4K, 0x210, 100, 1),
        (PageSize::Size2M, 0x210, 100, 100),
        (PageSize::Size2M, 0x210, 10_000, 0x1f0),
        (PageSize::Size2M, 0x200, 10_000, 0x200),
        (PageSize::Size2M, 0x3ff, 10_000, 1),
        (PageSize::Size1G, 5, 1 << 20, (1 << 18) - 5),
    ] {
        let world = World::<Ept>::new(&Host::ept(40)).backed_by(backing);
        let mut world = world.with_slot(0, 1 << 18, SlotFlags::empty());
        let step = world.prefault(gfn, left).unwrap();
        assert_eq!(step.done, Pages::new(done), "{backing} from {gfn:#x}");
        assert_eq!(
            (step.handled.outcome, step.handled.size),
            (Outcome::Fixed, backing)
        );
        // Once more, it changes nothing but that a leaf which replaces a writable one is clean.
        assert_eq!(world.prefault(gfn, left).unwrap().done, step.done);
        assert_eq!(world.find(gfn).level, backing.level());
    }
}

#[test]
fn refusals_say_why() {
    let mut world = World::<Ept>::new(&Host::ept(40)).with_slot(0, 16, SlotFlags::empty());
    assert_eq!(world.prefault(16, 1), Err(PrefaultError::NoSlot));
    for (answer, error) in [
        (HostPage::Bad, PrefaultError::BadPage),
        (HostPage::Interrupted, PrefaultError::Interrupted),
    ] {
        world.backing.host = answer;
        assert_eq!(world.prefault(3, 1), Err(error));
    }
}

/// Why a prefault would never end, if it would not.
fn endless(world: &mut World<Ept>) -> Option<Endless> {
    match world.prefault(3, 1) {
        Err(PrefaultError::Endless { why, tries }) => {
            assert!(tries > 1);
            Some(why)
        }
        Ok(_) => None,
        Err(other) => panic!("{other}"),
    }
}

/// In KVM only a signal ends these, so the recordings of 6.12.117 with an obsolete root have `EINTR` from a timer.
#[test]
fn what_no_try_changes_is_told_apart() {
    let mut world = World::<Ept>::new(&Host::ept(40)).with_slot(0, 16, SlotFlags::empty());
    world.begin(Some(range(3, 4)));
    assert_eq!(endless(&mut world), Some(Endless::Invalidation));
    world.end();
    assert_eq!(endless(&mut world), None);
    let page = core::mem::replace(&mut world.backing.host, HostPage::Poisoned);
    assert_eq!(endless(&mut world), Some(Endless::Page));
    world.backing.host = page;
    world.tables.exclusive(Unobserved).invalidate_roots();
    assert_eq!(endless(&mut world), Some(Endless::ObsoleteRoot));
}

#[test]
fn a_slot_that_is_going_ends_a_prefault_since_6_18() {
    for (profile, spins) in [
        ("debian-6.12.117", true),
        ("linux-6.12", true),
        ("linux-6.18", false),
    ] {
        let mut world = World::<Ept>::new(&Host::ept(40));
        world.memory = Memory::new(Profile::named(profile).unwrap(), VmType::Default);
        world.set_slot(0, 16, SlotFlags::empty());
        assert!(world.memory.invalidate_slot(SlotKey::normal(1)).is_some());
        if spins {
            assert_eq!(endless(&mut world), Some(Endless::InvalidSlot));
        } else {
            assert_eq!(world.prefault(3, 1), Err(PrefaultError::InvalidSlot));
        }
    }
}

#[test]
fn a_hole_in_the_file_is_a_bad_page() {
    let mut world = World::<Ept>::of_type(&Host::ept(40), VmType::SwProtected);
    let file = world.memory.create_gmem(16 << 12, 0).unwrap();
    let region = Region::new(SlotKey::normal(1), 0, 16 << 12, 0x7000_0000_0000);
    world.set_region(region.with_gmem(file, 0));
    assert!(world.memory.set_attributes(0, 8 << 12, 8, 0).unwrap());
    // Private or shared, as the attributes say.
    assert_eq!(world.prefault(3, 4).unwrap().done, Pages::new(1));
    assert_eq!(world.prefault(9, 4).unwrap().done, Pages::new(1));
    world.backing.file = Some(FilePage::Bad);
    assert_eq!(world.prefault(4, 1), Err(PrefaultError::BadPage));
    assert_eq!(world.prefault(10, 1).unwrap().done, Pages::new(1));
}

#[test]
fn up_to_6_12_a_prefault_takes_the_accessed_bit_of_a_leaf_that_is_there() {
    for (host, kept) in [
        (Host::ept(40), false),
        (Host::ept(40).with_software_ad(), true),
    ] {
        let mut world = World::<Ept>::new(&host).with_slot(0, 16, SlotFlags::empty());
        let codec = *world.tables.codec();
        let _handled = world.fault(3, Kind::Write);
        assert!(codec.is_accessed(world.find(3).spte));
        let outcome = world.prefault(3, 1).unwrap().handled.outcome;
        let expected = if kept {
            Outcome::Spurious
        } else {
            Outcome::Fixed
        };
        assert_eq!(outcome, expected);
        assert_eq!(codec.is_accessed(world.find(3).spte), kept);
    }
}
