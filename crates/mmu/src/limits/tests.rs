use slat_memslot::{ChangeKind, Errno, Memory, Pages, Profile, Region, SlotKey, VmError, VmType};

use super::{Eviction, ShadowPageLimit, Tuning};

const NONE: Pages = Pages::new(0);

fn limit_for(slot_pages: u64) -> ShadowPageLimit {
    let mut limit = ShadowPageLimit::new();
    assert_eq!(
        limit.commit_region(ChangeKind::Create, Pages::new(slot_pages), NONE),
        None
    );
    limit
}

#[test]
fn a_vm_without_slots_has_no_room() {
    let limit = ShadowPageLimit::new();
    assert_eq!(limit, ShadowPageLimit::default());
    assert_eq!(limit.available(NONE), NONE);
    assert_eq!(limit.tuning(), Tuning::Automatic);
}

#[test]
fn automatic_limit_is_a_fiftieth_rounded_down_but_at_least_64() {
    for (slots, pages) in [
        (0, 64),
        (1, 64),
        (3200, 64),
        (3249, 64),
        (3250, 65),
        (4608, 92),
        (4649, 92),
        (4650, 93),
        (u64::MAX, u64::MAX / 50),
    ] {
        let automatic = ShadowPageLimit::automatic(Pages::new(slots));
        assert_eq!(automatic, Pages::new(pages), "{slots} slot pages");
    }
}

#[test]
fn only_creating_and_deleting_tunes() {
    for kind in [ChangeKind::Nothing, ChangeKind::Move, ChangeKind::FlagsOnly] {
        let mut limit = limit_for(50_000);
        assert_eq!(limit.commit_region(kind, NONE, Pages::new(900)), None);
        assert_eq!(limit.pages(), Pages::new(1000), "{kind}");
    }
    let mut limit = limit_for(50_000);
    assert_eq!(limit.commit_region(ChangeKind::Delete, NONE, NONE), None);
    assert_eq!(limit.pages(), ShadowPageLimit::LEAST);
}

/// As measured on Linux 6.12: a VM with 135 shadow pages in use, of which the deletion of a slot left 92.
#[test]
fn deleting_a_slot_evicts_what_is_over() {
    let mut limit = limit_for(65_536 + 4608);
    let in_use = Pages::new(135);
    let eviction = limit.commit_region(ChangeKind::Delete, Pages::new(4608), in_use);
    assert_eq!(
        eviction,
        Some(Eviction {
            excess: Pages::new(43)
        })
    );
    assert_eq!(limit.available(in_use), NONE);
}

#[test]
fn exactly_full_evicts_nothing() {
    let mut limit = limit_for(50_000);
    let full = Pages::new(64);
    assert_eq!(limit.commit_region(ChangeKind::Delete, NONE, full), None);
    assert_eq!(limit.available(full), NONE);
    assert_eq!(limit.available(Pages::new(60)), Pages::new(4));
}

#[test]
fn the_limit_settles_at_what_is_left() {
    for left in [70, 64, 40] {
        let mut limit = limit_for(50_000);
        let eviction = limit.commit_region(ChangeKind::Delete, NONE, Pages::new(100));
        limit.settle(eviction.unwrap(), Pages::new(left));
        assert_eq!(limit.pages(), Pages::new(left));
        // The next slot tunes it again.
        assert_eq!(
            limit.commit_region(ChangeKind::Create, Pages::new(5000), NONE),
            None
        );
        assert_eq!(limit.pages(), Pages::new(100));
    }
}

#[test]
fn fewer_than_64_are_refused_and_change_nothing() {
    let before = limit_for(50_000);
    for pages in [0, 1, 63] {
        let mut limit = before;
        let refused = limit.set_by_user(pages, NONE);
        assert_eq!(refused, Err(VmError::NrMmuPages { pages }));
        assert_eq!(refused.unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(limit, before);
    }
}

#[test]
fn the_user_s_limit_stays_for_the_vm_s_life() {
    let mut limit = limit_for(50_000);
    let in_use = Pages::new(100);
    let eviction = limit.set_by_user(64, in_use).unwrap();
    assert_eq!(
        eviction,
        Some(Eviction {
            excess: Pages::new(36)
        })
    );
    assert_eq!(limit.tuning(), Tuning::User);
    for kind in [ChangeKind::Create, ChangeKind::Delete] {
        assert_eq!(limit.commit_region(kind, Pages::new(1 << 30), in_use), None);
        assert_eq!(limit.pages(), Pages::new(64));
    }
    assert_eq!(limit.set_by_user(u64::MAX, in_use), Ok(None));
    assert_eq!(limit.pages(), Pages::new(u64::MAX));
}

#[test]
fn a_limit_may_come_before_any_slot() {
    let mut limit = ShadowPageLimit::new();
    assert_eq!(limit.set_by_user(64, NONE), Ok(None));
    assert_eq!(
        limit.commit_region(ChangeKind::Create, Pages::new(1 << 20), NONE),
        None
    );
    assert_eq!(limit.pages(), Pages::new(64));
}

/// The two crates refuse the same values, and the limit follows a real `Memory`'s page counter.
#[test]
fn agrees_with_memory() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    for pages in [0, 63, 64, 65, u64::MAX] {
        let answers = (
            memory.check_nr_mmu_pages(pages).map_err(|r| r.errno()),
            ShadowPageLimit::new().set_by_user(pages, NONE).map(drop),
        );
        assert_eq!(answers.0, answers.1.map_err(|e| e.errno()));
    }
    let mut limit = ShadowPageLimit::new();
    let slot = SlotKey::normal(0);
    for (request, expected) in [
        (Region::new(slot, 0, 1 << 30, 1 << 40), 5242),
        (Region::new(slot, 1 << 30, 1 << 30, 1 << 40), 5242),
        (Region::delete(slot), 64),
    ] {
        let effects = memory.set_region(&request).unwrap();
        assert_eq!(
            limit.commit_region(effects.kind, memory.total_pages(), NONE),
            None
        );
        assert_eq!(limit.pages(), Pages::new(expected));
    }
}
