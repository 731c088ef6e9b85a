//! The walk of a guest's tables.
//!
//! KVM counterparts: `paging_tmpl.h:walk_addr_generic`, `paging_tmpl.h:update_accessed_dirty_bits`,
//! `mmu.c:nonpaging_gva_to_gpa`; kernel 6.12.117.

use core::fmt;

use slat_memslot::{Gpa, Gva, Level};

use crate::access::Access;
use crate::role::AccessDirty;

use super::ErrorCode;
use super::fault::{Cause, PageFault, WalkFault};
use super::format::{GuestFormat, PAGE_SIZE_BIT, Paging32, Paging64, PagingEpt};
use super::log::{Mark, Step, WalkObserver};
use super::memory::{Exchange, TableMemory};
use super::mode::PagingMode;
use super::paging::GuestPaging;
use super::stage::{Stage, Unnested};

/// The size of what one leaf of a guest's tables maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeafSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 4 MiB: 32-bit paging with PSE.
    Size4M,
    /// 1 GiB.
    Size1G,
    /// Everything: there is no paging.
    Unpaged,
}

impl LeafSize {
    /// In bytes; nothing without paging.
    pub const fn bytes(self) -> Option<u64> {
        match self {
            Self::Size4K => Some(1 << 12),
            Self::Size2M => Some(1 << 21),
            Self::Size4M => Some(1 << 22),
            Self::Size1G => Some(1 << 30),
            Self::Unpaged => None,
        }
    }
}

impl fmt::Display for LeafSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size4K => "4K",
            Self::Size2M => "2M",
            Self::Size4M => "4M",
            Self::Size1G => "1G",
            Self::Unpaged => "unpaged",
        })
    }
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Translation<A = Gpa> {
    /// The address that was asked for, translated: to the byte.
    pub address: A,
    /// The same before the second stage, if there is one.
    pub gpa: Gpa,
    /// The size of the guest's leaf.
    pub size: LeafSize,
    /// What the guest's entries allow together; everything without paging.
    pub rights: Access,
    /// The leaf, as it is after the walk; 0 without paging.
    pub leaf: u64,
    /// The leaf's protection key.
    pub key: u8,
    /// Whether the leaf is marked as dirty, or nobody marks it.
    pub dirty: bool,
}

impl<A> Translation<A> {
    /// The rights that a shadow of the leaf may have: not writable before the leaf is dirty, so that the first write is
    /// seen (`paging_tmpl.h:protect_clean_gpte`).
    #[inline]
    pub fn shadow_rights(&self) -> Access {
        if self.dirty {
            self.rights
        } else {
            self.rights - Access::WRITE
        }
    }
}

impl GuestPaging {
    /// Translates an address for an access: the whole of it for a guest without a second stage, or seen from the guest.
    ///
    /// Marks entries as accessed and dirty where `memory` allows it.
    ///
    /// # Errors
    /// The fault that the guest gets.
    #[inline]
    pub fn translate<M: TableMemory + ?Sized>(
        &self,
        memory: &M,
        address: Gva,
        access: ErrorCode,
    ) -> Result<Translation, WalkFault> {
        self.walk(memory, &mut Unnested, &mut (), address, access)
    }

    /// What `KVM_TRANSLATE` answers: a read in supervisor mode, with no check that the address is canonical
    /// (`x86.c:kvm_arch_vcpu_ioctl_translate`).
    ///
    /// # Errors
    /// Why KVM says that the address is not valid; it does not tell the reason.
    pub fn kvm_translate<M: TableMemory + ?Sized>(
        &self,
        memory: &M,
        address: Gva,
    ) -> Result<Translation, WalkFault> {
        self.without_canonical_check()
            .translate(memory, address, ErrorCode::READ)
    }

