//! The rules of making entries that no golden value shows.

use super::*;

const LATER: Host = EPT.with_software_ad();

fn sync<F: Format>(codec: &Codec<F>) -> LeafRequest<F> {
    LeafRequest {
        fill: Fill::Sync,
        ..small(codec)
    }
}

#[test]
fn replacing_a_writable_leaf() {
    for (host, dirty) in [(EPT, false), (LATER, true)] {
        let codec = Codec::<Ept>::new(&host);
        let old = codec.make_leaf(&small(&codec)).spte;
        let request = LeafRequest {
            old,
            tracking: Tracking::EveryWrite,
            ..small(&codec)
        };
        // Nobody is asked whether the page is tracked.
        assert!(!codec.asks_for_tracking(&request));
        let made = codec.make_leaf(&request);
        assert!(made.spte.is_writable() && !made.write_protected);
        assert_eq!(codec.is_dirty(made.spte), dirty);
    }
}

#[test]
fn a_writable_link_is_no_writable_leaf() {
    let codec = Codec::<Ept>::new(&EPT);
    let request = LeafRequest {
        old: codec.make_link(Pfn::new(1), AdType::Enabled),
        tracking: Tracking::EveryWrite,
        ..huge(&codec)
    };
    let made = codec.make_leaf(&request);
    assert!(made.write_protected && !made.spte.is_writable());
}

#[test]
fn tracking_takes_the_write_away_and_says_so() {
    let codec = Codec::<Npt>::new(&NPT);
    let request = LeafRequest {
        tracking: Tracking::EveryWrite,
        dirty_log: true,
        ..small(&codec)
    };
    let made = codec.make_leaf(&request);
    assert!(made.write_protected && !made.mark_dirty);
    // A page that could not be written anyway is not write-protected.
    let read = LeafRequest {
        access: Access::USER | Access::EXECUTE,
        ..request
    };
    assert!(!codec.asks_for_tracking(&read));
    assert!(!codec.make_leaf(&read).write_protected);
    let refused = LeafRequest {
        host_write: HostWrite::Refused,
        ..request
    };
    assert!(!codec.make_leaf(&refused).write_protected);
}

#[test]
fn a_writable_leaf_in_a_logged_slot_is_dirty() {
    let codec = Codec::<Ept>::new(&EPT);
    let request = LeafRequest {
        dirty_log: true,
        ..small(&codec)
    };
    assert!(codec.make_leaf(&request).mark_dirty);
    // Prefetching is no excuse with A/D bits; without, the leaf is tracked and not writable yet.
    let early = LeafRequest {
        fill: Fill::Prefetch,
        ..request
    };
    assert!(codec.make_leaf(&early).mark_dirty);
    let codec = Codec::<Ept>::new(&EPT_NO_AD);
    let mut early = early;
    early.table.ad = AdType::Disabled;
    assert!(!codec.make_leaf(&early).mark_dirty);
}

#[test]
fn a_writable_huge_leaf_in_a_logged_slot_is_warned_about() {
    let codec = Codec::<Ept>::new(&EPT);
    let request = LeafRequest {
        dirty_log: true,
        ..huge(&codec)
    };
    let warning = codec.make_leaf(&request).warning;
    assert_eq!(warning, Some(Warning::HugeInDirtyLog));
}

#[test]
fn reserved_bits_are_warned_about() {
    let codec = Codec::<Ept>::new(&EPT);
    let beyond = LeafRequest {
        pfn: Pfn::new(1 << 28),
        ..small(&codec)
    };
    let bits = 1 << 40;
    let warning = codec.make_leaf(&beyond).warning;
    assert_eq!(warning, Some(Warning::ReservedBits { bits }));
    let unaligned = LeafRequest {
        pfn: Pfn::new(1),
        ..huge(&codec)
    };
    let bits = 1 << 12;
    let warning = codec.make_leaf(&unaligned).warning;
    assert_eq!(warning, Some(Warning::ReservedBits { bits }));
}

#[test]
fn synchronised_leaves_count_as_accessed_since_6_13() {
    let codec = Codec::<Ept>::new(&EPT);
    assert_eq!(raw(&codec, &sync(&codec)), 0x8600_0000_0000_0a77);
    let codec = Codec::<Ept>::new(&LATER);
    assert_eq!(raw(&codec, &sync(&codec)), 0x8600_0000_0000_0b77);
    // Without A/D bits the older rule takes the permissions of what was just synchronised.
    let codec = Codec::<Ept>::new(&EPT_NO_AD);
    assert_eq!(raw(&codec, &sync(&codec)), 0x8750_0000_0000_0870);
    let codec = Codec::<Ept>::new(&EPT_NO_AD.with_software_ad());
    assert_eq!(raw(&codec, &sync(&codec)), 0x8610_0000_0000_0b77);
}

