//! What a prediction says, and which lines of a recording it is held against.

use core::fmt;

use slat_memslot::{AsId, Errno, Gfn, Gpa, Level, Pages};
use slat_mmu::role::PageRole;
use slat_mmu::shadow::{PageId, PageInfo, ValidGeneration};
use slat_mmu::spte::{Pfn, bits};
use slat_mmu::tdp::Event;
use slat_mmu::walk::second::SecondExit;

use crate::traces::{Exit, Leaves, MmuCounts, Note, Probe, Traced, What};

/// What stands for the page where no slot is (`KVM_PFN_NOSLOT`).
const NO_SLOT: u64 = 1 << 63;

/// What the tracepoint of MMIO entries takes for their access.
const fn low_bits(spte: u64) -> u32 {
    let [low, ..] = spte.to_le_bytes();
    low as u32 & 7
}

/// The number of a shadow page among all tables: those of the TDP MMU beside it have small ones.
pub(super) fn shadow_number(page: PageId) -> u64 {
    1 << 32 | u64::from(page.raw())
}

/// One predicted event or result.
///
/// Entries are raw values. In a link, what stands for the table's frame is the predicted table's number, and a number
/// means one table from the event that links it to the event that takes it away.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are those of the events")]
#[non_exhaustive]
pub enum Predicted {
    /// [`Traced::SpteChanged`].
    SpteChanged {
        as_id: AsId,
        gfn: Gfn,
        level: Level,
        old: u64,
        new: u64,
    },
    /// [`Traced::GetPage`] with the [`Probe::SpRole`] behind it.
    PageAllocated { gfn: Gfn, role: PageRole },
    /// [`Traced::PrepareZapPage`].
    PageZapped { gfn: Gfn, role: PageRole },
    /// [`Traced::SetSpte`].
    SpteSet {
        gfn: Gfn,
        level: Level,
        spte: u64,
        /// The number of the table it is in, if the prediction says it.
        table: Option<u64>,
    },
    /// [`Traced::SpteRequested`].
    SpteRequested { gfn: Gfn, pfn: u64, level: Level },
    /// [`Traced::FastPageFault`], without its error code.
    FastPageFault {
        vcpu: u32,
        gva: u64,
        old: u64,
        new: u64,
        spurious: bool,
        fixed: bool,
    },
    /// [`Traced::MarkMmio`].
    MmioMarked {
        gfn: Gfn,
        access: u32,
        generation: u32,
    },
    /// [`Traced::CheckMmio`].
    MmioChecked {
        spte: u64,
        current: u32,
        generation: u32,
        valid: bool,
    },
    /// [`Traced::SplitHugePage`].
    HugePageSplit {
        gfn: Gfn,
        spte: u64,
        level: Level,
        errno: i32,
    },
    /// [`Traced::ZapAllFast`].
    ZapAllFast,
    /// [`Traced::GetPage`] of a shadow page, with the [`Probe::SpRole`] behind it.
    ShadowPage { page: PageInfo, created: bool },
    /// [`Traced::PrepareZapPage`] of a shadow page.
    ShadowPageZapped { page: PageInfo },
    /// [`Traced::ZapAllFast`] with its numbers, which only shadow pages have.
    ShadowZapAllFast {
        generation: ValidGeneration,
        used: Pages,
    },
    /// [`Traced::SetAccessedBit`].
    AccessedBitSet { gpa: Gpa },
    /// [`Traced::SetDirtyBit`].
    DirtyBitSet { gpa: Gpa },
    /// [`Traced::UnsyncPage`].
    PageUnsync { page: PageInfo },
    /// [`Traced::SyncPage`].
    PageSync { page: PageInfo },
    /// [`What::Ret`]: an error, a number, or (`Ok(None)`) success with any number.
    Returned(Result<Option<i64>, Errno>),
    /// [`Note::Exit`].
    Exit(Exit),
    /// [`Note::RunFailed`].
    RunFailed { errno: Errno },
    /// [`Note::Dirty`]: all dirty pages of the slot, of which the recording has the first ones.
    Dirty(Vec<u64>),
    /// [`Note::Ring`].
    Ring(Vec<(u32, u64)>),
    /// [`Note::PreFaultLeft`].
    PreFaultLeft { gfn: Gfn, pages: Pages },
    /// [`Note::Idle`].
    Idle(bool),
    /// [`Note::Leaves`].
    Leaves(Leaves),
    /// [`Note::Counts`].
    Counts(MmuCounts),
    /// L1 gets an exit of L2's: its tables do not allow an access (`kvm_nested_vmexit_inject`, which recordings do not have).
    ToldToL1(SecondExit),
}

