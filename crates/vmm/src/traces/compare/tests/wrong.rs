//! Predictions that are wrong in one field.

use slat_memslot::{AsId, Errno, Gfn, Gpa, Level, Pages};
use slat_mmu::role::PageRole;
use slat_mmu::shadow::PageInfo;

use crate::traces::compare::Predicted;
use crate::traces::{Exit, Leaves, MmuCounts};

/// One more of each that is counted.
fn wrong_counts(counts: &MmuCounts) -> [MmuCounts; 7] {
    let MmuCounts {
        shadow_zapped,
        pte_write,
        pde_zapped,
        flooded,
        recycled,
        cache_miss,
        unsync,
    } = *counts;
    [
        MmuCounts {
            shadow_zapped: shadow_zapped + 1,
            ..*counts
        },
        MmuCounts {
            pte_write: pte_write + 1,
            ..*counts
        },
        MmuCounts {
            pde_zapped: pde_zapped + 1,
            ..*counts
        },
        MmuCounts {
            flooded: flooded + 1,
            ..*counts
        },
        MmuCounts {
            recycled: recycled + 1,
            ..*counts
        },
        MmuCounts {
            cache_miss: cache_miss + 1,
            ..*counts
        },
        MmuCounts {
            unsync: unsync + 1,
            ..*counts
        },
    ]
}

/// One wrong value in a prediction, in each field that there is.
pub(super) fn wrong(one: &Predicted) -> Vec<Predicted> {
    let next = |gfn: Gfn| Gfn::new(gfn.raw() + 1);
    let other = |level: Level| {
        if level == Level::L1 {
            Level::L2
        } else {
            Level::L1
        }
    };
    let mut wrong = Vec::new();
    macro_rules! change {
        ($($name:ident { $($field:ident: $change:expr),* }),* $(,)?) => {
            match one {
                $(Predicted::$name { .. } => {
                    $(let mut copy = one.clone();
                    if let Predicted::$name { $field, .. } = &mut copy {
                        *$field = $change(*$field);
                    }
                    wrong.push(copy);)*
                })*
                Predicted::ZapAllFast => {}
                Predicted::Returned(_) => {
                    wrong.push(Predicted::Returned(Err(Errno::EIO)));
                    wrong.push(Predicted::Returned(Ok(Some(-7))));
                }
                Predicted::Exit(_) => wrong.push(Predicted::Exit(Exit::MemoryFault {
                    flags: 0,
                    gpa: Gpa::new(0),
                    size: 0,
                })),
                Predicted::RunFailed { .. } => wrong.push(Predicted::RunFailed { errno: Errno::EIO }),
                Predicted::Dirty(pages) => {
                    wrong.push(Predicted::Dirty([pages.as_slice(), &[1]].concat()));
                    if !pages.is_empty() {
                        wrong.push(Predicted::Dirty(pages.iter().map(|page| page ^ 1).collect()));
                    }
                }
                // No recording has one of these.
                Predicted::ToldToL1(_) | Predicted::Ring(_) => {}
                Predicted::Idle(idle) => wrong.push(Predicted::Idle(!idle)),
                Predicted::Leaves(leaves) => wrong.push(Predicted::Leaves(Leaves {
                    pages_2m: leaves.pages_2m + 1,
                    ..*leaves
                })),
                Predicted::Counts(counts) => wrong.extend(wrong_counts(counts).map(Predicted::Counts)),
            }
        };
    }
    change!(
        SpteChanged {
            as_id: |_| AsId::SMM,
            gfn: next,
            level: other,
            old: |x| x ^ 1,
            new: |x| x ^ 1
        },
        PageAllocated {
            gfn: next,
            role: |role: PageRole| role.with(slat_mmu::role::RoleFlag::Passthrough)
        },
        PageZapped {
            gfn: next,
            role: |role: PageRole| role.with(slat_mmu::role::RoleFlag::FourByteGpte)
        },
        SpteSet {
            gfn: next,
            level: other,
            spte: |x| x ^ 1
        },
        SpteRequested {
            gfn: next,
            pfn: |x| x ^ 1,
            level: other
        },
        FastPageFault {
            vcpu: |x| x + 1,
            gva: |x| x ^ 1,
            old: |x| x ^ 1,
            new: |x| x ^ 1,
            spurious: |x: bool| !x,
            fixed: |x: bool| !x
        },
        MmioMarked {
            gfn: next,
            access: |x| x ^ 1,
            generation: |x| x ^ 1
        },
        MmioChecked {
            spte: |x| x ^ 1,
            current: |x| x ^ 1,
            generation: |x| x ^ 1,
            valid: |x: bool| !x
        },
        HugePageSplit {
            gfn: next,
            spte: |x| x ^ 1,
            level: other,
            errno: |_| -11
        },
        PreFaultLeft {
            gfn: next,
            pages: |x: Pages| Pages::new(x.raw() + 1)
        },
        AccessedBitSet {
            gpa: |x: Gpa| Gpa::new(x.raw() ^ 8)
        },
        DirtyBitSet {
            gpa: |x: Gpa| Gpa::new(x.raw() ^ 8)
        },
        ShadowPage {
            created: |x: bool| !x
        },
        ShadowPageZapped {
            page: |page: PageInfo| PageInfo {
                root_count: page.root_count + 1,
                ..page
            }
        },
        ShadowZapAllFast {
            used: |x: Pages| Pages::new(x.raw() + 1)
        },
        PageUnsync {
            page: |page: PageInfo| PageInfo {
                gfn: next(page.gfn),
                ..page
            }
        },
        PageSync {
            page: |page: PageInfo| PageInfo {
                gfn: next(page.gfn),
                ..page
            }
        },
    );
    wrong.retain(|copy| copy != one);
    wrong
}
