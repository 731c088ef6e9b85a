//! Counts of a comparison.

use std::collections::BTreeMap;

use slat_memslot::{Call, Errno};

use crate::{CallError, CallResult};

/// What was called and what came of it.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Calls made on both sides.
    pub calls: u64,
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Pairs of VMs.
    pub vms: u64,
    /// Calls by operation and result; `None` is success.
    pub by_operation: BTreeMap<(&'static str, Option<Errno>), u64>,
    /// Refusals by the model's reason.
    pub by_reason: BTreeMap<&'static str, u64>,
    /// Reasons that the repair oracle has confirmed on the kernel, and how often.
    pub confirmed: BTreeMap<&'static str, u64>,
    /// Refusals that no repair helps, or whose repair is too dear to try; not confirmed.
    pub unconfirmed: u64,
    /// Calls that this machine could not make.
    pub not_tried: u64,
}

impl Stats {
    pub(super) fn count(&mut self, call: &Call, answer: &CallResult) {
        self.calls += 1;
        let errno = match answer {
            Ok(_) => {
                self.succeeded += 1;
                None
            }
            Err(CallError::Refused { errno, reason }) => {
                if let Some(reason) = reason {
                    *self.by_reason.entry(reason.code()).or_default() += 1;
                }
                Some(*errno)
            }
            Err(CallError::NotTried { .. }) => return,
        };
        *self
            .by_operation
            .entry((operation(call), errno))
            .or_default() += 1;
    }
}

/// The name of an operation in scenario files.
pub(super) fn operation(call: &Call) -> &'static str {
    use slat_memslot::{FileCall, MapCall, RegionVersion};
    match call {
        Call::SetRegion(region) => match region.version {
            RegionVersion::V1 => "set_user_memory_region",
            RegionVersion::V2 => "set_user_memory_region2",
        },
        Call::CreateGmem { .. } => "create_guest_memfd",
        Call::File(_, call) => match call {
            FileCall::Close => "close",
            FileCall::Read => "read",
            FileCall::Write => "write",
            FileCall::Pread => "pread",
            FileCall::Pwrite => "pwrite",
            FileCall::Lseek => "lseek",
            FileCall::Chmod => "fchmod",
            FileCall::Truncate { .. } => "ftruncate",
            FileCall::Size => "size",
            FileCall::Blocks => "blocks",
            FileCall::Fallocate { .. } => "fallocate",
            FileCall::Mmap { .. } => "mmap",
        },
        Call::Map(_, call) => match call {
            MapCall::Touch { .. } => "touch",
            MapCall::Madvise { .. } => "madvise",
            MapCall::Mprotect { .. } => "mprotect",
            MapCall::Unmap => "munmap",
        },
        Call::SetAttributes { .. } => "set_memory_attributes",
        Call::GetDirtyLog { .. } => "get_dirty_log",
        Call::ClearDirtyLog { .. } => "clear_dirty_log",
        Call::ResetDirtyRings => "reset_dirty_rings",
        Call::HarvestDirtyRing { .. } => "harvest_dirty_ring",
        Call::EnableCap { .. } => "enable_cap",
        Call::CheckExtension { .. } => "check_extension",
        Call::CreateVcpu => "create_vcpu",
        Call::PreFault { .. } => "pre_fault_memory",
        Call::SetNrMmuPages { .. } => "set_nr_mmu_pages",
        Call::SetTssAddr { .. } => "set_tss_addr",
        Call::SetIdentityMapAddr { .. } => "set_identity_map_addr",
        Call::CreateIrqchip => "create_irqchip",
        Call::GuestWrite { .. } => "guest_write",
    }
}
