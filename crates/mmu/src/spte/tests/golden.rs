//! The values that follow from KVM's rules, row by row.

use slat_memslot::{Generation, Gfn};

use super::*;

fn prefetched<F: Format>(codec: &Codec<F>) -> LeafRequest<F> {
    LeafRequest {
        fill: Fill::Prefetch,
        ..small(codec)
    }
}

fn read_only<F: Format>(codec: &Codec<F>) -> LeafRequest<F> {
    LeafRequest {
        host_write: HostWrite::Refused,
        ..small(codec)
    }
}

fn write_tracked<F: Format>(codec: &Codec<F>) -> LeafRequest<F> {
    LeafRequest {
        tracking: Tracking::EveryWrite,
        ..small(codec)
    }
}

fn huge_nx<F: Format>(codec: &Codec<F>) -> LeafRequest<F> {
    LeafRequest {
        nx_huge_pages: NxHugePages::On,
        ..huge(codec)
    }
}

#[test]
fn ept_links() {
    let link = |host: &Host, ad| Codec::<Ept>::new(host).make_link(Pfn::new(0), ad).raw();
    assert_eq!(link(&EPT, AdType::Enabled), 0x8000_0000_0000_0907);
    assert_eq!(link(&EPT_NO_AD, AdType::Disabled), 0x8010_0000_0000_0807);
    let software = EPT_NO_AD.with_software_ad();
    assert_eq!(link(&software, AdType::Disabled), 0x8010_0000_0000_0807);
    assert_eq!(link(&EPT, AdType::WriteProtectOnly), 0x8000_0000_0000_0907);
}

#[test]
fn ept_leaves() {
    for host in [EPT, EPT.with_execute_only()] {
        let codec = Codec::<Ept>::new(&host);
        assert_eq!(raw(&codec, &small(&codec)), 0x8600_0000_0000_0b77);
        assert_eq!(raw(&codec, &prefetched(&codec)), 0x8600_0000_0000_0a77);
        assert_eq!(raw(&codec, &read_only(&codec)), 0x8000_0000_0000_0975);
        assert_eq!(raw(&codec, &write_tracked(&codec)), 0x8200_0000_0000_0975);
        assert_eq!(raw(&codec, &huge(&codec)), 0x8600_0000_0000_0bf7);
        assert_eq!(raw(&codec, &huge_nx(&codec)), 0x8600_0000_0000_0bf3);
    }
}

#[test]
fn ept_dirty_log() {
    let codec = Codec::<Ept>::new(&EPT);
    let leaf = codec.make_leaf(&small(&codec)).spte;
    assert_eq!(codec.write_protect(leaf).raw(), 0x8600_0000_0000_0b75);
    assert_eq!(codec.clear_dirty(leaf).raw(), 0x8600_0000_0000_0977);
}

#[test]
fn ept_memory_types() {
    let codec = Codec::<Ept>::new(&EPT);
    let device = LeafRequest {
        pfn_kind: PfnKind::HostMmio,
        ..small(&codec)
    };
    assert_eq!(raw(&codec, &device), 0x8600_0000_0000_0b07);
    let pat = LeafRequest {
        guest_pat: GuestPat::Honoured,
        ..small(&codec)
    };
    assert_eq!(raw(&codec, &pat), 0x8600_0000_0000_0b37);
}

#[test]
fn ept_write_protect_only() {
    let codec = Codec::<Ept>::new(&EPT);
    let mut request = small(&codec);
    request.table.ad = codec.ad_type_of_table(role(0x0002_3781));
    assert_eq!(raw(&codec, &request), 0x8620_0000_0000_0b77);
    // Without PML the nested guest's leaves are like any other.
    let codec = Codec::<Ept>::new(&EPT.without_pml());
    assert_eq!(codec.ad_type_of_table(role(0x0002_3781)), AdType::Enabled);
}

#[test]
fn ept_without_ad() {
    let codec = Codec::<Ept>::new(&EPT_NO_AD);
    assert_eq!(raw(&codec, &small(&codec)), 0x8610_0000_0000_0877);
    assert_eq!(raw(&codec, &prefetched(&codec)), 0x8750_0000_0000_0870);

    let codec = Codec::<Ept>::new(&EPT_NO_AD.with_software_ad());
    assert_eq!(raw(&codec, &small(&codec)), 0x8610_0000_0000_0b77);
    let tracked = codec.track_access(codec.make_leaf(&small(&codec)).spte);
    assert_eq!(tracked.raw(), 0x8750_0000_0000_0a70);
    assert_eq!(raw(&codec, &prefetched(&codec)), 0x8750_0000_0000_0a70);
}

