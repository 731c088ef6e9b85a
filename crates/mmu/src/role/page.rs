//! The role of one page table.

use core::fmt;

use slat_memslot::{AsId, Level};

use super::Access;

/// A yes-or-no field of a role. The number is its place in [`PageRole`], which is KVM's place in 6.12 where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum RoleFlag {
    /// The guest's entries have four bytes: 32-bit paging without PAE.
    FourByteGpte = 1 << 4,
    /// The table maps frames in a line; there is no guest table behind it.
    Direct = 1 << 7,
    /// The table is on its way out and must not be used any more.
    Invalid = 1 << 11,
    /// `EFER.NX`.
    EferNx = 1 << 12,
    /// `CR0.WP`.
    Cr0Wp = 1 << 13,
    /// `CR4.SMEP` and not `CR0.WP`; gone in the layout with MBEC.
    SmepAndNotWp = 1 << 14,
    /// `CR4.SMAP` and not `CR0.WP`.
    SmapAndNotWp = 1 << 15,
    /// The hardware does not maintain accessed and dirty bits in this table.
    AdDisabled = 1 << 16,
    /// For L2.
    GuestMode = 1 << 17,
    /// A top level over nested page tables that have one level less.
    Passthrough = 1 << 18,
    /// A mirror of a TDX module's table; not in 6.12.
    IsMirror = 1 << 19,
    /// `CR4.SMEP`, in the sense of MBEC or GMET; only in the layout with MBEC.
    Cr4Smep = 1 << 20,
    /// For system-management mode: the table maps address space 1.
    Smm = 1 << 24,
}

impl RoleFlag {
    /// All flags, in the order of their places.
    pub const ALL: [Self; 13] = [
        Self::FourByteGpte,
        Self::Direct,
        Self::Invalid,
        Self::EferNx,
        Self::Cr0Wp,
        Self::SmepAndNotWp,
        Self::SmapAndNotWp,
        Self::AdDisabled,
        Self::GuestMode,
        Self::Passthrough,
        Self::IsMirror,
        Self::Cr4Smep,
        Self::Smm,
    ];

    /// KVM's name of the field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FourByteGpte => "has_4_byte_gpte",
            Self::Direct => "direct",
            Self::Invalid => "invalid",
            Self::EferNx => "efer_nx",
            Self::Cr0Wp => "cr0_wp",
            Self::SmepAndNotWp => "smep_andnot_wp",
            Self::SmapAndNotWp => "smap_andnot_wp",
            Self::AdDisabled => "ad_disabled",
            Self::GuestMode => "guest_mode",
            Self::Passthrough => "passthrough",
            Self::IsMirror => "is_mirror",
            Self::Cr4Smep => "cr4_smep",
            Self::Smm => "smm",
        }
    }

    /// Its bit in [`PageRole`].
    #[inline]
    pub(crate) const fn bit(self) -> u32 {
        self as u32
    }
}

/// Which part of a guest table with four-byte entries a shadow page covers.
///
/// Such a table has 1024 entries and a shadow page 512, so a page table takes two shadow pages and a page directory
/// four.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Quadrant {
    /// The first part, and the only one of tables with eight-byte entries.
    #[default]
    Q0,
    /// The second.
    Q1,
    /// The third.
    Q2,
    /// The fourth.
    Q3,
}

/// The role of a page table (`union kvm_mmu_page_role`): everything that a page table depends on besides the frames
/// it maps.
///
/// One integer: comparing and hashing it in full costs what it costs for a `u32`. Its bits are slat's own;
/// [`PageRole::word`] gives KVM's.
///
/// ```
/// use slat_memslot::Level;
/// use slat_mmu::role::{Access, PageRole, RoleFlag, RoleLayout};
///
/// let root = PageRole::new(Level::L4)
///     .with_access(Access::all_in(RoleLayout::Baseline))
///     .with(RoleFlag::Direct)
///     .with(RoleFlag::EferNx)
///     .with(RoleFlag::Cr0Wp);
/// assert_eq!(root.word(RoleLayout::Baseline), 0x3784);
/// assert_eq!(root.to_string(), "l4 8-byte q0 direct wux nxe ad");
/// // A table of the same tree differs in the level only.
/// assert_eq!(root.with_level(Level::L1).word(RoleLayout::Baseline), 0x3781);
/// assert_eq!(format!("{:#}", root.with(RoleFlag::Smm)), "l4 8-byte q0 direct wux nxe ad cr0_wp smm");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct PageRole(u32);

const LEVEL: u32 = 0xf;
const QUADRANT_SHIFT: u32 = 5;
const QUADRANT: u32 = 3 << QUADRANT_SHIFT;
const ACCESS_SHIFT: u32 = 8;
const ACCESS: u32 = 7 << ACCESS_SHIFT;
/// [`Access::READ`], which has no room beside the other three.
const READ: u32 = 1 << 21;
/// From the place of [`Access::READ`] in [`Access`] to that in the role.
const READ_SHIFT: u32 = 18;

const _: () = assert!((Access::READ.bits() as u32) << READ_SHIFT == READ);

impl PageRole {
    /// The role of a table at `level` with no field set and no access.
    #[inline]
    pub const fn new(level: Level) -> Self {
        Self(level as u32)
    }

    /// A role from bits in slat's own order, whose level is known to be one.
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits in slat's own order.
    #[inline]
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// The same role at another level: what a child of the table has.
    #[inline]
    #[must_use]
    pub const fn with_level(self, level: Level) -> Self {
        Self(self.0 & !LEVEL | level as u32)
    }