#[test]
fn execute_only_leaves_need_a_cpu_that_has_them() {
    let leaf = |host: &Host| {
        let codec = Codec::<Ept>::new(host);
        let request = LeafRequest {
            access: Access::EXECUTE,
            ..small(&codec)
        };
        codec.make_leaf(&request).spte.raw()
    };
    assert_eq!(leaf(&EPT) & bits::ept::RWX, 5);
    assert_eq!(leaf(&EPT.with_execute_only()) & bits::ept::RWX, 4);
    assert_eq!(leaf(&EPT.with_layout(Layout::P3)) & bits::ept::RWX, 4);
}

#[test]
fn splitting_refuses_what_is_not_huge() {
    let codec = Codec::<Ept>::new(&EPT);
    let role = small(&codec).table;
    let split = |spte, index| codec.make_small(spte, &role, index, NxHugePages::Off);
    let leaf = codec.make_leaf(&huge(&codec)).spte;
    assert!(split(leaf, 511).is_some());
    assert_eq!(split(leaf, 512), None);
    assert_eq!(split(codec.make_leaf(&small(&codec)).spte, 0), None);
    assert_eq!(split(codec.frozen(), 0), None);
}

#[test]
fn splitting_a_tracked_page_keeps_it_tracked() {
    let codec = Codec::<Ept>::new(&EPT_NO_AD);
    let huge = LeafRequest {
        nx_huge_pages: NxHugePages::On,
        fill: Fill::Prefetch,
        ..huge(&codec)
    };
    let leaf = codec.make_leaf(&huge).spte;
    // Only the right to read is put aside.
    assert_eq!(leaf.raw(), 0x8650_0000_0000_08f0);
    let part = codec
        .make_small(leaf, &small(&codec).table, 1, NxHugePages::On)
        .unwrap();
    assert_eq!(part.raw(), 0x8750_0000_0000_1870);
}

#[test]
fn small_leaves_grow_into_a_huge_one() {
    let codec = Codec::<Ept>::new(&LATER);
    let small = Spte::from_raw(0x8600_0001_03a0_2b77);
    let grow = |size, nx| codec.make_huge(small, size, nx);
    let raw = |raw| Some(Spte::from_raw(raw));
    assert_eq!(
        grow(PageSize::Size2M, NxHugePages::Off),
        raw(0x8600_0001_03a0_0bf7)
    );
    assert_eq!(
        grow(PageSize::Size2M, NxHugePages::On),
        raw(0x8600_0001_03a0_0bf3)
    );
    assert_eq!(
        grow(PageSize::Size1G, NxHugePages::Off),
        raw(0x8600_0001_0000_0bf7)
    );
    assert_eq!(grow(PageSize::Size4K, NxHugePages::Off), None);
    let absent = codec.make_huge(codec.nonpresent(), PageSize::Size2M, NxHugePages::Off);
    assert_eq!(absent, None);
    let npt = Codec::<Npt>::new(&NPT.with_software_ad());
    let huge = npt.make_huge(Spte::from_raw(0x2e67), PageSize::Size2M, NxHugePages::On);
    assert_eq!(huge, Some(Spte::from_raw(0x8000_0000_0000_0ee7)));
}

#[test]
fn p3_saves_the_user_execute_bit() {
    let codec = Codec::<Ept>::new(&EPT_NO_AD.with_layout(Layout::P3));
    let leaf = codec.make_leaf(&small(&codec)).spte;
    assert_eq!(leaf.raw(), 0x90a0_0000_0000_0f77);
    let tracked = codec.track_access(leaf);
    assert_eq!(tracked.raw(), 0xd0f0_0000_0000_0a70);
    let restored = codec.mark_accessed(codec.restore_access(tracked));
    assert_eq!(codec.make_writable(restored), leaf);
}

#[test]
fn volatile_entries() {
    let volatile = |host: &Host, raw| Codec::<Ept>::new(host).is_volatile(Spte::from_raw(raw));
    let rows = [
        // (entry, up to 6.12, since 6.13)
        (0x8600_0000_0000_0b77, false, false),
        (0x8600_0000_0000_0a77, true, false),
        (0x8600_0000_0000_0977, true, true),
        (0x8600_0000_0000_0b75, true, true),
        (0x8000_0000_0000_0975, false, false),
        (0x8610_0000_0000_0877, false, true),
        (0x8010_0000_0000_0875, false, true),
        (0x8750_0000_0000_0870, true, true),
    ];
    for (raw, before, since) in rows {
        assert_eq!(volatile(&EPT, raw), before, "{raw:#x}");
        assert_eq!(volatile(&LATER, raw), since, "{raw:#x}");
    }
}

