//! `KVM_GET_DIRTY_LOG` and `KVM_CLEAR_DIRTY_LOG`.

use super::{ClearMask, DirtyBitmap, DirtyPages};
use crate::set_region::{high_half, low_half};
use crate::{
    AsId, Buffer, ClearBits, DirtyLogError, ManualProtect, Memory, Outcome, Refusal, Slot, SlotId,
    SlotKey,
};

impl Memory {
    /// Whether `KVM_GET_DIRTY_LOG` will succeed (`kvm_get_dirty_log_protect`), its buffer aside.
    ///
    /// # Errors
    /// The first test that fails.
    pub fn check_get_dirty_log(&self, slot: u32) -> Result<SlotKey, Refusal> {
        self.check_gate()?;
        let key = self.log_slot(slot)?;
        self.logged(key)?;
        Ok(key)
    }

    /// `KVM_GET_DIRTY_LOG`: the dirty pages, which are forgotten unless manual protection is on.
    ///
    /// # Errors
    /// The first test that fails. A bad buffer is found out last, when the bits are gone already.
    pub fn get_dirty_log(&mut self, slot: u32, buffer: Buffer) -> Result<DirtyPages, Refusal> {
        let key = self.check_get_dirty_log(slot)?;
        let manual = self.manual_protect().contains(ManualProtect::ENABLE);
        let bitmap = self.bitmap_mut(key)?;
        let pages = if manual {
            bitmap.get()
        } else {
            bitmap.get_and_clear()
        };
        match buffer {
            Buffer::Good => Ok(pages),
            Buffer::Null => Err(DirtyLogError::Buffer {}.into()),
        }
    }

    /// Whether `KVM_CLEAR_DIRTY_LOG` will succeed (`kvm_clear_dirty_log_protect`).
    ///
    /// # Errors
    /// The first test that fails.
    pub fn check_clear_dirty_log(
        &self,
        slot: u32,
        first_page: u64,
        num_pages: u32,
        bits: &ClearBits,
    ) -> Result<SlotKey, Refusal> {
        self.check_gate()?;
        let key = self.log_slot(slot)?;
        if first_page % 64 != 0 {
            return Err(DirtyLogError::FirstPage { first_page }.into());
        }
        let pages = self.logged(key)?.pages().raw();
        let rest = pages
            .checked_sub(first_page)
            .filter(|rest| u64::from(num_pages) <= *rest);
        let rest = rest.ok_or(DirtyLogError::ClearBeyond {
            first_page,
            num_pages,
            pages,
        })?;
        if u64::from(num_pages) < rest && num_pages % 64 != 0 {
            return Err(DirtyLogError::ClearPartial {
                first_page,
                num_pages,
                pages,
            }
            .into());
        }
        if *bits == ClearBits::Null && num_pages != 0 {
            return Err(DirtyLogError::Buffer {}.into());
        }
        Ok(key)
    }

    /// `KVM_CLEAR_DIRTY_LOG`: forgets dirty pages and watches them anew.
    ///
    /// # Errors
    /// As [`Memory::check_clear_dirty_log`].
    pub fn clear_dirty_log(
        &mut self,
        slot: u32,
        first_page: u64,
        num_pages: u32,
        bits: &ClearBits,
    ) -> Result<Outcome, Refusal> {
        let key = self.check_clear_dirty_log(slot, first_page, num_pages, bits)?;
        let bitmap = self.bitmap_mut(key)?;
        let clear = |bitmap: &mut DirtyBitmap, mask| {
            bitmap.forget(first_page, u64::from(num_pages), mask);
        };
        match bits {
            ClearBits::All => clear(bitmap, ClearMask::All),
            ClearBits::Words(words) => clear(bitmap, ClearMask::Words(words)),
            ClearBits::Null => {}
        }
        Ok(Outcome::Done)
    }

    fn log_slot(&self, slot: u32) -> Result<SlotKey, DirtyLogError> {
        if self.has_rings() {
            return Err(DirtyLogError::RingMode {});
        }
        let id = SlotId::new(low_half(slot));
        let as_id = u8::try_from(high_half(slot))
            .ok()
            .filter(|i| *i < self.address_space_count());
        match as_id.and_then(AsId::new) {
            Some(as_id) if id.is_user() => Ok(SlotKey { as_id, id }),
            _ => Err(DirtyLogError::Slot { slot }),
        }
    }

    fn logged(&self, slot: SlotKey) -> Result<&Slot, DirtyLogError> {
        let found = self
            .space(slot.as_id)
            .by_id(slot.id)
            .ok_or(DirtyLogError::NoSlot { slot })?;
        match found.dirty() {
            Some(_) => Ok(found),
            None => Err(DirtyLogError::NotLogged { slot }),
        }
    }

    fn bitmap_mut(&mut self, slot: SlotKey) -> Result<&mut DirtyBitmap, DirtyLogError> {
        let found = self.space_mut(slot.as_id).by_id_mut(slot.id);
        let found = found.ok_or(DirtyLogError::NoSlot { slot })?;
        found
            .dirty
            .as_mut()
            .ok_or(DirtyLogError::NotLogged { slot })
    }
}