    /// The same role for another part of the guest's table.
    #[inline]
    #[must_use]
    pub const fn with_quadrant(self, quadrant: Quadrant) -> Self {
        Self(self.0 & !QUADRANT | (quadrant as u32) << QUADRANT_SHIFT)
    }

    /// The same role with another access.
    #[inline]
    #[must_use]
    pub const fn with_access(self, access: Access) -> Self {
        let bits = access.bits() as u32;
        let low = bits << ACCESS_SHIFT & ACCESS;
        let read = bits << READ_SHIFT & READ;
        Self(self.0 & !(ACCESS | READ) | low | read)
    }

    /// The same role with a field set.
    #[inline]
    #[must_use]
    pub const fn with(self, flag: RoleFlag) -> Self {
        Self(self.0 | flag.bit())
    }

    /// The same role with a field clear.
    #[inline]
    #[must_use]
    pub const fn without(self, flag: RoleFlag) -> Self {
        Self(self.0 & !flag.bit())
    }

    /// The same role with a field set if it is `wanted`.
    #[inline]
    pub(super) const fn with_if(self, flag: RoleFlag, wanted: bool) -> Self {
        if wanted {
            self.with(flag)
        } else {
            self.without(flag)
        }
    }

    /// The level of the table.
    #[inline]
    pub const fn level(self) -> Level {
        match self.0 & LEVEL {
            1 => Level::L1,
            2 => Level::L2,
            3 => Level::L3,
            4 => Level::L4,
            _ => Level::L5,
        }
    }

    /// Which part of the guest's table it covers.
    #[inline]
    pub const fn quadrant(self) -> Quadrant {
        match self.0 >> QUADRANT_SHIFT & 3 {
            0 => Quadrant::Q0,
            1 => Quadrant::Q1,
            2 => Quadrant::Q2,
            _ => Quadrant::Q3,
        }
    }

    /// What the entries above leave to it.
    #[inline]
    pub const fn access(self) -> Access {
        let low = (self.0 & ACCESS) >> ACCESS_SHIFT;
        let read = (self.0 & READ) >> READ_SHIFT;
        Access::from_bits_truncate((low | read).to_le_bytes()[0])
    }

    /// Whether a field is set.
    #[inline]
    pub const fn has(self, flag: RoleFlag) -> bool {
        self.0 & flag.bit() != 0
    }

    /// Whether the table maps frames in a line.
    #[inline]
    pub const fn is_direct(self) -> bool {
        self.has(RoleFlag::Direct)
    }

    /// Whether the table is on its way out.
    #[inline]
    pub const fn is_invalid(self) -> bool {
        self.has(RoleFlag::Invalid)
    }

    /// Whether the table belongs to L2.
    #[inline]
    pub const fn is_guest_mode(self) -> bool {
        self.has(RoleFlag::GuestMode)
    }

    /// The address space whose slots the table maps (`kvm_memslots_for_spte_role`).
    #[inline]
    pub const fn as_id(self) -> AsId {
        if self.has(RoleFlag::Smm) {
            AsId::SMM
        } else {
            AsId::NORMAL
        }
    }

    /// KVM's names of the fields in which two roles differ, lowest place first.
    pub fn differences(self, other: Self) -> impl Iterator<Item = &'static str> {
        let differ = self.0 ^ other.0;
        let wide = [
            ("level", LEVEL),
            ("quadrant", QUADRANT),
            ("access", ACCESS | READ),
        ];
        let flags = RoleFlag::ALL.map(|flag| (flag.name(), flag.bit()));
        let fields = wide.into_iter().chain(flags);
        fields.filter_map(move |(name, mask)| (differ & mask != 0).then_some(name))
    }

    /// What KVM's page tracepoints print of a role, which is all that can be compared with a line of theirs
    /// (`mmutrace.h:KVM_MMU_PAGE_PRINTK`).
    pub fn traced(self) -> Self {
        UNTRACED.into_iter().fold(self, Self::without)
    }
}

/// The fields that KVM's trace text leaves out.
const UNTRACED: [RoleFlag; 8] = [
    RoleFlag::Cr0Wp,
    RoleFlag::SmepAndNotWp,
    RoleFlag::SmapAndNotWp,
    RoleFlag::GuestMode,
    RoleFlag::Passthrough,
    RoleFlag::IsMirror,
    RoleFlag::Cr4Smep,
    RoleFlag::Smm,
];

/// As KVM's page tracepoints print it; `{:#}` adds the names of the set fields that they leave out.
impl fmt::Display for PageRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let choose = |flag, set, clear| if self.has(flag) { set } else { clear };
        write!(
            f,
            "l{} {}-byte q{}{} {}{} {}nxe {}ad",
            self.level() as u8,
            choose(RoleFlag::FourByteGpte, "4", "8"),
            self.quadrant() as u8,
            choose(RoleFlag::Direct, " direct", ""),
            self.access(),
            choose(RoleFlag::Invalid, " invalid", ""),
            choose(RoleFlag::EferNx, "", "!"),
            choose(RoleFlag::AdDisabled, "!", ""),
        )?;
        if f.alternate() {
            for flag in UNTRACED.into_iter().filter(|flag| self.has(*flag)) {
                write!(f, " {}", flag.name())?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PageRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageRole({self:#})")
    }
}
