//! What faults on either MMU depend on in the same way.

use slat_memslot::{AsId, Gfn, Memory, Quirks};
use slat_mmu::fault::{Apicv, Kind, MmioAccess, MmioCache, Present, Settings};
use slat_mmu::host::{Host, SecondStage};
use slat_mmu::spte::{Codec, Format, GuestPat, Mmio, NxHugePages, Spte};

use crate::traces::Predicted;

/// What of a VM's settings faults depend on.
pub(crate) fn settings(memory: &Memory, host: &Host, nx_huge_pages: NxHugePages) -> Settings {
    let ept = host.second_stage == SecondStage::Ept;
    let quirks = memory.disabled_quirks();
    let guest_pat = match ept && quirks.contains(Quirks::IGNORE_GUEST_PAT) {
        true => GuestPat::Honoured,
        false => GuestPat::Ignored,
    };
    Settings {
        nx_huge_pages,
        guest_pat,
        apicv: Apicv::Active,
    }
}

/// What an access is reported as: an EPT misconfiguration does not say, and is taken for reading.
pub(crate) fn reported_kind(host: &Host, kind: Kind, present: Present) -> Kind {
    match host.second_stage == SecondStage::Ept && present == Present::Reserved {
        true => Kind::Read,
        false => kind,
    }
}

/// An MMIO entry that hardware has met.
pub(crate) struct MetMmio<F> {
    pub(crate) spte: Spte<F>,
    pub(crate) mmio: Mmio,
    /// The address space of the vCPU, and the frame by which it remembers MMIO.
    pub(crate) as_id: AsId,
    pub(crate) gfn: Gfn,
}

impl<F: Format> MetMmio<F> {
    /// Whether it still holds, and the access goes to userspace (`mmu.c:handle_mmio_page_fault`).
    pub(crate) fn is_known(
        &self,
        memory: &Memory,
        codec: &Codec<F>,
        cache: &mut MmioCache,
        out: &mut impl Extend<Predicted>,
    ) -> bool {
        let generation = memory.space(self.as_id).generation();
        if cache.has(self.gfn, generation) {
            return true;
        }
        let valid = codec.is_mmio_current(&self.mmio, generation);
        let low = |raw: u64| u32::try_from(raw).unwrap_or(u32::MAX);
        out.extend([Predicted::MmioChecked {
            spte: self.spte.raw(),
            current: low(codec.mmio_generation(generation).raw()),
            generation: low(self.mmio.generation.raw()),
            valid,
        }]);
        if valid {
            let access = MmioAccess {
                place: self.gfn,
                gfn: self.mmio.gfn,
                access: self.mmio.access,
            };
            cache.remember_at(access, generation);
        }
        valid
    }
}