    /// Translates an address for an access through a second stage, and tells an observer each step.
    ///
    /// The tables are in `memory`, by the addresses that `stage` gives. Of `access` only [`ErrorCode::ACCESS`] counts.
    ///
    /// # Errors
    /// The fault that the guest gets, or what the second stage says.
    #[inline]
    pub fn walk<M, S, O>(
        &self,
        memory: &M,
        stage: &mut S,
        observer: &mut O,
        address: Gva,
        access: ErrorCode,
    ) -> Result<Translation<S::Address>, WalkFault<S::Fault>>
    where
        M: TableMemory<S::Address> + ?Sized,
        S: Stage,
        O: WalkObserver,
    {
        self.walk_from(memory, stage, observer, (address, access), None)
    }

    /// The same from a table below the root, for addresses that it was kept for.
    #[inline]
    pub(super) fn walk_from<M, S, O>(
        &self,
        memory: &M,
        stage: &mut S,
        observer: &mut O,
        (address, access): (Gva, ErrorCode),
        start: Option<Start>,
    ) -> Result<Translation<S::Address>, WalkFault<S::Fault>>
    where
        M: TableMemory<S::Address> + ?Sized,
        S: Stage,
        O: WalkObserver,
    {
        if !self.is_canonical(address) {
            return Err(WalkFault::NonCanonical { address });
        }
        let access = access & ErrorCode::ACCESS;
        let mut walk = Walk {
            paging: self,
            memory,
            stage,
            observer,
            address,
            access,
        };
        if let Some(start) = start {
            if let Some(found) = walk.once::<Paging64>(start)? {
                return Ok(found);
            }
            walk.observer.restart();
        }
        let smooth = match self.mode {
            PagingMode::Level4 => walk.smooth::<3>(),
            PagingMode::Level5 => walk.smooth::<4>(),
            _ => None,
        };
        match smooth {
            Some(found) => Ok(found),
            None => walk.careful(),
        }
    }
}

/// A table that a walk may begin at, as an earlier walk came to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// What links to it.
    entry: u64,
    /// Its level, from 0.
    pub(super) number: u8,
    /// What the entries above have in common, those that forbid turned round.
    bits: u64,
}

impl Start {
    pub(super) const fn at_root(root: u64, top: Level) -> Self {
        Self {
            entry: root,
            number: top as u8 - 1,
            bits: u64::MAX,
        }
    }

    /// The table below an entry of eight bytes, which is marked as accessed as are those above it.
    pub(super) fn below(step: &Step) -> Self {
        let mut bits = u64::MAX;
        for (right, bit) in [
            (Access::WRITE, 1 << 1),
            (Access::USER, 1 << 2),
            (Access::EXECUTE, Paging64::INVERTED),
        ] {
            if !step.rights.contains(right) {
                bits &= !bit;
            }
        }
        Self {
            entry: step.entry,
            number: (step.level as u8).saturating_sub(2),
            bits,
        }
    }

    /// The table below, that an entry of this one links to.
    #[inline]
    pub(super) const fn down(self, entry: u64, bits: u64) -> Self {
        Self {
            entry,
            number: self.number - 1,
            bits,
        }
    }

    /// Whether it is a table: the entry is no leaf.
    pub(super) fn is_table(&self, paging: &GuestPaging) -> bool {
        !is_leaf(paging.mode, self.entry, self.number + 1)
    }
}

/// One walk, with all it needs.
pub(super) struct Walk<'w, M: ?Sized, S, O> {
    pub(super) paging: &'w GuestPaging,
    pub(super) memory: &'w M,
    pub(super) stage: &'w mut S,
    pub(super) observer: &'w mut O,
    pub(super) address: Gva,
    pub(super) access: ErrorCode,
}

/// The entries on the way, by level from 0, for those that have to be marked.
pub(super) struct Trail<A> {
    entries: [u64; 5],
    /// Where they are, as the guest counts and where the memory is.
    places: [(Gpa, A); 5],
}

impl<A: Copy + Default> Trail<A> {
    #[inline]
    pub(super) fn new() -> Self {
        Self {
            entries: [0; 5],
            places: [(Gpa::new(0), A::default()); 5],
        }
    }
}

