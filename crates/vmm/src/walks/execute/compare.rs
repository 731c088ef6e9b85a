//! Accesses that a guest executes, held against walks: outcome, error code, CR2, accessed and dirty bits.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use slat_memslot::{Errno, Gpa, Gva};
use slat_mmu::fault::Kind;
use slat_mmu::walk::{
    ErrorCode, Exchange, GuestPaging, PagingMode, Privilege, ReadOnly, TableMemory, WalkFault,
};

use super::generate::Generator;
use super::{CpuState, GigabytePages, Memory, RAM_PAGES};
use crate::differential::dice::Dice;

/// The first of the pages that hold the test's tables.
pub const TEST_TABLES: u64 = 32;
/// Where the pages begin that accesses may reach: 2 MiB.
pub const DATA: u64 = 2 << 20;
/// All pages of the guest.
pub const MEMORY_PAGES: u64 = 1024;

/// One access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    /// What it is.
    pub kind: Kind,
    /// In whose name.
    pub privilege: Privilege,
    /// Where.
    pub address: Gva,
}

/// What came of an access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was made.
    Done,
    /// The guest's handler was called.
    PageFault {
        /// The error code on its stack.
        code: u64,
        /// CR2.
        address: Gva,
    },
    /// Anything else.
    Other {
        /// In words.
        what: String,
    },
}

/// A guest that makes accesses.
pub trait Executor {
    /// When its guests have pages of 1 GiB.
    fn gigabyte_pages(&self) -> GigabytePages;

    /// Fills the top table, but for its first entry, and the test's tables.
    ///
    /// # Errors
    /// The tables cannot be made known.
    fn load(&mut self, words: &[u64]) -> Result<(), Errno>;

    /// Sets CPUID, once for all.
    ///
    /// # Errors
    /// It refuses.
    fn set_cpuid(&mut self, state: &CpuState) -> Result<(), Errno>;

    /// Makes an access.
    ///
    /// # Errors
    /// The call fails.
    fn access(&mut self, state: &CpuState, tried: &Tried) -> Result<Ended, Errno>;

    /// The top table and all up to the end of the test's tables.
    fn words(&self) -> Vec<u64>;
}

/// No guest, where there is no KVM.
impl Executor for std::convert::Infallible {
    fn gigabyte_pages(&self) -> GigabytePages {
        match *self {}
    }

    fn load(&mut self, _: &[u64]) -> Result<(), Errno> {
        match *self {}
    }

    fn set_cpuid(&mut self, _: &CpuState) -> Result<(), Errno> {
        match *self {}
    }

    fn access(&mut self, _: &CpuState, _: &Tried) -> Result<Ended, Errno> {
        match *self {}
    }

    fn words(&self) -> Vec<u64> {
        match *self {}
    }
}

/// What to compare.
#[derive(Clone, Copy, Debug)]
pub struct AccessConfig {
    /// The seed of the random numbers.
    pub seed: u64,
    /// How many accesses.
    pub accesses: u64,
    /// How many of them on one state of tables.
    pub per_state: u32,
}

/// Where the guest and the model differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessDifference {
    /// The seed.
    pub seed: u64,
    /// Registers and CPUID.
    pub state: CpuState,
    /// The access.
    pub tried: Tried,
    /// What the guest saw.
    pub guest: Ended,
    /// What the model says.
    pub model: String,
    /// An entry that differs afterwards: where, the guest's, the model's.
    pub word: Option<(u64, u64, u64)>,
}

impl fmt::Display for AccessDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {:?}", self.seed, self.state)?;
        writeln!(
            f,
            "{:?}: the guest {:?}, the model {}",
            self.tried, self.guest, self.model
        )?;
        match self.word {
            Some((at, guest, model)) => {
                writeln!(f, "entry at {at:#x}: guest {guest:#x}, model {model:#x}")
            }
            None => Ok(()),
        }
    }
}

/// A comparison that has ended.
#[derive(Clone, Debug)]
pub struct AccessOutcome {
    /// Accesses made on both sides, by privilege, kind and what came of them.
    pub by_end: BTreeMap<(&'static str, &'static str, String), u64>,
    /// How many there were.
    pub accesses: u64,
    /// Accesses that would have reached memory which is not the test's, and were not made.
    pub left_out: u64,
    /// The first difference, if there was one.
    pub difference: Option<Box<AccessDifference>>,
    /// How long it took.
    pub elapsed: Duration,
}

