//! Who a page belongs to, and which of its privilege levels may do what with it.

use core::fmt;

/// An address space identifier: 0 is the hypervisor's, all others are guests'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Asid(u16);

impl Asid {
    /// The hypervisor's.
    pub const HOST: Self = Self(0);
    /// How many bits an entry has for it.
    pub const BITS: u32 = 10;
    /// The largest.
    pub const MAX: Self = Self((1 << Self::BITS) - 1);

    /// An identifier; `None` above [`Asid::MAX`].
    ///
    /// ```
    /// use slat_coco::rmp::Asid;
    /// assert_eq!(Asid::new(5).unwrap().raw(), 5);
    /// assert!(Asid::new(0x400).is_none());
    /// ```
    #[inline]
    pub const fn new(raw: u32) -> Option<Self> {
        if raw <= Self::MAX.0 as u32 {
            #[expect(clippy::cast_possible_truncation, reason = "just compared")]
            let raw = raw as u16;
            Some(Self(raw))
        } else {
            None
        }
    }

    /// The number.
    #[inline]
    pub const fn raw(self) -> u32 {
        self.0 as u32
    }

    /// Whether it is the hypervisor's.
    #[inline]
    pub const fn is_host(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Asid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A privilege level inside an SNP guest. 0 is the most privileged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Vmpl {
    /// May do everything, PVALIDATE too.
    #[default]
    Vmpl0,
    /// Below 0.
    Vmpl1,
    /// Below 1.
    Vmpl2,
    /// The least privileged.
    Vmpl3,
}

impl Vmpl {
    /// All of them, the most privileged first.
    pub const ALL: [Self; 4] = [Self::Vmpl0, Self::Vmpl1, Self::Vmpl2, Self::Vmpl3];

    /// The level of this number.
    #[inline]
    pub fn new(raw: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(raw).ok()?).copied()
    }
}

bitflags::bitflags! {
    /// What a privilege level may do with a page (bits 11:8 of RDX of RMPADJUST, shifted down).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Permissions: u8 {
        /// Read (bit 8).
        const READ = 1;
        /// Write (bit 9).
        const WRITE = 2;
        /// Execute in user mode (bit 10).
        const EXECUTE_USER = 4;
        /// Execute in supervisor mode (bit 11).
        const EXECUTE_SUPERVISOR = 8;
    }
}

/// The permissions of all privilege levels.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VmplPermissions([Permissions; 4]);

impl VmplPermissions {
    /// Nobody may do anything: what an entry has that belongs to no guest.
    pub const NONE: Self = Self([Permissions::empty(); 4]);
    /// VMPL0 may do everything, the others nothing: what RMPUPDATE leaves.
    pub const RESET: Self = Self([
        Permissions::all(),
        Permissions::empty(),
        Permissions::empty(),
        Permissions::empty(),
    ]);

    /// What a level may do.
    #[inline]
    pub const fn of(self, vmpl: Vmpl) -> Permissions {
        self.0[vmpl as usize]
    }

    /// With other permissions for a level.
    #[inline]
    #[must_use]
    pub const fn with(mut self, vmpl: Vmpl, permissions: Permissions) -> Self {
        self.0[vmpl as usize] = permissions;
        self
    }

    /// Four bits a level, VMPL0 lowest.
    #[inline]
    pub(super) const fn bits(self) -> u64 {
        let [a, b, c, d] = self.0;
        a.bits() as u64 | (b.bits() as u64) << 4 | (c.bits() as u64) << 8 | (d.bits() as u64) << 12
    }

    /// The permissions that are written as `bits`, of which the low 16 count.
    #[inline]
    pub(super) const fn from_bits(bits: u64) -> Self {
        const fn nibble(bits: u64, shift: u32) -> Permissions {
            Permissions::from_bits_retain((bits >> shift).to_le_bytes()[0] & 0xf)
        }
        Self([
            nibble(bits, 0),
            nibble(bits, 4),
            nibble(bits, 8),
            nibble(bits, 12),
        ])
    }
}

/// `rwus` for each level, with `-` for what is missing.
impl fmt::Display for VmplPermissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, permissions) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str(" ")?;
            }
            let letters = ['r', 'w', 'u', 's'];
            for (bit, letter) in Permissions::all().iter().zip(letters) {
                let shown = if permissions.contains(bit) {
                    letter
                } else {
                    '-'
                };
                write!(f, "{shown}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for VmplPermissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}
