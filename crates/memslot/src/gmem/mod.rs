//! guest_memfd: files of guest memory that belong to one VM (`virt/kvm/guest_memfd.c`).

mod file;
mod map;

use std::collections::BTreeMap;

use crate::{GmemError, GmemFlags, GmemId, Memory, PAGE_SIZE, Refusal, SlotKey};

pub(crate) use map::Mapping;

/// A guest_memfd: its fixed size and which ranges are bound to which slots.
#[derive(Clone, Debug)]
pub struct GmemFile {
    size: u64,
    flags: GmemFlags,
    descriptor_open: bool,
    mappings: u32,
    /// First page of a bound range, to the page behind its end and the slot.
    bindings: BTreeMap<u64, (u64, SlotKey)>,
}

impl GmemFile {
    fn new(size: u64, flags: GmemFlags) -> Self {
        Self {
            size,
            flags,
            descriptor_open: true,
            mappings: 0,
            bindings: BTreeMap::new(),
        }
    }

    /// The size in bytes, fixed at creation.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The flags of its creation.
    pub fn flags(&self) -> GmemFlags {
        self.flags
    }

    /// Whether its descriptor is open.
    pub fn is_open(&self) -> bool {
        self.descriptor_open
    }

    /// Whether anything still holds the file: its descriptor, or a mapping.
    fn is_alive(&self) -> bool {
        self.descriptor_open || self.mappings != 0
    }

    /// The bound ranges: first page, page behind the end, slot.
    pub fn bindings(&self) -> impl Iterator<Item = (u64, u64, SlotKey)> + '_ {
        self.bindings
            .iter()
            .map(|(first, (end, slot))| (*first, *end, *slot))
    }

    /// A slot that holds some of the `pages` pages from `first`.
    pub(crate) fn bound(&self, first: u64, pages: u64) -> Option<SlotKey> {
        let (_, (end, slot)) = self.bindings.range(..first + pages).next_back()?;
        (*end > first).then_some(*slot)
    }

    pub(crate) fn bind(&mut self, first: u64, pages: u64, slot: SlotKey) {
        self.bindings.insert(first, (first + pages, slot));
    }

    pub(crate) fn unbind(&mut self, first: u64) {
        self.bindings.remove(&first);
    }
}

impl Memory {
    /// Whether `KVM_CREATE_GUEST_MEMFD` will succeed (`kvm_gmem_create`).
    ///
    /// # Errors
    /// The first test that fails.
    pub fn check_create_gmem(&self, size: u64, flags: u64) -> Result<(), Refusal> {
        self.check_gate()?;
        if !self.profile().guest_memfd.get() {
            return Err(GmemError::NotBuiltIn {}.into());
        }
        let supported = self.profile().gmem_flags_for(self.vm_type()).bits();
        if flags & !supported != 0 {
            return Err(GmemError::Flags {
                unsupported: flags & !supported,
                supported,
            }
            .into());
        }
        if size == 0 || size > i64::MAX.unsigned_abs() {
            return Err(GmemError::Size { size }.into());
        }
        if size % PAGE_SIZE != 0 {
            return Err(GmemError::SizeUnaligned { size }.into());
        }
        Ok(())
    }

    /// `KVM_CREATE_GUEST_MEMFD`.
    ///
    /// # Errors
    /// As [`Memory::check_create_gmem`].
    pub fn create_gmem(&mut self, size: u64, flags: u64) -> Result<GmemId, Refusal> {
        self.check_create_gmem(size, flags)?;
        let id = GmemId::new(u32::try_from(self.files.len()).unwrap_or(u32::MAX));
        self.files
            .push(GmemFile::new(size, GmemFlags::from_bits_truncate(flags)));
        self.version += 1;
        Ok(id)
    }

    /// The last reference to a file goes: bound slots stay, but lose the file (`kvm_gmem_release`).
    fn release_if_dead(&mut self, id: GmemId) {
        let Some(file) = self.gmem_file_mut(id) else {
            return;
        };
        if file.is_alive() {
            return;
        }
        for (_, slot) in core::mem::take(&mut file.bindings).into_values() {
            let bound = self
                .space_mut(slot.as_id)
                .by_id_mut(slot.id)
                .and_then(|s| s.binding.as_mut());
            if let Some(binding) = bound {
                binding.file = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
