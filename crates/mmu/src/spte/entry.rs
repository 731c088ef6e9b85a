//! Entries as values to match on, and both directions between them and bits.

use slat_memslot::{Gfn, Level, PageSize};

use super::bits::{self, ept};
use super::{Access, Codec, Format, MmioGeneration, Pfn, Spte};

/// How the A/D bits of an entry are used (`SPTE_TDP_AD_MASK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum AdType {
    /// Hardware maintains them (`SPTE_TDP_AD_ENABLED`).
    #[default]
    Enabled = 0,
    /// Hardware does not (`SPTE_TDP_AD_DISABLED`).
    Disabled = 1,
    /// Hardware does, but writes are found by write protection, since the page-modification log would show addresses
    /// of a nested guest (`SPTE_TDP_AD_WRPROT_ONLY`).
    WriteProtectOnly = 2,
    /// A value that KVM never uses.
    Unused = 3,
}

impl AdType {
    const ALL: [Self; 4] = [
        Self::Enabled,
        Self::Disabled,
        Self::WriteProtectOnly,
        Self::Unused,
    ];
}

/// How a leaf's memory is cached, beyond what the guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryType {
    /// The format has no such bits, the guest's PAT decides alone.
    Guest,
    /// EPT's memory type, bits 5:3, and whether the guest's PAT has no say, bit 6.
    Ept {
        /// 0 uncached, 1 write-combining, 4 write-through, 5 write-protected, 6 write-back.
        memory_type: u8,
        /// The guest's PAT is ignored.
        ignore_pat: bool,
    },
}

/// The three bits that say whether, and by whom, writes are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Writability {
    /// The host allows it: the slot is not read-only, and the page is mapped writable. Never changes while the entry
    /// stays present.
    pub host: bool,
    /// KVM's MMU allows it: the page is not write-tracked.
    pub mmu: bool,
    /// Hardware allows it at this moment.
    pub hardware: bool,
}

impl Writability {
    /// Whether each allows only what the one before allows (`spte.h:check_spte_writable_invariants`).
    pub const fn is_consistent(self) -> bool {
        (self.host || !self.mmu) && (self.mmu || !self.hardware)
    }
}

/// A present leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leaf {
    /// The first frame.
    pub pfn: Pfn,
    /// The level; KVM makes leaves at levels 1 to 3 only.
    pub level: Level,
    /// What hardware allows besides writing.
    pub access: Access,
    /// Who allows writing.
    pub writability: Writability,
    /// Permissions that access tracking has put aside.
    pub saved: Access,
    /// How the next two are used.
    pub ad: AdType,
    /// The accessed bit.
    pub accessed: bool,
    /// The dirty bit.
    pub dirty: bool,
    /// The memory type.
    pub memory: MemoryType,
    /// The C-bit.
    pub encrypted: bool,
}

impl Leaf {
    /// What hardware allows, writing included.
    pub const fn allowed(&self) -> Access {
        let others = self.access.difference(Access::WRITE);
        others.union(access_if(self.writability.hardware, Access::WRITE))
    }

    /// The size of the page; `None` at a level that cannot have leaves.
    pub const fn size(&self) -> Option<PageSize> {
        match self.level {
            Level::L1 => Some(PageSize::Size4K),
            Level::L2 => Some(PageSize::Size2M),
            Level::L3 => Some(PageSize::Size1G),
            Level::L4 | Level::L5 => None,
        }
    }
}

/// A present link to a table one level below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// The frame of the table.
    pub table: Pfn,
    /// Whether hardware maintains the accessed bit; never anything but enabled or disabled.
    pub ad: AdType,
    /// The accessed bit.
    pub accessed: bool,
}

/// An entry that remembers that no slot is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mmio {
    /// The guest frame.
    pub gfn: Gfn,
    /// The access that was asked for, as far as the format keeps it: EPT keeps nothing.
    pub access: Access,
    /// The generation of slots in which no slot was there.
    pub generation: MmioGeneration,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// Nothing. KVM takes any value for it that is not present, not frozen and not MMIO; only
    /// [`Codec::nonpresent`] is right ([`Codec::is_nonpresent`]).
    Absent,
    /// Locked while it is replaced.
    Frozen,
    /// MMIO.
    Mmio(Mmio),
    /// A table below.
    Link(Link),
    /// A page.
    Leaf(Leaf),
}

impl<F: Format> Codec<F> {
    /// What the entry is, in a table of `level`.
    pub fn decode(&self, spte: Spte<F>, level: Level) -> Entry {
        if spte.is_leaf(level) {
            Entry::Leaf(self.decode_leaf(spte, level))
        } else if spte.is_present() {
            Entry::Link(self.decode_link(spte))
        } else if self.is_frozen(spte) {
            Entry::Frozen
        } else {
            self.decode_mmio(spte).map_or(Entry::Absent, Entry::Mmio)
        }
    }

    /// The bits of an entry. What the format has no bits for is left out.
    pub fn encode(&self, entry: &Entry) -> Spte<F> {
        match entry {
            Entry::Absent => self.nonpresent(),
            Entry::Frozen => self.frozen(),
            Entry::Mmio(mmio) if self.caches_mmio() => self.encode_mmio(mmio),
            Entry::Mmio(_) => self.nonpresent(),
            Entry::Link(link) => self.encode_link(link),
            Entry::Leaf(leaf) => self.encode_leaf(leaf),
        }
    }

    /// How the A/D bits of a present entry are used.
    #[inline]
    pub const fn ad_type(&self, spte: Spte<F>) -> AdType {
        // Two bits index an array of four.
        AdType::ALL[((spte.raw() >> self.masks.ad_shift) & 3) as usize]
    }

