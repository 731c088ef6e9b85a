//! Slots, attributes and guest_memfds: what userspace sets up, and what the TD's tables make of it.

use slat_coco::tdx::mirror::FileId;
use slat_memslot::{
    ChangeKind, FileCall, Gate, GfnRange, GmemFile, GmemId, Gpa, Outcome, PAGE_SIZE, Pages, Region,
    Slot,
};

use super::{TdxError, TdxVm};
use crate::CallResult;

const FALLOC_FL_PUNCH_HOLE: u32 = 2;
/// `st_blocks` counts 512 bytes.
const BLOCKS: u64 = PAGE_SIZE / 512;

/// The same file in the tables' books.
fn file_id(file: GmemId) -> FileId {
    FileId(u32::try_from(file.index()).unwrap_or(u32::MAX))
}

impl TdxVm {
    /// The file behind a slot, if it has an open one.
    pub(super) fn file_of(slot: &Slot) -> Option<(FileId, u64)> {
        let binding = slot.binding()?;
        Some((file_id(binding.file?), binding.first_page))
    }

    /// `KVM_SET_USER_MEMORY_REGION` or its second version.
    pub(super) fn change_region(&mut self, request: &Region) -> CallResult {
        let planned = self.memory.check_region(request).ok();
        let goes = |kind| matches!(kind, ChangeKind::Delete | ChangeKind::Move);
        if planned.is_some_and(|change| goes(change.kind)) {
            self.delete_slot(request)?;
        }
        let effects = self.memory.set_region(request)?;
        if matches!(effects.kind, ChangeKind::Create | ChangeKind::Move) {
            self.tell_slot(request);
        }
        // What the MMIO generation throws away when it wraps is shared: a mirror root is never given up.
        if let (Some(td), Some(_)) = (&self.td, effects.wrap) {
            td.zap_direct_roots();
        }
        Ok(Outcome::Done)
    }

    /// Takes a slot out of the tables. What KVM cannot do leaves the VM dead, with the slot.
    fn delete_slot(&mut self, request: &Region) -> Result<(), TdxError> {
        let Some(slot) = self.memory.slot(request.slot) else {
            return Ok(());
        };
        let (id, range) = (slot.key().id.raw(), slot.range());
        self.host.forget(range);
        if let Some(td) = &self.td {
            td.delete_slot(id, self.slot_zap).map_err(|bug| {
                self.memory.set_gate(Gate::Dead);
                TdxError::Bug(bug)
            })?;
        }
        self.check_alive()
    }

    fn tell_slot(&self, request: &Region) {
        if let (Some(td), Some(slot)) = (&self.td, self.memory.slot(request.slot)) {
            td.bind_slot(slot.key().id.raw(), slot.range(), Self::file_of(slot));
        }
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`: the side that goes is zapped (`kvm_main.c:kvm_vm_set_mem_attributes`).
    pub(super) fn change_attributes(
        &mut self,
        address: u64,
        size: u64,
        attributes: u64,
        flags: u64,
    ) -> CallResult {
        self.memory
            .set_attributes(address, size, attributes, flags)?;
        let range = GfnRange::new(Gpa::new(address).gfn(), Pages::in_bytes(size));
        if let (Some(td), Some(range)) = (&self.td, range) {
            match attributes {
                0 => td.set_shared(range),
                _ => td.set_private(range),
            }
        }
        self.check_alive()?;
        Ok(Outcome::Done)
    }

    /// A system call on a guest_memfd.
    pub(super) fn call_file(&mut self, file: GmemId, call: FileCall) -> CallResult {
        let outcome = self.memory.file_call(file, call)?;
        let Some(td) = &self.td else {
            return Ok(outcome);
        };
        match call {
            FileCall::Blocks => {
                let pages = td.file_pages(file_id(file));
                return Ok(Outcome::Value(pages.raw() * BLOCKS));
            }
            FileCall::Fallocate { mode, offset, len } if mode & FALLOC_FL_PUNCH_HOLE != 0 => {
                td.punch_file(file_id(file), offset / PAGE_SIZE, Pages::in_bytes(len));
            }
            FileCall::Close => {
                let open = self.memory.gmem_file(file);
                if !open.is_some_and(GmemFile::is_open) {
                    td.release_file(file_id(file));
                }
            }
            _ => {}
        }
        self.check_alive()?;
        Ok(outcome)
    }
}
