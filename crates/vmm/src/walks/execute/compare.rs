//! The comparison: states in turn by mode, accesses on each.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use slat_memslot::{Errno, Gpa};
use slat_mmu::fault::Kind;
use slat_mmu::role::Cr4;
use slat_mmu::walk::{
    Cause, ErrorCode, GuestPaging, PageFault, PagingMode, Privilege, ReadOnly, Translation,
    Unnested, WalkFault, WalkTrail,
};

use super::super::generate::Generator;
use super::super::{CpuState, MODES, Memory, Part, SkipReason, Skipped, mode_state};
use super::departure::{self, Departure, Habits};
use super::tables::{Tables, data_offset, place_of, tables, tried};
use super::{Ended, Executor, ProtectionKeys, Tried, WalkedBy};
use crate::differential::dice::Dice;

/// How many states of tables a guest lives for; then there is a new one with another CPUID.
const STATES_PER_GUEST: u64 = 256;

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
    /// The entries on the way, as the model read them.
    pub entries: Vec<String>,
}

impl fmt::Display for AccessDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {:?}", self.seed, self.state)?;
        let (tried, guest) = (&self.tried, &self.guest);
        writeln!(
            f,
            "{tried:x?}: the guest {guest:x?}, the model {}",
            self.model
        )?;
        if let Some((at, guest, model)) = self.word {
            writeln!(f, "entry at {at:#x}: guest {guest:#x}, model {model:#x}")?;
        }
        for entry in &self.entries {
            writeln!(f, "  {entry}")?;
        }
        Ok(())
    }
}

/// What an access was and how it ended: the mode, who, what, and the end.
pub type AccessEnd = (PagingMode, &'static str, &'static str, String);

/// A comparison that has ended.
#[derive(Clone, Debug)]
pub struct AccessOutcome {
    /// Whose walks the guest's are.
    pub walked_by: WalkedBy,
    /// Accesses made on both sides, by what they were and what came of them.
    pub by_end: BTreeMap<AccessEnd, u64>,
    /// How many there were.
    pub accesses: u64,
    /// Accesses that would have reached memory which is not the test's, and were not made.
    pub left_out: u64,
    /// Modes and features that the kernel does not run.
    pub skipped: Vec<Skipped>,
    /// Accesses that did not end as KVM's own walker would have had it, but as the CPU's.
    pub departures: BTreeMap<Departure, u64>,
    /// The first difference, if there was one.
    pub difference: Option<Box<AccessDifference>>,
    /// How long it took.
    pub elapsed: Duration,
}

impl AccessOutcome {
    fn new(walked_by: WalkedBy) -> Self {
        Self {
            walked_by,
            by_end: BTreeMap::new(),
            accesses: 0,
            left_out: 0,
            skipped: Vec::new(),
            departures: BTreeMap::new(),
            difference: None,
            elapsed: Duration::ZERO,
        }
    }

    /// How many accesses there were in each mode.
    pub fn by_mode(&self) -> BTreeMap<PagingMode, u64> {
        let mut modes = BTreeMap::new();
        for ((mode, ..), count) in &self.by_end {
            *modes.entry(*mode).or_default() += count;
        }
        modes
    }
}

/// Compares accesses until `config.accesses` are made or the two differ: as many in each mode that the guest can be in.
///
/// # Errors
/// The guest cannot be set up, or a call fails.
pub fn compare_accesses<E: Executor>(
    executor: &mut E,
    config: &AccessConfig,
    mut progress: impl FnMut(u64),
) -> Result<AccessOutcome, Errno> {
    let start = Instant::now();
    let mut outcome = AccessOutcome::new(executor.walked_by());
    executor.renew(&mode_state(PagingMode::Level4).seen_by(outcome.walked_by))?;
    let (modes, refused) = probe(executor, &mut outcome.skipped)?;
    let habits = match outcome.walked_by {
        WalkedBy::Kvm => Habits::KVM,
        WalkedBy::Hardware { .. } => Habits::probe(executor, &modes)?,
    };
    let mut run = Run {
        executor,
        generator: Generator::new(config.seed, modes.clone()).without(refused),
        dice: Dice::new(config.seed ^ 0x5eed),
        habits,
        seed: config.seed,
        outcome,
    };
    let mut states = modes.iter().copied().cycle().zip(0_u64..);
    let mut cpuid = None;
    while run.outcome.accesses < config.accesses && run.outcome.difference.is_none() {
        let Some((mode, number)) = states.next() else {
            break;
        };
        let made = run.generator.state_in(mode);
        let first = match cpuid.filter(|_| number % STATES_PER_GUEST != 0) {
            Some(first) => first,
            None => made,
        };
        let state = made.with_cpuid(&first).seen_by(run.outcome.walked_by);
        if number % STATES_PER_GUEST == 0 {
            run.executor.renew(&state)?;
            cpuid = Some(first);
        }
        let left = (config.accesses - run.outcome.accesses).min(u64::from(config.per_state));
        run.state(&state, left)?;
        progress(run.outcome.accesses);
    }
    let mut outcome = run.outcome;
    outcome.elapsed = start.elapsed();
    Ok(outcome)
}