#[test]
fn only_present_entries_suppress_ve() {
    let codec = Codec::<Ept>::new(&EPT);
    assert!(!codec.may_raise_ve(codec.nonpresent()));
    assert!(!codec.may_raise_ve(codec.frozen()));
    assert!(!codec.may_raise_ve(Spte::from_raw(0xfed0_0096)));
    assert!(codec.may_raise_ve(Spte::from_raw(0)));
    let npt = Codec::<Npt>::new(&NPT);
    assert!(!npt.may_raise_ve(Spte::from_raw(0)));
}

#[test]
fn dirty_and_accessed_without_ad_bits() {
    let codec = Codec::<Ept>::new(&EPT_NO_AD);
    let leaf = Spte::from_raw(0x8610_0000_0000_0877);
    assert!(codec.is_dirty(leaf) && !codec.is_dirty(codec.write_protect(leaf)));
    let codec = Codec::<Ept>::new(&EPT_NO_AD.with_software_ad());
    assert!(!codec.is_dirty(leaf) && !codec.is_accessed(leaf));
    assert!(codec.is_accessed(codec.mark_accessed(leaf)));
}

#[test]
fn parts_of_a_page_that_may_be_executed() {
    // The table's access takes nothing away before P3, and does since.
    let part = |layout| {
        let codec = Codec::<Ept>::new(&EPT.with_layout(layout));
        let leaf = codec.make_leaf(&huge(&codec)).spte;
        let child = TableRole {
            access: Access::READ | Access::WRITE,
            ..small(&codec).table
        };
        let part = codec.make_small(leaf, &child, 0, NxHugePages::On).unwrap();
        part.raw() & 0xfff
    };
    assert_eq!(part(Layout::P2), 0xb77);
    assert_eq!(part(Layout::P3), 0xb73);
}

#[test]
fn tracking_takes_permissions_only_without_hardware_bits() {
    let codec = Codec::<Ept>::new(&LATER);
    let leaf = Spte::from_raw(0x8610_0000_0000_0b77);
    assert_eq!(codec.track_access(leaf).raw(), 0x8750_0000_0000_0a70);
    assert_eq!(
        codec.track_access(Spte::from_raw(0x8600_0000_0000_0b77)),
        Spte::from_raw(0x8600_0000_0000_0a77)
    );
}

/// The bits of a leaf with some access, among those of access but writing, and the access that it is read as.
fn access_bits<F: Format>(host: &Host, access: Access) -> (u64, Access) {
    let codec = Codec::<F>::new(host);
    let request = LeafRequest {
        access,
        ..small(&codec)
    };
    let spte = codec.make_leaf(&request).spte;
    let Entry::Leaf(leaf) = codec.decode(spte, Level::L1) else {
        panic!("{spte:?} is no leaf");
    };
    assert_eq!(codec.encode(&Entry::Leaf(leaf)), spte);
    let mask = codec.protection(Access::all()) | codec.protection(Access::USER);
    (spte.raw() & mask, leaf.access)
}

#[test]
fn access_means_what_the_layout_says() {
    let (execute, user, read) = (Access::EXECUTE, Access::USER, Access::READ);
    for layout in [Layout::P1, Layout::P2] {
        let ept = |access| access_bits::<Ept>(&EPT.with_layout(layout), access);
        assert_eq!(ept(execute | user), (5, execute | user));
        assert_eq!(ept(user | read), (1, user));
        let npt = |access| access_bits::<Npt>(&NPT.with_layout(layout), access);
        assert_eq!(npt(execute | user | read), (4, execute | user));
        assert_eq!(npt(execute | read), (0, execute));
    }
    let ept = |access| access_bits::<Ept>(&EPT.with_layout(Layout::P3), access);
    assert_eq!(ept(read), (1, read));
    assert_eq!(ept(read | user), (0x401, read | user));
    assert_eq!(ept(read | execute), (5, read | execute));
    let npt = |access| access_bits::<Npt>(&NPT.with_layout(Layout::P3), access);
    assert_eq!(npt(read | execute), (1, read | execute));
    assert_eq!(npt(read | user), (1 << 63 | 5, read | user));
}