/// What became of the marks.
enum Marked {
    /// All entries have them, or need none; this is the leaf.
    Done { leaf: u64 },
    /// An entry has changed meanwhile.
    Restart,
    /// The memory is gone.
    Failed { level: Level },
}

/// The level of a number, which counts from 0.
#[inline]
const fn level_of(number: u8) -> Level {
    Level::ALL[number as usize]
}

impl<M, S, O> Walk<'_, M, S, O>
where
    M: TableMemory<S::Address> + ?Sized,
    S: Stage,
    O: WalkObserver,
{
    /// The walk that looks at everything, from the top.
    #[inline(never)]
    fn careful(&mut self) -> Result<Translation<S::Address>, WalkFault<S::Fault>> {
        match self.paging.mode {
            PagingMode::Level4 => self.through_root::<Paging64>(Level::L4),
            PagingMode::Level5 => self.through_root::<Paging64>(Level::L5),
            PagingMode::Pae => self.through_pointers(),
            PagingMode::Bits32 | PagingMode::Bits32Pse => self.through_root::<Paging32>(Level::L2),
            PagingMode::Ept4 => self.through_root::<PagingEpt>(Level::L4),
            PagingMode::Ept5 => self.through_root::<PagingEpt>(Level::L5),
            PagingMode::Unpaged => self.unpaged(),
        }
    }

    fn unpaged(&mut self) -> Result<Translation<S::Address>, WalkFault<S::Fault>> {
        let gpa = Gpa::new(self.address.raw());
        Ok(Translation {
            address: self.final_page(gpa)?,
            gpa,
            size: LeafSize::Unpaged,
            rights: Access::EXECUTE | Access::WRITE | Access::USER,
            leaf: 0,
            key: 0,
            dirty: true,
        })
    }

    fn through_pointers(&mut self) -> Result<Translation<S::Address>, WalkFault<S::Fault>> {
        let pointer = self.paging.pointers.select(self.address);
        let all = Access::EXECUTE | Access::WRITE | Access::USER;
        self.observer.step(&Step {
            level: Level::L3,
            place: None,
            entry: pointer,
            above: all,
            rights: all,
        });
        if pointer & 1 == 0 {
            let none = ErrorCode::empty();
            return Err(self.fault(none, Level::L3, Access::empty(), Cause::NotPresent));
        }
        self.through::<Paging64>(pointer, Level::L2)
    }

    #[inline]
    fn through_root<F: GuestFormat>(
        &mut self,
        top: Level,
    ) -> Result<Translation<S::Address>, WalkFault<S::Fault>> {
        self.through::<F>(self.paging.root, top)
    }

    /// Walks from a root or pointer, again and again while entries change under it.
    #[inline]
    fn through<F: GuestFormat>(
        &mut self,
        root: u64,
        top: Level,
    ) -> Result<Translation<S::Address>, WalkFault<S::Fault>> {
        loop {
            if let Some(found) = self.once::<F>(Start::at_root(root, top))? {
                return Ok(found);
            }
            self.observer.restart();
        }
    }

    /// One pass; nothing if it has to start again.
    #[inline]
    fn once<F: GuestFormat>(
        &mut self,
        start: Start,
    ) -> Result<Option<Translation<S::Address>>, WalkFault<S::Fault>> {
        let mut trail = Trail::new();
        let mut at = start;
        loop {
            let (entry, bits) = self.advance::<F>(at, &mut trail)?;
            if is_leaf(self.paging.mode, entry, at.number) {
                return self.finish::<F>(start.number, at.number, entry, bits, &mut trail);
            }
            at = at.down(entry, bits);
        }
    }

    /// Reads and checks the entry of a table; gives it and what it and those above have in common.
    #[inline]
    pub(super) fn advance<F: GuestFormat>(
        &mut self,
        at: Start,
        trail: &mut Trail<S::Address>,
    ) -> Result<(u64, u64), WalkFault<S::Fault>> {
        let entry = self.entry::<F>(at.entry, at.number, trail, at.bits)?;
        let bits = at.bits & (entry ^ F::INVERTED);
        self.check_entry::<F>(entry, at.number, bits)?;
        Ok((entry, bits))
    }

    /// Reads the entry of a table that the address selects.
    #[inline]
    fn entry<F: GuestFormat>(
        &mut self,
        table: u64,
        number: u8,
        trail: &mut Trail<S::Address>,
        above: u64,
    ) -> Result<u64, WalkFault<S::Fault>> {
        let place = Gpa::new((table & F::ADDRESS) | entry_offset::<F>(self.address, number));
        let mut wanted = ErrorCode::USER | ErrorCode::GUEST_PAGE;
        if self.paging.access_dirty == AccessDirty::Hardware {
            wanted |= ErrorCode::WRITE;
        }
        let real = self.stage.translate(place, wanted);
        let real = real.map_err(|fault| WalkFault::Second {
            fault,
            gpa: place,
            table: Some(level_of(number)),
        })?;
        let Some(entry) = F::read(self.memory, real) else {
            return Err(self.no_memory::<F>(number, above));
        };
        trail.entries[usize::from(number)] = entry;
        trail.places[usize::from(number)] = (place, real);
        self.observer.step(&Step {
            level: level_of(number),
            place: Some(place),
            entry,
            above: F::rights(above),
            rights: F::rights(above & (entry ^ F::INVERTED)),
        });
        Ok(entry)
    }

    #[inline]
    fn check_entry<F: GuestFormat>(
        &self,
        entry: u64,
        number: u8,
        bits: u64,
    ) -> Result<(), WalkFault<S::Fault>> {
        let (code, cause) = if entry & F::PRESENT == 0 {
            (ErrorCode::empty(), Cause::NotPresent)
        } else {
            match self.paging.reserved.violations(entry, number) {
                0 => return Ok(()),
                bits => (
                    ErrorCode::PRESENT | ErrorCode::RSVD,
                    Cause::Reserved { bits },
                ),
            }
        };
        Err(self.fault(code, level_of(number), F::rights(bits), cause))
    }

    /// Rights, the second stage of the page, and the marks.
    #[inline]
    pub(super) fn finish<F: GuestFormat>(
        &mut self,
        top: u8,
        number: u8,
        leaf: u64,
        bits: u64,
        trail: &mut Trail<S::Address>,
    ) -> Result<Option<Translation<S::Address>>, WalkFault<S::Fault>> {
        let rights = F::rights(bits);
        let key = F::key(leaf);
        let permissions = &self.paging.permissions;
        let code = permissions.check(self.access, rights, key);
        if !code.is_empty() {
            let cause = permissions.cause(self.access, rights, key);
            return Err(self.fault(code, level_of(number), rights, cause));
        }
        let gpa = page_address::<F>(leaf, number, self.address);
        let address = self.final_page(gpa)?;
        let mut translation = Translation {
            address,
            gpa,
            size: leaf_size::<F>(number),
            rights,
            leaf,
            key,
            dirty: leaf & F::DIRTY != 0,
        };
        if self.paging.access_dirty == AccessDirty::Software {
            translation.dirty = true;
            return Ok(Some(translation));
        }
        let write = self.access.contains(ErrorCode::WRITE);
        if bits & F::ACCESSED != 0 && (!write || translation.dirty) {
            return Ok(Some(translation));
        }
        match self.mark::<F>(top, number, trail)? {
            Marked::Done { leaf } => {
                translation.leaf = leaf;
                translation.dirty = write || leaf & F::DIRTY != 0;
                Ok(Some(translation))
            }
            Marked::Restart => Ok(None),
            Marked::Failed { level } => {
                Err(self.fault(ErrorCode::empty(), level, rights, Cause::NoMemory))
            }
        }
    }

    /// Marks the entries on the way as accessed and, for a write, the leaf as dirty: from the top down.
    #[cold]
    fn mark<F: GuestFormat>(
        &mut self,
        top: u8,
        leaf: u8,
        trail: &mut Trail<S::Address>,
    ) -> Result<Marked, WalkFault<S::Fault>> {
        for number in (leaf..=top).rev() {
            let old = trail.entries[usize::from(number)];
            let mut new = old | F::ACCESSED;
            if number == leaf && self.access.contains(ErrorCode::WRITE) {
                new |= F::DIRTY;
            }
            if new == old {
                continue;
            }
            let (place, real) = trail.places[usize::from(number)];
            let allowed = self.stage.before_mark(place);
            allowed.map_err(|fault| WalkFault::Second {
                fault,
                gpa: place,
                table: Some(level_of(number)),
            })?;
            let written = match F::exchange(self.memory, real, old, new) {
                Exchange::Done => true,
                Exchange::ReadOnly => false,
                Exchange::Changed => return Ok(Marked::Restart),
                Exchange::Failed => {
                    return Ok(Marked::Failed {
                        level: level_of(number),
                    });
                }
            };
            self.observer.mark(&Mark {
                level: level_of(number),
                place,
                old,
                new,
                written,
            });
            if written {
                trail.entries[usize::from(number)] = new;
            }
        }
        Ok(Marked::Done {
            leaf: trail.entries[usize::from(leaf)],
        })
    }

    #[inline]
    pub(super) fn final_page(&mut self, gpa: Gpa) -> Result<S::Address, WalkFault<S::Fault>> {
        let wanted = self.access | ErrorCode::GUEST_FINAL;
        let address = self.stage.translate(gpa, wanted);
        address.map_err(|fault| WalkFault::Second {
            fault,
            gpa,
            table: None,
        })
    }

    #[cold]
    fn no_memory<F: GuestFormat>(&self, number: u8, above: u64) -> WalkFault<S::Fault> {
        let rights = F::rights(above);
        self.fault(
            ErrorCode::empty(),
            level_of(number),
            rights,
            Cause::NoMemory,
        )
    }

    /// A page fault: what the access was, besides what was found. Fetches are told only where something can forbid them.
    #[cold]
    fn fault(
        &self,
        found: ErrorCode,
        level: Level,
        rights: Access,
        cause: Cause,
    ) -> WalkFault<S::Fault> {
        let mut told = ErrorCode::WRITE | ErrorCode::USER;
        if self.paging.permissions.tells_fetches() {
            told |= ErrorCode::FETCH;
        }
        WalkFault::Page(PageFault {
            code: found | self.access & told,
            address: self.address,
            level,
            rights,
            cause,
        })
    }
}