impl CpuState {
    /// The same with the CPUID of another.
    const fn with_cpuid(self, other: &Self) -> Self {
        Self {
            maxphyaddr: other.maxphyaddr,
            vendor: other.vendor,
            gigabyte_pages: other.gigabyte_pages,
            ..self
        }
    }

    /// Hardware does not ask KVM what the guest's CPUID says.
    const fn seen_by(self, walked_by: WalkedBy) -> Self {
        match walked_by {
            WalkedBy::Kvm => self,
            WalkedBy::Hardware { maxphyaddr, vendor } => Self {
                maxphyaddr,
                vendor,
                ..self
            },
        }
    }
}

/// The modes in which the guest can be, and the bits of CR4 that it cannot have.
fn probe<E: Executor>(
    executor: &mut E,
    skipped: &mut Vec<Skipped>,
) -> Result<(Vec<PagingMode>, Cr4), Errno> {
    let mut modes = Vec::new();
    for mode in MODES
        .into_iter()
        .filter(|mode| *mode != PagingMode::Unpaged)
    {
        match SkipReason::of(executor.takes(&mode_state(mode))) {
            None => modes.push(mode),
            Some(why) => skipped.push(Skipped {
                part: Part::Mode(mode),
                why,
            }),
        }
    }
    let Some(last) = modes.last() else {
        return Err(Errno::EINVAL);
    };
    let mut refused = Cr4::empty();
    for (part, bit) in Part::BITS {
        let mut state = mode_state(*last);
        state.cr4 |= bit;
        let why = match SkipReason::of(executor.takes(&state)) {
            None if bit == Cr4::PKE && executor.protection_keys() == ProtectionKeys::Absent => {
                Some(SkipReason::Absent)
            }
            None => None,
            Some(why) => {
                refused |= bit;
                Some(why)
            }
        };
        skipped.extend(why.map(|why| Skipped { part, why }));
    }
    Ok((modes, refused))
}

/// All that the comparison needs.
struct Run<'e, E> {
    executor: &'e mut E,
    generator: Generator,
    dice: Dice,
    habits: Habits,
    seed: u64,
    outcome: AccessOutcome,
}

/// How the model walks in a state.
struct Paging {
    /// As whoever walks for the guest.
    own: GuestPaging,
    /// As KVM.
    by_kvm: GuestPaging,
}

/// What the model says of an access, and by which entries.
struct Expected {
    answer: Result<Translation, PageFault>,
    trail: WalkTrail,
}

