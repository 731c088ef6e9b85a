//! What holds for every entry of every host.

use proptest::prelude::*;
use slat_memslot::Gfn;

use super::*;

fn hosts() -> Vec<Host> {
    let mut hosts = Vec::new();
    for layout in [Layout::P1, Layout::P2, Layout::P3] {
        for host in [EPT, EPT_NO_AD, EPT_L1TF, NPT, EPT.with_execute_only()] {
            hosts.push(host.with_layout(layout));
            hosts.push(host.with_software_ad().with_layout(layout));
        }
        let sme = Encryption::Active { c_bit: 45 };
        hosts.push(Host::npt(46).with_encryption(sme, 43).with_layout(layout));
    }
    hosts
}

fn host() -> impl Strategy<Value = Host> {
    proptest::sample::select(hosts())
}

fn level() -> impl Strategy<Value = Level> {
    proptest::sample::select(Level::ALL.to_vec())
}

fn request<F: Format>(codec: &Codec<F>, dice: u32, pfn: u64) -> LeafRequest<F> {
    let bit = |n: u32| dice >> n & 1 != 0;
    let mut request = small(codec);
    request.table.size = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G][dice as usize % 3];
    request.pfn = Pfn::new(pfn).round_down(request.table.size.level());
    let readable = match codec.host().layout {
        Layout::P1 | Layout::P2 => Access::USER,
        Layout::P3 => Access::READ,
    };
    request.access = Access::from_bits_truncate(dice.to_le_bytes()[1]) | readable;
    request.fill = [Fill::Fault, Fill::Prefetch, Fill::Sync][dice as usize / 3 % 3];
    if bit(20) {
        request.host_write = HostWrite::Refused;
    }
    if bit(21) {
        request.tracking = Tracking::EveryWrite;
    }
    if bit(22) {
        request.guest_pat = GuestPat::Honoured;
    }
    if bit(23) {
        request.nx_huge_pages = NxHugePages::On;
    }
    if bit(24) {
        request.pfn_kind = PfnKind::HostMmio;
    }
    if bit(25) {
        request.old = codec.make_leaf(&small(codec)).spte;
    }
    request
}

/// Whatever bits are set, decoding ends, and its result stays the same when it is encoded and decoded again.
fn decodes_stably<F: Format>(host: &Host, raw: u64, level: Level) {
    let codec = Codec::<F>::new(host);
    let spte = Spte::from_raw(raw);
    let entry = codec.decode(spte, level);
    let again = codec.encode(&entry);
    match entry {
        Entry::Leaf(_) => assert!(again.is_leaf(level)),
        Entry::Link(_) => assert!(again.is_link(level)),
        Entry::Absent | Entry::Frozen | Entry::Mmio(_) => assert!(!again.is_present()),
    }
}

/// A leaf that KVM would make comes back from its meaning, and keeps the invariants of leaves.
fn leaves_come_back<F: Format>(host: &Host, dice: u32, pfn: u64) {
    let codec = Codec::<F>::new(host);
    let request = request(&codec, dice, pfn);
    let level = request.table.size.level();
    let made = codec.make_leaf(&request);
    let Entry::Leaf(leaf) = codec.decode(made.spte, level) else {
        panic!("{:?} is no leaf", made.spte);
    };
    assert_eq!(codec.encode(&Entry::Leaf(leaf)), made.spte);
    assert_eq!(leaf.pfn, request.pfn);
    assert!(leaf.writability.is_consistent());
    assert_eq!(leaf.size(), Some(request.table.size));
    assert!(leaf.saved.is_empty() || codec.is_access_tracked(made.spte));
    assert!(!codec.may_raise_ve(made.spte));
    assert_eq!(made.warning, None);
}

/// Tracking is idempotent, and undone but for the bits that it is meant to take.
fn tracking_is_undone<F: Format>(host: &Host, dice: u32, pfn: u64) {
    let codec = Codec::<F>::new(host);
    let made = codec.make_leaf(&LeafRequest {
        fill: Fill::Fault,
        ..request(&codec, dice, pfn)
    });
    let tracked = codec.track_access(made.spte);
    assert_eq!(codec.track_access(tracked), tracked);
    assert!(!codec.is_accessed(tracked));
    if codec.is_access_tracked(tracked) {
        let restored = codec.mark_accessed(codec.restore_access(tracked));
        assert_eq!(restored, codec.write_protect(made.spte));
    }
}

