//! What six VMMs make of the same exits, and what slat says where they differ.

use super::decode::hypercall;
use crate::migration::Status;

/// A VMM's reading of the attributes: what the range shall be, or that it refuses.
type Reading = fn(u64) -> Option<Status>;

const fn by_bit(attributes: u64) -> Option<Status> {
    match attributes & 0x10 {
        0 => Some(Status::Shared),
        _ => Some(Status::Private),
    }
}

/// libkrun: whatever is not zero is private.
const fn by_zero(attributes: u64) -> Option<Status> {
    match attributes {
        0 => Some(Status::Shared),
        _ => Some(Status::Private),
    }
}

/// OpenVMM: bits 7:4 are the kind, of which 0 and 1 are known.
const fn by_nibble(attributes: u64) -> Option<Status> {
    match attributes >> 4 & 0xf {
        0 => Some(Status::Shared),
        1 => Some(Status::Private),
        _ => None,
    }
}

/// Cloud Hypervisor, libkrun, OpenVMM, alioth, dragonball and QEMU read the words that guests use alike, but for one; where they differ,
/// this says what the word means.
#[test]
fn what_six_vmms_read() {
    let vmms: [(&str, Reading); 6] = [
        ("Cloud Hypervisor", by_bit),
        ("libkrun", by_zero),
        ("OpenVMM", by_nibble),
        ("alioth", by_bit),
        ("dragonball", by_bit),
        ("QEMU", by_bit),
    ];
    // Shared memory in pages of 2 MiB and 1 GiB: libkrun makes it private.
    let wrong: [(u64, Option<Status>, &[&str]); 8] = [
        (0x00, Some(Status::Shared), &[]),
        (0x10, Some(Status::Private), &[]),
        (0x11, Some(Status::Private), &[]),
        (0x12, Some(Status::Private), &[]),
        (0x01, Some(Status::Shared), &["libkrun"]),
        (0x02, Some(Status::Shared), &["libkrun"]),
        // Words that mean nothing: only OpenVMM refuses, and only those with other bits beside bit 4.
        (
            0x30,
            None,
            &[
                "Cloud Hypervisor",
                "libkrun",
                "alioth",
                "dragonball",
                "QEMU",
            ],
        ),
        (
            0x03,
            None,
            &[
                "Cloud Hypervisor",
                "libkrun",
                "OpenVMM",
                "alioth",
                "dragonball",
                "QEMU",
            ],
        ),
    ];
    for (word, meaning, differ) in wrong {
        let decoded = hypercall([0x20_0000, 512, word]).map(|request| request.to);
        assert_eq!(decoded.ok(), meaning, "{word:#x}");
        let others = vmms.into_iter().filter(|(_, read)| read(word) != meaning);
        let names: Vec<_> = others.map(|(name, _)| name).collect();
        assert_eq!(names, differ, "{word:#x}");
    }
}
