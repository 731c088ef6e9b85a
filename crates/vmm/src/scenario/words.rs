//! The names that values have in the text: flags, modes, advice, signals, VM types.

/// A set of names for bits or values.
pub(super) type Words = &'static [(&'static str, u64)];

/// `KVM_MEM_*`.
pub(super) const SLOT_FLAGS: Words = &[
    ("LOG_DIRTY_PAGES", 1 << 0),
    ("READONLY", 1 << 1),
    ("GUEST_MEMFD", 1 << 2),
    ("ZAP_LEAFS_ONLY", 1 << 3),
];

/// `GUEST_MEMFD_FLAG_*`.
pub(super) const GMEM_FLAGS: Words = &[("MMAP", 1 << 0), ("INIT_SHARED", 1 << 1)];

/// `KVM_MEMORY_ATTRIBUTE_*`.
pub(super) const ATTRIBUTES: Words = &[("PRIVATE", 1 << 3)];

/// `FALLOC_FL_*`.
pub(super) const FALLOCATE: Words = &[
    ("KEEP_SIZE", 1 << 0),
    ("PUNCH_HOLE", 1 << 1),
    ("NO_HIDE_STALE", 1 << 2),
    ("COLLAPSE_RANGE", 1 << 3),
    ("ZERO_RANGE", 1 << 4),
    ("INSERT_RANGE", 1 << 5),
    ("UNSHARE_RANGE", 1 << 6),
];

/// `PROT_*`.
pub(super) const PROT: Words = &[("READ", 1 << 0), ("WRITE", 1 << 1), ("EXEC", 1 << 2)];

/// `MAP_*`.
pub(super) const MAP: Words = &[
    ("SHARED", 1 << 0),
    ("PRIVATE", 1 << 1),
    ("FIXED", 1 << 4),
    ("ANONYMOUS", 1 << 5),
    ("NORESERVE", 1 << 14),
    ("POPULATE", 1 << 15),
    ("HUGETLB", 1 << 18),
];

/// `MADV_*`.
pub(super) const ADVICE: Words = &[
    ("NORMAL", 0),
    ("RANDOM", 1),
    ("SEQUENTIAL", 2),
    ("WILLNEED", 3),
    ("DONTNEED", 4),
    ("FREE", 8),
    ("REMOVE", 9),
    ("DONTFORK", 10),
    ("DOFORK", 11),
    ("MERGEABLE", 12),
    ("UNMERGEABLE", 13),
    ("HUGEPAGE", 14),
    ("NOHUGEPAGE", 15),
    ("DONTDUMP", 16),
    ("DODUMP", 17),
    ("WIPEONFORK", 18),
    ("KEEPONFORK", 19),
    ("COLD", 20),
    ("PAGEOUT", 21),
    ("POPULATE_READ", 22),
    ("POPULATE_WRITE", 23),
    ("DONTNEED_LOCKED", 24),
    ("COLLAPSE", 25),
    ("HWPOISON", 100),
];

/// `KVM_X86_*_VM`.
pub(super) const VM_TYPES: Words = &[
    ("default", 0),
    ("sw-protected", 1),
    ("sev", 2),
    ("sev-es", 3),
    ("sev-snp", 4),
    ("tdx", 5),
];

/// What a touch of a mapping can raise.
pub(super) const SIGNALS: Words = &[("SIGBUS", 7), ("SIGSEGV", 11)];

/// The value of `name`.
pub(super) fn value(words: Words, name: &str) -> Option<u64> {
    let found = words.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value)
}

/// The name of `value`.
pub(super) fn name(words: Words, value: u64) -> Option<&'static str> {
    let found = words.iter().find(|(_, known)| *known == value);
    found.map(|(name, _)| *name)
}

/// `bits` as names joined by `|`, with what has no name in hex.
pub(super) fn join(words: Words, bits: u64) -> String {
    let set = words.iter().filter(|(_, bit)| bits & bit != 0);
    let mut parts: Vec<String> = set.map(|(name, _)| (*name).to_owned()).collect();
    let named = words.iter().fold(0, |all, (_, bit)| all | bit);
    let rest = bits & !named;
    if rest != 0 {
        parts.push(format!("{rest:#x}"));
    }
    if parts.is_empty() {
        return "0".to_owned();
    }
    parts.join("|")
}
