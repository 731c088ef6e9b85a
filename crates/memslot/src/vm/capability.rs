//! `KVM_CHECK_EXTENSION` and `KVM_ENABLE_CAP` on a VM.

use crate::{
    CapError, DirtyRingError, ManualProtect, Memory, QuirkUpdate, Quirks, Refusal, USER_SLOTS, cap,
};

/// The hypercalls that may exit to user space: `KVM_HC_MAP_GPA_RANGE`, number 12.
const HYPERCALLS: u64 = 1 << 12;

impl Memory {
    /// `KVM_CHECK_EXTENSION` on the VM. `None` for a capability that is no matter of memory (see [`cap::ALL`]).
    pub fn check_extension(&self, number: u32) -> Option<u64> {
        let p = self.profile();
        let if_rings = if p.dirty_ring.get() {
            crate::dirty::MAX_RING_BYTES
        } else {
            0
        };
        Some(match number {
            cap::USER_MEMORY
            | cap::SYNC_MMU
            | cap::DESTROY_MEMORY_REGION_WORKS
            | cap::JOIN_MEMORY_REGIONS_WORKS
            | cap::DISABLE_QUIRKS => 1,
            cap::NR_MEMSLOTS => u64::from(USER_SLOTS),
            cap::READONLY_MEM => u64::from(!self.vm_type().has_protected_state()),
            cap::MULTI_ADDRESS_SPACE if p.smm.get() => u64::from(self.address_space_count()),
            cap::MULTI_ADDRESS_SPACE | cap::DIRTY_LOG_RING_WITH_BITMAP => 0,
            cap::MANUAL_DIRTY_LOG_PROTECT2 => ManualProtect::all().bits(),
            cap::DIRTY_LOG_RING | cap::DIRTY_LOG_RING_ACQ_REL => if_rings,
            cap::EXIT_HYPERCALL => HYPERCALLS,
            cap::DISABLE_QUIRKS2 => p.quirks.get().bits(),
            cap::USER_MEMORY2 | cap::MEMORY_FAULT_INFO => u64::from(p.region2.get()),
            cap::MEMORY_ATTRIBUTES if p.attributes.get() => self.supported_attributes().bits(),
            cap::MEMORY_ATTRIBUTES => 0,
            cap::GUEST_MEMFD => u64::from(p.allows_gmem_slots(self.vm_type())),
            cap::VM_TYPES if p.region2.get() => u64::from(p.vm_types.get()),
            cap::VM_TYPES => 0,
            cap::PRE_FAULT_MEMORY => u64::from(p.pre_fault.get() && p.tdp.get()),
            cap::GUEST_MEMFD_FLAGS => p.gmem_flags_for(self.vm_type()).bits(),
            _ => return None,
        })
    }

    /// Whether `KVM_ENABLE_CAP` will succeed.
    ///
    /// # Errors
    /// The first test that fails. Capabilities that are no matter of memory count as unknown.
    pub fn check_enable_cap(&self, number: u32, flags: u32, args: [u64; 4]) -> Result<(), Refusal> {
        self.check_gate()?;
        let [arg, ..] = args;
        match number {
            cap::MANUAL_DIRTY_LOG_PROTECT2 => {
                check_manual_protect(flags, arg).map_err(Refusal::from)
            }
            number if Self::enables_ring(number) => Ok(self.check_enable_ring(arg)?),
            cap::DIRTY_LOG_RING_WITH_BITMAP => Err(DirtyRingError::WithBitmap {}.into()),
            _ if flags != 0 => Err(CapError::Flags { cap: number, flags }.into()),
            cap::DISABLE_QUIRKS2 => {
                let supported = self.profile().quirks.get().bits();
                let unsupported = arg & !supported;
                let known = unsupported == 0;
                known.then_some(()).ok_or_else(|| {
                    CapError::Quirks {
                        unsupported,
                        supported,
                    }
                    .into()
                })
            }
            cap::EXIT_HYPERCALL if arg & !HYPERCALLS != 0 => Err(CapError::Hypercalls {
                unsupported: arg & !HYPERCALLS,
            }
            .into()),
            cap::DISABLE_QUIRKS | cap::EXIT_HYPERCALL => Ok(()),
            cap => Err(CapError::Unknown { cap }.into()),
        }
    }

    /// `KVM_ENABLE_CAP` on the VM.
    ///
    /// # Errors
    /// As [`Memory::check_enable_cap`].
    pub fn enable_cap(&mut self, number: u32, flags: u32, args: [u64; 4]) -> Result<(), Refusal> {
        self.check_enable_cap(number, flags, args)?;
        let [arg, ..] = args;
        match number {
            cap::MANUAL_DIRTY_LOG_PROTECT2 => {
                self.manual_protect = ManualProtect::from_bits_truncate(arg)
            }
            cap::DISABLE_QUIRKS | cap::DISABLE_QUIRKS2 => self.disable_quirks(arg),
            cap::EXIT_HYPERCALL => self.hypercall_exits = arg,
            _ => self.ring_bytes = crate::dirty::ring_size(arg),
        }
        self.mark_changed();
        Ok(())
    }

    fn disable_quirks(&mut self, mask: u64) {
        let quirks = Quirks::from_bits_retain(mask) & self.profile().quirks.get();
        match self.profile().quirk_update.get() {
            QuirkUpdate::Replace => self.disabled_quirks = quirks,
            QuirkUpdate::Accumulate => self.disabled_quirks |= quirks,
        }
    }
}

fn check_manual_protect(flags: u32, bits: u64) -> Result<(), CapError> {
    if flags != 0 {
        return Err(CapError::Flags {
            cap: cap::MANUAL_DIRTY_LOG_PROTECT2,
            flags,
        });
    }
    let known = ManualProtect::from_bits(bits);
    match known.filter(|mode| *mode != ManualProtect::INITIALLY_SET) {
        Some(_) => Ok(()),
        None => Err(CapError::ManualProtect { bits }),
    }
}

#[cfg(test)]
mod tests;
