//! One memory slot.

use crate::{
    DirtyBitmap, Gfn, GfnRange, GmemId, Hva, LpageInfo, PAGE_SHIFT, Pages, SlotFlags, SlotKey,
};

/// The part of a guest_memfd that a slot is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The file; cleared when its last descriptor is closed, since the VM holds no reference.
    pub file: Option<GmemId>,
    /// First page of the file's range.
    pub first_page: u64,
    /// The file can be mapped, so every guest access uses it and the host address serves KVM's own accesses only
    /// (`KVM_MEMSLOT_GMEM_ONLY`, 6.18).
    pub gmem_only: bool,
}

/// Why a guest frame has no host address (`__gfn_to_hva_many`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HvaError {
    /// No slot holds the frame (`KVM_HVA_ERR_BAD`).
    #[error("no slot holds the frame")]
    Bad,
    /// The slot is read-only and the access writes (`KVM_HVA_ERR_RO_BAD`).
    #[error("the slot is read-only")]
    ReadOnly,
}

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Read or fetch.
    Read,
    /// Write.
    Write,
}

/// A memory slot (`struct kvm_memory_slot`): guest frames backed by a range of host addresses.
///
/// What calls and faults look at first is in its first cache line.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Slot {
    /// Knows the slot's frames and host address.
    pub(crate) lpage: LpageInfo,
    pub(crate) key: SlotKey,
    pub(crate) flags: SlotFlags,
    pub(crate) invalid: bool,
    pub(crate) binding: Option<Binding>,
    pub(crate) dirty: Option<DirtyBitmap>,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Slot>() == 128, "two cache lines");

impl Slot {
    /// Address space and id.
    pub fn key(&self) -> SlotKey {
        self.key
    }

    /// The guest frames it holds.
    pub fn range(&self) -> GfnRange {
        self.lpage.range()
    }

    /// How many pages it holds.
    pub fn pages(&self) -> Pages {
        self.range().pages()
    }

    /// The host address of its first byte.
    pub fn hva(&self) -> Hva {
        self.lpage.hva()
    }

    /// Its flags.
    pub fn flags(&self) -> SlotFlags {
        self.flags
    }

    /// The guest_memfd range it is bound to.
    pub fn binding(&self) -> Option<Binding> {
        self.binding
    }

    /// Its dirty bitmap, when the slot is logged and the VM keeps bitmaps.
    pub fn dirty(&self) -> Option<&DirtyBitmap> {
        self.dirty.as_ref()
    }

    /// Which huge mappings alignment and write tracking allow.
    pub fn lpage(&self) -> &LpageInfo {
        &self.lpage
    }

    /// Whether guest writes are logged.
    pub fn is_logged(&self) -> bool {
        self.flags.contains(SlotFlags::LOG_DIRTY_PAGES)
    }

    /// Whether guest writes exit as MMIO.
    pub fn is_readonly(&self) -> bool {
        self.flags.contains(SlotFlags::READONLY)
    }

    /// Whether it is being deleted or moved, so that faults on it have to wait (`KVM_MEMSLOT_INVALID`).
    pub fn is_invalid(&self) -> bool {
        self.invalid
    }

    /// The host address of a frame that the slot holds, else `None` (`__gfn_to_hva_memslot`).
    pub fn hva_of(&self, gfn: Gfn) -> Option<Hva> {
        let offset = gfn.raw().checked_sub(self.range().start().raw())?;
        self.range()
            .contains(gfn)
            .then(|| Hva::new(self.hva().raw() + (offset << PAGE_SHIFT)))
    }

    /// The slot, with all that it owns; what stays behind owns nothing.
    pub(crate) fn take(&mut self) -> Self {
        let empty = Self {
            dirty: None,
            lpage: LpageInfo::new(self.range(), self.hva()),
            ..*self
        };
        core::mem::replace(self, empty)
    }

    /// The host addresses it holds, as `[start, end)`.
    pub(crate) fn hva_range(&self) -> (u64, u64) {
        (self.hva().raw(), self.hva().raw() + self.pages().bytes())
    }
}
