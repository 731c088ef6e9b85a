//! Dirty rings of a VM: enabling, harvesting, resetting.

use super::{DirtyRing, DirtyWindow, Rearm};
use crate::{DirtyRingError, Memory, Outcome, Refusal, SlotKey, VmType, cap};

/// Bytes of one entry.
const ENTRY: u64 = 16;
/// The most a ring can have (`KVM_DIRTY_RING_MAX_ENTRIES` entries).
pub(crate) const MAX_BYTES: u64 = 65536 * ENTRY;

/// The size that the kernel makes of `KVM_ENABLE_CAP`'s 64-bit argument.
pub(crate) const fn ring_size(argument: u64) -> u64 {
    argument & u32::MAX as u64
}

/// What a reset of all rings freed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[must_use = "the pages have to be armed again"]
pub struct FreedRings {
    /// Entries, whether or not their slot exists.
    pub count: u64,
    /// The pages to be armed again, ring by ring, in the order of the entries.
    pub rearm: Vec<(SlotKey, DirtyWindow)>,
}

impl Memory {
    /// The smallest ring that KVM takes here: its reserve, and at least a page.
    pub fn min_ring_bytes(&self) -> u64 {
        // A TD's own reserve is not known before the VM exists; KVM sizes by the host.
        (u64::from(self.profile().ring_reserve(VmType::Default)) * ENTRY).max(crate::PAGE_SIZE)
    }

    /// Enabling dirty rings of `size` bytes (`kvm_vm_ioctl_enable_dirty_log_ring`).
    ///
    /// The kernel keeps the lower 32 bits of the argument.
    pub(crate) fn check_enable_ring(&self, size: u64) -> Result<(), DirtyRingError> {
        let size = ring_size(size);
        if !self.profile().dirty_ring.get() {
            return Err(DirtyRingError::NotBuiltIn {});
        }
        if !size.is_power_of_two() {
            return Err(DirtyRingError::NotPowerOfTwo { size });
        }
        let min = self.min_ring_bytes();
        if size < min {
            return Err(DirtyRingError::TooSmall { size, min });
        }
        if size > MAX_BYTES {
            return Err(DirtyRingError::TooBig {
                size,
                max: MAX_BYTES,
            });
        }
        if self.ring_bytes != 0 {
            return Err(DirtyRingError::AlreadyEnabled {
                size: self.ring_bytes,
            });
        }
        match self.vcpus() {
            0 => Ok(()),
            vcpus => Err(DirtyRingError::HasVcpu { vcpus }),
        }
    }

    /// The ring of a new vCPU.
    pub(crate) fn new_ring(&self) -> Option<DirtyRing> {
        let entries = u32::try_from(self.ring_bytes / ENTRY)
            .ok()
            .filter(|n| *n != 0)?;
        DirtyRing::new(entries, self.profile().ring_reserve(self.vm_type()))
    }

    /// Takes every published entry out of a vCPU's ring and marks it harvested, as a VMM does through the mapping.
    ///
    /// # Errors
    /// The vCPU does not exist, or has no ring.
    pub fn harvest_dirty_ring(&mut self, vcpu: u32) -> Result<Vec<(u32, u64)>, Refusal> {
        let ring = self.ring_mut(vcpu);
        let ring = ring.ok_or(DirtyRingError::NoRing { vcpu })?;
        Ok(ring
            .harvest()
            .into_iter()
            .map(|entry| (entry.slot, entry.offset))
            .collect())
    }

    /// `KVM_RESET_DIRTY_RINGS`: frees the harvested entries of all vCPUs and gives their number.
    ///
    /// # Errors
    /// The VM has no rings.
    pub fn reset_dirty_rings(&mut self) -> Result<Outcome, Refusal> {
        let freed = self.free_dirty_rings()?;
        Ok(Outcome::Value(freed.count))
    }

    /// The same, and tells the pages that are to be armed again: of slots that exist, and inside them
    /// (`dirty_ring.c:kvm_reset_dirty_gfn`).
    ///
    /// # Errors
    /// The VM has no rings.
    pub fn free_dirty_rings(&mut self) -> Result<FreedRings, Refusal> {
        self.check_gate()?;
        if !self.has_rings() {
            return Err(DirtyRingError::NotEnabled {}.into());
        }
        let mut freed = FreedRings::default();
        let mut rings = core::mem::take(&mut self.rings);
        for ring in &mut rings {
            let reset = ring.reset();
            freed.count += u64::from(reset.count);
            let known = reset.rearm.into_iter().filter_map(|at| {
                let key = self.slot_to_rearm(&at)?;
                Some((key, at.window))
            });
            freed.rearm.extend(known);
        }
        self.rings = rings;
        Ok(freed)
    }

    /// The user's slot that holds all of some pages.
    fn slot_to_rearm(&self, at: &Rearm) -> Option<SlotKey> {
        let as_id = at.slot >> 16;
        let slot = self.slot(at.slot).filter(|slot| {
            as_id < u32::from(self.address_space_count()) && slot.key().id.is_user()
        })?;
        let pages = slot.pages().raw();
        (at.window.offset < pages && at.window.last()? < pages).then(|| slot.key())
    }

    /// Whether `cap` is one of the two numbers that enable rings.
    pub(crate) fn enables_ring(cap: u32) -> bool {
        matches!(cap, cap::DIRTY_LOG_RING | cap::DIRTY_LOG_RING_ACQ_REL)
    }
}