impl<E: Executor> Run<'_, E> {
    /// Accesses on one state of registers and tables: about `count`, since some are left out.
    fn state(&mut self, state: &CpuState, count: u64) -> Result<(), Errno> {
        let pcid = match state.cr4.contains(Cr4::PCIDE) {
            true => self.dice.below(1 << 12),
            false => 0,
        };
        let state = CpuState {
            cr3: pcid,
            ..*state
        };
        self.executor.enter(state.mode)?;
        let [own, ..] = self.executor.words()[..] else {
            return Err(Errno::EINVAL);
        };
        let mut words = tables(&state, &self.generator.memory(&state), &mut self.dice);
        if let Some(first) = words.first_mut() {
            *first = own;
        }
        self.executor.load(&words)?;
        let model = Tables::new(&words);
        let paging = self.paging(&state, &model);
        for _ in 0..count {
            let (half, keys) = (self.executor.user_half(), self.executor.protection_keys());
            let tried = tried(&state, half, keys, &mut self.dice);
            let paging = paging.with_pkru(tried.pkru);
            let Some(expected) = self.expected(&paging, &model, &tried) else {
                self.outcome.left_out += 1;
                continue;
            };
            if let Some(difference) = self.one(&state, &paging, &model, &tried, &expected)? {
                self.outcome.difference = Some(Box::new(difference));
                break;
            }
        }
        Ok(())
    }

    fn paging(&self, state: &CpuState, model: &Tables) -> Paging {
        // Nothing but PAE's pointers is taken from the memory, and they are in the top table.
        let memory = Memory::new();
        for (from, to) in model.words().iter().zip(&memory.ram).take(4) {
            to.set(*from);
        }
        let by_kvm = state.paging(&memory, self.executor.gigabyte_pages());
        let own = match self.outcome.walked_by {
            WalkedBy::Kvm => by_kvm,
            WalkedBy::Hardware { .. } => {
                let vendor = self.habits.vendor();
                let state = CpuState { vendor, ..*state };
                let paging = state.paging(&memory, self.executor.gigabyte_pages());
                paging.by_hardware()
            }
        };
        Paging { own, by_kvm }
    }

    /// What the model says, if the access stays in the pages that it may reach, and its walk in the test's tables.
    fn expected(&self, paging: &Paging, model: &Tables, tried: &Tried) -> Option<Expected> {
        let mut trail = WalkTrail::default();
        let access = ErrorCode::of(tried.kind, tried.privilege);
        let (memory, stage) = (&ReadOnly(model), &mut Unnested);
        let found = paging
            .own
            .walk(memory, stage, &mut trail, tried.address, access);
        let outside = |place: Gpa| !Tables::has(place);
        if trail.iter().filter_map(|step| step.place).any(outside) {
            return None;
        }
        let answer = match found {
            Ok(found) => Ok(data_offset(found.address).map(|_| found)?),
            // Where no memory is the hardware's walk becomes KVM's.
            Err(WalkFault::Page(fault)) => match (fault.cause, self.outcome.walked_by) {
                (Cause::NoMemory, WalkedBy::Hardware { .. }) => return None,
                _ => Err(fault),
            },
            Err(_) => return None,
        };
        Some(Expected { answer, trail })
    }

    /// Makes one access on both sides.
    fn one(
        &mut self,
        state: &CpuState,
        paging: &Paging,
        model: &Tables,
        tried: &Tried,
        expected: &Expected,
    ) -> Result<Option<AccessDifference>, Errno> {
        let Expected { answer, trail } = expected;
        let to = answer.as_ref().ok().map(|found| found.address);
        let guest = self.executor.access(state, tried, to)?;
        let habits = self.habits;
        if self.outcome.walked_by != WalkedBy::Kvm {
            let what = (state.mode, tried);
            let other = departure::against_kvm(habits, what, model, &paging.by_kvm, answer);
            self.depart(other);
        }
        let access = ErrorCode::of(tried.kind, tried.privilege);
        // Once more, with marks.
        let _same = paging.own.translate(model, tried.address, access);
        let fault = answer.as_ref().err();
        self.depart(habits.mark(model, (state.mode, tried), trail, fault));
        let wanted = match fault {
            None => Ended::Done,
            Some(fault) => {
                let (code, told) = habits.code(state, tried, fault);
                self.depart(told);
                let address = fault.address;
                Ended::PageFault { code, address }
            }
        };
        self.count(state.mode, tried, &wanted);
        let word = difference_in(&self.executor.words(), &model.words());
        if guest == wanted && word.is_none() {
            return Ok(None);
        }
        Ok(Some(AccessDifference {
            seed: self.seed,
            state: *state,
            tried: *tried,
            guest,
            model: match answer {
                Ok(found) => found.address.to_string(),
                Err(fault) => fault.to_string(),
            },
            word,
            entries: trail.iter().map(|step| format!("{step:x?}")).collect(),
        }))
    }

    fn depart(&mut self, departures: impl IntoIterator<Item = Departure>) {
        for departure in departures {
            *self.outcome.departures.entry(departure).or_default() += 1;
        }
    }

    fn count(&mut self, mode: PagingMode, tried: &Tried, wanted: &Ended) {
        let who = match tried.privilege {
            Privilege::User => "CPL 3",
            Privilege::Supervisor | Privilege::Implicit => "CPL 0",
        };
        let kind = match tried.kind {
            Kind::Read => "load",
            Kind::Write => "store",
            Kind::Execute => "fetch",
        };
        let end = match wanted {
            Ended::PageFault { code, .. } => format!("#PF({code:#x})"),
            _ => "done".to_owned(),
        };
        self.outcome.accesses += 1;
        let ends = &mut self.outcome.by_end;
        *ends.entry((mode, who, kind, end)).or_default() += 1;
    }
}

impl Paging {
    const fn with_pkru(&self, pkru: u32) -> Self {
        Self {
            own: self.own.with_pkru(pkru),
            by_kvm: self.by_kvm.with_pkru(pkru),
        }
    }
}

/// The first word that differs; not the very first, which is the guest's own.
fn difference_in(guest: &[u64], model: &[u64]) -> Option<(u64, u64, u64)> {
    let mut pairs = guest.iter().zip(model).enumerate().skip(1);
    let (index, (guest, model)) = pairs.find(|(_, (guest, model))| guest != model)?;
    Some((place_of(index), *guest, *model))
}
