//! Where a CPU's walk is not KVM's, and where an emulated CPU's is not what the manuals say: probed, applied, counted.

use std::fmt;

use slat_memslot::{Errno, Gpa, Gva, Level};
use slat_mmu::fault::Kind;
use slat_mmu::role::Efer;
use slat_mmu::walk::{
    Cause, ErrorCode, GuestPaging, GuestVendor, PageFault, PagingMode, Privilege, Step,
    TableMemory, Translation, WalkFault, WalkTrail,
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
    /// The CPU's code for reserved bits does not have the present bit, which it always has in the manuals: an emulator.
    ReservedNotPresent,
    /// The CPU marks a leaf of 1 GiB before it looks at what the access may do, or at its lower reserved bits.
    GigabyteMarked,
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MarkedBeforeFault => "marked entries before it found the fault",
            Self::FetchNotTold => "told no fetch in 32-bit paging without SMEP",
            Self::WideLeaf => "took a leaf of 4 MiB above 2^36",
            Self::GlobalBitTaken => "took bit 8 in an entry of level 4 or 5 (not as the manual)",
            Self::PointerMarked => "marked a pointer of PAE paging (not as the manual)",
            Self::ReservedNotPresent => {
                "told reserved bits without the present bit (not as the manual)"
            }
            Self::GigabyteMarked => "marked a leaf of 1 GiB, then found the fault",
        })
    }
}

/// What a CPU was seen to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Habits {
    /// It marks entries on the way, whatever is at the end.
    marks_on_the_way: bool,
    /// Bit 8 of upper entries is reserved.
    global_bit_reserved: bool,
    /// It marks pointers of PAE paging.
    marks_pointers: bool,
    /// The code for reserved bits has the present bit.
    reserved_is_present: bool,
    /// In 32-bit paging EFER.NX lets it tell fetches.
    nx_tells_fetches: bool,
    /// It marks leaves of 1 GiB before it checks them.
    marks_gigabytes: bool,
}

impl Habits {
    /// KVM's own walker has none: this is what the model does anyway.
    pub(super) const KVM: Self = Self {
        marks_on_the_way: false,
        global_bit_reserved: false,
        marks_pointers: false,
        reserved_is_present: true,
        nx_tells_fetches: false,
        marks_gigabytes: false,
    };

    /// Looks what a CPU does, by a few accesses.
    pub(super) fn probe<E: Executor>(
        executor: &mut E,
        modes: &[PagingMode],
    ) -> Result<Self, Errno> {
        let mut habits = Self::KVM;
        let table = TEST_TABLES << 12;
        if modes.contains(&PagingMode::Level4) {
            let level4 = mode_state(PagingMode::Level4);
            let at = 1 << 39;
            let mut ask = |kind, words: &[_]| probe_one(executor, &level4, kind, words, at);
            let (end, words) = ask(Kind::Read, &[(1, table | 0x7)])?;
            habits.marks_on_the_way = end == fault(0, at) && is_marked(&words, 1);
            let (end, _) = ask(Kind::Read, &[(1, table | 0x107)])?;
            habits.global_bit_reserved = end != fault(0, at);
            let (end, _) = ask(Kind::Read, &[(1, table | 0x87)])?;
            habits.reserved_is_present = end != fault(8, at);
            // A leaf of 1 GiB in the first entry of the first table, with a reserved bit.
            let leaf = (FIRST_TABLE, 1 << 13 | 0x87);
            let (_, words) = ask(Kind::Read, &[(1, table | 0x7), leaf])?;
            habits.marks_gigabytes = is_marked(&words, FIRST_TABLE);
        }
        if modes.contains(&PagingMode::Pae) {
            let pae = mode_state(PagingMode::Pae);
            let (_, words) = probe_one(executor, &pae, Kind::Read, &[(1, table | 1)], 1 << 30)?;
            habits.marks_pointers = is_marked(&words, 1);
        }
        if modes.contains(&PagingMode::Bits32) {
            let mut narrow = mode_state(PagingMode::Bits32);
            narrow.efer |= Efer::NX;
            let (end, _) = probe_one(executor, &narrow, Kind::Execute, &[], 2 << 22)?;
            habits.nx_tells_fetches = end == fault(0x10, 2 << 22);
        }
        Ok(habits)
    }

