//! Every call of KVM's memory interface, on a VM with page tables.

use slat_memslot::{
    Access, Call, ClearBits, ContentsCall, DirtyPages, DirtyWindow, MapCall, MapId, Outcome,
    Refusal,
};
use slat_mmu::spte::Format;

use super::{HvaRange, TdpVm};
use crate::CallResult;
use crate::traces::Predicted;

impl<F: Format> TdpVm<F> {
    /// Answers a call as the kernel would, with everything that the page tables have to follow.
    ///
    /// What happens is to be had from [`TdpVm::take`], the call's result with it.
    ///
    /// # Errors
    /// As [`slat_memslot::Memory::call`]; and guest accesses and pre-faults fail where the host's memory does.
    pub fn call(&mut self, call: &Call) -> CallResult {
        let result = match call {
            Call::SetRegion(request) => self.change_region(request).map(|()| Outcome::Done),
            Call::File(file, call) => self.call_file(*file, *call),
            Call::Map(map, call) => self.call_map(*map, *call),
            Call::SetAttributes {
                address,
                size,
                attributes,
                flags,
            } => self
                .change_attributes(*address, *size, *attributes, *flags)
                .map(|()| Outcome::Done),
            Call::GetDirtyLog { slot, buffer } => {
                self.read_dirty_log(*slot, *buffer).map(Outcome::Dirty)
            }
            Call::ClearDirtyLog {
                slot,
                first_page,
                num_pages,
                bits,
            } => self.forget_dirty(*slot, *first_page, *num_pages, bits),
            Call::ResetDirtyRings => self.free_rings(),
            Call::CreateVcpu => {
                let id = self.memory.vcpus();
                self.add_vcpu(id)
            }
            Call::PreFault {
                vcpu,
                gpa,
                size,
                flags,
            } => return self.pre_fault_call(*vcpu, *gpa, *size, *flags),
            Call::Guest(access) => return self.guest_access(access),
            Call::Contents(call) => return self.contents_call(call),
            other => self.memory.call(other),
        };
        self.tell_result(call, &result);
        Ok(result?)
    }

    /// What a guest and its userspace find in memory; a guest's accesses go through the tables, page by page.
    fn contents_call(&mut self, call: &ContentsCall) -> CallResult {
        match call {
            ContentsCall::Guest { vcpu, code, act } => {
                for access in act.accesses(*vcpu, *code) {
                    match self.guest_access(&access)? {
                        Outcome::Access(Access::Done) => self.memory.pass(act, &access),
                        other => return Ok(other),
                    }
                }
                Ok(self.memory.after(act))
            }
            ContentsCall::Discard { hva, size } => {
                let range = *hva..hva.saturating_add(*size);
                self.unmap_hva(range.clone());
                self.host.discard(range);
                Ok(self.memory.without_guest(call))
            }
            _ => Ok(self.memory.without_guest(call)),
        }
    }

    /// Puts what a system call returned behind what it did.
    fn tell_result(&mut self, call: &Call, result: &Result<Outcome, Refusal>) {
        if matches!(
            call,
            Call::HarvestDirtyRing { .. } | Call::Map(_, MapCall::Touch { .. })
        ) {
            return;
        }
        let returned = match result {
            Ok(Outcome::Value(value)) => Ok(i64::try_from(*value).ok()),
            Ok(Outcome::Gmem(_) | Outcome::Mapped(..)) => Ok(None),
            Ok(_) if *call == Call::CreateVcpu => Ok(None),
            Ok(_) => Ok(Some(0)),
            Err(refusal) => Err(refusal.errno()),
        };
        self.out.events.push(Predicted::Returned(returned));
        if let Ok(Outcome::Dirty(pages)) = result {
            let pages = pages.iter().collect();
            self.out.events.push(Predicted::Dirty(pages));
        }
    }

    /// A system call on a mapping of a guest_memfd: where a slot's host memory lies in it, KVM is told what goes.
    fn call_map(&mut self, map: MapId, call: MapCall) -> Result<Outcome, Refusal> {
        const DONTNEED: u32 = 4;
        const REMOVE: u32 = 9;
        let mapped = self.memory.gmem_map(map);
        let bound = mapped.as_ref().map(|(file, ..)| self.bound_frames(*file));
        let result = self.memory.map_call(map, call)?;
        let Some((file, range, offset)) = mapped else {
            return Ok(result);
        };
        let range: HvaRange = range.start.raw()..range.end.raw();
        let len = range.end - range.start;
        match call {
            MapCall::Madvise { advice: DONTNEED } | MapCall::Mprotect { .. } => {
                self.unmap_hva(range);
            }
            MapCall::Madvise { advice: REMOVE } => {
                self.unmap_hva(range);
                self.drop_file_range(file, offset, len);
            }
            MapCall::Unmap => {
                self.unmap_hva(range);
                self.zap_if_released(file, bound.unwrap_or_default());
            }
            MapCall::Madvise { .. } | MapCall::Touch { .. } => {}
        }
        Ok(result)
    }
}

/// The pages of some that a clear names, by 64.
pub(super) fn to_clear(
    dirty: &DirtyPages,
    first: u64,
    count: u32,
    bits: &ClearBits,
) -> Vec<DirtyWindow> {
    let end = first.saturating_add(u64::from(count).next_multiple_of(64));
    let named = |offset: u64| match bits {
        ClearBits::All => u64::MAX,
        ClearBits::Null => 0,
        ClearBits::Words(words) => {
            let at = usize::try_from((offset - first) / 64).ok();
            at.and_then(|at| words.get(at)).copied().unwrap_or(0)
        }
    };
    let inside = dirty
        .windows()
        .filter(|window| (first..end).contains(&window.offset));
    let masked = inside.map(|window| DirtyWindow {
        mask: window.mask & named(window.offset),
        ..window
    });
    masked.filter(|window| window.mask != 0).collect()
}
