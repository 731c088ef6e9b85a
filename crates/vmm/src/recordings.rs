//! Recorded answers of real kernels, as scenarios.

/// What real programs asked a kernel for, and what it answered, on Linux 6.18 with shadow paging: QEMU and kernel
/// selftests, by name. Each file says what it was recorded from and what it shows.
pub const RECORDED: &[(&str, &str)] = &[
    (
        "guest_memfd_test",
        include_str!("../scenarios/recorded/guest_memfd_test.slat"),
    ),
    (
        "memslot_modification_stress_test",
        include_str!("../scenarios/recorded/memslot_modification_stress_test.slat"),
    ),
    (
        "qemu-pc-migrate",
        include_str!("../scenarios/recorded/qemu-pc-migrate.slat"),
    ),
    (
        "qemu-q35-hotplug-reset",
        include_str!("../scenarios/recorded/qemu-q35-hotplug-reset.slat"),
    ),
    (
        "qemu-ring-migrate",
        include_str!("../scenarios/recorded/qemu-ring-migrate.slat"),
    ),
    (
        "random-6.12.117-npt",
        include_str!("../scenarios/recorded/random-6.12.117-npt.slat"),
    ),
    (
        "set_memory_region_test",
        include_str!("../scenarios/recorded/set_memory_region_test.slat"),
    ),
];

/// 288 calls of the memory interface in cases of their own, recorded on Linux 6.18 with shadow paging, no SMM and VM type
/// 0: the name of each group and its scenario.
pub const GOLDEN: &[(&str, &str)] = &[
    ("basic", include_str!("../scenarios/golden/basic.slat")),
    (
        "alignment",
        include_str!("../scenarios/golden/alignment.slat"),
    ),
    (
        "overflow-and-width",
        include_str!("../scenarios/golden/overflow-and-width.slat"),
    ),
    (
        "userspace-address",
        include_str!("../scenarios/golden/userspace-address.slat"),
    ),
    (
        "slot-id-and-address-space",
        include_str!("../scenarios/golden/slot-id-and-address-space.slat"),
    ),
    ("flags", include_str!("../scenarios/golden/flags.slat")),
    ("delete", include_str!("../scenarios/golden/delete.slat")),
    ("overlap", include_str!("../scenarios/golden/overlap.slat")),
    ("change", include_str!("../scenarios/golden/change.slat")),
    (
        "order-of-checks",
        include_str!("../scenarios/golden/order-of-checks.slat"),
    ),
    (
        "guest-memfd-binding",
        include_str!("../scenarios/golden/guest-memfd-binding.slat"),
    ),
    (
        "guest-memfd-create",
        include_str!("../scenarios/golden/guest-memfd-create.slat"),
    ),
    (
        "guest-memfd-file-operations",
        include_str!("../scenarios/golden/guest-memfd-file-operations.slat"),
    ),
    (
        "memory-attributes-and-pre-fault",
        include_str!("../scenarios/golden/memory-attributes-and-pre-fault.slat"),
    ),
    (
        "dirty-log",
        include_str!("../scenarios/golden/dirty-log.slat"),
    ),
    (
        "dirty-ring",
        include_str!("../scenarios/golden/dirty-ring.slat"),
    ),
    ("quirks", include_str!("../scenarios/golden/quirks.slat")),
    (
        "slot-limits",
        include_str!("../scenarios/golden/slot-limits.slat"),
    ),
];

/// One case for every reason that a host with shadow paging alone can give, with the reason's code.
pub const REASONS: &str = include_str!("../scenarios/reasons.slat");

#[cfg(test)]
mod tests {
    use super::{GOLDEN, RECORDED};
    use crate::scenario;

    #[test]
    fn every_recording_parses() {
        let mut cases = 0;
        for (name, text) in GOLDEN {
            let scenario = scenario::parse(text).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(scenario.profile(), Some("linux-6.18.44-pvm"), "{name}");
            cases += scenario.cases().count();
        }
        assert_eq!((GOLDEN.len(), cases), (18, 288));
    }

    #[test]
    fn every_recorded_program_parses() {
        for (name, text) in RECORDED {
            let scenario = scenario::parse(text).unwrap_or_else(|e| panic!("{name}: {e}"));
            let known = scenario.profile().and_then(slat_memslot::Profile::named);
            assert!(known.is_some(), "{name}");
            assert!(text.len() < 150 * 1024, "{name}");
            assert!(text.starts_with("# Program: "), "{name}");
        }
        assert_eq!(RECORDED.len(), 7);
    }
}
