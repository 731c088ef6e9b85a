//! The three layouts, there and back.

use proptest::prelude::*;

use super::*;
use crate::rmp::raw::{LOCK, Wanted, is_writing, visible, writing, written};

fn entries() -> impl Strategy<Value = RmpEntry> {
    let flags = any::<[bool; 6]>();
    let used_for = prop_oneof![
        Just(FirmwareUse::None),
        Just(FirmwareUse::Context),
        Just(FirmwareUse::Metadata),
        Just(FirmwareUse::HvFixed)
    ];
    (flags, 0..1u64 << 39, 0..0x400u32, any::<u64>(), used_for).prop_map(
        |([assigned, huge, immutable, vmsa, validated, in_use], gfn, owner, bits, firmware)| {
            RmpEntry {
                assigned,
                size: if huge {
                    RmpSize::Size2M
                } else {
                    RmpSize::Size4K
                },
                immutable,
                gfn: Gfn::new(gfn),
                asid: asid(owner),
                vmsa,
                validated,
                permissions: VmplPermissions::from_bits(bits),
                firmware,
                in_use,
            }
        },
    )
}

proptest! {
    #[test]
    fn an_entry_is_read_as_it_was_written(entry in entries()) {
        prop_assert_eq!(RmpEntry::from_words(entry.raw(), entry.high()), entry);
        prop_assert_eq!(entry.raw() & (0x1ff << 3 | 1 << 63), 0);
    }

    /// What a walk looks at first, field by field. Where it says no, the rules are gone through, so that only speed would tell.
    #[test]
    fn a_glance_grants_what_the_fields_say(
        entry in entries(),
        other in entries(),
        same in any::<[bool; 2]>(),
        level in 0..4usize,
        needs in 0..16u8,
        often in any::<bool>(),
    ) {
        // Most entries are no page of 4 KiB that is the guest's.
        let entry = match often {
            true => RmpEntry { assigned: true, validated: true, immutable: false, size: RmpSize::Size4K, ..entry },
            false => entry,
        };
        let owner = if same[0] { entry.asid } else { other.asid };
        let gfn = if same[1] { entry.gfn } else { other.gfn };
        let vmpl = [Vmpl::Vmpl0, Vmpl::Vmpl1, Vmpl::Vmpl2, Vmpl::Vmpl3][level];
        let needs = Permissions::from_bits_truncate(needs);
        let granted = entry.assigned && entry.validated && !entry.immutable && entry.size == RmpSize::Size4K
            && entry.asid == owner && entry.gfn == gfn && entry.permissions.of(vmpl).contains(needs);
        let wanted = Wanted::new(owner, gfn, vmpl, needs);
        let (low, high) = (entry.raw(), entry.high());
        prop_assert_eq!(wanted.are_in(low, high), granted);
        // Nor while somebody writes both words.
        prop_assert!(!wanted.are_in(writing(low), high));
    }

    #[test]
    fn reserved_bits_of_an_operand_are_refused(words in any::<[u64; 2]>()) {
        match RmpState::from_words(words) {
            Some(state) => prop_assert_eq!(state.to_words(), words),
            None => prop_assert_ne!(words[1] & 0xfffe_fefe, 0),
        }
    }
}

/// The bytes that the manual gives to RMPUPDATE's operand: assigned, page size, immutable, each 0 or 1, and the ASID.
#[test]
fn an_operand_has_four_fields() {
    for fields in 0..8u64 {
        let [assigned, size, immutable] = [1, 2, 4].map(|bit| u64::from(fields & bit != 0));
        let flags = assigned | size << 8 | immutable << 16 | 0x1234_5678 << 32;
        let state = RmpState::from_words([0x7000, flags]).unwrap();
        assert_eq!((state.gpa, state.asid), (0x7000, 0x1234_5678));
        assert_eq!(u64::from(state.assigned), assigned);
        assert_eq!(u64::from(state.size == RmpSize::Size2M), size);
        assert_eq!(u64::from(state.immutable), immutable);
        for reserved in (0..32).filter(|bit| ![0, 8, 16].contains(bit)) {
            let words = [0x7000, flags | 1 << reserved];
            assert_eq!(RmpState::from_words(words), None, "bit {reserved}");
        }
    }
}

#[test]
fn operand_and_answer_have_their_bytes_in_place() {
    let state = RmpState {
        immutable: true,
        ..private(0, RmpSize::Size2M)
    };
    assert_eq!(state.to_words(), [0x4000_0000, 5 << 32 | 0x01_01_01]);
    let rmp = with_huge();
    let read = rmp.rmpread(Asid::HOST, Pfn::new(PFN)).unwrap();
    assert_eq!(read.to_words(), [0x4000_0000, 5 << 32 | 0x00_01_01]);
    rmp.psmash(Pfn::new(PFN)).unwrap();
    let read = rmp.rmpread(Asid::HOST, Pfn::new(PFN)).unwrap();
    assert_eq!(read.to_words(), [0x4000_0000, 5 << 32 | 0x00_02_01]);
    let bad = rmp.rmpread(asid(5), Pfn::new(PFN)).unwrap_err();
    assert_eq!(
        (
            bad.code(),
            rmp.rmpread(Asid::HOST, Pfn::new(0x1000))
                .unwrap_err()
                .code()
        ),
        (2, 1)
    );
}

#[test]
fn the_operand_of_rmpadjust() {
    let adjustment = Adjustment::from_rdx(1 << 16 | 0x1 << 8 | 1).unwrap();
    let expected = Adjustment {
        target: Vmpl::Vmpl1,
        permissions: Permissions::READ,
        vmsa: true,
    };
    assert_eq!(adjustment, expected);
    for bad in [4, 1 << 12, 1 << 17] {
        assert_eq!(Adjustment::from_rdx(bad), None);
    }
}

/// A reader of both words knows that they belong together by a count of changes, which is odd while they are written. It has
/// nine bits, and runs round without touching the frame above it.
#[test]
fn changes_are_counted_and_nothing_else_of_a_word_moves() {
    let word = RmpEntry::guest(asid(5), Gfn::new(0x1ff), RmpSize::Size4K).raw();
    let (mut low, mut seen) = (word, std::collections::HashSet::new());
    while seen.insert(low) {
        let during = writing(low);
        assert!(is_writing(during) && during & LOCK != 0);
        assert_eq!(visible(during), word);
        low = written(low, word);
        assert!(!is_writing(low) && low & LOCK == 0);
        assert_eq!(visible(low), word);
    }
    assert_eq!(seen.len(), 256);
}

#[test]
fn an_asid_is_told_by_its_number() {
    assert_eq!(asid(5).to_string(), "5");
}
