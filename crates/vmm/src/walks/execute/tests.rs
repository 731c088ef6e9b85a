//! A guest that lies is found out, whatever it lies about; and a CPU that departs from KVM's walker is followed.

use std::cell::Cell;

use slat_memslot::{Errno, Gpa, Gva};
use slat_mmu::role::{Cr0, Cr4};
use slat_mmu::walk::{
    AlignmentCheck, ErrorCode, GuestPaging, GuestVendor, PagingMode, ReadOnly, TableMemory,
    Unnested, WalkFault, WalkTrail,
};

use super::super::{CpuState, GigabytePages, MODES, Memory, Part, SkipReason, Skipped};
use super::tables::Tables;
use super::{
    AccessConfig, AccessOutcome, Departure, Ended, Executor, ProtectionKeys, Tried, UserHalf,
    WalkedBy, compare_accesses,
};

/// What a played guest does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    OtherPage,
    NoMarks,
    NotDirty,
    MarksOnFault,
    NoWriteProtect,
    NoSmep,
    NoSmap,
    SmapInSpiteOfAc,
    NoNx,
    NoKeys,
    NoUserBit,
    FetchNotTold,
    NoPresentBit,
    OtherCr2,
    NarrowerAddresses,
    NoGigabytePages,
    NoPse,
}

/// The model in the place of a guest.
struct Played {
    lie: Lie,
    walked_by: WalkedBy,
    /// What a CPU does otherwise than KVM.
    emulator: bool,
    without_pcid: bool,
    words: Vec<Cell<u64>>,
    mode: PagingMode,
    cpuid: Option<CpuState>,
}

impl Played {
    fn new(lie: Lie, walked_by: WalkedBy) -> Self {
        Self {
            lie,
            walked_by,
            emulator: false,
            without_pcid: false,
            words: vec![Cell::new(0); 9 << 9],
            mode: PagingMode::Level4,
            cpuid: None,
        }
    }

    fn paging(&self, state: &CpuState, tried: &Tried) -> GuestPaging {
        let mut state = *state;
        let mut pkru = tried.pkru;
        match self.lie {
            Lie::NoWriteProtect => state.cr0.remove(Cr0::WP),
            Lie::NoSmep => state.cr4.remove(Cr4::SMEP),
            Lie::NoSmap => state.cr4.remove(Cr4::SMAP),
            Lie::SmapInSpiteOfAc => state.ac = AlignmentCheck::Clear,
            Lie::NoKeys => pkru = 0,
            Lie::NarrowerAddresses => state.maxphyaddr -= 2,
            Lie::NoGigabytePages => state.gigabyte_pages = false,
            Lie::NoPse => state.cr4.remove(Cr4::PSE),
            _ => {}
        }
        let memory = Memory::new();
        for (to, from) in memory.ram.iter().zip(&self.words).take(4) {
            to.set(from.get());
        }
        if self.emulator {
            state.vendor = GuestVendor::Intel;
        }
        let paging = state.paging(&memory, GigabytePages::ByCpuid);
        let paging = match self.walked_by {
            WalkedBy::Kvm => paging,
            WalkedBy::Hardware { .. } => paging.by_hardware(),
        };
        paging.with_pkru(pkru)
    }

    /// Marks the entries before the last one, as a CPU may.
    fn mark_passed(&self, tables: &Tables, state: &CpuState, tried: &Tried) {
        let mut trail = WalkTrail::default();
        let paging = self.paging(state, tried);
        let access = ErrorCode::of(tried.kind, tried.privilege);
        let _found = paging.walk(
            &ReadOnly(tables),
            &mut Unnested,
            &mut trail,
            tried.address,
            access,
        );
        let steps: Vec<_> = trail.iter().collect();
        let passed = steps.iter().take(steps.len().saturating_sub(1));
        for place in passed.filter_map(|step| step.place) {
            let narrow = matches!(self.mode, PagingMode::Bits32 | PagingMode::Bits32Pse);
            let wide = TableMemory::<Gpa>::read_u64(tables, place);
            let half = TableMemory::<Gpa>::read_u32(tables, place);
            let _marked = match (narrow, wide, half) {
                (true, _, Some(entry)) => tables.compare_exchange_u32(place, entry, entry | 0x20),
                (false, Some(entry), _) => tables.compare_exchange_u64(place, entry, entry | 0x20),
                _ => continue,
            };
        }
    }

    fn keep(&self, tables: &Tables) {
        for (to, from) in self.words.iter().zip(tables.words()) {
            to.set(from);
        }
    }
}

impl Executor for Played {
    fn gigabyte_pages(&self) -> GigabytePages {
        GigabytePages::ByCpuid
    }

    fn walked_by(&self) -> WalkedBy {
        self.walked_by
    }

    fn user_half(&self) -> UserHalf {
        UserHalf::Both
    }

    fn protection_keys(&self) -> ProtectionKeys {
        ProtectionKeys::Work
    }

    fn renew(&mut self, state: &CpuState) -> Result<(), Errno> {
        self.cpuid = Some(*state);
        Ok(())
    }

    fn enter(&mut self, mode: PagingMode) -> Result<(), Errno> {
        self.mode = mode;
        Ok(())
    }

    fn takes(&mut self, state: &CpuState) -> Result<bool, Errno> {
        match self.without_pcid && state.cr4.contains(Cr4::PCIDE) {
            true => Err(Errno::EINVAL),
            false => Ok(true),
        }
    }

