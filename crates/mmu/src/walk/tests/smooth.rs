//! Which walks end on the short way. The others come to the same by the long one, so that only speed would tell.

use slat_memslot::Gva;

use crate::role::{Cr0, Cr4, Efer, VcpuState};
use crate::walk::{ErrorCode, GuestCpu, GuestPaging};

const MARKED: u64 = 0x67;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;

fn paging() -> GuestPaging {
    let vcpu = VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        ..VcpuState::default()
    };
    GuestPaging::new(&vcpu, &GuestCpu::new(46))
}

#[test]
fn only_good_links_are_followed_on_the_short_way() {
    let reserved = paging().reserved;
    for level in 1..4 {
        let leads_on = |entry| reserved.is_good_link(entry, level);
        assert!(leads_on(0x5067) && leads_on(0x5001) && leads_on(NO_EXECUTE | 0x5067));
        for entry in [0x5066, 0x50e7, 1 << 46 | 0x5067, 1 << 51 | 0x5067, 0] {
            assert!(!leads_on(entry), "{entry:#x} at {level}");
        }
    }
}

#[test]
fn a_marked_leaf_that_allows_the_access_ends_the_short_way() {
    let paging = paging();
    // Bits that allow, or say that a page was used, count if all entries have them; what forbids counts turned round.
    let ends = |access, leaf: u64, above: u64| {
        let bits = (above ^ NO_EXECUTE) & (leaf ^ NO_EXECUTE);
        let what = (Gva::new(0x123), access);
        let found = paging.smooth_leaf(what, (leaf | 0x5000, bits), 0);
        found.map(|leaf| leaf.gpa.raw())
    };
    for access in [ErrorCode::READ, ErrorCode::WRITE, ErrorCode::FETCH] {
        assert_eq!(ends(access, MARKED, MARKED), Some(0x5123), "{access:?}");
        for (leaf, above) in [
            (MARKED & !ACCESSED, MARKED),
            (MARKED, MARKED & !ACCESSED),
            (MARKED & !1, MARKED),
            (MARKED | 1 << 51, MARKED),
        ] {
            assert_eq!(
                ends(access, leaf, above),
                None,
                "{access:?} {leaf:#x} below {above:#x}"
            );
        }
    }
    // Above the last level nothing is dirty.
    assert_eq!(
        ends(ErrorCode::WRITE, MARKED, MARKED & !DIRTY),
        Some(0x5123)
    );
    assert_eq!(ends(ErrorCode::READ, MARKED & !DIRTY, MARKED), Some(0x5123));
    assert_eq!(ends(ErrorCode::WRITE, MARKED & !DIRTY, MARKED), None);
    assert_eq!(ends(ErrorCode::WRITE, MARKED, MARKED & !2), None);
    assert_eq!(ends(ErrorCode::FETCH, MARKED, MARKED | NO_EXECUTE), None);
}
