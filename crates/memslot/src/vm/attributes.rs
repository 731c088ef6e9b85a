//! `KVM_SET_MEMORY_ATTRIBUTES`.

use crate::{AttributeError, Attributes, GfnRange, Gpa, Memory, PAGE_SIZE, Pages, Refusal};

impl Memory {
    /// The attributes that pages of this VM can have (`kvm_supported_mem_attributes`).
    pub fn supported_attributes(&self) -> Attributes {
        match self.vm_type().has_private_memory() {
            true => Attributes::PRIVATE,
            false => Attributes::empty(),
        }
    }

    /// Whether `KVM_SET_MEMORY_ATTRIBUTES` will succeed, and for which frames.
    ///
    /// # Errors
    /// The first test that fails.
    pub fn check_set_attributes(
        &self,
        address: u64,
        size: u64,
        attributes: u64,
        flags: u64,
    ) -> Result<GfnRange, Refusal> {
        self.check_gate()?;
        if !self.profile().attributes.get() {
            return Err(AttributeError::NotBuiltIn {}.into());
        }
        if flags != 0 {
            return Err(AttributeError::Flags { flags }.into());
        }
        let unsupported = attributes & !self.supported_attributes().bits();
        if unsupported != 0 {
            return Err(AttributeError::Unsupported {
                unsupported,
                vm_type: self.vm_type(),
            }
            .into());
        }
        if size == 0 || address.checked_add(size).is_none() {
            return Err(AttributeError::Range { address, size }.into());
        }
        if address % PAGE_SIZE != 0 || size % PAGE_SIZE != 0 {
            return Err(AttributeError::Unaligned { address, size }.into());
        }
        let range = GfnRange::new(Gpa::new(address).gfn(), Pages::in_bytes(size));
        range.ok_or_else(|| AttributeError::Range { address, size }.into())
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`. Gives whether any page changed.
    ///
    /// # Errors
    /// As [`Memory::check_set_attributes`].
    pub fn set_attributes(
        &mut self,
        address: u64,
        size: u64,
        attributes: u64,
        flags: u64,
    ) -> Result<bool, Refusal> {
        let range = self.check_set_attributes(address, size, attributes, flags)?;
        let changed = self
            .attributes
            .set(range, Attributes::from_bits_truncate(attributes));
        if changed {
            self.mark_changed();
        }
        Ok(changed)
    }
}
