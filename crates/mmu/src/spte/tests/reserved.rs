//! Reserved bits, row by row of KVM's tables.

use super::*;

const HIGH: u64 = 0x000f_ff00_0000_0000;
const LARGE: u64 = bits::PAGE_SIZE;

/// The masks of all levels, lowest first, for entries with bit 7 clear and set.
fn rows(reserved: &ReservedBits) -> [[u64; 5]; 2] {
    [0, LARGE].map(|raw| Level::ALL.map(|level| reserved.mask(Spte::<Ept>::from_raw(raw), level)))
}

#[test]
fn ept() {
    let codec = Codec::<Ept>::new(&EPT);
    let top = HIGH | 0xf8;
    assert_eq!(
        rows(codec.reserved()),
        [
            [HIGH, HIGH | 0x78, HIGH | 0x78, top, top],
            [HIGH, HIGH | 0x1f_f000, HIGH | 0x3fff_f000, top, top],
        ]
    );
    assert_eq!(codec.reserved().bad_combinations(), 0xff54_5454_ffff_5454);
}

#[test]
fn ept_without_huge_pages() {
    let codec = Codec::<Ept>::new(&EPT.with_largest_page(PageSize::Size2M));
    let [small, large] = rows(codec.reserved());
    assert_eq!((small[1] & LARGE, small[2] & LARGE), (0, LARGE));
    assert_eq!((large[1] & LARGE, large[2] & LARGE), (0, LARGE));
    let codec = Codec::<Ept>::new(&EPT.with_largest_page(PageSize::Size4K));
    let [small, _] = rows(codec.reserved());
    assert_eq!((small[1] & LARGE, small[2] & LARGE), (LARGE, LARGE));
}

#[test]
fn nested_ept_may_execute_without_reading() {
    let codec = Codec::<Ept>::new(&EPT.with_execute_only());
    let nested = codec.nested_reserved(NestedEpt {
        execute_only: ExecuteOnly::Supported,
        largest_page: PageSize::Size1G,
    });
    assert_eq!(nested.bad_combinations(), 0xff44_4444_ffff_4444);
    let request = LeafRequest {
        access: Access::EXECUTE,
        ..small(&codec)
    };
    let made = codec.make_leaf(&request);
    assert_eq!(made.warning, Some(Warning::ReservedBits { bits: 0x34 }));
    let made = codec.with_reserved(nested).make_leaf(&request);
    assert_eq!(made.warning, None);
}

#[test]
fn user_execution_without_reading_is_reserved_too() {
    let violations = |layout, raw| {
        let codec = Codec::<Ept>::new(&EPT.with_layout(layout));
        codec
            .reserved()
            .violations(Spte::<Ept>::from_raw(raw), Level::L1)
    };
    assert_eq!(violations(Layout::P3, 0x800 | 1 << 10), 0);
    assert_eq!(violations(Layout::P2, 0x800 | 1 << 10), 0);
    assert_eq!(violations(Layout::P3, 0x832 | 1 << 10), 0x32);
    let user_only = 0x830 | 1 << 10;
    assert_eq!(violations(Layout::P2, user_only), 0);
    assert_eq!(violations(Layout::P3, user_only), 0x30);
}

#[test]
fn npt() {
    let [small, large] = rows(Codec::<Npt>::new(&NPT).reserved());
    let top = HIGH | 0x180;
    assert_eq!(small, [HIGH, HIGH, HIGH, top, 0]);
    assert_eq!(large, [HIGH, HIGH | 0x1f_e000, HIGH | 0x3fff_e000, top, 0]);
    let [small, _] = rows(Codec::<Npt>::new(&NPT.with_five_levels()).reserved());
    assert_eq!(small[4], top);
    let [small, _] = rows(Codec::<Npt>::new(&NPT.with_largest_page(PageSize::Size2M)).reserved());
    assert_eq!(small[2], HIGH | LARGE);
}

#[test]
fn memory_encryption_is_allowed_in_second_stage_tables() {
    let host = Host::npt(47).with_encryption(Encryption::Active { c_bit: 47 }, 43);
    let [small, _] = rows(Codec::<Npt>::new(&host).reserved());
    assert_eq!(small[0], 0x000f_0000_0000_0000);
    // Key identifiers lie below the host's width, where nothing is reserved to begin with.
    let host = Host::ept(46).with_key_ids(40);
    let [small, _] = rows(Codec::<Ept>::new(&host).reserved());
    assert_eq!(small[0], 0x000f_c000_0000_0000);
}

#[test]
fn shadow_tables() {
    let shadow = |host: &Host, root_level, no_execute| {
        rows(&Codec::<Npt>::new(host).shadow_reserved(ShadowPaging {
            root_level,
            largest_page: PageSize::Size1G,
            no_execute,
        }))
    };
    let [small, _] = shadow(&SHADOW, Level::L4, NoExecute::Reserved);
    assert_eq!(small[0], HIGH | 1 << 63);
    let [small, large] = shadow(&SHADOW, Level::L3, NoExecute::Allowed);
    let pae = 0x7fff_ff00_0000_0000;
    assert_eq!(small[..3], [pae, pae, pae | 1 << 63 | 0x1e6]);
    assert_eq!(large[1], pae | 0x1f_e000);
    // Key identifiers are not for shadow tables, and the C-bit must be there.
    let keys = Host::shadow(46).with_key_ids(40);
    let [small, _] = shadow(&keys, Level::L4, NoExecute::Allowed);
    assert_eq!(small[0], HIGH);
    let sme = Host::shadow(46).with_encryption(Encryption::Active { c_bit: 47 }, 43);
    let [small, _] = shadow(&sme, Level::L4, NoExecute::Allowed);
    assert_eq!(small[0], 0x000f_4000_0000_0000);
}