/// Whether a walk ends at an entry. Bit 7 means nothing in 32-bit paging without PSE; elsewhere it is reserved where it
/// means nothing.
#[inline]
pub(super) fn is_leaf(mode: PagingMode, entry: u64, number: u8) -> bool {
    number == 0 || entry & PAGE_SIZE_BIT != 0 && mode != PagingMode::Bits32
}

/// log2 of the bytes that an entry covers; `number` is the level from 0.
#[inline]
const fn span_shift<F: GuestFormat>(number: u8) -> u32 {
    12 + F::INDEX_BITS * number as u32
}

/// The byte of a table where the entry for an address is.
#[inline]
fn entry_offset<F: GuestFormat>(address: Gva, number: u8) -> u64 {
    let index = address.raw() >> span_shift::<F>(number) & ((1 << F::INDEX_BITS) - 1);
    index << F::ENTRY_SHIFT
}

/// The byte that an address selects in the page of a leaf.
#[inline]
pub(super) fn page_address<F: GuestFormat>(leaf: u64, number: u8, address: Gva) -> Gpa {
    let offset = (1 << span_shift::<F>(number)) - 1;
    let base = leaf & F::ADDRESS & !offset;
    Gpa::new(base | F::wide_address(leaf, number) | address.raw() & offset)
}

#[inline]
pub(super) fn leaf_size<F: GuestFormat>(number: u8) -> LeafSize {
    match span_shift::<F>(number) {
        12 => LeafSize::Size4K,
        21 => LeafSize::Size2M,
        22 => LeafSize::Size4M,
        _ => LeafSize::Size1G,
    }
}