    /// Whether hardware does not maintain A/D bits in this entry (the opposite of `spte.h:spte_ad_enabled`).
    #[inline]
    pub const fn is_ad_disabled(&self, spte: Spte<F>) -> bool {
        spte.raw() & self.masks.ad_mask == self.masks.ad_disabled
    }

    /// Whether writes to this page are found by write protection only (`spte.h:spte_ad_need_write_protect`).
    #[inline]
    pub const fn needs_write_protection(&self, spte: Spte<F>) -> bool {
        spte.raw() & self.masks.ad_mask != 0
    }

    #[inline]
    pub(crate) const fn ad_bits(&self, ad: AdType) -> u64 {
        (ad as u64) << self.masks.ad_shift
    }

    /// The bits that allow `access` but for writing. What is always allowed in a present entry is left out.
    pub(super) const fn protection(&self, access: Access) -> u64 {
        let execute = if access.contains(Access::EXECUTE) {
            F::EXECUTE
        } else {
            F::NO_EXECUTE
        };
        execute | self.user_and_read(access)
    }

    /// The bits that stand for user mode and for reading, which depend on the layout.
    const fn user_and_read(&self, access: Access) -> u64 {
        bits_if(access.contains(Access::USER), self.masks.user)
            | bits_if(access.contains(Access::READ), self.masks.read)
    }

    fn decode_leaf(&self, spte: Spte<F>, level: Level) -> Leaf {
        let raw = spte.raw();
        Leaf {
            pfn: self.pfn(spte),
            level,
            access: self.decode_access(raw),
            writability: Writability {
                host: self.is_host_writable(spte),
                mmu: self.is_mmu_writable(spte),
                hardware: spte.is_writable(),
            },
            saved: self.decode_saved(spte),
            ad: self.ad_type(spte),
            accessed: raw & F::ACCESSED != 0,
            dirty: raw & F::DIRTY != 0,
            memory: decode_memory::<F>(raw),
            encrypted: raw & self.masks.me_value != 0,
        }
    }

    fn encode_leaf(&self, leaf: &Leaf) -> Spte<F> {
        let Writability {
            host,
            mmu,
            hardware,
        } = leaf.writability;
        let page_size = Spte::<F>::leaf_mask(leaf.level);
        let present = self.masks.present & !(self.masks.user | self.masks.read);
        let raw = page_size
            | present
            | leaf.pfn.address() & self.masks.address
            | self.protection(leaf.access)
            | bits_if(host, self.masks.host_writable)
            | bits_if(mmu, self.masks.mmu_writable)
            | bits_if(hardware, bits::WRITABLE)
            | self.encode_saved(leaf.saved)
            | self.ad_bits(leaf.ad)
            | bits_if(leaf.accessed, F::ACCESSED)
            | bits_if(leaf.dirty, F::DIRTY)
            | encode_memory::<F>(leaf.memory)
            | bits_if(leaf.encrypted, self.masks.me_value);
        Spte::from_raw(raw)
    }

    fn decode_access(&self, raw: u64) -> Access {
        let executable = self.is_executable(Spte::from_raw(raw));
        access_if(executable, Access::EXECUTE) | self.decode_user_and_read(raw)
    }

    fn decode_user_and_read(&self, raw: u64) -> Access {
        access_if(raw & self.masks.user != 0, Access::USER)
            | access_if(raw & self.masks.read != 0, Access::READ)
    }

    fn decode_saved(&self, spte: Spte<F>) -> Access {
        let saved = self.saved_permissions(spte);
        access_if(saved & F::EXECUTE != 0, Access::EXECUTE) | self.decode_user_and_read(saved)
    }

    fn encode_saved(&self, saved: Access) -> u64 {
        let execute = bits_if(saved.contains(Access::EXECUTE), F::EXECUTE);
        let bits = execute | self.user_and_read(saved);
        (bits & self.masks.saved) << self.masks.saved_shift
    }

    fn decode_link(&self, spte: Spte<F>) -> Link {
        Link {
            table: self.pfn(spte),
            ad: self.ad_type(spte),
            accessed: spte.raw() & F::ACCESSED != 0,
        }
    }

    fn encode_link(&self, link: &Link) -> Spte<F> {
        Spte::from_raw(
            bits::MMU_PRESENT
                | self.masks.link
                | link.table.address() & self.masks.address
                | self.ad_bits(link.ad)
                | bits_if(link.accessed, F::ACCESSED),
        )
    }
}

fn decode_memory<F: Format>(raw: u64) -> MemoryType {
    if F::MEMORY_TYPE == 0 {
        return MemoryType::Guest;
    }
    MemoryType::Ept {
        memory_type: low_byte(raw & ept::MEMORY_TYPE) >> 3,
        ignore_pat: raw & ept::IGNORE_PAT != 0,
    }
}

fn encode_memory<F: Format>(memory: MemoryType) -> u64 {
    match memory {
        MemoryType::Guest => 0,
        MemoryType::Ept {
            memory_type,
            ignore_pat,
        } => {
            let bits = u64::from(memory_type) << 3 & ept::MEMORY_TYPE;
            (bits | bits_if(ignore_pat, ept::IGNORE_PAT)) & F::MEMORY_TYPE
        }
    }
}

const fn low_byte(raw: u64) -> u8 {
    raw.to_le_bytes()[0]
}

pub(super) const fn bits_if(condition: bool, bits: u64) -> u64 {
    if condition { bits } else { 0 }
}

const fn access_if(condition: bool, access: Access) -> Access {
    if condition { access } else { Access::empty() }
}
