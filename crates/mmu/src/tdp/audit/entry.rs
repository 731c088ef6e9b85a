//! What the entries of one table have to be.
//!
//! Nearly all bits of a leaf are decided by its table, so the check of a leaf is a comparison under a mask and a few operations
//! more; and a leaf that differs from a good one in its page and its marks only is good as well, which is one comparison. Only
//! when the check fails is it found out why.

use slat_memslot::{Gfn, Level};

use super::{AuditCode, AuditContext, EntryAt, Evidence, FrozenEntries, HostMmio};
use super::{Subject, Violation};
use crate::host::bits_between;
use crate::role::PageRole;
use crate::spte::bits::{self, ept};
use crate::spte::{AdType, Codec, Entry, Format, Masks, NxHugePages, Spte};
use crate::table::span;

/// What a table's level and role decide about its entries.
pub(super) struct EntryRules<'c, F> {
    codec: &'c Codec<F>,
    level: Level,
    /// Bits that every leaf has the same, and what they are.
    fixed: u64,
    value: u64,
    /// Bits that have no say in whether a leaf is good: the page, accessed, dirty.
    free: u64,
    /// Host-writable, MMU-writable, writable.
    host: u64,
    host_mmu: u64,
    all_writes: u64,
    /// Where permissions are saved, and those that a leaf lacks then.
    saved: u64,
    tracked: u64,
    /// Combinations of type and permissions that EPT reserves, and what counts as execution too.
    bad_combinations: u64,
    user_execute: u64,
    /// Bits that are fixed because huge leaves must not be executable.
    no_execute: u64,
    frozen: FrozenEntries,
    /// The current generation of slots, as far as an entry can hold it.
    generation: Option<u64>,
    end: Gfn,
}

/// Entries that are good since another one is, and how many leaves each of them is.
#[derive(Clone, Copy)]
pub(super) struct Alike {
    to: u64,
    mask: u64,
    pub(super) leaves: u64,
}

impl Alike {
    #[inline(always)]
    pub(super) const fn has(&self, raw: u64) -> bool {
        (raw ^ self.to) & self.mask == 0
    }
}

impl<'c, F: Format> EntryRules<'c, F> {
    pub(super) fn new(
        codec: &'c Codec<F>,
        role: PageRole,
        frozen: FrozenEntries,
        context: &AuditContext,
    ) -> Self {
        let (masks, level) = (codec.masks(), role.level());
        let ad = codec.ad_type_of_table(role);
        let mut rules = Self {
            codec,
            level,
            fixed: !variable_bits::<F>(codec, level, ad),
            value: Spte::<F>::leaf_mask(level) | masks.present | codec.ad_bits(ad) | masks.me_value,
            free: address_bits(codec, level) | masks.accessed | masks.dirty,
            host: masks.host_writable,
            host_mmu: masks.host_writable | masks.mmu_writable,
            all_writes: masks.host_writable | masks.mmu_writable | bits::WRITABLE,
            saved: saved_bits(masks),
            tracked: masks.tracked,
            bad_combinations: codec.reserved().bad_combinations(),
            user_execute: masks.user_execute,
            no_execute: 0,
            frozen,
            generation: context.mmio_generation(codec, role),
            end: Gfn::new(codec.host().max_gfn().raw() + 1),
        };
        if context.host_mmio == HostMmio::Possible {
            rules.fixed &= !masks.me_value;
        }
        if !has_leaves(codec, level) {
            rules.value &= !bits::PAGE_SIZE;
        }
        if context.nx_huge_pages == NxHugePages::On && level > Level::L1 {
            rules.forbid_execution();
        }
        rules
    }

    /// Huge leaves neither execute nor will when their permissions come back.
    fn forbid_execution(&mut self) {
        let execute = F::EXECUTE | self.user_execute;
        let saved = (self.codec.masks().saved & execute) << self.codec.masks().saved_shift;
        self.no_execute = execute | saved | F::NO_EXECUTE;
        self.fixed |= self.no_execute;
        self.value = self.value & !(execute | saved) | F::NO_EXECUTE;
    }

    /// The first frame that is not mapped.
    pub(super) const fn end(&self) -> Gfn {
        self.end
    }

    pub(super) const fn is_leaf(&self, raw: u64) -> bool {
        Spte::<F>::from_raw(raw).is_leaf(self.level)
    }

