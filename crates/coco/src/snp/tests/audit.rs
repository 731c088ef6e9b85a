//! A fault planted for each rule of the audit.

use std::collections::BTreeSet;

use slat_memslot::Attributes;

use super::*;
use crate::psc::Direction;
use crate::rmp::{RmpEntry, RmpState};
use crate::sync::{lock, write};

fn codes(one: &One) -> BTreeSet<&'static str> {
    let found = one.vm.audit();
    for violation in &found {
        assert!(
            violation.to_string().starts_with(violation.code()),
            "{violation}"
        );
    }
    found.iter().map(SnpViolation::code).collect()
}

/// A VM with a private page at 7, a shared one at 9, and 2 MiB mapped as a whole at 512.
fn healthy() -> One {
    let mut one = One::huge();
    one.own(7, 1);
    one.vm.set_attributes(range(512, 512), Direction::ToPrivate);
    let _ = one.careful(&GuestOp::Validate(gfn(512), RmpSize::Size2M));
    assert_eq!(one.write(512, PRIVATE, 1), GuestReply::Done);
    assert_eq!(one.write(9, SHARED, 1), GuestReply::Done);
    one.assert_clean();
    one
}

fn set_attribute(one: &One, at: u64, attributes: Attributes) {
    let address = at << 12;
    let set = write(&one.vm.memory).set_attributes(address, 0x1000, attributes.bits(), 0);
    assert!(set.unwrap());
}

type Plant = fn(&One);

const PLANTS: [(&str, Plant); 15] = [
    ("N01", |one| {
        one.vm.rmp.plant(one.pfn(7), RmpEntry::HYPERVISOR);
    }),
    ("N02", |one| {
        let pfn = lock(&one.vm.shared)[&gfn(9)];
        let other = Asid::new(6).unwrap();
        one.vm
            .rmp
            .plant(pfn, RmpEntry::guest(other, gfn(9), RmpSize::Size4K));
    }),
    ("N03", |one| one.vm.rmp.psmash(one.pfn(512)).unwrap()),
    ("N04", |one| {
        let other = Asid::new(6).unwrap();
        for pfn in [0x10, 0x11] {
            let entry = RmpEntry::guest(other, gfn(3), RmpSize::Size4K);
            one.vm.rmp.plant(Pfn::new(pfn), entry);
        }
    }),
    ("N05", |one| {
        let tail = Pfn::new(one.pfn(512).raw() + 3);
        one.vm
            .rmp
            .plant(tail, RmpEntry::guest(asid(), gfn(515), RmpSize::Size4K));
    }),
    ("N06", |one| {
        let entry = RmpEntry {
            assigned: true,
            immutable: true,
            validated: true,
            ..RmpEntry::HYPERVISOR
        };
        one.vm.rmp.plant(Pfn::new(0x10), entry);
    }),
    ("N07", |one| {
        let free = lock(&one.vm.frames).freed()[0];
        one.vm.rmp.plant(
            free,
            RmpEntry {
                assigned: true,
                immutable: true,
                ..RmpEntry::HYPERVISOR
            },
        );
    }),
    ("N08", |one| {
        lock(&one.vm.shared).insert(gfn(9), Pfn::new(0x3fff));
    }),
    ("N09", |one| set_attribute(one, 9, Attributes::PRIVATE)),
    ("N10", |one| set_attribute(one, 600, Attributes::empty())),
    ("N11", |one| {
        let entry = RmpEntry::guest(asid(), gfn(1000), RmpSize::Size4K);
        one.vm.rmp.plant(
            Pfn::new(0x10),
            RmpEntry {
                gfn: gfn(40),
                ..entry
            },
        );
    }),
    ("N12", |one| {
        let other = Asid::new(6).unwrap();
        let entry = RmpEntry::guest(other, gfn(1024), RmpSize::Size4K);
        one.vm.rmp.plant(
            Pfn::new(0x10),
            RmpEntry {
                vmsa: true,
                validated: true,
                ..entry
            },
        );
    }),
    ("N13", |one| {
        let pfn = one.pfn(7);
        assert!(!lock(&one.vm.frames).host_write(&one.vm.rmp, pfn, Value::Zero));
    }),
    // Without `adjust_direct_map`.
    ("N14", |one| {
        let state = RmpState::private(Asid::new(6).unwrap(), gfn(3), RmpSize::Size4K);
        one.vm.rmp.rmpupdate(Pfn::new(0x3210), &state).unwrap();
    }),
    // A page that was to be launched goes with the file, without being reclaimed.
    ("N15", |one| {
        one.vm.rmp.plant(
            one.pfn(7),
            RmpEntry {
                immutable: true,
                ..RmpEntry::guest(asid(), gfn(7), RmpSize::Size4K)
            },
        );
        let done = one.vm.punch_hole(range(7, 1));
        assert_eq!((done.leaked, done.immutable), (1, 1));
    }),
];

