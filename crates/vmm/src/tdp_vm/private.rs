//! Private memory: attributes and guest_memfds.

use slat_memslot::{
    Call, Errno, FileCall, Gfn, GfnRange, GmemId, Gpa, Outcome, PAGE_SHIFT, Pages, Refusal, SlotKey,
};
use slat_mmu::spte::Format;

use super::TdpVm;

impl<F: Format> TdpVm<F> {
    /// `KVM_CREATE_GUEST_MEMFD`; answered with a descriptor.
    pub fn create_gmem(&mut self, size: u64) -> Option<GmemId> {
        let call = Call::CreateGmem {
            size,
            flags: 0,
            reserved: 0,
        };
        match self.call(&call) {
            Ok(Outcome::Gmem(file)) => Some(file),
            _ => None,
        }
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    pub fn set_attributes(&mut self, gfn: Gfn, pages: Pages, attributes: u64) {
        let _ = self.call(&Call::SetAttributes {
            address: gfn.raw() << PAGE_SHIFT,
            size: pages.raw() << PAGE_SHIFT,
            attributes,
            flags: 0,
        });
    }

    /// What changes is zapped (`kvm_main.c:kvm_vm_set_mem_attributes`).
    pub(super) fn change_attributes(
        &mut self,
        address: u64,
        size: u64,
        attributes: u64,
        flags: u64,
    ) -> Result<(), Refusal> {
        let changed = self
            .memory
            .set_attributes(address, size, attributes, flags)?;
        let range = GfnRange::new(Gpa::new(address).gfn(), Pages::in_bytes(size));
        if let (true, Some(range)) = (changed, range) {
            for (as_id, frames) in self.slots_in(range) {
                self.zap_frames(as_id, frames);
            }
        }
        Ok(())
    }

    fn slots_in(&self, range: GfnRange) -> Vec<(slat_memslot::AsId, GfnRange)> {
        let mut found = Vec::new();
        for as_id in self.memory.address_spaces() {
            let slots = self.memory.space(as_id).in_range(range);
            let frames = slots.filter_map(|slot| slot.range().intersection(range));
            found.extend(frames.map(|frames| (as_id, frames)));
        }
        found
    }

    /// A system call on a guest_memfd: what is punched or released is zapped.
    pub(super) fn call_file(&mut self, file: GmemId, call: FileCall) -> Result<Outcome, Refusal> {
        let bound = self.bound_frames(file);
        let result = self.memory.file_call(file, call)?;
        match call {
            FileCall::Close => self.zap_if_released(file, bound),
            FileCall::Fallocate { mode, offset, len } if mode & FALLOC_FL_PUNCH_HOLE != 0 => {
                self.drop_file_range(file, offset, len);
            }
            _ => {}
        }
        Ok(result)
    }

    /// Frames that a file backs.
    pub(super) fn bound_frames(&self, file: GmemId) -> Vec<(SlotKey, GfnRange)> {
        self.memory.frames_of_file(file, 0, u64::MAX).collect()
    }

    /// When nobody holds a file any more, its slots lose it (`guest_memfd.c:kvm_gmem_release`).
    pub(super) fn zap_if_released(&mut self, file: GmemId, bound: Vec<(SlotKey, GfnRange)>) {
        let open = self.memory.gmem_file(file);
        if open.is_some_and(|file| file.bindings().next().is_none()) {
            for (slot, frames) in bound {
                self.zap_frames(slot.as_id, frames);
            }
            self.free_private(file, 0, u64::MAX);
        }
    }

    /// The pages of a range of a file go (`guest_memfd.c:kvm_gmem_punch_hole`).
    pub(super) fn drop_file_range(&mut self, file: GmemId, offset: u64, len: u64) {
        let frames: Vec<_> = self.memory.frames_of_file(file, offset, len).collect();
        for (slot, frames) in frames {
            self.zap_frames(slot.as_id, frames);
        }
        self.free_private(file, offset, len);
        self.host.drop_file_pages(file, offset, len);
    }

    /// A hole is punched into a guest_memfd.
    pub fn punch_hole(&mut self, file: GmemId, offset: u64, len: u64) {
        let call = FileCall::Fallocate {
            mode: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
            offset,
            len,
        };
        let _ = self.call(&Call::File(file, call));
    }

    /// The descriptor of a guest_memfd is closed, without a word about the result.
    pub fn close_gmem(&mut self, file: GmemId) -> Result<(), Errno> {
        let closed = self.call_file(file, FileCall::Close);
        closed.map(drop).map_err(|refusal| refusal.errno())
    }

    pub(super) fn close_gmem_files(&mut self) {
        let count = u32::try_from(self.memory.gmem_files()).unwrap_or(u32::MAX);
        for file in (0..count).map(GmemId::new) {
            let open = self
                .memory
                .gmem_file(file)
                .is_some_and(slat_memslot::GmemFile::is_open);
            if open {
                let _ = self.close_gmem(file);
            }
        }
    }
}

const FALLOC_FL_KEEP_SIZE: u32 = 1;
const FALLOC_FL_PUNCH_HOLE: u32 = 2;
