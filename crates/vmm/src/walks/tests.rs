//! A walker that lies is found out, whatever it lies about.

use std::cell::Cell;

use slat_memslot::{Errno, Gpa, Gva};
use slat_mmu::role::{Cr0, Cr4, Efer};
use slat_mmu::walk::{AlignmentCheck, GuestPaging, GuestVendor, PagingMode, ReadOnly};

use super::{Config, CpuState, GigabytePages, Memory, Outcome, Walker, compare};

/// What a played kernel does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    NarrowerAddresses,
    OtherVendor,
    NoSmap,
    SmapInSpiteOfAc,
    NxAlwaysKnown,
    NoMarks,
    MarksRom,
    GigabytePages,
    WrongPage,
    NoPseBit,
    FourLevels,
}

/// The model in the place of a kernel.
struct Played {
    lie: Lie,
    memory: Memory,
    paging: Option<GuestPaging>,
}

impl Walker for Played {
    fn gigabyte_pages(&self) -> GigabytePages {
        GigabytePages::ByCpuid
    }

    fn load(&mut self, memory: &Memory) {
        self.memory = memory.clone();
        if self.lie == Lie::MarksRom {
            // Read-only pages appear where the model has none.
            self.memory.rom.clear();
        }
    }

    fn set(&mut self, state: &CpuState) -> Result<bool, Errno> {
        let mut state = *state;
        match self.lie {
            Lie::NarrowerAddresses => state.maxphyaddr -= 1,
            Lie::OtherVendor => state.vendor = GuestVendor::Intel,
            Lie::NoSmap => state.cr4.remove(Cr4::SMAP),
            Lie::SmapInSpiteOfAc => state.ac = AlignmentCheck::Clear,
            Lie::NxAlwaysKnown => state.efer.insert(Efer::NX),
            Lie::GigabytePages => state.gigabyte_pages = true,
            Lie::NoPseBit => state.cr4.remove(Cr4::PSE),
            Lie::FourLevels => state.cr4.remove(Cr4::LA57),
            _ => {}
        }
        self.paging = Some(state.paging(&self.memory, GigabytePages::ByCpuid));
        Ok(true)
    }

    fn translate(&mut self, address: Gva) -> Result<Option<Gpa>, Errno> {
        let paging = self.paging.as_ref().ok_or(Errno::EINVAL)?;
        let answer = match self.lie {
            Lie::NoMarks => paging.kvm_translate(&ReadOnly(&self.memory), address),
            _ => paging.kvm_translate(&self.memory, address),
        };
        let gpa = answer.ok().map(|found| found.address.raw());
        let gpa = gpa.filter(|gpa| *gpa != u64::MAX);
        Ok(gpa.map(|gpa| {
            Gpa::new(if self.lie == Lie::WrongPage {
                gpa ^ 0x1000
            } else {
                gpa
            })
        }))
    }

    fn words(&self) -> Vec<u64> {
        self.memory.words()
    }
}

fn against(lie: Lie) -> Outcome {
    let mut played = Played {
        lie,
        memory: Memory::new(),
        paging: None,
    };
    let config = Config {
        seed: 11,
        translations: 200_000,
        ..Config::default()
    };
    compare(&mut played, &config, |_| {}).expect("it translates")
}

#[test]
fn the_model_agrees_with_itself_and_comes_everywhere() {
    let outcome = against(Lie::None);
    assert_eq!(outcome.difference, None);
    assert_eq!(outcome.stats.translations, 200_000);
    assert_eq!(outcome.stats.refused_states, 0);
    assert!(outcome.stats.valid() > 50_000, "{:?}", outcome.stats);
    for mode in super::MODES {
        let ends = outcome.stats.by_end.keys().filter(|(of, _)| *of == mode);
        let least = if mode == PagingMode::Unpaged { 1 } else { 5 };
        assert!(ends.count() >= least, "{mode}: {:?}", outcome.stats);
    }
}

#[test]
fn every_lie_is_found() {
    for lie in [
        Lie::NarrowerAddresses,
        Lie::OtherVendor,
        Lie::NoSmap,
        Lie::SmapInSpiteOfAc,
        Lie::NxAlwaysKnown,
        Lie::NoMarks,
        Lie::MarksRom,
        Lie::GigabytePages,
        Lie::WrongPage,
        Lie::NoPseBit,
        Lie::FourLevels,
    ] {
        let outcome = against(lie);
        let difference = outcome
            .difference
            .unwrap_or_else(|| panic!("{lie:?} is not noticed"));
        assert!(
            difference.kernel.map(|gpa| gpa.to_string()) != Some(difference.model.clone())
                || difference.word.is_some(),
            "{lie:?}: {difference}"
        );
    }
}

#[test]
fn equal_seeds_give_equal_cases() {
    let mut first = super::Generator::new(7, super::MODES.to_vec());
    let mut second = super::Generator::new(7, super::MODES.to_vec());
    let (one, two) = (first.state(), second.state());
    assert_eq!(one, two);
    assert!(one.cr0.contains(Cr0::PE));
    let words = |memory: Memory| memory.ram.iter().map(Cell::get).collect::<Vec<_>>();
    assert_eq!(words(first.memory(&one)), words(second.memory(&two)));
}
