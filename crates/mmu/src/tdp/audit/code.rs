//! The invariants, by number.

use core::fmt;

/// Defines the codes: number, variant, name, and the invariant itself.
macro_rules! codes {
    ($($number:literal $variant:ident $name:literal $rule:literal)*) => {
        /// An invariant of page tables. Numbers and names are stable; new ones come at the end.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum AuditCode {
            $(#[doc = $rule] $variant = $number,)*
        }

        impl AuditCode {
            /// All codes, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What has to hold.
            pub const fn rule(self) -> &'static str {
                match self {
                    $(Self::$variant => $rule,)*
                }
            }
        }
    };
}

codes! {
    1 DuplicateRoot "duplicate-root" "No two valid roots have the same role."
    2 RootNotHeld "root-not-held" "A root has a reference, and a valid one the TDP MMU's own."
    3 ScheduledValidRoot "scheduled-valid-root" "A root that waits to be zapped is invalid."
    4 ZappedRootPresent "zapped-root-present" "An invalid root that the TDP MMU has given up has no present entry."
    5 RootPageMismatch "root-page-mismatch" "A root's table exists, has the root's role, starts at frame 0, and has no parent."
    6 RootRoleImpossible "root-role-impossible" "A root is direct, of level 4 or 5, with the host's A/D bits, and not for SMM and L2 at once."
    7 RootRoleMismatch "root-role-mismatch" "The root in use has the role that the MMU wants."
    8 ObsoleteRootKept "obsolete-root-kept" "A vCPU that keeps an invalid root has been asked to free obsolete roots."
    9 UnknownRoot "unknown-root" "A vCPU's roots exist."
    10 RootKeptTwice "root-kept-twice" "A vCPU's earlier roots differ from each other and from the one in use."
    11 SpecialRootKept "special-root-kept" "An earlier root of a vCPU is never special (PAE, dummy)."
    12 TooFewReferences "too-few-references" "A root has a reference for every place in a vCPU's cache that holds it."
    13 DanglingLink "dangling-link" "A link leads to a table that exists."
    14 LevelMismatch "level-mismatch" "A link leads one level down."
    15 RoleMismatch "role-mismatch" "A table has the role of the table above, but for the level and for `invalid`, which roots alone are."
    16 GfnMismatch "gfn-mismatch" "A table starts at the frame of the entry that links to it."
    17 ParentMismatch "parent-mismatch" "A table knows the entry that links to it."
    18 LinkedTwice "linked-twice" "No two entries or roots lead to the same table."
    19 Cycle "cycle" "No table leads back to itself."
    20 TableUnaligned "table-unaligned" "A table starts where tables of its level start."
    21 BeyondMaxGfn "beyond-max-gfn" "No present entry is for a frame beyond the last that can be mapped."
    22 TableCount "table-count" "The count of tables is the number of linked ones."
    23 LeafCount "leaf-count" "The counts of leaves are the numbers of leaves."
    24 FullMismatch "full-mismatch" "A table that is known to be full holds nothing but leaves."
    25 LeakedTable "leaked-table" "A table that was given out is linked, a root's, waits, or is lost."
    26 FreedTableLinked "freed-table-linked" "A table that was freed, or waits to be, is not linked and not a root's."
    27 RetiredTablePresent "retired-table-present" "A table that waits to be freed has no present entry."
    28 MirrorWithoutOwner "mirror-without-owner" "There is a mirror only where somebody owns the real tables."
    29 NonpresentValue "nonpresent-value" "What is not present is empty, frozen, or an MMIO entry."
    30 FrozenLeftBehind "frozen-left-behind" "No entry is frozen while nobody works on the tables."
    31 ReservedBits "reserved-bits" "A present entry has no bit that hardware reserves."
    32 WritableTriple "writable-triple" "Host-writable, MMU-writable, writable: each only with the one before."
    33 PageSizeBit "page-size-bit" "Bit 7 is set in leaves of levels 2 and 3, and nowhere else."
    34 AdType "ad-type" "The A/D type of a leaf is that of its table's role, that of a link the host's."
    35 SavedPermissions "saved-permissions" "Permissions are saved only in an entry that is access-tracked."
    36 SuppressVe "suppress-ve" "A present EPT entry never raises a #VE (bit 63)."
    37 StrayBits "stray-bits" "A leaf has all bits that KVM always sets and none that it never sets."
    38 LeafUnaligned "leaf-unaligned" "A leaf's page starts where pages of its size start."
    39 LinkBits "link-bits" "A link allows everything and says nothing else."
    40 EncryptionBit "encryption-bit" "Every link and every leaf of ordinary memory has the C-bit if the host uses it."
    41 ExecutableHugeLeaf "executable-huge-leaf" "No huge leaf is executable under the mitigation of iTLB multihit."
    42 MmioBits "mmio-bits" "An MMIO entry has the bits of its frame, access and generation, and no others."
    43 MmioGfn "mmio-gfn" "An MMIO entry is for the frame that it is found at, and not beyond the last."
    44 MmioGeneration "mmio-generation" "An MMIO entry's generation is not from the future."
    45 EmptyMismatch "empty-mismatch" "A table of 4 KiB entries that is known to be empty holds no leaf."
}

impl AuditCode {
    /// The number, from 1.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// `A07 root-role-mismatch`.
impl fmt::Display for AuditCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "A{:02} {}", self.number(), self.name())
    }
}