/// The parts of a huge leaf are its frames, and grow into it again.
fn parts_are_the_whole<F: Format>(host: &Host, dice: u32, pfn: u64, index: u16) {
    let codec = Codec::<F>::new(host);
    let mut request = request(&codec, dice, pfn);
    request.table.size = PageSize::Size2M;
    request.pfn = request.pfn.round_down(Level::L2);
    let huge = codec.make_leaf(&request).spte;
    let child = TableRole {
        size: PageSize::Size4K,
        access: request.access,
        ad: request.table.ad,
    };
    let nx = request.nx_huge_pages;
    let part = codec.make_small(huge, &child, index, nx).unwrap();
    assert_eq!(codec.pfn(part).raw(), request.pfn.raw() + u64::from(index));
    assert_eq!(codec.make_huge(part, PageSize::Size2M, nx), Some(huge));
}

proptest! {
    #[test]
    fn any_bits_decode(host in host(), raw: u64, level in level()) {
        decodes_stably::<Ept>(&host, raw, level);
        decodes_stably::<Npt>(&host, raw, level);
    }

    #[test]
    fn made_leaves_come_back(host in host(), dice: u32, pfn in 0..1_u64 << 28) {
        leaves_come_back::<Ept>(&host, dice, pfn);
        if host.ad_enabled() {
            leaves_come_back::<Npt>(&host, dice, pfn);
        }
    }

    #[test]
    fn tracked_leaves_come_back(host in host(), dice: u32, pfn in 0..1_u64 << 28) {
        tracking_is_undone::<Ept>(&host, dice, pfn);
        if host.ad_enabled() {
            tracking_is_undone::<Npt>(&host, dice, pfn);
        }
    }

    #[test]
    fn parts_grow_back(host in host(), dice: u32, pfn in 0..1_u64 << 28, index in 0_u16..512) {
        parts_are_the_whole::<Ept>(&host, dice, pfn, index);
        if host.ad_enabled() {
            parts_are_the_whole::<Npt>(&host, dice, pfn, index);
        }
    }

    #[test]
    fn links_come_back(host in host(), pfn in 0..1_u64 << 28, disabled: bool) {
        let ad = if disabled { AdType::Disabled } else { AdType::Enabled };
        let codec = Codec::<Ept>::new(&host);
        let link = codec.make_link(Pfn::new(pfn), ad);
        let entry = codec.decode(link, Level::L2);
        let Entry::Link(decoded) = entry else { panic!("{link:?} is no link") };
        prop_assert_eq!((decoded.table, decoded.ad), (Pfn::new(pfn), ad));
        prop_assert_eq!(codec.encode(&entry), link);
        prop_assert_eq!(codec.reserved().violations(link, Level::L4), 0);
    }

    #[test]
    fn mmio_entries_come_back(host in host(), gfn in 0..1_u64 << 28, generation: u64) {
        let generation = slat_memslot::Generation::new(generation);
        let codec = Codec::<Ept>::new(&host);
        let spte = codec.make_mmio(Gfn::new(gfn), Access::all(), generation).unwrap();
        let entry = codec.decode(spte, Level::L1);
        let Entry::Mmio(mmio) = entry else { panic!("{spte:?} is no MMIO") };
        prop_assert_eq!(mmio.gfn, Gfn::new(gfn));
        prop_assert_eq!(mmio.generation, codec.mmio_generation(generation));
        prop_assert_eq!(codec.encode(&entry), spte);
    }
}

#[test]
fn special_values_decode_as_what_they_are() {
    for host in hosts() {
        let codec = Codec::<Ept>::new(&host);
        assert_eq!(codec.decode(codec.nonpresent(), Level::L1), Entry::Absent);
        assert_eq!(codec.decode(codec.frozen(), Level::L2), Entry::Frozen);
        let codec = Codec::<Npt>::new(&host);
        assert_eq!(codec.decode(codec.nonpresent(), Level::L1), Entry::Absent);
        assert_eq!(codec.decode(codec.frozen(), Level::L2), Entry::Frozen);
    }
}

#[test]
fn entries_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Codec<Ept>>();
    shared::<Spte<Npt>>();
    assert_eq!(size_of::<Spte<Ept>>(), 8);
}