    /// What most entries are compared with, before the first leaf is known: an empty one.
    pub(super) const fn empty(&self) -> Alike {
        Alike {
            to: self.codec.nonpresent().raw(),
            mask: u64::MAX,
            leaves: 0,
        }
    }

    /// The same for a table in which a good leaf has been found.
    #[inline(always)]
    pub(super) const fn leaf(&self, good: u64) -> Alike {
        Alike {
            to: good,
            mask: !self.free,
            leaves: 1,
        }
    }

    /// Whether something is wrong with a leaf, but for its frame.
    #[inline(always)]
    pub(super) const fn is_bad_leaf(&self, raw: u64) -> bool {
        let differs = (raw ^ self.value) & self.fixed != 0;
        differs
            | self.has_bad_writes(raw)
            | self.is_saved_in_vain(raw)
            | self.is_bad_combination(raw)
    }

    /// (host-writable, MMU-writable, writable) is none of 111, 110, 100, 000.
    #[inline(always)]
    const fn has_bad_writes(&self, raw: u64) -> bool {
        let writes = raw & self.all_writes;
        (writes != self.all_writes)
            & (writes != self.host_mmu)
            & (writes != self.host)
            & (writes != 0)
    }

    /// Permissions are saved that were never taken.
    #[inline(always)]
    const fn is_saved_in_vain(&self, raw: u64) -> bool {
        (raw & self.saved != 0) & (raw & self.tracked != 0)
    }

    #[inline(always)]
    const fn is_bad_combination(&self, raw: u64) -> bool {
        if F::MEMORY_TYPE == 0 {
            return false;
        }
        let user_execute = (raw & self.user_execute != 0) as u64;
        let low = raw | (user_execute * ept::EXECUTE);
        self.bad_combinations >> (low & 0x3f) & 1 != 0
    }

    // --- Why ---------------------------------------------------------------------------------------------------------

    /// Reports what is wrong with a leaf.
    #[cold]
    pub(super) fn explain_leaf(&self, at: EntryAt, violations: &mut Vec<Violation>) {
        let (raw, masks) = (at.raw, self.codec.masks());
        let wrong = (raw ^ self.value) & self.fixed;
        let reserved = self.reserved(raw);
        let mut blamed = reserved;
        let mut blame = |code, bits: u64| {
            blamed |= bits;
            report_bits(violations, code, at, bits);
        };
        blame(AuditCode::ReservedBits, reserved);
        blame(AuditCode::PageSizeBit, wrong & bits::PAGE_SIZE);
        blame(AuditCode::AdType, wrong & masks.ad_mask);
        blame(AuditCode::SuppressVe, wrong & suppress_ve(masks));
        blame(AuditCode::LeafUnaligned, wrong & inside(self.level));
        blame(AuditCode::EncryptionBit, wrong & masks.me_value);
        blame(AuditCode::ExecutableHugeLeaf, wrong & self.no_execute);
        let saved = wrong & self.saved | bits_if(self.is_saved_in_vain(raw), raw & self.saved);
        blame(AuditCode::SavedPermissions, saved & !self.no_execute);
        let writes = bits_if(self.has_bad_writes(raw), raw & self.all_writes);
        blame(AuditCode::WritableTriple, writes);
        report_bits(violations, AuditCode::StrayBits, at, wrong & !blamed);
        self.check_frame(at, violations);
    }

    /// Whether a present entry is for a frame that can be mapped.
    pub(super) fn check_frame(&self, at: EntryAt, violations: &mut Vec<Violation>) {
        if at.gfn >= self.end {
            report(violations, AuditCode::BeyondMaxGfn, at);
        }
    }

    /// Reports what is wrong with a link that should be `wanted`.
    pub(super) fn check_link(&self, at: EntryAt, wanted: Spte<F>, violations: &mut Vec<Violation>) {
        self.check_frame(at, violations);
        let wrong = at.raw ^ wanted.raw();
        if wrong == 0 {
            return;
        }
        let (masks, reserved) = (self.codec.masks(), self.reserved(at.raw));
        let special = [
            (AuditCode::ReservedBits, reserved),
            (AuditCode::AdType, wrong & masks.ad_mask),
            (AuditCode::SuppressVe, wrong & suppress_ve(masks)),
            (AuditCode::EncryptionBit, wrong & masks.me_value),
        ];
        let mut left = wrong;
        for (code, bits) in special {
            left &= !bits;
            report_bits(violations, code, at, bits);
        }
        report_bits(violations, AuditCode::LinkBits, at, left);
    }

