//! Long sequences of set-region calls, against a second and simpler statement of the rules.

use std::collections::BTreeSet;

use proptest::prelude::*;

mod reference;

use reference::{OP_BYTES, run};

/// Operations of one sequence.
const OPS: usize = 200;

/// What a default VM with one address space can refuse, in random calls: all but what needs another VM or kernel.
const MET: [&str; 30] = [
    "flags-of-v2",
    "slot-id",
    "unknown-flags",
    "log-with-gmem",
    "readonly-with-gmem",
    "size-unaligned",
    "gpa-unaligned",
    "hva-unaligned",
    "hva-not-user",
    "gmem-offset-unaligned",
    "gmem-offset-wraps",
    "address-space",
    "gpa-wraps",
    "too-many-pages",
    "delete-absent",
    "gmem-on-live-slot",
    "hva-changed",
    "size-changed",
    "readonly-changed",
    "gmem-slot-immutable",
    "overlap",
    "gmem-not-open",
    "gmem-other-file",
    "gmem-foreign",
    "gmem-beyond-file",
    "gmem-bound",
    "move-tracked",
    "gfn-too-high",
    "gmem-size",
    "gmem-size-unaligned",
];

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(1024)
    })]

    #[test]
    fn model_and_reference_agree(
        newer in any::<bool>(),
        ops in prop::collection::vec(any::<[u8; OP_BYTES]>(), OPS),
    ) {
        let bytes: Vec<u8> = std::iter::once(u8::from(newer)).chain(ops.into_iter().flatten()).collect();
        run(&bytes);
    }
}

#[test]
fn the_generator_meets_every_reason() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut met = BTreeSet::new();
    for _ in 0..128 {
        let bytes: Vec<u8> = (0..=OPS * OP_BYTES)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32).to_le_bytes()[0]
            })
            .collect();
        met.extend(run(&bytes));
    }
    let missing: Vec<_> = MET.iter().filter(|code| !met.contains(*code)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
