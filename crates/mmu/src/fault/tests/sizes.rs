//! How large a page is mapped.

use PageSize::{Size1G, Size2M, Size4K};

use super::*;
use crate::spte::Ept;

/// A GiB, in frames.
const GIB: u64 = 1 << 18;

#[test]
fn slot_host_and_backing_limit_the_size() {
    for (words, (first, pages), backing, largest, gfn, size) in [
        (
            "all allow 1 GiB",
            (0, 2 * GIB),
            Size1G,
            Size1G,
            GIB + 5,
            Size1G,
        ),
        ("2 MiB behind it", (0, 2 * GIB), Size2M, Size1G, 5, Size2M),
        ("4 KiB behind it", (0, 2 * GIB), Size4K, Size1G, 5, Size4K),
        (
            "the host's largest",
            (0, 2 * GIB),
            Size1G,
            Size2M,
            5,
            Size2M,
        ),
        ("no huge pages", (0, 2 * GIB), Size1G, Size4K, 5, Size4K),
        (
            "head of 1 GiB",
            (0x200, 2 * GIB),
            Size1G,
            Size1G,
            0x300,
            Size2M,
        ),
        (
            "head of 2 MiB",
            (0x100, 2 * GIB),
            Size1G,
            Size1G,
            0x180,
            Size4K,
        ),
        (
            "behind the head",
            (0x100, 2 * GIB),
            Size1G,
            Size1G,
            0x200,
            Size2M,
        ),
        ("tail of 2 MiB", (0, 0x300), Size1G, Size1G, 0x200, Size4K),
        ("before the tail", (0, 0x300), Size1G, Size1G, 0x1ff, Size2M),
    ] {
        let host = Host::ept(40).with_largest_page(largest);
        let world = World::<Ept>::new(&host).backed_by(backing);
        let mut world = world.with_slot(first, pages, SlotFlags::empty());
        let handled = world.fault(gfn, Kind::Write);
        assert_eq!(
            (handled.outcome, handled.size),
            (Outcome::Fixed, size),
            "{words}"
        );
        let found = world.find(gfn);
        assert_eq!(found.level, size.level(), "{words}");
        let pfn = world.tables.codec().pfn(found.spte).raw();
        assert_eq!(pfn, (gfn + PFN) & !(size.pages().raw() - 1), "{words}");
    }
}

#[test]
fn host_addresses_off_by_a_page_allow_small_pages_only() {
    let mut world = World::<Ept>::new(&Host::ept(40)).backed_by(Size1G);
    world.set_region(Region::new(
        SlotKey::normal(1),
        0,
        GIB << 12,
        0x7000_0000_1000,
    ));
    assert_eq!(world.fault(0x300, Kind::Read).size, Size4K);
}

#[test]
fn a_logged_slot_is_mapped_in_small_pages_that_are_dirty_at_once() {
    let world = World::<Ept>::new(&Host::ept(40)).backed_by(Size2M);
    let mut world = world.with_slot(0, GIB, SlotFlags::LOG_DIRTY_PAGES);
    let dirty = |gfn| Some((SlotKey::normal(1), Gfn::new(gfn)));
    for (gfn, kind) in [(3, Kind::Write), (0x205, Kind::Read)] {
        // Whatever the guest wanted, the page becomes writable if the host lets it.
        let handled = world.fault(gfn, kind);
        assert_eq!((handled.size, handled.mark_dirty), (Size4K, dirty(gfn)));
    }
    world.set_backing(Size4K, false);
    let handled = world.fault(7, Kind::Read);
    assert_eq!(
        (handled.outcome, handled.mark_dirty),
        (Outcome::Fixed, None)
    );
    assert!(!world.is_writable(7));
}

#[test]
fn mixed_attributes_allow_no_page_across_them() {
    let mut world = World::<Ept>::of_type(&Host::ept(40), VmType::SwProtected).backed_by(Size1G);
    let file = world.memory.create_gmem(GIB << 12, 0).unwrap();
    let region = Region::new(SlotKey::normal(1), 0, GIB << 12, 0x7000_0000_0000);
    world.set_region(region.with_gmem(file, 0));
    assert_eq!(world.fault(5, Kind::Read).size, Size1G);
    world.set_tables(Tables::new(&Host::ept(40)));
    assert!(
        world
            .memory
            .set_attributes(0x210 << 12, 0x1000, 8, 0)
            .unwrap()
    );
    assert_eq!(world.fault(0x20f, Kind::Read).size, Size4K);
    assert_eq!(world.fault(0x1ff, Kind::Read).size, Size2M);
    assert_eq!(world.fault(0x401, Kind::Read).size, Size2M);
}
