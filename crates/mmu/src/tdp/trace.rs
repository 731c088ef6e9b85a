//! Events as text, in the manner of KVM's tracepoints.

use core::fmt;

use super::events::{Event, FlushReason, FlushScope};
use super::fast::Fast;
use crate::spte::Pfn;

/// What stands for the page where no slot is (`KVM_PFN_NOSLOT`).
const NO_SLOT: u64 = 1 << 63;

/// The tracepoint's name and its fields as the kernel prints them. Tables have numbers instead of addresses, and what is
/// not modelled (generations of shadow pages, reference counts) is left out. Flushes, which the kernel does not trace,
/// are called `slat_flush`.
///
/// ```
/// use slat_memslot::{AsId, Gfn, Level};
/// use slat_mmu::{spte::{Npt, Spte}, tdp::Event};
/// let event = Event::<Npt>::SpteChanged {
///     as_id: AsId::NORMAL,
///     gfn: Gfn::new(0x200),
///     level: Level::L1,
///     old: Spte::from_raw(0),
///     new: Spte::from_raw(0x0077_7e67),
/// };
/// assert_eq!(
///     event.to_string(),
///     "kvm_tdp_mmu_spte_changed: as id 0 gfn 200 level 1 old_spte 0 new_spte 777e67"
/// );
/// ```
impl<F> fmt::Display for Event<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpteChanged {
                as_id,
                gfn,
                level,
                old,
                new,
            } => write!(
                f,
                "kvm_tdp_mmu_spte_changed: as id {} gfn {:x} level {} old_spte {old:x} new_spte {new:x}",
                as_id.index(),
                gfn.raw(),
                *level as u8
            ),
            Self::PageAllocated { table, gfn, role } => write!(
                f,
                "kvm_mmu_get_page: sp {} gfn {:x} {role} new",
                table.raw(),
                gfn.raw()
            ),
            Self::PageZapped { table, gfn, role } => write!(
                f,
                "kvm_mmu_prepare_zap_page: sp {} gfn {:x} {role}",
                table.raw(),
                gfn.raw()
            ),
            Self::SpteRequested { gfn, pfn, level } => write!(
                f,
                "kvm_mmu_spte_requested: gfn {:x} pfn {:x} level {}",
                gfn.raw(),
                pfn.map_or(NO_SLOT, Pfn::raw),
                *level as u8
            ),
            Self::SpteSet { level, gfn, spte } => write!(
                f,
                "kvm_mmu_set_spte: gfn {:x} spte {spte:x} level {}",
                gfn.raw(),
                *level as u8
            ),
            Self::MmioMarked { mmio, spte } => write!(
                f,
                "mark_mmio_spte: gfn {:x} access {:x} gen {:x}",
                mmio.gfn.raw(),
                spte.raw() & 7,
                mmio.generation.raw()
            ),
            Self::HugePageSplit {
                gfn,
                spte,
                level,
                result,
            } => write!(
                f,
                "kvm_mmu_split_huge_page: gfn {:x} spte {spte:x} level {} errno {}",
                gfn.raw(),
                *level as u8,
                result.errno()
            ),
            Self::FastFault {
                gfn,
                old,
                new,
                fast,
            } => write!(
                f,
                "fast_page_fault: gva {:x} old {old:#x} new {new:x} spurious {} fixed {}",
                gfn.gpa().raw(),
                u8::from(*fast == Fast::Spurious),
                u8::from(matches!(fast, Fast::Fixed { .. }))
            ),
            Self::ZapAllFast => f.write_str("kvm_mmu_zap_all_fast"),
            Self::ShadowPage { page, created } => {
                let how = if *created { "new" } else { "existing" };
                write!(f, "kvm_mmu_get_page: {page} {how}")
            }
            Self::ShadowPageZapped { page } => write!(f, "kvm_mmu_prepare_zap_page: {page}"),
            Self::ShadowSpteSet {
                level,
                gfn,
                spte,
                page,
            } => write!(
                f,
                "kvm_mmu_set_spte: gfn {:x} spte {spte:x} level {} in sp {}",
                gfn.raw(),
                *level as u8,
                page.raw()
            ),
            Self::PageUnsync { page } => write!(f, "kvm_mmu_unsync_page: {page}"),
            Self::PageSync { page } => write!(f, "kvm_mmu_sync_page: {page}"),
            Self::ShadowZapAllFast { generation, used } => write!(
                f,
                "kvm_mmu_zap_all_fast: kvm-mmu-valid-gen {} used_pages {}",
                generation.raw(),
                used.raw()
            ),
            Self::Flushed { scope, reason } => write!(f, "slat_flush: {scope} ({reason})"),
        }
    }
}

impl fmt::Display for FlushScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Frames(range) => {
                let (start, pages) = (range.start().raw(), range.pages().raw());
                write!(f, "gfn {start:x} pages {pages:x}")
            }
        }
    }
}

impl fmt::Display for FlushReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TableReplaced => "table replaced",
            Self::ZappedAtomically => "zapped atomically",
            Self::Yield => "yield",
        })
    }
}