/// The guest's tables for the model.
struct Tables(Vec<Cell<u64>>);

impl TableMemory for Tables {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        match self.0.as_slice().read_u64(at) {
            Some(word) => Some(word),
            // Memory that is there, and full of halts: no table of the test's links there but by a flipped bit.
            None if at.raw() < MEMORY_PAGES << 12 => Some(HALTS),
            None => None,
        }
    }

    fn compare_exchange_u64(&self, at: Gpa, current: u64, new: u64) -> Exchange {
        self.0.as_slice().compare_exchange_u64(at, current, new)
    }
}

const HALTS: u64 = 0xf4f4_f4f4_f4f4_f4f4;

/// Compares accesses until `config.accesses` are made or the two differ. The guest's CPUID is set once, from the seed.
///
/// # Errors
/// The guest cannot be set up, or a call fails.
pub fn compare_accesses<E: Executor>(
    executor: &mut E,
    config: &AccessConfig,
    mut progress: impl FnMut(u64),
) -> Result<AccessOutcome, Errno> {
    let start = Instant::now();
    let mut generator = Generator::new(config.seed, vec![PagingMode::Level4]);
    let mut dice = Dice::new(config.seed ^ 0x5eed);
    let first = generator.state();
    executor.set_cpuid(&first)?;
    let mut outcome = AccessOutcome {
        by_end: BTreeMap::new(),
        accesses: 0,
        left_out: 0,
        difference: None,
        elapsed: Duration::ZERO,
    };
    let own = executor.words();
    while outcome.accesses < config.accesses && outcome.difference.is_none() {
        let state = CpuState {
            maxphyaddr: first.maxphyaddr,
            vendor: first.vendor,
            gigabyte_pages: first.gigabyte_pages,
            cr3: 0,
            ..generator.state()
        };
        let words = tables(&own, &generator.memory(&state), &mut dice);
        executor.load(&words)?;
        let model = Tables(words.iter().copied().map(Cell::new).collect());
        let paging = state.paging(&Memory::new(), executor.gigabyte_pages());
        for _ in 0..config.per_state {
            let tried = tried(&mut dice);
            if !is_harmless(&paging, &model, &tried) {
                outcome.left_out += 1;
                continue;
            }
            outcome.accesses += 1;
            outcome.difference = one(
                executor,
                (&state, &paging),
                &model,
                &tried,
                &mut outcome.by_end,
            )?
            .map(|difference| {
                Box::new(AccessDifference {
                    seed: config.seed,
                    ..difference
                })
            });
            if outcome.difference.is_some() {
                break;
            }
        }
        progress(outcome.accesses);
    }
    outcome.elapsed = start.elapsed();
    Ok(outcome)
}

/// Generated tables, moved to where the test's are, with leaves in the pages that accesses may reach.
fn tables(own: &[u64], generated: &Memory, dice: &mut Dice) -> Vec<u64> {
    let mut words = own.to_vec();
    let start = usize::try_from(TEST_TABLES << 9).unwrap_or(0);
    for (place, word) in words.iter_mut().enumerate() {
        // The first entry of the top table is the guest's own.
        let (from, table) = match place {
            1..512 => (place, None),
            place if place >= start => (place - start, Some((place - start) as u64 / 512)),
            _ => continue,
        };
        let entry = generated.ram[from % generated.ram.len()].get();
        *word = moved(entry, table, dice);
    }
    words
}

/// An entry of a table that is the test's `table`th, or of the top table. Tables come in order, so that walks go deep:
/// two of level 3, two of level 2, four of level 1.
fn moved(entry: u64, table: Option<u64>, dice: &mut Dice) -> u64 {
    let frame = entry >> 12 & 0xff_ffff;
    let low = entry & !(0xff_ffff << 12);
    if frame >= RAM_PAGES && entry & 1 << 7 == 0 {
        // Meant to be wrong.
        return entry;
    }
    let to = match table {
        None => TEST_TABLES + frame % 2,
        Some(_) if entry & 1 << 7 != 0 && dice.percent(80) => DATA >> 12,
        Some(0 | 1) => TEST_TABLES + 2 + frame % 2,
        Some(2 | 3) => TEST_TABLES + 4 + frame % 4,
        Some(_) => (DATA >> 12) + frame,
    };
    low | to << 12
}

