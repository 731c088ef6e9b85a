//! What becomes of a SEV guest when a slot or the host's memory behind it goes.

use core::ops::Range;

use slat_memslot::{Call, ChangeKind, ContentsCall, Hva, MapCall, Memory, PAGE_SIZE};

use super::SevGuest;
use super::guest::page;

/// What a call takes from a guest, beside what slots and page tables do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// KVM has caches written back (`kvm_arch_guest_memory_reclaimed`).
    reclaimed: bool,
    /// Host addresses that have other pages from now on.
    discarded: Range<u64>,
}

impl Taken {
    /// What this call will take; to be asked before it is made.
    pub(crate) fn by(call: &Call, memory: &Memory) -> Self {
        match call {
            Call::SetRegion(request) => {
                let taken = match memory.check_region(request) {
                    Ok(change) => matches!(change.kind, ChangeKind::Delete | ChangeKind::Move),
                    // A move that is refused has made its slot invalid first.
                    Err(refusal) => refusal.effects.is_some(),
                };
                Self {
                    reclaimed: taken,
                    discarded: 0..0,
                }
            }
            Call::Contents(ContentsCall::Discard { hva, size }) => {
                let range = *hva..hva.saturating_add(*size);
                Self::notified(memory, range.clone(), range)
            }
            Call::Map(map, call) => match memory.gmem_map(*map) {
                Some((_, range, _)) => {
                    Self::by_mapping(memory, range.start.raw()..range.end.raw(), *call)
                }
                None => Self::default(),
            },
            _ => Self::default(),
        }
    }

    /// A notifier is told of a range, whose pages may stay.
    fn notified(memory: &Memory, range: Range<u64>, discarded: Range<u64>) -> Self {
        let (start, end) = (Hva::new(range.start), Hva::new(range.end));
        Self {
            // Whether a slot is there decides, not whether anything was mapped.
            reclaimed: !memory.frames_behind(start, end).is_empty(),
            discarded,
        }
    }

    fn by_mapping(memory: &Memory, range: Range<u64>, call: MapCall) -> Self {
        const DONTNEED: u32 = 4;
        const REMOVE: u32 = 9;
        match call {
            MapCall::Madvise { advice: REMOVE } => Self::notified(memory, range.clone(), range),
            MapCall::Madvise { advice: DONTNEED } | MapCall::Mprotect { .. } | MapCall::Unmap => {
                Self::notified(memory, range, 0..0)
            }
            MapCall::Madvise { .. } | MapCall::Touch { .. } => Self::default(),
        }
    }

    /// The host moves the page at an address.
    pub(crate) fn by_move(hva: u64, memory: &Memory) -> Self {
        let start = hva - hva % PAGE_SIZE;
        Self::notified(memory, start..start.saturating_add(PAGE_SIZE), 0..0)
    }
}

impl SevGuest {
    /// Follows a call that was made.
    pub(crate) fn follow(&mut self, taken: &Taken) {
        if taken.reclaimed {
            self.vm.reclaimed();
        }
        let Range { start, end } = taken.discarded;
        if start < end {
            self.vm
                .host_discard(page(start)..page(end - 1).saturating_add(1));
        }
    }

    /// The host's memory management wants to move a page. Says whether it did; a pinned one stays.
    pub(crate) fn move_page(&mut self, hva: u64) -> bool {
        self.vm.host_move(page(hva))
    }
}
