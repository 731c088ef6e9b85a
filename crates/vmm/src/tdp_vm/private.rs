//! Private memory: attributes and guest_memfds.

use slat_memslot::{Errno, FileCall, Gfn, GfnRange, GmemId, Pages, SlotKey};
use slat_mmu::spte::Format;

use super::TdpVm;
use crate::traces::Predicted;

impl<F: Format> TdpVm<F> {
    /// `KVM_CREATE_GUEST_MEMFD`; answered with a descriptor.
    pub fn create_gmem(&mut self, size: u64) -> Option<GmemId> {
        let made = self.memory.create_gmem(size, 0).map_err(|r| r.errno());
        let answer = Predicted::Returned(made.map(|_| None));
        self.out.events.push(answer);
        made.ok()
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`: what changes is zapped (`kvm_vm_set_mem_attributes`).
    pub fn set_attributes(&mut self, gfn: Gfn, pages: Pages, attributes: u64) {
        let (gpa, size) = (gfn.raw() << 12, pages.raw() << 12);
        let changed = self.memory.set_attributes(gpa, size, attributes, 0);
        if let (Ok(true), Some(range)) = (&changed, GfnRange::new(gfn, pages)) {
            for (as_id, frames) in self.slots_in(range) {
                self.zap_frames(as_id, frames);
            }
        }
        self.answer(changed.map(|_| 0).map_err(|refusal| refusal.errno()));
    }

    fn slots_in(&self, range: GfnRange) -> Vec<(slat_memslot::AsId, GfnRange)> {
        let mut found = Vec::new();
        for as_id in self.address_spaces() {
            let slots = self.memory.space(as_id).in_range(range);
            let frames = slots.filter_map(|slot| slot.range().intersection(range));
            found.extend(frames.map(|frames| (as_id, frames)));
        }
        found
    }

    /// A hole is punched into a guest_memfd (`kvm_gmem_punch_hole`).
    pub fn punch_hole(&mut self, file: GmemId, offset: u64, len: u64) {
        let call = FileCall::Fallocate {
            mode: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
            offset,
            len,
        };
        let done = self.memory.file_call(file, call).map_err(|r| r.errno());
        if done.is_ok() {
            self.zap_file(file, offset, len);
            self.host.drop_file_pages(file, offset, len);
        }
        self.answer(done.map(|_| 0));
    }

    /// The descriptor of a guest_memfd is closed (`kvm_gmem_release`).
    pub fn close_gmem(&mut self, file: GmemId) -> Result<(), Errno> {
        self.zap_file(file, 0, u64::MAX);
        let closed = self.memory.file_call(file, FileCall::Close);
        closed.map(|_| ()).map_err(|refusal| refusal.errno())
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

    fn zap_file(&mut self, file: GmemId, offset: u64, len: u64) {
        let frames: Vec<(SlotKey, GfnRange)> =
            self.memory.frames_of_file(file, offset, len).collect();
        for (slot, frames) in frames {
            self.zap_frames(slot.as_id, frames);
        }
    }
}

const FALLOC_FL_KEEP_SIZE: u32 = 1;
const FALLOC_FL_PUNCH_HOLE: u32 = 2;
