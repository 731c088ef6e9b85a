//! Values that kernel 6.12.117 was seen to make, by machine and scenario of the recordings.
//!
//! Each row gives the entry before, what was asked for, and the entry after.

use slat_memslot::{Generation, Gfn};

use super::*;

/// What differs from a fault on writable memory.
#[derive(Clone, Copy)]
enum Ask {
    Fault,
    Prefetch,
    ReadOnly,
    Tracked,
    Nx,
    Pat,
    Nested,
    NestedPrefetch,
    WithoutAd,
}

impl Ask {
    fn apply<F: Format>(self, codec: &Codec<F>, request: &mut LeafRequest<F>) {
        match self {
            Self::Fault => {}
            Self::Prefetch => request.fill = Fill::Prefetch,
            Self::ReadOnly => request.host_write = HostWrite::Refused,
            Self::Tracked => request.tracking = Tracking::EveryWrite,
            Self::Nx => request.nx_huge_pages = NxHugePages::On,
            Self::Pat => request.guest_pat = GuestPat::Honoured,
            Self::Nested => request.table.ad = codec.ad_type_of_table(role(0x0002_3781)),
            Self::NestedPrefetch => {
                request.table.ad = codec.ad_type_of_table(role(0x0002_3781));
                request.fill = Fill::Prefetch;
            }
            Self::WithoutAd => {
                request.table.ad = codec.ad_type_of_table(role(0x0003_0701));
                request.fill = Fill::Prefetch;
            }
        }
    }
}

