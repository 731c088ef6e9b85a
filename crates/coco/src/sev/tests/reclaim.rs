//! What becomes of memory that the host moves or gives back, pinned or not.

use std::collections::BTreeSet;

use proptest::prelude::*;
use slat_memslot::Hva;

use super::super::{EncRegion, Regions, SevVm, SevVmType};

const PAGES: u64 = 12;

/// A guest that has written its page 3 under its key, and page 4 without.
fn guest() -> SevVm {
    let mut vm = SevVm::new(SevVmType::Sev);
    vm.init().expect("a new VM");
    for half in 0..2 {
        vm.guest_write(3, half, true, 0x33);
        vm.guest_write(4, half, false, 0x44);
    }
    vm
}

fn region(first: u64, pages: u64) -> EncRegion {
    EncRegion {
        addr: Hva::new(first * 4096),
        size: pages * 4096,
    }
}

#[test]
fn what_is_encrypted_cannot_be_moved() {
    let mut vm = guest();
    assert!(vm.host_move(3) && vm.host_move(4));
    assert_eq!(vm.guest_read(3, true), [None; 2]);
    assert_eq!(vm.guest_read(4, false), [Some(0x44); 2]);
    vm.guest_write(3, 0, true, 0x33);
    vm.register_region(region(3, 1)).expect("a guest");
    assert!(!vm.host_move(3));
    assert_eq!(vm.guest_read(3, true), [Some(0x33), None]);
}

#[test]
fn pins_do_not_keep_what_is_given_back() {
    let mut vm = guest();
    vm.register_region(region(0, 8)).expect("a guest");
    vm.host_discard(3..5);
    assert_eq!(vm.guest_read(3, true), [None; 2]);
    assert_eq!(vm.guest_read(4, false), [Some(0); 2]);
    assert_eq!(vm.regions().pinned(), 8, "they count on");
    let pinned: Vec<u64> = (0..9)
        .filter(|page| vm.regions().is_pinned(*page))
        .collect();
    assert_eq!(pinned, [0, 1, 2, 5, 6, 7]);
    // Registered once more, what is there now is pinned.
    vm.register_region(region(3, 2)).expect("room");
    assert!(vm.regions().is_pinned(3) && !vm.host_move(4));
    assert_eq!(vm.regions().pinned(), 10);
}

#[test]
fn caches_are_written_back_for_a_guest_with_a_key() {
    let mut vm = SevVm::new(SevVmType::Sev);
    vm.reclaimed();
    assert_eq!(vm.cache_flushes(), 0, "no SEV guest yet");
    vm.init().expect("a new VM");
    vm.reclaimed();
    vm.register_region(region(0, 2)).expect("a guest");
    assert_eq!(vm.cache_flushes(), 1);
    vm.unregister_region(region(0, 1)).expect_err("a part");
    assert_eq!(vm.cache_flushes(), 1, "what is refused flushes nothing");
    vm.unregister_region(region(0, 2)).expect("registered");
    assert_eq!(vm.cache_flushes(), 2);
}

#[derive(Clone, Debug)]
enum Op {
    Register(u64, u64),
    Unregister(usize),
    Discard(u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (0..PAGES, 1..6_u64);
    prop_oneof![
        range().prop_map(|(first, pages)| Op::Register(first, pages)),
        (0..4_usize).prop_map(Op::Unregister),
        range().prop_map(|(first, pages)| Op::Discard(first, pages)),
    ]
}

fn index(page: u64) -> usize {
    usize::try_from(page).expect("few pages")
}

proptest! {
    /// Beside a memory in which every page has a name of its own, and a registration is the names that it found.
    #[test]
    fn pins_hold_pages_and_not_addresses(ops in prop::collection::vec(op(), 0..24)) {
        let mut regions = Regions::default();
        let mut names: Vec<u64> = (0..2 * PAGES).collect();
        let mut fresh = 2 * PAGES;
        let mut pins: Vec<(EncRegion, BTreeSet<u64>)> = Vec::new();
        for op in ops {
            match op {
                Op::Register(first, pages) => {
                    regions.register(region(first, pages)).expect("no limit");
                    let found = (first..first + pages).map(|page| names[index(page)]);
                    pins.push((region(first, pages), found.collect()));
                }
                Op::Unregister(number) => {
                    let Some((one, _)) = pins.get(number).cloned() else {
                        continue;
                    };
                    regions.unregister(one).expect("it is registered");
                    let oldest = pins.iter().position(|(other, _)| *other == one);
                    pins.remove(oldest.expect("it is there"));
                }
                Op::Discard(first, pages) => {
                    regions.discard(&(first..first + pages));
                    for page in first..first + pages {
                        names[index(page)] = fresh;
                        fresh += 1;
                    }
                }
            }
            for (page, name) in (0..).zip(&names) {
                let wanted = pins.iter().any(|(_, found)| found.contains(name));
                prop_assert_eq!(regions.is_pinned(page), wanted, "page {}", page);
            }
            let counted: u64 = pins.iter().map(|(one, _)| one.pages().unwrap_or(0)).sum();
            prop_assert_eq!(regions.pinned(), counted);
        }
    }
}
