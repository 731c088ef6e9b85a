//! Where a CPU's walk is not KVM's, and where an emulated CPU's is not what the manuals say: probed, applied, counted.

use std::fmt;

use slat_memslot::{Errno, Gpa, Gva};
use slat_mmu::fault::Kind;
use slat_mmu::walk::{
    ErrorCode, GuestPaging, GuestVendor, PageFault, PagingMode, Privilege, Step, TableMemory,
    Translation, WalkFault, WalkTrail,
};

use super::super::{CpuState, mode_state};
use super::tables::Tables;
use super::{Ended, Executor, TEST_TABLES, Tried};

/// A rule by which an access ended in another way than KVM's own walker has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Departure {
    /// The CPU had marked entries above before it found the fault. The manuals allow it.
    MarkedBeforeFault,
    /// The CPU's code does not tell a fetch in 32-bit paging with EFER.NX, as the manual has it.
    FetchNotTold,
    /// The CPU takes leaves of 4 MiB above 2^36, as the manual has it.
    WideLeaf,
    /// The CPU is AMD's and takes bit 8 in entries of levels 4 and 5, which is reserved in AMD's manual: an emulator.
    GlobalBitTaken,
    /// The CPU marks pointers of PAE paging as accessed, where that bit is reserved in the manuals: an emulator.
    PointerMarked,
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MarkedBeforeFault => "marked entries before it found the fault",
            Self::FetchNotTold => "told no fetch in 32-bit paging without SMEP",
            Self::WideLeaf => "took a leaf of 4 MiB above 2^36",
            Self::GlobalBitTaken => "took bit 8 in an entry of level 4 or 5 (not as the manual)",
            Self::PointerMarked => "marked a pointer of PAE paging (not as the manual)",
        })
    }
}

/// What a CPU was seen to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Habits {
    /// It marks entries on the way, whatever is at the end.
    pub(super) marks_on_the_way: bool,
    /// Bit 8 of upper entries is reserved.
    pub(super) global_bit_reserved: bool,
    /// It marks pointers of PAE paging.
    pub(super) marks_pointers: bool,
}

impl Habits {
    /// Looks what a CPU does by three accesses.
    pub(super) fn probe<E: Executor>(
        executor: &mut E,
        modes: &[PagingMode],
    ) -> Result<Self, Errno> {
        let mut habits = Self::default();
        if modes.contains(&PagingMode::Level4) {
            let (end, top) = probe_one(executor, PagingMode::Level4, 0x7, 1 << 39)?;
            habits.marks_on_the_way = end == fault(0, 1 << 39) && top & 1 << 5 != 0;
            let (end, _) = probe_one(executor, PagingMode::Level4, 0x107, 1 << 39)?;
            habits.global_bit_reserved = end == fault(9, 1 << 39);
        }
        if modes.contains(&PagingMode::Pae) {
            let (_, pointer) = probe_one(executor, PagingMode::Pae, 1, 1 << 30)?;
            habits.marks_pointers = pointer & 1 << 5 != 0;
        }
        Ok(habits)
    }

    /// The vendor by whose rules the CPU checks reserved bits.
    pub(super) const fn vendor(self) -> GuestVendor {
        match self.global_bit_reserved {
            true => GuestVendor::Amd,
            false => GuestVendor::Intel,
        }
    }

    /// Marks what the CPU has marked beyond what the model has; gives what that was.
    pub(super) fn mark(
        self,
        model: &Tables,
        mode: PagingMode,
        tried: &Tried,
        trail: &WalkTrail,
        faulted: bool,
    ) -> Vec<Departure> {
        let mut departures = Vec::new();
        if self.marks_pointers && mode == PagingMode::Pae {
            let place = tried.address.raw() >> 30 & 3;
            if set_accessed(model, Gpa::new(place << 3), mode) {
                departures.push(Departure::PointerMarked);
            }
        }
        let steps: Vec<&Step> = trail.iter().collect();
        if let (true, true, [passed @ .., _]) = (self.marks_on_the_way, faulted, steps.as_slice()) {
            let marked = passed
                .iter()
                .filter_map(|step| step.place)
                .filter(|place| set_accessed(model, *place, mode));
            if marked.count() > 0 {
                departures.push(Departure::MarkedBeforeFault);
            }
        }
        departures
    }
}

const fn fault(code: u64, address: u64) -> Ended {
    Ended::PageFault {
        code,
        address: Gva::new(address),
    }
}

/// Reads through the second entry of the top table, which links to an empty table; gives the end and the entry after it.
fn probe_one<E: Executor>(
    executor: &mut E,
    mode: PagingMode,
    bits: u64,
    address: u64,
) -> Result<(Ended, u64), Errno> {
    let state = mode_state(mode);
    executor.enter(mode)?;
    let mut words = executor.words();
    words.iter_mut().skip(1).for_each(|word| *word = 0);
    if let Some(second) = words.get_mut(1) {
        *second = TEST_TABLES << 12 | bits;
    }
    executor.load(&words)?;
    let tried = Tried {
        kind: Kind::Read,
        privilege: Privilege::Supervisor,
        address: Gva::new(address),
        pkru: 0,
    };
    let end = executor.access(&state, &tried, None)?;
    Ok((end, executor.words().get(1).copied().unwrap_or(0)))
}

/// Marks an entry as accessed; whether it was not before.
fn set_accessed(model: &Tables, place: Gpa, mode: PagingMode) -> bool {
    let narrow = matches!(mode, PagingMode::Bits32 | PagingMode::Bits32Pse);
    let (Some(wide), Some(half)) = (
        model.read_u64(Gpa::new(place.raw() & !7)),
        model.read_u32(place),
    ) else {
        return false;
    };
    let entry = if narrow { u64::from(half) } else { wide };
    if entry & (1 << 5 | 1) != 1 {
        return false;
    }
    let _exchanged = match narrow {
        true => model.compare_exchange_u32(place, half, half | 1 << 5),
        false => model.compare_exchange_u64(place, wide, wide | 1 << 5),
    };
    true
}

/// What the same access would be by KVM's walker, where a CPU does otherwise.
pub(super) fn against_kvm(
    state: &CpuState,
    model: &Tables,
    tried: &Tried,
    by_kvm: &GuestPaging,
    answer: &Result<Translation, PageFault>,
) -> Option<Departure> {
    let access = ErrorCode::of(tried.kind, tried.privilege);
    let kvm = by_kvm.translate(&slat_mmu::walk::ReadOnly(model), tried.address, access);
    match (&kvm, answer) {
        (Ok(_), Ok(_)) => None,
        (Err(WalkFault::Page(kvm)), Err(cpu)) if kvm.code == cpu.code => None,
        (Err(WalkFault::Page(kvm)), Err(cpu)) if kvm.code ^ cpu.code == ErrorCode::FETCH => {
            Some(Departure::FetchNotTold)
        }
        _ if matches!(state.mode, PagingMode::Bits32Pse) => Some(Departure::WideLeaf),
        _ => Some(Departure::GlobalBitTaken),
    }
}