#[test]
fn not_present() {
    let values = |layout| {
        let codec = Codec::<Ept>::new(&EPT.with_layout(layout));
        (codec.nonpresent().raw(), codec.frozen().raw())
    };
    assert_eq!(values(Layout::P1), (0, 0x5a0));
    assert_eq!(values(Layout::P2), (1 << 63, 0x8000_0000_0000_05a0));
    assert_eq!(values(Layout::P3), (1 << 63, 0x8000_0000_0000_01a0));
}

#[test]
fn ept_mmio() {
    let mmio = |host: &Host, gpa: u64, generation| {
        let gfn = Gfn::new(gpa >> 12);
        Codec::<Ept>::new(host)
            .make_mmio(gfn, Access::all(), Generation::new(generation))
            .unwrap()
            .raw()
    };
    assert_eq!(mmio(&EPT, 0xfed0_0000, 0x12), 0xfed0_0096);
    assert_eq!(mmio(&EPT, 0xfed0_0000, 0x12345), 0x1230_0000_fed0_022e);
    let l1tf = Host::ept(46).with_l1tf(44);
    assert_eq!(mmio(&l1tf, 0x100_fed0_0000, 0x12), 0x2f80_fed0_0096);
}

#[test]
fn ept_of_other_layouts() {
    let leaf = |layout| {
        let codec = Codec::<Ept>::new(&EPT.with_layout(layout));
        raw(&codec, &small(&codec))
    };
    assert_eq!(leaf(Layout::P1), 0x0600_0000_0000_0b77);
    assert_eq!(leaf(Layout::P3), 0x80a0_0000_0000_0f77);
    let p3 = Codec::<Ept>::new(&EPT.with_layout(Layout::P3));
    let link = p3.make_link(Pfn::new(0), AdType::Enabled);
    assert_eq!(link.raw(), 0x8000_0000_0000_0d07);
}

#[test]
fn npt_values() {
    for layout in [Layout::P1, Layout::P2, Layout::P3] {
        let codec = Codec::<Npt>::new(&NPT.with_layout(layout));
        let link = codec.make_link(Pfn::new(0), AdType::Enabled);
        assert_eq!(link.raw(), 0x827);
        assert_eq!(raw(&codec, &small(&codec)), 0xe67);
        assert_eq!(raw(&codec, &prefetched(&codec)), 0xe47);
        assert_eq!(raw(&codec, &read_only(&codec)), 0x825);
        assert_eq!(raw(&codec, &write_tracked(&codec)), 0xa25);
        let protected = codec.write_protect(codec.make_leaf(&small(&codec)).spte);
        assert_eq!(protected.raw(), 0xe65);
        assert_eq!(raw(&codec, &huge(&codec)), 0xee7);
        assert_eq!(raw(&codec, &huge_nx(&codec)), 0x8000_0000_0000_0ee7);
    }
}

#[test]
fn npt_without_execution() {
    let codec = Codec::<Npt>::new(&NPT);
    let request = LeafRequest {
        access: Access::WRITE | Access::USER,
        ..small(&codec)
    };
    assert_eq!(raw(&codec, &request), 0x8000_0000_0000_0e67);
}

#[test]
fn npt_mmio() {
    let codec = Codec::<Npt>::new(&NPT);
    let access = Access::WRITE | Access::USER;
    let spte = codec
        .make_mmio(Gfn::new(0xfed00), access, Generation::new(0x12))
        .unwrap();
    assert_eq!(spte.raw(), 0x0008_0000_fed0_0097);
}

#[test]
fn c_bit_is_in_everything_but_host_mmio() {
    let host = Host::npt(48).with_encryption(Encryption::Active { c_bit: 47 }, 43);
    let codec = Codec::<Npt>::new(&host);
    let link = codec.make_link(Pfn::new(1), AdType::Enabled);
    assert_eq!(link.raw(), 0x0000_8000_0000_1827);
    assert_eq!(raw(&codec, &small(&codec)), 0x0000_8000_0000_0e67);
    let device = LeafRequest {
        pfn_kind: PfnKind::HostMmio,
        ..small(&codec)
    };
    assert_eq!(raw(&codec, &device), 0xe67);
    assert_eq!(codec.pfn(link), Pfn::new(1));
}
