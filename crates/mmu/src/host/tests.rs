use super::*;

#[test]
fn bit_ranges_are_half_open() {
    assert_eq!(bits_between(12, 52), 0x000f_ffff_ffff_f000);
    assert_eq!(bits_between(40, 64), 0xffff_ff00_0000_0000);
    assert_eq!(bits_between(40, 40), 0);
    assert_eq!(bits_between(52, 40), 0);
}

#[test]
fn later_layouts_bring_the_later_rules() {
    assert_eq!(
        Host::ept(40).with_layout(Layout::P3).ad_bits,
        AdBits::Software
    );
    assert_eq!(
        Host::ept(40)
            .with_software_ad()
            .with_layout(Layout::P1)
            .ad_bits,
        AdBits::Hardware
    );
}

#[test]
fn encryption_shows_in_the_masks() {
    let keys = Host::ept(46).with_key_ids(40);
    assert_eq!((keys.me_value(), keys.me_mask()), (0, 0x3f << 40));
    let sme = Host::npt(48).with_encryption(Encryption::Active { c_bit: 47 }, 43);
    assert_eq!((sme.me_value(), sme.me_mask()), (1 << 47, 1 << 47));
    let available = Host::npt(48).with_encryption(Encryption::Available { c_bit: 47 }, 43);
    assert_eq!((available.me_value(), available.me_mask()), (0, 0));
}
