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
        match self.mode {
            PagingMode::Level4 => walk.through_root::<Paging64>(Level::L4),
            PagingMode::Level5 => walk.through_root::<Paging64>(Level::L5),
            PagingMode::Pae => walk.through_pointers(),
            PagingMode::Bits32 | PagingMode::Bits32Pse => walk.through_root::<Paging32>(Level::L2),
            PagingMode::Ept4 => walk.through_root::<PagingEpt>(Level::L4),
            PagingMode::Ept5 => walk.through_root::<PagingEpt>(Level::L5),
            PagingMode::Unpaged => walk.unpaged(),
        }
    }
}

/// One walk, with all it needs.
struct Walk<'w, M: ?Sized, S, O> {
    paging: &'w GuestPaging,
    memory: &'w M,
    stage: &'w mut S,
    observer: &'w mut O,
    address: Gva,
    access: ErrorCode,
}

/// The entries on the way, by level from 0, for those that have to be marked.
struct Trail<A> {
    entries: [u64; 5],
    /// Where they are, as the guest counts and where the memory is.
    places: [(Gpa, A); 5],
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
        let [_, _, _, high, ..] = self.address.raw().to_le_bytes();
        let pointer = self.paging.pointers.0[usize::from(high >> 6)];
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
            if let Some(found) = self.once::<F>(root, top)? {
                return Ok(found);
            }
            self.observer.restart();
        }
    }

    /// One pass; nothing if it has to start again.
    #[inline]
    fn once<F: GuestFormat>(
        &mut self,
        root: u64,
        top: Level,
    ) -> Result<Option<Translation<S::Address>>, WalkFault<S::Fault>> {
        let mut trail = Trail {
            entries: [0; 5],
            places: [(Gpa::new(0), S::Address::default()); 5],
        };
        let mut table = root;
        let mut bits = u64::MAX;
        let mut number = top as u8 - 1;
        let leaf = loop {
            let entry = self.entry::<F>(table, number, &mut trail, bits)?;
            bits &= entry ^ F::INVERTED;
            self.check_entry::<F>(entry, number, bits)?;
            if is_leaf(self.paging.mode, entry, number) {
                break entry;
            }
            table = entry;
            number -= 1;
        };
        self.finish::<F>(top, number, leaf, bits, &mut trail)
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
    fn finish<F: GuestFormat>(
        &mut self,
        top: Level,
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
        match self.mark::<F>(top, number, trail) {
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
        top: Level,
        leaf: u8,
        trail: &mut Trail<S::Address>,
    ) -> Marked {
        for number in (leaf..top as u8).rev() {
            let old = trail.entries[usize::from(number)];
            let mut new = old | F::ACCESSED;
            if number == leaf && self.access.contains(ErrorCode::WRITE) {
                new |= F::DIRTY;
            }
            if new == old {
                continue;
            }
            let (place, real) = trail.places[usize::from(number)];
            let written = match F::exchange(self.memory, real, old, new) {
                Exchange::Done => true,
                Exchange::ReadOnly => false,
                Exchange::Changed => return Marked::Restart,
                Exchange::Failed => {
                    return Marked::Failed {
                        level: level_of(number),
                    };
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
        Marked::Done {
            leaf: trail.entries[usize::from(leaf)],
        }
    }

    #[inline]
    fn final_page(&mut self, gpa: Gpa) -> Result<S::Address, WalkFault<S::Fault>> {
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
