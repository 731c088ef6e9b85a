//! The walk that looks at everything.

use slat_memslot::{Gpa, Gva, Level};

use super::leaf::{LeafSize, Translation, is_leaf, leaf_size, page_address, span_shift};
use super::mark::{Marked, Trail};
use super::start::Start;
use super::{Walk, level_of};
use crate::access::Access;
use crate::role::AccessDirty;
use crate::walk::ErrorCode;
use crate::walk::fault::{Cause, PageFault, WalkFault};
use crate::walk::format::{GuestFormat, Paging32, Paging64, PagingEpt};
use crate::walk::log::{Step, WalkObserver};
use crate::walk::memory::TableMemory;
use crate::walk::mode::PagingMode;
use crate::walk::stage::Stage;

impl<M, S, O> Walk<'_, M, S, O>
where
    M: TableMemory<S::Address> + ?Sized,
    S: Stage,
    O: WalkObserver,
{
    /// The walk that looks at everything, from the top.
    #[inline(never)]
    pub(super) fn careful(&mut self) -> Result<Translation<S::Address>, WalkFault<S::Fault>> {
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
    pub(super) fn once<F: GuestFormat>(
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
    pub(in crate::walk) fn advance<F: GuestFormat>(
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
    pub(in crate::walk) fn finish<F: GuestFormat>(
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

    #[inline(always)]
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

/// The byte of a table where the entry for an address is.
#[inline]
fn entry_offset<F: GuestFormat>(address: Gva, number: u8) -> u64 {
    let index = address.raw() >> span_shift::<F>(number) & ((1 << F::INDEX_BITS) - 1);
    index << F::ENTRY_SHIFT
}