#[test]
fn each_rule_finds_what_is_planted_for_it() {
    let mut found_at_all = BTreeSet::new();
    for (code, plant) in PLANTS {
        let one = healthy();
        // Something has to be free.
        lock(&one.vm.frames).free(Pfn::new(0x3ffe));
        plant(&one);
        let found = codes(&one);
        assert!(found.contains(code), "{code}: {found:?}");
        found_at_all.insert(code);
    }
    // N16 and N17 are about order.
    found_at_all.extend(out_of_order());
    assert_eq!(
        found_at_all.into_iter().collect::<Vec<_>>(),
        SnpViolation::CODES
    );
}

/// A frame given back while mapped, before the flush, and mapped before it is assigned.
fn out_of_order() -> BTreeSet<&'static str> {
    let (rmp, pfn, pages) = (Rmp::new(0x1000), Pfn::new(0x300), 1);
    let (private, mut order) = (true, Order::default());
    let mapped = Act::Mapped {
        pfn,
        pages,
        private,
    };
    order.act(&rmp, mapped);
    assert_eq!(order.found(), [SnpViolation::MappedTooEarly(pfn)]);
    order.act(&rmp, Act::GivenBack { pfn, pages });
    order.act(&rmp, Act::Unmapped { pfn, pages });
    order.act(&rmp, Act::GivenBack { pfn, pages });
    order.act(&rmp, Act::Flushed);
    order.act(&rmp, Act::GivenBack { pfn, pages });
    let early = |reach| SnpViolation::GivenBackTooEarly(pfn, reach);
    assert_eq!(
        order.found()[1..],
        [early(Reach::Mapped), early(Reach::NotFlushed)]
    );
    order.found().iter().map(SnpViolation::code).collect()
}

/// What the rule about the host's own map is for: a write beside an assigned page faults where the kernel has not split.
#[test]
fn a_neighbour_behind_a_huge_entry_of_the_host_cannot_be_written() {
    let rmp = Rmp::new(0x1000);
    let mut frames = Frames::new(Pfn::new(0x200), rmp.end());
    let pfn = frames.allocate(&rmp, RmpSize::Size4K).unwrap();
    let neighbour = frames.allocate(&rmp, RmpSize::Size4K).unwrap();
    let state = RmpState::private(asid(), gfn(7), RmpSize::Size4K);
    rmp.rmpupdate(pfn, &state).unwrap();
    assert!(!frames.host_write(&rmp, neighbour, Value::Tag(1)));
    frames.adjust_direct_map(pfn, RmpSize::Size4K);
    assert!(frames.host_write(&rmp, neighbour, Value::Tag(1)));
}

/// The kernel's order the other way round: the entry goes to the hypervisor while the page is still mapped.
#[test]
fn an_entry_given_back_before_the_zap_is_found() {
    let one = healthy();
    let shared = RmpState::shared(RmpSize::Size4K);
    one.vm.rmp.rmpupdate(one.pfn(7), &shared).err();
    one.vm.rmp.psmash(one.pfn(7)).err();
    one.vm.rmp.rmpupdate(one.pfn(7), &shared).unwrap();
    assert!(codes(&one).contains("N01"));
}