impl Predicted {
    /// What KVM would trace of an event of the model; `None` for events without a tracepoint.
    pub fn from_event<F>(event: &Event<F>) -> Option<Self> {
        Some(match *event {
            Event::SpteChanged {
                as_id,
                gfn,
                level,
                old,
                new,
            } => Self::SpteChanged {
                as_id,
                gfn,
                level,
                old: old.raw(),
                new: new.raw(),
            },
            Event::PageAllocated { gfn, role, .. } => Self::PageAllocated { gfn, role },
            Event::PageZapped { gfn, role, .. } => Self::PageZapped { gfn, role },
            Event::SpteRequested { gfn, pfn, level } => Self::SpteRequested {
                gfn,
                pfn: pfn.map_or(NO_SLOT, Pfn::raw),
                level,
            },
            Event::SpteSet { level, gfn, spte } => Self::SpteSet {
                gfn,
                level,
                spte: spte.raw(),
                table: None,
            },
            Event::MmioMarked { mmio, spte } => Self::MmioMarked {
                gfn: mmio.gfn,
                access: low_bits(spte.raw()),
                generation: u32::try_from(mmio.generation.raw()).unwrap_or(u32::MAX),
            },
            Event::HugePageSplit {
                gfn,
                spte,
                level,
                result,
            } => Self::HugePageSplit {
                gfn,
                spte: spte.raw(),
                level,
                errno: result.errno(),
            },
            Event::ZapAllFast => Self::ZapAllFast,
            Event::ShadowPage { page, created } => Self::ShadowPage { page, created },
            Event::ShadowPageZapped { page } => Self::ShadowPageZapped { page },
            Event::ShadowSpteSet {
                level,
                gfn,
                spte,
                page,
            } => Self::SpteSet {
                gfn,
                level,
                spte: spte.raw(),
                table: Some(shadow_number(page)),
            },
            Event::PageUnsync { page } => Self::PageUnsync { page },
            Event::PageSync { page } => Self::PageSync { page },
            Event::ShadowZapAllFast { generation, used } => {
                Self::ShadowZapAllFast { generation, used }
            }
            _ => return None,
        })
    }

    /// Notes of what is taken out of a ring: so many entries in each, and one at least.
    pub(crate) fn rings(entries: &[(u32, u64)]) -> Vec<Self> {
        match entries {
            [] => vec![Self::Ring(Vec::new())],
            some => {
                let parts = some.chunks(crate::traces::MOST_IN_A_NOTE);
                parts.map(|part| Self::Ring(part.to_vec())).collect()
            }
        }
    }

    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::SpteChanged { .. } => Kind::SpteChanged,
            Self::PageAllocated { .. } | Self::ShadowPage { .. } => Kind::PageAllocated,
            Self::PageZapped { .. } | Self::ShadowPageZapped { .. } => Kind::PageZapped,
            Self::SpteSet { .. } => Kind::SpteSet,
            Self::SpteRequested { .. } => Kind::SpteRequested,
            Self::FastPageFault { .. } => Kind::FastPageFault,
            Self::MmioMarked { .. } => Kind::MmioMarked,
            Self::MmioChecked { .. } => Kind::MmioChecked,
            Self::HugePageSplit { .. } => Kind::HugePageSplit,
            Self::ZapAllFast | Self::ShadowZapAllFast { .. } => Kind::ZapAllFast,
            Self::AccessedBitSet { .. } | Self::DirtyBitSet { .. } => Kind::GuestMarked,
            Self::PageUnsync { .. } | Self::PageSync { .. } => Kind::Synchronised,
            Self::Returned(_) => Kind::Returned,
            Self::Exit(_) | Self::RunFailed { .. } | Self::ToldToL1(_) => Kind::Exit,
            Self::Dirty(_) => Kind::Dirty,
            Self::Ring(_) => Kind::Ring,
            Self::PreFaultLeft { .. } => Kind::PreFaultLeft,
            Self::Idle(_) => Kind::Idle,
            Self::Leaves(_) => Kind::Leaves,
            Self::Counts(_) => Kind::Counts,
        }
    }
}

/// An entry as text: a link as its table's number and the other bits.
struct Shown(u64, Level);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_link = self.0 & bits::MMU_PRESENT != 0 && self.0 & bits::PAGE_SIZE == 0;
        if is_link && self.1 != Level::L1 {
            let (number, others) = ((self.0 & bits::ADDRESS) >> 12, self.0 & !bits::ADDRESS);
            return write!(f, "{others:x}+table {number}");
        }
        write!(f, "{:x}", self.0)
    }
}

