//! The pages behind frames, as a recording names them.

use slat_memslot::{Gfn, Level, PAGE_SHIFT, PageSize};
use slat_mmu::spte::bits;

use crate::paged_vm::PagedVm;
use crate::tdp_vm::{HostMemory, Supplied};
use crate::traces::{GuestAct, Item, Kind, Kinds, Note, Op, Recording, Traced, What};

/// What stands for the page where no slot is (`KVM_PFN_NOSLOT`).
const NO_SLOT: u64 = 1 << 63;

/// The frames and pages that faults of a part of a recording ask for.
fn requested(items: &[Item<'_>]) -> impl Iterator<Item = (Gfn, u64, PageSize)> {
    items.iter().filter_map(|item| match item.what {
        What::Event(Traced::SpteRequested { gfn, pfn, level }) if pfn != NO_SLOT => {
            Some((gfn, pfn, size_of(level)?))
        }
        _ => None,
    })
}

/// The pages that the recorded program names in a part of a recording, with their sizes.
fn named(items: &[Item<'_>]) -> impl Iterator<Item = Supplied> {
    items.iter().filter_map(|item| match item.what {
        What::Note(Note::Backing { gfn, pfn, level }) => Some(Supplied {
            gfn,
            pfn,
            size: Some(size_of(level?)?),
        }),
        _ => None,
    })
}

pub(super) fn size_of(level: Level) -> Option<PageSize> {
    let mut sizes = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G].into_iter();
    sizes.find(|size| size.level() == level)
}

/// Gives the host's memory the pages that a part of a recording names. What the program saw comes first; the pages of a
/// guest_memfd nobody sees but the kernel.
pub(super) fn supply(host: &mut HostMemory, items: &[Item<'_>]) {
    let requested = || requested(items).map(|(gfn, pfn, _)| (gfn, pfn));
    let neighbours = mapped_along(items).map(Supplied::from);
    host.supply(
        named(items)
            .chain(requested().map(Supplied::from))
            .chain(neighbours),
    );
    host.supply_files(requested());
}

/// Neighbours that are mapped along with a page that is asked for.
fn mapped_along(items: &[Item<'_>]) -> impl Iterator<Item = (Gfn, u64)> {
    items.iter().filter_map(|item| match item.what {
        What::Event(Traced::SetSpte {
            gfn,
            spte,
            level: Level::L1,
            ..
        }) => Some((gfn, (spte & bits::ADDRESS) >> PAGE_SHIFT)),
        _ => None,
    })
}

/// Whether the recorded program tells of all pages that it can see, and of where slots are.
pub(super) fn are_complete(recording: &Recording<'_>) -> bool {
    let has_address = |item: &Item<'_>| match &item.what {
        What::Op(Op::SetRegion(region)) => region.hva.is_some(),
        _ => false,
    };
    recording.items.iter().any(has_address)
}

/// What a recording has lines of. Only programs whose guests have tables of their own record how pages fall out of step.
pub(super) fn kinds_of(recording: &Recording<'_>) -> Kinds {
    let executes = |item: &Item<'_>| {
        let act = match &item.what {
            What::Op(Op::Guest { act, .. }) => act,
            _ => return false,
        };
        matches!(act, GuestAct::Execution { .. } | GuestAct::RunL2 { .. })
    };
    match recording.items.iter().any(executes) {
        true => Kinds::ALL,
        false => Kinds::ALL.without(Kind::Synchronised),
    }
}

/// Tells the host's memory which pages are huge, and which frames are devices.
pub(super) fn prepare(vm: &mut impl PagedVm, recording: &Recording<'_>) {
    let huge = requested(&recording.items).filter(|(.., size)| *size != PageSize::Size4K);
    for (gfn, pfn, size) in huge.filter(|_| !are_complete(recording)) {
        vm.host_mut().know_huge(size, gfn, pfn);
    }
    // The hole for video memory, and the one below 4 GiB.
    vm.host_mut()
        .set_devices(vec![0xa0..0x100, 0xc_0000..0x10_0000]);
}