    /// Reports what is wrong with an entry that is neither present nor empty.
    pub(super) fn check_nonpresent(&self, at: EntryAt, violations: &mut Vec<Violation>) {
        let spte = Spte::<F>::from_raw(at.raw);
        if self.codec.is_frozen(spte) {
            if self.frozen == FrozenEntries::LeftBehind {
                report(violations, AuditCode::FrozenLeftBehind, at);
            }
        } else if self.codec.is_mmio(spte) {
            self.check_mmio(at, violations);
        } else if !self.codec.is_nonpresent(spte) {
            report(violations, AuditCode::NonpresentValue, at);
        }
    }

    fn check_mmio(&self, at: EntryAt, violations: &mut Vec<Violation>) {
        let Some(mmio) = self.codec.decode_mmio(Spte::from_raw(at.raw)) else {
            return;
        };
        if self
            .generation
            .is_some_and(|now| mmio.generation.raw() > now)
        {
            report(violations, AuditCode::MmioGeneration, at);
        }
        // What an entry says about its frame may be less than the frame: compare entries.
        let mut wanted = mmio;
        wanted.gfn = at.gfn;
        let wanted = self.codec.encode(&Entry::Mmio(wanted));
        if wanted.raw() == at.raw && at.gfn < self.end {
            return;
        }
        let said = self.codec.encode(&Entry::Mmio(mmio));
        if at.gfn >= self.end || said != wanted {
            report(violations, AuditCode::MmioGfn, at);
        }
        report_bits(violations, AuditCode::MmioBits, at, at.raw ^ said.raw());
    }

    fn reserved(&self, raw: u64) -> u64 {
        let spte = Spte::<F>::from_raw(raw);
        self.codec.reserved().violations(spte, self.level)
    }
}

/// The bits of a leaf that its table does not decide.
fn variable_bits<F: Format>(codec: &Codec<F>, level: Level, ad: AdType) -> u64 {
    let masks = codec.masks();
    let reads = masks.read | masks.user | masks.user_execute;
    let permissions = reads | F::EXECUTE | F::NO_EXECUTE | bits::WRITABLE;
    let writes = masks.host_writable | masks.mmu_writable;
    // A tracked leaf lacks what is present in every other.
    let (tracked, saved) = match ad {
        AdType::Disabled => (masks.tracked, saved_bits(masks)),
        AdType::Enabled | AdType::WriteProtectOnly | AdType::Unused => (0, 0),
    };
    let permissions = permissions & !masks.present | tracked;
    let marks = masks.accessed | masks.dirty;
    address_bits(codec, level) | permissions | writes | saved | marks | F::MEMORY_TYPE
}

/// The bits of a leaf's page.
fn address_bits<F: Format>(codec: &Codec<F>, level: Level) -> u64 {
    let all = bits_between(12, codec.host().phys_bits.min(52));
    all & codec.masks().address & !inside(level)
}

/// Whether the host has leaves of this level.
fn has_leaves<F: Format>(codec: &Codec<F>, level: Level) -> bool {
    level <= codec.host().largest_page.level()
}

/// The address bits inside a page of this level.
const fn inside(level: Level) -> u64 {
    (span(level) - 1) << 12
}

/// Where permissions are saved.
const fn saved_bits(masks: &Masks) -> u64 {
    masks.saved << masks.saved_shift
}

/// Bit 63 where it keeps a #VE away.
fn suppress_ve(masks: &Masks) -> u64 {
    masks.present & ept::SUPPRESS_VE
}

const fn bits_if(condition: bool, bits: u64) -> u64 {
    if condition { bits } else { 0 }
}

pub(super) fn report(violations: &mut Vec<Violation>, code: AuditCode, at: EntryAt) {
    violations.push(Violation::new(code, Subject::Entry(at), Evidence::None));
}

fn report_bits(violations: &mut Vec<Violation>, code: AuditCode, at: EntryAt, bits: u64) {
    if bits != 0 {
        let evidence = Evidence::Bits(bits);
        violations.push(Violation::new(code, Subject::Entry(at), evidence));
    }
}
