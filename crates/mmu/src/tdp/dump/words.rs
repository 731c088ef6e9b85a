//! The words that values have in the text, for both directions.

use slat_memslot::PageSize;

use crate::host::{HardwareAd, Layout, SecondStage};
use crate::role::RoleLayout;
use crate::spte::{Access, AdType, MemoryType};

/// Values and their words.
pub(super) type Words<T> = &'static [(T, &'static str)];

pub(super) const STAGES: Words<SecondStage> = &[
    (SecondStage::Ept, "ept"),
    (SecondStage::Npt, "npt"),
    (SecondStage::Off, "shadow"),
];

pub(super) const LAYOUTS: Words<Layout> =
    &[(Layout::P1, "p1"), (Layout::P2, "p2"), (Layout::P3, "p3")];

pub(super) const HARDWARE_AD: Words<HardwareAd> = &[
    (HardwareAd::Off, "off"),
    (HardwareAd::On, "on"),
    (HardwareAd::WithPml, "pml"),
];

pub(super) const SIZES: Words<PageSize> = &[
    (PageSize::Size4K, "4k"),
    (PageSize::Size2M, "2m"),
    (PageSize::Size1G, "1g"),
];

pub(super) const ROLE_LAYOUTS: Words<RoleLayout> = &[
    (RoleLayout::Baseline, "baseline"),
    (RoleLayout::Mirror, "mirror"),
    (RoleLayout::Mbec, "mbec"),
];

/// How A/D bits are used, where it is not the ordinary way.
pub(super) const AD_TYPES: Words<AdType> = &[
    (AdType::Disabled, "ad-off"),
    (AdType::WriteProtectOnly, "ad-wp"),
    (AdType::Unused, "ad-3"),
];

/// What the memory is cached as; `+ipat` where the guest has no say.
pub(super) const MEMORY: Words<MemoryType> = &[
    (MemoryType::Guest, "pat"),
    (ept(0, false), "uc"),
    (ept(0, true), "uc+ipat"),
    (ept(1, false), "wc"),
    (ept(1, true), "wc+ipat"),
    (ept(2, false), "mt2"),
    (ept(2, true), "mt2+ipat"),
    (ept(3, false), "mt3"),
    (ept(3, true), "mt3+ipat"),
    (ept(4, false), "wt"),
    (ept(4, true), "wt+ipat"),
    (ept(5, false), "wp"),
    (ept(5, true), "wp+ipat"),
    (ept(6, false), "wb"),
    (ept(6, true), "wb+ipat"),
    (ept(7, false), "mt7"),
    (ept(7, true), "mt7+ipat"),
];

const fn ept(memory_type: u8, ignore_pat: bool) -> MemoryType {
    MemoryType::Ept {
        memory_type,
        ignore_pat,
    }
}

/// The word of a value.
pub(super) fn word<T: PartialEq>(words: Words<T>, value: &T) -> &'static str {
    let found = words.iter().find(|(known, _)| known == value);
    found.map_or("?", |(_, word)| word)
}

/// The value of a word.
pub(super) fn value<T: Copy>(words: Words<T>, text: &str) -> Option<T> {
    let found = words.iter().find(|(_, word)| *word == text);
    found.map(|(value, _)| *value)
}

/// All words, for a message.
pub(super) fn all<T>(words: Words<T>) -> String {
    let words: Vec<&str> = words.iter().map(|(_, word)| *word).collect();
    words.join(", ")
}

/// What is allowed, as `rwx` with `-` for what is not.
///
/// Where the kernel tells reading from user mode (layout P3), a fourth letter follows a right to read: `u` or `-`.
pub fn access_letters(access: Access) -> String {
    let choose = |bit, letter| if access.contains(bit) { letter } else { '-' };
    let (read, user) = if access.contains(Access::READ) {
        ('r', Some(choose(Access::USER, 'u')))
    } else {
        (choose(Access::USER, 'r'), None)
    };
    let write_execute = [choose(Access::WRITE, 'w'), choose(Access::EXECUTE, 'x')];
    [read]
        .into_iter()
        .chain(write_execute)
        .chain(user)
        .collect()
}

/// The word of a memory type.
pub fn memory_word(memory: &MemoryType) -> &'static str {
    word(MEMORY, memory)
}

/// The word of how A/D bits are used; `None` for the ordinary way.
pub fn ad_word(ad: AdType) -> Option<&'static str> {
    (ad != AdType::Enabled).then(|| word(AD_TYPES, &ad))
}

/// What these letters allow.
pub(super) fn access(text: &str) -> Option<Access> {
    let (order, letters): (&[Access], _) = match text.len() {
        3 => (&[Access::USER, Access::WRITE, Access::EXECUTE], "rwx"),
        4 => (
            &[Access::READ, Access::WRITE, Access::EXECUTE, Access::USER],
            "rwxu",
        ),
        _ => return None,
    };
    let mut access = Access::empty();
    for ((bit, letter), found) in order.iter().zip(letters.chars()).zip(text.chars()) {
        match found {
            // Four letters say that reading is allowed.
            '-' if *bit != Access::READ => {}
            found if found == letter => access |= *bit,
            _ => return None,
        }
    }
    Some(access)
}
