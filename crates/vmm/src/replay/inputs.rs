//! The pages behind frames, as a recording names them.

use slat_memslot::{Gfn, Level, PAGE_SHIFT, PageSize};
use slat_mmu::spte::bits;

use crate::paged_vm::PagedVm;
use crate::traces::{Item, Recording, Traced, What};

/// What stands for the page where no slot is (`KVM_PFN_NOSLOT`).
const NO_SLOT: u64 = 1 << 63;

/// The frames and pages that faults of a part of a recording ask for.
fn requested(items: &[Item<'_>]) -> impl Iterator<Item = (Gfn, u64, PageSize)> {
    items.iter().filter_map(|item| match item.what {
        What::Event(Traced::SpteRequested { gfn, pfn, level }) if pfn != NO_SLOT => {
            let sizes = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
            let size = sizes.into_iter().find(|size| size.level() == level)?;
            Some((gfn, pfn, size))
        }
        _ => None,
    })
}

/// The pages that a part of a recording names: those that are asked for first, then neighbours that are mapped along.
pub(super) fn supply(items: &[Item<'_>]) -> Vec<(Gfn, u64)> {
    let asked = requested(items).map(|(gfn, pfn, _)| (gfn, pfn));
    let along = items.iter().filter_map(|item| match item.what {
        What::Event(Traced::SetSpte {
            gfn,
            spte,
            level: Level::L1,
            ..
        }) => Some((gfn, (spte & bits::ADDRESS) >> PAGE_SHIFT)),
        _ => None,
    });
    asked.chain(along).collect()
}

/// Tells the host's memory which pages are huge, and which frames are devices.
pub(super) fn prepare(vm: &mut impl PagedVm, recording: &Recording<'_>) {
    let huge = requested(&recording.items).filter(|(.., size)| *size != PageSize::Size4K);
    for (gfn, pfn, size) in huge {
        vm.host_mut().know_huge(size, gfn, pfn);
    }
    // The hole for video memory, and the one below 4 GiB.
    vm.host_mut()
        .set_devices(vec![0xa0..0x100, 0xc_0000..0x10_0000]);
}