type Row = (&'static str, u64, PageSize, u64, Ask, u64);

const EMPTY: u64 = 1 << 63;
const K4: PageSize = PageSize::Size4K;
const M2: PageSize = PageSize::Size2M;
const G1: PageSize = PageSize::Size1G;

fn check<F: Format>(host: &Host, rows: &[Row]) {
    let codec = Codec::<F>::new(host);
    for &(scenario, old, size, pfn, ask, new) in rows {
        let mut request = small(&codec);
        request.old = Spte::from_raw(old);
        request.table.size = size;
        request.pfn = Pfn::new(pfn);
        ask.apply(&codec, &mut request);
        let made = codec.make_leaf(&request);
        assert_eq!(made.spte, Spte::from_raw(new), "{scenario}");
        assert_eq!(made.warning, None, "{scenario}");
        let entry = codec.decode(made.spte, size.level());
        assert_eq!(codec.encode(&entry), made.spte, "{scenario}");
    }
}

#[test]
fn ept_l4() {
    check::<Ept>(
        &EPT,
        &[
            (
                "01-first-fault-4k",
                EMPTY,
                K4,
                0x13b497,
                Ask::Fault,
                0x8600_0001_3b49_7b77,
            ),
            (
                "02-zero-page-then-cow",
                EMPTY,
                K4,
                0x1c81,
                Ask::ReadOnly,
                0x8000_0000_01c8_1975,
            ),
            (
                "06-hugetlb-1g",
                EMPTY,
                G1,
                0x40000,
                Ask::Fault,
                0x8600_0000_4000_0bf7,
            ),
            (
                "23-readonly-slot-2m",
                EMPTY,
                M2,
                0x103a00,
                Ask::ReadOnly,
                0x8000_0001_03a0_09f5,
            ),
            (
                "25-mmio-no-slot",
                0x40_0016,
                K4,
                0x13b4d7,
                Ask::Fault,
                0x8600_0001_3b4d_7977,
            ),
            (
                "26-nx-huge-pages",
                EMPTY,
                M2,
                0x103a00,
                Ask::Nx,
                0x8600_0001_03a0_0bf3,
            ),
            (
                "26-nx-huge-pages",
                0x8600_0001_03a0_2b77,
                K4,
                0x103a02,
                Ask::Nx,
                0x8600_0001_03a0_2977,
            ),
            (
                "33-pre-fault-4k",
                EMPTY,
                K4,
                0x103c43,
                Ask::Prefetch,
                0x8600_0001_03c4_3a77,
            ),
            (
                "33-pre-fault-4k",
                0x8600_0001_03c4_3a77,
                K4,
                0x103c43,
                Ask::Prefetch,
                0x8600_0001_03c4_3877,
            ),
            (
                "34-pre-fault-2m",
                EMPTY,
                M2,
                0x103a00,
                Ask::Prefetch,
                0x8600_0001_03a0_0af7,
            ),
            (
                "34-pre-fault-2m",
                0x8600_0001_03a0_0af7,
                M2,
                0x103a00,
                Ask::Prefetch,
                0x8600_0001_03a0_08f7,
            ),
            (
                "63-guest-pat-honoured",
                EMPTY,
                K4,
                0x8276,
                Ask::Pat,
                0x8600_0000_0827_6b37,
            ),
            (
                "63-guest-pat-honoured",
                EMPTY,
                M2,
                0x200,
                Ask::Pat,
                0x8600_0000_0020_0bb7,
            ),
            (
                "65-vmx-l2-without-ept",
                EMPTY,
                K4,
                0x80c0,
                Ask::Nested,
                0x8620_0000_080c_0b77,
            ),
            (
                "65-vmx-l2-without-ept",
                EMPTY,
                K4,
                0x80ce,
                Ask::NestedPrefetch,
                0x8620_0000_080c_ea77,
            ),
            (
                "67-vmx-l2-with-ept-noad",
                EMPTY,
                K4,
                0x80cd,
                Ask::WithoutAd,
                0x8750_0000_080c_d870,
            ),
        ],
    );
}

#[test]
fn ept_l4_noad() {
    check::<Ept>(
        &EPT_NO_AD,
        &[
            (
                "01-first-fault-4k",
                EMPTY,
                K4,
                0x13b497,
                Ask::Fault,
                0x8610_0001_3b49_7877,
            ),
            (
                "02-zero-page-then-cow",
                EMPTY,
                K4,
                0x1c81,
                Ask::ReadOnly,
                0x8010_0000_01c8_1875,
            ),
            (
                "26-nx-huge-pages",
                EMPTY,
                M2,
                0x103a00,
                Ask::Nx,
                0x8610_0001_03a0_08f3,
            ),
            (
                "33-pre-fault-4k",
                EMPTY,
                K4,
                0x103c46,
                Ask::Prefetch,
                0x8750_0001_03c4_6870,
            ),
            (
                "34-pre-fault-2m",
                EMPTY,
                M2,
                0x103a00,
                Ask::Prefetch,
                0x8750_0001_03a0_08f0,
            ),
            (
                "63-guest-pat-honoured",
                EMPTY,
                M2,
                0x200,
                Ask::Pat,
                0x8610_0000_0020_08b7,
            ),
            (
                "67-vmx-l2-with-ept-noad",
                EMPTY,
                K4,
                0x80ff,
                Ask::Tracked,
                0x8210_0000_080f_f875,
            ),
        ],
    );
}

#[test]
fn npt_l4() {
    check::<Npt>(
        &NPT,
        &[
            (
                "01-first-fault-4k",
                EMPTY,
                K4,
                0x17feea,
                Ask::Fault,
                0x1_7fee_ae67,
            ),
            (
                "02-zero-page-then-cow",
                EMPTY,
                K4,
                0x1c7f,
                Ask::ReadOnly,
                0x1c7_f825,
            ),
            (
                "06-hugetlb-1g",
                EMPTY,
                G1,
                0x100000,
                Ask::Fault,
                0x1_0000_0ee7,
            ),
            (
                "25-mmio-no-slot",
                0x8_0000_0040_0017,
                K4,
                0x17b42a,
                Ask::Fault,
                0x1_7b42_ae27,
            ),
            (
                "26-nx-huge-pages",
                EMPTY,
                M2,
                0x143800,
                Ask::Nx,
                0x8000_0001_4380_0ee7,
            ),
            (
                "26-nx-huge-pages",
                0x1_4380_2e67,
                K4,
                0x143802,
                Ask::Nx,
                0x1_4380_2e27,
            ),
            (
                "33-pre-fault-4k",
                EMPTY,
                K4,
                0x143b8d,
                Ask::Prefetch,
                0x1_43b8_de47,
            ),
            (
                "33-pre-fault-4k",
                0x1_43b8_de47,
                K4,
                0x143b8d,
                Ask::Prefetch,
                0x1_43b8_de07,
            ),
            (
                "34-pre-fault-2m",
                EMPTY,
                M2,
                0x143800,
                Ask::Prefetch,
                0x1_4380_0ec7,
            ),
            (
                "34-pre-fault-2m",
                0x1_4380_0ec7,
                M2,
                0x143800,
                Ask::Prefetch,
                0x1_4380_0e87,
            ),
        ],
    );
}

#[test]
fn ept_l4_shadow() {
    let rows: &[Row] = &[
        (
            "60-mmio-generation-12",
            0,
            K4,
            0x13b4a9,
            Ask::Fault,
            0x1_3b4a_9e67,
        ),
        (
            "60-mmio-generation-12",
            0,
            K4,
            0x1036e7,
            Ask::Prefetch,
            0x1_036e_7e47,
        ),
    ];
    check::<Npt>(&SHADOW, rows);
}

#[test]
fn links() {
    let link = |host: &Host, pfn, ad| Codec::<Ept>::new(host).make_link(Pfn::new(pfn), ad).raw();
    let first = link(&EPT, 0x102a63, AdType::Enabled);
    assert_eq!(first, 0x8000_0001_02a6_3907, "ept-l4 01");
    let first = link(&EPT_NO_AD, 0x102a64, AdType::Disabled);
    assert_eq!(first, 0x8010_0001_02a6_4807, "ept-l4-noad 01");
    let npt = Codec::<Npt>::new(&NPT).make_link(Pfn::new(0x142a60), AdType::Enabled);
    assert_eq!(npt.raw(), 0x1_42a6_0827, "npt l4 01");
}

#[test]
fn mmio() {
    let check = |host: &Host, gfn, generation, raw| {
        let codec = Codec::<Ept>::new(host);
        let (gfn, generation) = (Gfn::new(gfn), Generation::new(generation));
        let spte = codec.make_mmio(gfn, Access::all(), generation).unwrap();
        assert_eq!(spte.raw(), raw);
        let mmio = codec.decode_mmio(spte).unwrap();
        assert_eq!(mmio.gfn, gfn);
        assert!(codec.is_mmio_current(&mmio, generation));
        assert!(!codec.is_mmio_current(&mmio, generation.after(1, 2)));
    };
    // 25-mmio-no-slot, 60-mmio-generation-12, 61-mmio-high-gpa.
    check(&EPT, 0x400, 2, 0x40_0016);
    check(&EPT, 0xfed00, 0x14, 0xfed0_00a6);
    check(&EPT_L1TF, 0xfed00, 0x12, 0xf8_fed0_0096);
    check(&EPT_L1TF, 0xfed00, 0x14, 0xf8_fed0_00a6);
    check(&EPT_L1TF, 0xf01_2200, 2, 0x1ef8_1220_0016);
    check(&EPT_L1TF, 0x81_2200, 2, 0x1f8_1220_0016);
    let npt = Codec::<Npt>::new(&NPT);
    let spte = npt.make_mmio(Gfn::new(0x800), Access::all(), Generation::new(6));
    assert_eq!(spte, Some(Spte::from_raw(0x8_0000_0080_0037)));
}

#[test]
fn aging() {
    // 49-aging-4k of ept-l4-noad: a read brings back all but the right to write.
    let codec = Codec::<Ept>::new(&EPT_NO_AD);
    let leaf = Spte::from_raw(0x8610_0001_03fb_b877);
    let tracked = codec.track_access(leaf);
    assert_eq!(tracked.raw(), 0x8750_0001_03fb_b870);
    assert!(codec.is_accessed(leaf) && !codec.is_accessed(tracked));
    let restored = codec.restore_access(tracked);
    assert_eq!(restored.raw(), 0x8610_0001_03fb_b875);
    assert_eq!(codec.track_access(restored), tracked);
    assert_eq!(codec.make_writable(restored), leaf);
}

#[test]
fn splits() {
    // 06-hugetlb-1g and 26-nx-huge-pages: the parts of a split page, as seen at the next change.
    let role = |size, access| TableRole {
        size,
        access,
        ad: AdType::Enabled,
    };
    let ept = Codec::<Ept>::new(&EPT);
    let part = |huge, size, index, nx| {
        let child = role(size, Access::all());
        ept.make_small(Spte::from_raw(huge), &child, index, nx)
            .unwrap()
            .raw()
    };
    let m2 = part(0x8600_0000_4000_09f5, M2, 3, NxHugePages::Off);
    assert_eq!(m2, 0x8600_0000_4060_09f5);
    let k4 = part(m2, K4, 1, NxHugePages::Off);
    assert_eq!(k4, 0x8600_0000_4060_1975);
    let k4 = part(0x8600_0001_03a0_0bf3, K4, 2, NxHugePages::On);
    assert_eq!(k4, 0x8600_0001_03a0_2b77);

    let npt = Codec::<Npt>::new(&NPT);
    let nx = Spte::from_raw(0x8000_0001_4380_0ee7);
    let k4 = npt.make_small(nx, &role(K4, Access::all()), 2, NxHugePages::On);
    assert_eq!(k4, Some(Spte::from_raw(0x1_4380_2e67)));
    // A table that must not execute stays so.
    let k4 = npt.make_small(nx, &role(K4, Access::USER), 2, NxHugePages::On);
    assert_eq!(k4, Some(Spte::from_raw(0x8000_0001_4380_2e67)));
}