/// As KVM would print it; a table's number instead of its frame.
impl fmt::Display for Predicted {
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
                "  kvm_tdp_mmu_spte_changed: as id {} gfn {gfn:x} level {} old_spte {} new_spte {}",
                as_id.index(),
                *level as u8,
                Shown(*old, *level),
                Shown(*new, *level),
            ),
            Self::PageAllocated { gfn, role } => {
                write!(f, "  kvm_mmu_get_page: gfn {gfn:x} {role:#} new")
            }
            Self::PageZapped { gfn, role } => {
                write!(f, "  kvm_mmu_prepare_zap_page: gfn {gfn:x} {role:#}")
            }
            Self::SpteSet {
                gfn,
                level,
                spte,
                table,
            } => {
                let level = *level as u8;
                write!(
                    f,
                    "  kvm_mmu_set_spte: gfn {gfn:x} spte {spte:x} level {level}"
                )?;
                table.map_or(Ok(()), |table| write!(f, " in table {table}"))
            }
            Self::SpteRequested { gfn, pfn, level } => {
                let level = *level as u8;
                write!(
                    f,
                    "  kvm_mmu_spte_requested: gfn {gfn:x} pfn {pfn:x} level {level}"
                )
            }
            Self::FastPageFault {
                vcpu,
                gva,
                old,
                new,
                spurious,
                fixed,
            } => write!(
                f,
                "  fast_page_fault: vcpu {vcpu} gva {gva:x} old {old:#x} new {new:x} spurious {} fixed {}",
                u8::from(*spurious),
                u8::from(*fixed),
            ),
            Self::MmioMarked {
                gfn,
                access,
                generation,
            } => {
                write!(
                    f,
                    "  mark_mmio_spte: gfn {gfn:x} access {access:x} gen {generation:x}"
                )
            }
            Self::MmioChecked {
                spte,
                current,
                generation,
                valid,
            } => write!(
                f,
                "  check_mmio_spte: spte {spte:x} kvm_gen {current:x} spte-gen {generation:x} valid {}",
                u8::from(*valid),
            ),
            Self::HugePageSplit {
                gfn,
                spte,
                level,
                errno,
            } => write!(
                f,
                "  kvm_mmu_split_huge_page: gfn {gfn:x} spte {spte:x} level {} errno {errno}",
                *level as u8,
            ),
            Self::ZapAllFast => write!(f, "  kvm_mmu_zap_all_fast:"),
            Self::ShadowPage { page, created } => {
                let how = if *created { "new" } else { "existing" };
                write!(f, "  kvm_mmu_get_page: {page} {how}")
            }
            Self::ShadowPageZapped { page } => write!(f, "  kvm_mmu_prepare_zap_page: {page}"),
            Self::ShadowZapAllFast { generation, used } => write!(
                f,
                "  kvm_mmu_zap_all_fast: kvm-mmu-valid-gen {} used_pages {used}",
                generation.raw()
            ),
            Self::AccessedBitSet { gpa } => {
                write!(f, "  kvm_mmu_set_accessed_bit: gpa {:x}", gpa.raw())
            }
            Self::DirtyBitSet { gpa } => write!(f, "  kvm_mmu_set_dirty_bit: gpa {:x}", gpa.raw()),
            Self::Returned(Ok(Some(value))) => write!(f, "RET {value}"),
            Self::Returned(Ok(None)) => write!(f, "RET, a descriptor"),
            Self::Returned(Err(errno)) => write!(f, "RET -1 {errno}"),
            Self::Exit(exit) => write!(f, "NOTE exit {exit}"),
            Self::RunFailed { errno } => write!(f, "NOTE KVM_RUN -1 {errno}"),
            Self::Dirty(pages) => {
                write!(f, "NOTE dirty count={} first=", pages.len())?;
                pages
                    .iter()
                    .take(40)
                    .try_for_each(|page| write!(f, " {page:x}"))
            }
            Self::Ring(entries) => {
                write!(f, "NOTE ring")?;
                entries
                    .iter()
                    .try_for_each(|(slot, page)| write!(f, " {slot:x}:{page:x}"))
            }
            Self::PreFaultLeft { gfn, pages } => {
                write!(f, "NOTE pre_fault left gfn={gfn:x} npages={pages:x}")
            }
            Self::Idle(idle) => write!(f, "NOTE idle={}", u8::from(*idle)),
            Self::PageUnsync { page } => write!(f, "  kvm_mmu_unsync_page: {page}"),
            Self::PageSync { page } => write!(f, "  kvm_mmu_sync_page: {page}"),
            Self::Leaves(leaves) => write!(f, "NOTE {leaves}"),
            Self::Counts(counts) => write!(f, "NOTE {counts}"),
            Self::ToldToL1(exit) => write!(f, "  kvm_nested_vmexit_inject: {exit}"),
        }
    }
}

