//! What is pinned.

use slat_memslot::{Errno, Hva};

use super::super::{EncRegion, Regions, SevRule};

const fn region(addr: u64, size: u64) -> EncRegion {
    EncRegion {
        addr: Hva::new(addr),
        size,
    }
}

#[test]
fn pages_are_those_that_are_touched() {
    for (addr, size, pages) in [
        (0, 4096, Some(1)),
        (1, 4096, Some(2)),
        (4095, 2, Some(2)),
        (0, 0, None),
        (u64::MAX - 4095, 4096, None),
        (u64::MAX - 4095, 4095, Some(1)),
        (0, (1 << 31) * 4096, None),
        (0, ((1 << 31) - 1) * 4096, Some((1 << 31) - 1)),
    ] {
        assert_eq!(region(addr, size).pages(), pages, "{addr:#x} {size:#x}");
    }
}

#[test]
fn ranges_are_let_go_as_they_were_registered() {
    let mut regions = Regions::with_limit(10);
    regions.register(region(0, 4 * 4096)).expect("room");
    regions
        .register(region(0, 4 * 4096))
        .expect("the same again");
    assert_eq!(regions.pinned(), 8);
    let refused = regions
        .register(region(0x10_0000, 3 * 4096))
        .expect_err("too much");
    assert_eq!(
        (refused, refused.errno()),
        (SevRule::LockLimit, Errno::ENOMEM)
    );
    let refused = regions.unregister(region(0, 4096)).expect_err("a part");
    assert_eq!(
        (refused, refused.errno()),
        (SevRule::NoSuchRegion, Errno::EINVAL)
    );
    for left in [4, 0] {
        regions.unregister(region(0, 4 * 4096)).expect("registered");
        assert_eq!(regions.pinned(), left);
    }
    assert!(regions.unregister(region(0, 4 * 4096)).is_err() && regions.list().is_empty());
}
