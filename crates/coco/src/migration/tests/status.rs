//! The list against one entry for each frame, and what a VMM offers.

use proptest::prelude::*;
use slat_memslot::{Gfn, GfnRange, Pages};

use super::super::{
    Hearing, Keeper, KeeperCost, MigrationControl, Offer, Rule, Status, StatusKeeper, StatusList,
    Technology,
};

const FRAMES: u32 = 64;

fn range(start: u32, pages: u32) -> GfnRange {
    GfnRange::new(Gfn::new(start.into()), Pages::new(pages.into())).expect("not empty")
}

proptest! {
    #[test]
    fn like_one_entry_for_each_frame(
        calls in prop::collection::vec((0..FRAMES, 1..FRAMES, prop::sample::select(&Status::ALL)), 0..40),
    ) {
        let (mut list, mut frames) = (StatusList::new(), [Status::Private; 2 * FRAMES as usize]);
        for (start, pages, status) in calls {
            let part = &mut frames[start as usize..][..pages as usize];
            let news = part.iter().any(|known| *known != status);
            part.fill(status);
            prop_assert_eq!(list.set(range(start, pages), status), news);
        }
        for (frame, status) in frames.into_iter().enumerate() {
            prop_assert_eq!(list.get(Gfn::new(frame as u64)), status);
        }
        // Borders are where neighbours differ, and nowhere else.
        let cut: Vec<_> = list.cut(range(0, 2 * FRAMES)).collect();
        let borders = frames.windows(2).filter(|pair| pair[0] != pair[1]).count();
        prop_assert_eq!(cut.len(), borders + 1);
        let pages: u64 = cut.iter().map(|(part, _)| part.pages().raw()).sum();
        prop_assert_eq!(pages, 2 * u64::from(FRAMES));
        let shared = cut.iter().filter(|(_, status)| *status == Status::Shared);
        prop_assert!(shared.map(|(part, _)| *part).eq(list.shared()));
        prop_assert_eq!(StatusList::from_shared(list.shared()), list);
    }
}

#[test]
fn what_a_guest_makes_of_an_offer() {
    let offer = |hypercall_bit, control_bit, exit_enabled| Offer {
        hypercall_bit,
        control_bit,
        exit_enabled,
    };
    assert_eq!(offer(true, true, true).hearing(), Hearing::Complete);
    assert_eq!(offer(true, false, true).hearing(), Hearing::NeverReady);
    assert_eq!(offer(true, true, false).hearing(), Hearing::Lost);
    assert_eq!(offer(false, true, true).hearing(), Hearing::Silent);
}

#[test]
fn a_list_counts_what_is_shared_and_forgets() {
    let mut list = StatusList::new();
    assert_eq!((list.len(), list.is_empty()), (0, true));
    for start in [0, 8, 16] {
        list.set(range(start, 4), Status::Shared);
    }
    assert_eq!((list.len(), list.is_empty()), (3, false));
    // Neighbours are one range.
    list.set(range(4, 4), Status::Shared);
    assert_eq!(list.len(), 2);
    list.reset();
    assert_eq!((list.len(), list.is_empty()), (0, true));
    assert_eq!(list, StatusList::new());
}

/// One exit for each announcement, or one call with the whole list for each round.
#[test]
fn a_list_costs_its_keeper_exits_or_copies() {
    let cost = |keeper| {
        let mut list = StatusKeeper::new(keeper);
        for page in 0..5 {
            list.announce(range(2 * page, 1), Status::Shared);
        }
        for _round in 0..3 {
            assert_eq!(list.query().len(), 5);
        }
        list.announce(range(0, 1), Status::Private);
        assert_eq!(list.query().get(Gfn::new(0)), Status::Private);
        list.cost()
    };
    let by_vmm = KeeperCost {
        exits: 6,
        ..KeeperCost::default()
    };
    assert_eq!(cost(Keeper::Vmm), by_vmm);
    let by_kvm = KeeperCost {
        exits: 0,
        calls: 4,
        ranges_copied: 3 * 5 + 4,
    };
    assert_eq!(cost(Keeper::Kernel), by_kvm);
}

/// `MSR_KVM_MIGRATION_CONTROL`: bit 0 says ready, the others are reserved.
#[test]
fn an_encrypted_guest_moves_when_it_has_said_so() {
    let mut control = MigrationControl::for_encrypted_guest();
    assert_eq!((control.read(), control.may_migrate()), (0, false));
    assert_eq!(control.write(1), Ok(()));
    assert_eq!((control.read(), control.may_migrate()), (1, true));
    for reserved in [2, 3, 1 << 63] {
        assert_eq!(control.write(reserved), Err(reserved));
        assert!(control.may_migrate(), "a write that faults changes nothing");
    }
    assert_eq!(control.write(0), Ok(()));
    assert!(!control.may_migrate());
    let plain = MigrationControl::for_plain_guest();
    assert_eq!((plain.read(), plain.may_migrate()), (1, true));
}

/// The names of the command line and of the page on migration.
#[test]
fn rules_and_technologies_have_names_of_their_own() {
    let names = Rule::ALL.map(Rule::name);
    let expected = [
        "announce-first",
        "dirty-before-list",
        "data-lost",
        "synchronous",
        "final-round",
        "list-moves",
        "fresh-list",
        "private-by-default",
        "announcement-dirties",
    ];
    assert_eq!(names, expected);
    for rule in Rule::ALL {
        assert_eq!(rule.to_string(), rule.name());
        let same = Rule::ALL
            .iter()
            .filter(|other| other.meaning() == rule.meaning());
        assert_eq!(same.count(), 1, "{rule}");
    }
    assert_eq!(Technology::ALL.map(Technology::name), ["sev", "snp", "tdx"]);
}