/// What can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Entries that changed.
    SpteChanged,
    /// Page tables that were made.
    PageAllocated,
    /// Page tables that were taken apart.
    PageZapped,
    /// What faults stored.
    SpteSet,
    /// What faults are about to map.
    SpteRequested,
    /// Faults tried without the lock.
    FastPageFault,
    /// MMIO entries that were stored.
    MmioMarked,
    /// MMIO entries that were found.
    MmioChecked,
    /// Huge pages that were split.
    HugePageSplit,
    /// All roots invalidated.
    ZapAllFast,
    /// Entries of the guest's tables that were marked.
    GuestMarked,
    /// Results of system calls.
    Returned,
    /// Why the guest stopped.
    Exit,
    /// Dirty pages.
    Dirty,
    /// Entries of dirty rings.
    Ring,
    /// Progress of pre-faults.
    PreFaultLeft,
    /// Idle pages.
    Idle,
    /// Statistics: leaves.
    Leaves,
    /// Shadow pages that fall out of step, and are brought into it.
    Synchronised,
    /// Statistics: what was done to shadow pages.
    Counts,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::SpteChanged,
        Self::PageAllocated,
        Self::PageZapped,
        Self::SpteSet,
        Self::SpteRequested,
        Self::FastPageFault,
        Self::MmioMarked,
        Self::MmioChecked,
        Self::HugePageSplit,
        Self::ZapAllFast,
        Self::GuestMarked,
        Self::Returned,
        Self::Exit,
        Self::Dirty,
        Self::Ring,
        Self::PreFaultLeft,
        Self::Idle,
        Self::Leaves,
        Self::Synchronised,
        Self::Counts,
    ];

    /// The kind of a recorded line; `None` for operations, remarks, and what is never compared.
    pub const fn of(what: &What<'_>) -> Option<Self> {
        Some(match what {
            What::Event(event) => return Self::of_event(event),
            What::Note(note) => return Self::of_note(note),
            // The second half of an allocation.
            What::Probe(Probe::SpRole { .. }) => Self::PageAllocated,
            What::Ret(_) => Self::Returned,
            What::Op(_) | What::Probe(_) => return None,
        })
    }

    const fn of_event(event: &Traced<'_>) -> Option<Self> {
        Some(match event {
            Traced::SpteChanged { .. } => Self::SpteChanged,
            Traced::GetPage { .. } => Self::PageAllocated,
            Traced::PrepareZapPage { .. } => Self::PageZapped,
            Traced::SetSpte { .. } => Self::SpteSet,
            Traced::SpteRequested { .. } => Self::SpteRequested,
            Traced::FastPageFault { .. } => Self::FastPageFault,
            Traced::MarkMmio { .. } => Self::MmioMarked,
            Traced::CheckMmio { .. } => Self::MmioChecked,
            Traced::SplitHugePage { .. } => Self::HugePageSplit,
            Traced::ZapAllFast { .. } => Self::ZapAllFast,
            Traced::SetAccessedBit { .. } | Traced::SetDirtyBit { .. } => Self::GuestMarked,
            Traced::UnsyncPage { .. } | Traced::SyncPage { .. } => Self::Synchronised,
            // Other exits of L2's are what the program wants.
            Traced::NestedExitInject { reason, .. } if is_second_stage(reason) => Self::Exit,
            _ => return None,
        })
    }

    const fn of_note(note: &Note<'_>) -> Option<Self> {
        Some(match note {
            Note::Exit(_) | Note::RunFailed { .. } => Self::Exit,
            Note::Dirty { .. } => Self::Dirty,
            Note::Ring(_) => Self::Ring,
            Note::PreFaultLeft { .. } => Self::PreFaultLeft,
            Note::Idle(_) => Self::Idle,
            Note::Leaves(_) => Self::Leaves,
            Note::Counts(_) => Self::Counts,
            _ => return None,
        })
    }
}

/// Whether an exit is one of L2's second stage.
const fn is_second_stage(reason: &str) -> bool {
    matches!(
        reason.as_bytes(),
        b"npf" | b"EPT_VIOLATION" | b"EPT_MISCONFIG"
    )
}

/// A set of [`Kind`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    /// Everything.
    pub const ALL: Self = Self((1 << Kind::ALL.len()) - 1);

    /// Without one kind.
    #[must_use]
    pub const fn without(self, kind: Kind) -> Self {
        Self(self.0 & !(1 << kind as u32))
    }

    /// Whether it has this kind.
    pub const fn contains(self, kind: Kind) -> bool {
        self.0 & 1 << kind as u32 != 0
    }
}