    fn load(&mut self, words: &[u64]) -> Result<(), Errno> {
        for (to, from) in self.words.iter().zip(words) {
            to.set(*from);
        }
        Ok(())
    }

    fn access(&mut self, state: &CpuState, tried: &Tried, to: Option<Gpa>) -> Result<Ended, Errno> {
        let tables = Tables::new(&self.words());
        let before = self.words();
        let paging = self.paging(state, tried);
        let access = ErrorCode::of(tried.kind, tried.privilege);
        let mut end = match paging.translate(&tables, tried.address, access) {
            Ok(found) if Some(found.address) != to => Ended::Elsewhere,
            Ok(_) => Ended::Done,
            Err(WalkFault::Page(fault)) => Ended::PageFault {
                code: u64::from(fault.code.pushed()),
                address: fault.address,
            },
            Err(_) => return Err(Errno::EFAULT),
        };
        if let (true, Ended::PageFault { code, .. }) = (self.emulator, &mut end) {
            // Reserved bits without the present bit.
            *code &= !(*code >> 3 & 1);
            self.mark_passed(&tables, state, tried);
        }
        let fault = |end: &mut Ended, bit: u64| {
            if let Ended::PageFault { code, .. } = end {
                *code &= !bit;
            }
        };
        match (self.lie, &mut end) {
            (Lie::OtherPage, end @ Ended::Done) => *end = Ended::Elsewhere,
            (Lie::MarksOnFault, Ended::PageFault { .. }) => self.mark_passed(&tables, state, tried),
            (
                Lie::NoNx,
                end @ Ended::PageFault {
                    code: 0x11 | 0x15, ..
                },
            ) => *end = Ended::Done,
            (Lie::OtherCr2, Ended::PageFault { address, .. }) => {
                *address = Gva::new(address.raw() & !0xfff);
            }
            (Lie::NoUserBit, end) => fault(end, 4),
            (Lie::FetchNotTold, end) => fault(end, 0x10),
            (Lie::NoPresentBit, end) => fault(end, 1),
            _ => {}
        }
        self.keep(&tables);
        for (word, old) in self.words.iter().zip(before) {
            let new = word.get();
            match self.lie {
                Lie::NoMarks => word.set(old),
                Lie::NotDirty => word.set(new & !((old ^ new) & (1 << 6 | 1 << 38))),
                _ => {}
            }
        }
        Ok(end)
    }

    fn words(&self) -> Vec<u64> {
        self.words.iter().map(Cell::get).collect()
    }
}

fn hardware(vendor: GuestVendor) -> WalkedBy {
    WalkedBy::Hardware {
        maxphyaddr: 40,
        vendor,
    }
}

fn compared(mut played: Played, accesses: u64) -> AccessOutcome {
    let config = AccessConfig {
        seed: 3,
        accesses,
        per_state: 24,
    };
    compare_accesses(&mut played, &config, |_| {}).expect("it runs")
}

#[test]
fn the_model_agrees_with_itself_in_every_mode() {
    for walked_by in [WalkedBy::Kvm, hardware(GuestVendor::Intel)] {
        let outcome = compared(Played::new(Lie::None, walked_by), 30_000);
        assert_eq!(outcome.difference, None);
        assert_eq!(outcome.skipped, []);
        let modes = outcome.by_mode();
        assert_eq!(modes.len(), MODES.len() - 1, "{modes:?}");
        assert!(modes.values().all(|count| *count > 2_000), "{modes:?}");
        let ends: Vec<_> = outcome.by_end.keys().collect();
        for code in [
            "done",
            "#PF(0x0)",
            "#PF(0x7)",
            "#PF(0x9)",
            "#PF(0x15)",
            "#PF(0x25)",
        ] {
            assert!(ends.iter().any(|(.., end)| end == code), "{code}");
        }
    }
}

#[test]
fn every_lie_is_found() {
    for lie in [
        Lie::OtherPage,
        Lie::NoMarks,
        Lie::NotDirty,
        Lie::MarksOnFault,
        Lie::NoWriteProtect,
        Lie::NoSmep,
        Lie::NoSmap,
        Lie::SmapInSpiteOfAc,
        Lie::NoNx,
        Lie::NoKeys,
        Lie::NoUserBit,
        Lie::FetchNotTold,
        Lie::NoPresentBit,
        Lie::OtherCr2,
        Lie::NarrowerAddresses,
        Lie::NoGigabytePages,
        Lie::NoPse,
    ] {
        let outcome = compared(Played::new(lie, WalkedBy::Kvm), 60_000);
        assert!(outcome.difference.is_some(), "{lie:?} is not noticed");
    }
}

#[test]
fn departures_of_a_cpu_are_probed_followed_and_counted() {
    let mut played = Played::new(Lie::None, hardware(GuestVendor::Amd));
    played.emulator = true;
    played.without_pcid = true;
    let outcome = compared(played, 60_000);
    assert_eq!(outcome.difference, None);
    for departure in [
        Departure::MarkedBeforeFault,
        Departure::FetchNotTold,
        Departure::WideLeaf,
        Departure::GlobalBitTaken,
        Departure::ReservedNotPresent,
    ] {
        let count = outcome.departures.get(&departure);
        assert!(count.is_some_and(|count| *count > 10), "{departure:?}");
    }
    assert_eq!(
        outcome.skipped,
        [Skipped {
            part: Part::Pcid,
            why: SkipReason::Refused(Errno::EINVAL)
        }]
    );
}