    /// The code that a fault of the model's is told with.
    pub(super) fn code(
        self,
        state: &CpuState,
        tried: &Tried,
        fault: &PageFault,
    ) -> (u64, Option<Departure>) {
        let code = u64::from(fault.code.pushed());
        if !self.reserved_is_present && fault.code.contains(ErrorCode::RSVD) {
            return (code & !1, Some(Departure::ReservedNotPresent));
        }
        let narrow = matches!(state.mode, PagingMode::Bits32 | PagingMode::Bits32Pse);
        let told = self.nx_tells_fetches && state.efer.contains(Efer::NX);
        match narrow && told && tried.kind == Kind::Execute {
            true => (code | 0x10, None),
            false => (code, None),
        }
    }

    /// The vendor by whose rules the CPU checks reserved bits.
    pub(super) const fn vendor(self) -> GuestVendor {
        match self.global_bit_reserved {
            true => GuestVendor::Amd,
            false => GuestVendor::Intel,
        }
    }

    /// Marks what the CPU has marked beyond what the model has; gives what that was. `fault` is what came of the walk.
    pub(super) fn mark(
        self,
        model: &Tables,
        (mode, tried): (PagingMode, &Tried),
        trail: &WalkTrail,
        fault: Option<&PageFault>,
    ) -> Vec<Departure> {
        let mut departures = Vec::new();
        if self.marks_pointers && mode == PagingMode::Pae {
            let place = tried.address.raw() >> 30 & 3;
            if set_accessed(model, Gpa::new(place << 3), mode) {
                departures.push(Departure::PointerMarked);
            }
        }
        let Some(fault) = fault else {
            return departures;
        };
        let steps: Vec<&Step> = trail.iter().collect();
        let [passed @ .., last] = steps.as_slice() else {
            return departures;
        };
        if self.marks_on_the_way {
            let places = passed.iter().filter_map(|step| step.place);
            let marked = places.filter(|place| set_accessed(model, *place, mode));
            if marked.count() > 0 {
                departures.push(Departure::MarkedBeforeFault);
            }
        }
        let place = last.place.filter(|_| {
            let looked_at = match fault.cause {
                Cause::Reserved { bits } => bits & !LOW_RESERVED == 0,
                cause => cause != Cause::NotPresent,
            };
            self.marks_gigabytes && last.level == Level::L3 && looked_at
        });
        if place.is_some_and(|place| set_accessed(model, place, mode)) {
            departures.push(Departure::GigabyteMarked);
        }
        departures
    }
}

/// The reserved bits of a leaf of 1 GiB that are no address bits of a link.
const LOW_RESERVED: u64 = 0x3fff_e000;
/// Where the first of the test's tables begins in the list of words.
const FIRST_TABLE: usize = 512;

fn is_marked(words: &[u64], index: usize) -> bool {
    words.get(index).is_some_and(|word| word & 1 << 5 != 0)
}

const fn fault(code: u64, address: u64) -> Ended {
    Ended::PageFault {
        code,
        address: Gva::new(address),
    }
}

/// Makes an access in supervisor mode with these words in the tables; gives the end, and the words after it.
fn probe_one<E: Executor>(
    executor: &mut E,
    state: &CpuState,
    kind: Kind,
    entries: &[(usize, u64)],
    address: u64,
) -> Result<(Ended, Vec<u64>), Errno> {
    executor.enter(state.mode)?;
    let mut words = executor.words();
    words.iter_mut().skip(1).for_each(|word| *word = 0);
    for (index, entry) in entries {
        if let Some(word) = words.get_mut(*index) {
            *word = *entry;
        }
    }
    executor.load(&words)?;
    let tried = Tried {
        kind,
        privilege: Privilege::Supervisor,
        address: Gva::new(address),
        pkru: 0,
    };
    let end = executor.access(state, &tried, None)?;
    Ok((end, executor.words()))
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
    habits: Habits,
    (mode, tried): (PagingMode, &Tried),
    model: &Tables,
    by_kvm: &GuestPaging,
    answer: &Result<Translation, PageFault>,
) -> Option<Departure> {
    let access = ErrorCode::of(tried.kind, tried.privilege);
    let kvm = by_kvm.translate(&slat_mmu::walk::ReadOnly(model), tried.address, access);
    match (&kvm, answer) {
        (Ok(_), Ok(_)) => None,
        (Err(WalkFault::Page(kvm)), Err(cpu)) if kvm.code == cpu.code => None,
        (Err(WalkFault::Page(kvm)), Err(cpu)) if kvm.code ^ cpu.code == ErrorCode::FETCH => {
            (!habits.nx_tells_fetches).then_some(Departure::FetchNotTold)
        }
        _ if matches!(mode, PagingMode::Bits32Pse) => Some(Departure::WideLeaf),
        _ => Some(Departure::GlobalBitTaken),
    }
}
