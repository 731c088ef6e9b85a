//! What a guest's CPU reserves.

use crate::walk::GuestCpu;

/// The C-bit of an SEV guest is none of the reserved ones, wherever it is. A place that no entry has changes nothing.
#[test]
fn the_c_bit_is_not_reserved() {
    let cpu = GuestCpu::new(43);
    let reserved = |c_bit| GuestCpu { c_bit, ..cpu }.reserved_gpa_bits();
    let all = u64::MAX << 43;
    assert_eq!(reserved(None), all);
    assert_eq!(reserved(Some(47)), all & !(1 << 47));
    assert_eq!(reserved(Some(63)), all & !(1 << 63));
    assert_eq!(reserved(Some(42)), all);
    assert_eq!([64, u8::MAX].map(|bit| reserved(Some(bit))), [all; 2]);
}