fn tried(dice: &mut Dice) -> Tried {
    let privilege = dice.pick(&[Privilege::User, Privilege::Supervisor]);
    // A paravirtual backend keeps parts of the upper half for itself: user mode gets a fault there (the first top-level
    // entry of that half showed it) without a walk of the guest's tables.
    let top = match privilege {
        Privilege::User => 1 + dice.below(255),
        Privilege::Supervisor | Privilege::Implicit => 1 + dice.below(511),
    };
    let address = top << 39 | dice.bits() & 0x7f_ffff_ffff;
    let address = match top {
        256.. => address | 0xffff << 48,
        _ => address,
    };
    let kind = dice.pick(&[Kind::Read, Kind::Write, Kind::Execute]);
    // The halt behind a fetch is emulated, and the emulator reads up to 15 bytes of it: they must be in the same page, or
    // the next one is marked as accessed too.
    let address = match kind {
        Kind::Execute => address & !0xfff | ((address & 0xfff) % 0xff0),
        Kind::Read | Kind::Write => address,
    };
    Tried {
        kind,
        privilege,
        address: Gva::new(address),
    }
}

/// Whether an access stays in the pages that it may reach, and its walk in the test's tables.
fn is_harmless(paging: &GuestPaging, model: &Tables, tried: &Tried) -> bool {
    let mut trail = slat_mmu::walk::WalkTrail::default();
    let access = ErrorCode::of(tried.kind, tried.privilege);
    let mut stage = slat_mmu::walk::Unnested;
    let found = paging.walk(
        &ReadOnly(model),
        &mut stage,
        &mut trail,
        tried.address,
        access,
    );
    let own = |place: Gpa| (1..TEST_TABLES).contains(&(place.raw() >> 12));
    let inside = trail
        .iter()
        .all(|step| step.place.is_none_or(|place| !own(place)));
    inside
        && match found {
            Ok(found) => (DATA..MEMORY_PAGES << 12).contains(&found.address.raw()),
            Err(WalkFault::Page(_)) => true,
            Err(_) => false,
        }
}

/// The top table and the test's; what is between is the guest's own, and changes as it runs.
fn tables_only(mut words: Vec<u64>) -> Vec<u64> {
    let start = usize::try_from(TEST_TABLES << 9).unwrap_or(0);
    if let Some(own) = words.get_mut(512..start) {
        own.fill(0);
    }
    words
}

/// Makes one access on both sides.
fn one<E: Executor>(
    executor: &mut E,
    (state, paging): (&CpuState, &GuestPaging),
    model: &Tables,
    tried: &Tried,
    by_end: &mut BTreeMap<(&'static str, &'static str, String), u64>,
) -> Result<Option<AccessDifference>, Errno> {
    let guest = executor.access(state, tried)?;
    let access = ErrorCode::of(tried.kind, tried.privilege);
    let answer = paging.translate(model, tried.address, access);
    let (expected, text) = match &answer {
        Ok(found) => (Ended::Done, found.address.to_string()),
        Err(WalkFault::Page(fault)) => {
            let code = u64::from(fault.code.pushed());
            let address = fault.address;
            (Ended::PageFault { code, address }, fault.to_string())
        }
        Err(fault) => (
            Ended::Other {
                what: String::new(),
            },
            fault.to_string(),
        ),
    };
    let who = match tried.privilege {
        Privilege::User => "CPL 3",
        Privilege::Supervisor | Privilege::Implicit => "CPL 0",
    };
    let kind = match tried.kind {
        Kind::Read => "load",
        Kind::Write => "store",
        Kind::Execute => "fetch",
    };
    let end = match &expected {
        Ended::PageFault { code, .. } => format!("#PF({code:#x})"),
        _ => "done".to_owned(),
    };
    *by_end.entry((who, kind, end)).or_default() += 1;
    let words: Vec<u64> = model.0.iter().map(Cell::get).collect();
    let word = super::first_difference(&tables_only(executor.words()), &tables_only(words));
    if guest == expected && word.is_none() {
        return Ok(None);
    }
    Ok(Some(AccessDifference {
        seed: 0,
        state: *state,
        tried: *tried,
        guest,
        model: text,
        word,
    }))
}
