//! Mappings of a guest_memfd in the VMM's address space.

use super::file::PROT_EXEC;
use crate::{GmemFlags, GmemId, MapCall, MapError, MapId, Memory, Outcome, Refusal};

/// One mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub(crate) file: GmemId,
    pub(crate) len: u64,
    pub(crate) prot: u32,
    pub(crate) offset: u64,
    pub(crate) live: bool,
}

const PROT_WRITE: u32 = 2;
/// `PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM`.
const PROT_KNOWN: u32 = 0xf;

const SIGBUS: u64 = 7;
const SIGSEGV: u64 = 11;

/// `MADV_*` values that a shared mapping of a guest_memfd takes.
const ADVICES: [u32; 12] = [0, 1, 2, 3, 4, 9, 10, 11, 14, 15, 16, 17];

impl Memory {
    /// A system call on, or an access to, a mapping of a guest_memfd.
    ///
    /// # Errors
    /// The first test that fails.
    pub fn map_call(&mut self, id: MapId, call: MapCall) -> Result<Outcome, Refusal> {
        let mapping = self
            .maps
            .get(id.index())
            .filter(|m| m.live)
            .copied()
            .ok_or(MapError::NotMapped {})?;
        match call {
            MapCall::Touch { offset } => Ok(Outcome::Value(self.touch(&mapping, offset))),
            MapCall::Madvise { advice } if ADVICES.contains(&advice) => Ok(Outcome::Done),
            MapCall::Madvise { advice } => Err(MapError::Advice { advice }.into()),
            MapCall::Mprotect { prot } => self.protect(id, prot),
            MapCall::Unmap => {
                self.unmap(id);
                Ok(Outcome::Done)
            }
        }
    }

    /// The signal that writing one byte raises, or 0.
    fn touch(&self, mapping: &Mapping, offset: u64) -> u64 {
        let Some(file) = self.gmem_file(mapping.file) else {
            return SIGSEGV;
        };
        let mapped = mapping.len.next_multiple_of(crate::PAGE_SIZE);
        if offset >= mapped || mapping.prot & PROT_WRITE == 0 {
            SIGSEGV
        } else if mapping.offset + offset >= file.size()
            || !file.flags().contains(GmemFlags::INIT_SHARED)
        {
            SIGBUS
        } else {
            0
        }
    }

    fn protect(&mut self, id: MapId, prot: u32) -> Result<Outcome, Refusal> {
        if prot & !PROT_KNOWN != 0 {
            return Err(MapError::Protection { prot }.into());
        }
        if prot & PROT_EXEC != 0 && self.profile().gmem_noexec.get() {
            return Err(MapError::Exec {}.into());
        }
        if let Some(mapping) = self.maps.get_mut(id.index()) {
            mapping.prot = prot;
        }
        Ok(Outcome::Done)
    }

    fn unmap(&mut self, id: MapId) {
        let Some(mapping) = self.maps.get_mut(id.index()) else {
            return;
        };
        mapping.live = false;
        let file = mapping.file;
        if let Some(file) = self.gmem_file_mut(file) {
            file.mappings -= 1;
        }
        self.release_if_dead(file);
        self.mark_changed();
    }
}
