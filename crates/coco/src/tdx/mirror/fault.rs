//! Faults of private and of shared memory.

use slat_memslot::{Gfn, PageSize};
use slat_mmu::spte::Pfn;
use slat_mmu::table::Reader;
use slat_mmu::tdp::{MapRequest, Resolution, Retry, Unobserved};

use super::vcpu::Vcpu;
use super::vm::{TdxMmu, TdxTables};
use crate::sync::{interleave, lock, pause, read};
use crate::tdx::Refusal;

/// `KVM_EXIT_MEMORY_FAULT`: the access is of another kind than the attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryFault {
    /// The frame.
    pub gfn: Gfn,
    /// Whether the access was private (`KVM_MEMORY_EXIT_FLAG_PRIVATE`).
    pub private: bool,
}

/// What a fault came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PrivateFault {
    /// The page is mapped.
    Fixed,
    /// It was mapped already.
    Spurious,
    /// Somebody was in the way: try again (`RET_PF_RETRY`).
    Retry(Retry),
    /// The frame was invalidated meanwhile: try again.
    Invalidated,
    /// Its slot is being deleted: try again, but not in the kernel.
    SlotDeleted,
    /// There is no slot.
    NoSlot,
    /// Userspace has to decide.
    Exit(MemoryFault),
    /// The module refused to measure.
    Module(Refusal),
    /// KVM has given the VM up, or is out of pages.
    Dead,
}

impl PrivateFault {
    /// Whether KVM tries again by itself.
    pub const fn is_retried(self) -> bool {
        matches!(self, Self::Retry(_) | Self::Invalidated | Self::SlotDeleted)
    }
}

/// What ends KVM's tries (`tdx.c:tdx_handle_ept_violation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// An event waits for the vCPU.
    Event,
    /// A signal waits for the thread.
    Signal,
    /// The slot is being deleted. Without this test the deletion and the fault wait for each other (fixed after 6.16).
    SlotDeleted,
}

/// Which of the tests a kernel makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoppedFault {
    /// It is over.
    Done(PrivateFault),
    /// It is not, and the vCPU leaves the kernel's loop.
    Stopped(Stop),
    /// It would go on for ever: so many tries were made.
    Spinning(u32),
}

impl TdxMmu {
    /// One try to handle a fault of private memory. Private memory is always mapped to be written: a page that is only
    /// read must not be shared between two frames.
    pub fn fault_private(&self, vcpu: &mut Vcpu, gfn: Gfn) -> PrivateFault {
        self.fault_private_from(&mut vcpu.reader, gfn)
    }

    fn fault_private_from(&self, reader: &mut Reader, gfn: Gfn) -> PrivateFault {
        let (sequence, page) = match self.prepare(gfn, true) {
            Ok(prepared) => prepared,
            Err(fault) => return fault,
        };
        // Between here and the lock anything can happen.
        interleave();
        let tables = read(&self.tables);
        if self.is_outdated(gfn, sequence) {
            return PrivateFault::Invalidated;
        }
        self.map(&tables, reader, self.mirror, gfn, page)
    }

    /// One try to handle a fault of shared memory, mapping the frame to a page of the host's.
    pub fn fault_shared(&self, vcpu: &mut Vcpu, gfn: Gfn, page: Pfn) -> PrivateFault {
        let sequence = match self.prepare(gfn, false) {
            Ok((sequence, _)) => sequence,
            Err(fault) => return fault,
        };
        let tables = read(&self.tables);
        if self.is_outdated(gfn, sequence) {
            return PrivateFault::Invalidated;
        }
        let gfn = self.shared_gfn(gfn);
        self.map(&tables, &mut vcpu.reader, self.direct_table(), gfn, page)
    }

    /// Tries until it is over or something else has to be done first. Tests that `stop` does not name are not made; after
    /// `limit` tries it counts as spinning.
    pub fn fault_until(
        &self,
        vcpu: &mut Vcpu,
        gfn: Gfn,
        limit: u32,
        stop: impl Fn(PrivateFault) -> Option<Stop>,
    ) -> StoppedFault {
        for _ in 0..limit {
            let fault = self.fault_private(vcpu, gfn);
            if !fault.is_retried() {
                return StoppedFault::Done(fault);
            }
            if let Some(stop) = stop(fault) {
                return StoppedFault::Stopped(stop);
            }
            pause();
        }
        StoppedFault::Spinning(limit)
    }

    /// A page that is added while the TD is built.
    pub(super) fn place_private(&self, tables: &TdxTables, gfn: Gfn) -> PrivateFault {
        let Some(mut reader) = tables.reader() else {
            return PrivateFault::Dead;
        };
        match self.prepare(gfn, true) {
            Ok((_, page)) => self.map(tables, &mut reader, self.mirror, gfn, page),
            Err(fault) => fault,
        }
    }

    /// Attribute, slot and page, in KVM's order (`mmu.c:kvm_mmu_faultin_pfn`). Before the lock is taken.
    fn prepare(&self, gfn: Gfn, private: bool) -> Result<(u64, Pfn), PrivateFault> {
        let mut kvm = lock(&self.kvm);
        let sequence = kvm.sequence;
        if kvm.is_private(gfn) != private {
            return Err(PrivateFault::Exit(MemoryFault { gfn, private }));
        }
        let slot = *kvm.slot_at(gfn).ok_or(PrivateFault::NoSlot)?;
        if slot.deleting {
            return Err(PrivateFault::SlotDeleted);
        }
        if !private {
            return Ok((sequence, Pfn::default()));
        }
        let Some((file, index)) = slot.place(gfn) else {
            return Err(PrivateFault::Exit(MemoryFault { gfn, private }));
        };
        if let Some(page) = kvm.files.get(file, index) {
            return Ok((sequence, page));
        }
        let page = self.backend.state().pages.take();
        let page = page.ok_or(PrivateFault::Dead)?;
        kvm.files.insert(file, index, page);
        Ok((sequence, page))
    }

    /// Whether what was prepared may not be so any more. With the lock held.
    fn is_outdated(&self, gfn: Gfn, sequence: u64) -> bool {
        let kvm = lock(&self.kvm);
        let under_way = kvm.invalidating.is_some_and(|range| range.contains(gfn));
        under_way || kvm.sequence != sequence
    }

    fn map(
        &self,
        tables: &TdxTables,
        reader: &mut Reader,
        root: slat_mmu::table::TableId,
        gfn: Gfn,
        page: Pfn,
    ) -> PrivateFault {
        let request = MapRequest::page(gfn, PageSize::Size4K, page);
        let mapped = tables.shared(reader, Unobserved).map(root, &request);
        if self.bug().is_some() {
            return PrivateFault::Dead;
        }
        match mapped.map(|mapped| mapped.resolution) {
            Ok(Resolution::Fixed) => PrivateFault::Fixed,
            Ok(Resolution::Spurious) => PrivateFault::Spurious,
            Ok(Resolution::Retry(retry)) => PrivateFault::Retry(retry),
            Ok(Resolution::Emulate | Resolution::WriteProtected) | Err(_) => PrivateFault::Dead,
        }
    }
}
