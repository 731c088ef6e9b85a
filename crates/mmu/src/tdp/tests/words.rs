//! Events as KVM's tracepoints print them; those of shadow pages are in `shadow::tests`.

use slat_memslot::{AsId, Generation, Level, Pages};

use super::*;
use crate::access::Access;
use crate::spte::{Codec, Mmio, Spte};

#[test]
fn events_are_told_as_kvm_tells_them() {
    let (gfn, level, as_id) = (Gfn::new(0x200), Level::L2, AsId::NORMAL);
    let spte = Spte::<Npt>::from_raw;
    let table = TableId::new(7);
    let role = role(&Host::npt(48)).with_level(Level::L1);
    let frames = FlushScope::Frames(GfnRange::new(gfn, Pages::new(0x10)).unwrap());
    let mmio = Mmio {
        gfn,
        access: Access::empty(),
        generation: Codec::<Npt>::new(&Host::npt(48)).mmio_generation(Generation::new(0x1a)),
    };
    let (old, new) = (spte(0xe67), spte(0xa5));
    let fast = |fast| Event::FastFault {
        gfn,
        old,
        new,
        fast,
    };
    let fixed = Fast::Fixed { mark_dirty: false };
    let split = |result| Event::HugePageSplit {
        gfn,
        spte: old,
        level,
        result,
    };
    let flushed = |scope, reason| Event::Flushed { scope, reason };
    let told = [
        (
            Event::SpteChanged {
                as_id,
                gfn,
                level,
                old,
                new,
            },
            "kvm_tdp_mmu_spte_changed: as id 0 gfn 200 level 2 old_spte e67 new_spte a5",
        ),
        (
            Event::PageAllocated { table, gfn, role },
            "kvm_mmu_get_page: sp 7 gfn 200 l1 8-byte q0 direct wux nxe ad new",
        ),
        (
            Event::PageZapped { table, gfn, role },
            "kvm_mmu_prepare_zap_page: sp 7 gfn 200 l1 8-byte q0 direct wux nxe ad",
        ),
        (
            Event::SpteRequested {
                gfn,
                pfn: Some(Pfn::new(0x4200)),
                level,
            },
            "kvm_mmu_spte_requested: gfn 200 pfn 4200 level 2",
        ),
        (
            Event::SpteRequested {
                gfn,
                pfn: None,
                level: Level::L1,
            },
            "kvm_mmu_spte_requested: gfn 200 pfn 8000000000000000 level 1",
        ),
        (
            Event::SpteSet {
                level,
                gfn,
                spte: old,
            },
            "kvm_mmu_set_spte: gfn 200 spte e67 level 2",
        ),
        (
            Event::MmioMarked { mmio, spte: new },
            "mark_mmio_spte: gfn 200 access 5 gen 1a",
        ),
        (
            split(SplitResult::Done),
            "kvm_mmu_split_huge_page: gfn 200 spte e67 level 2 errno 0",
        ),
        (
            split(SplitResult::Lost),
            "kvm_mmu_split_huge_page: gfn 200 spte e67 level 2 errno -16",
        ),
        (
            split(SplitResult::OutOfTables),
            "kvm_mmu_split_huge_page: gfn 200 spte e67 level 2 errno -12",
        ),
        (
            fast(Fast::Spurious),
            "fast_page_fault: gva 200000 old 0xe67 new a5 spurious 1 fixed 0",
        ),
        (
            fast(fixed),
            "fast_page_fault: gva 200000 old 0xe67 new a5 spurious 0 fixed 1",
        ),
        (
            fast(Fast::NotFast),
            "fast_page_fault: gva 200000 old 0xe67 new a5 spurious 0 fixed 0",
        ),
        (Event::ZapAllFast, "kvm_mmu_zap_all_fast"),
        (
            flushed(FlushScope::All, FlushReason::Yield),
            "slat_flush: all (yield)",
        ),
        (
            flushed(frames, FlushReason::TableReplaced),
            "slat_flush: gfn 200 pages 10 (table replaced)",
        ),
        (
            flushed(frames, FlushReason::ZappedAtomically),
            "slat_flush: gfn 200 pages 10 (zapped atomically)",
        ),
    ];
    for (event, words) in told {
        assert_eq!(event.to_string(), words);
    }
}
