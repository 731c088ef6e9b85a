//! Random programs on a real kernel, each event of which is predicted.

use std::time::{Duration, Instant};

use slat_mmu::roots::TdpMmu;
use thiserror::Error;

use super::sort::Sort;
use super::{Abilities, Areas, DriveError, Driver, Program, Trace, TraceError};
use crate::capture::Whose;
use crate::replay::{Machine, Planted, Verdict, predict, predict_wrongly};
use crate::traces::{Item, MmuCounts, Note, Op, ParseError, Recording, What};

/// What kind of programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Programs {
    /// Guests without paging, on the TDP MMU.
    Flat,
    /// Guests with tables of their own, on shadow pages.
    WithTables,
    /// Guests that run guests of their own, on either MMU with two-dimensional paging.
    Nested,
}

/// What to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which programs.
    pub programs: Programs,
    /// The seed of the first program; the next has the next.
    pub seed: u64,
    /// How many events and results to compare at least.
    pub events: usize,
    /// How many operations a program has, about.
    pub operations: usize,
    /// How often a program that differs is tried with less in it.
    pub tries: usize,
    /// No program begins after so long, however few events there were.
    pub within: Option<Duration>,
    /// What the kernel can be asked for.
    pub abilities: Abilities,
}

impl Config {
    /// As `slat diff` has it.
    pub fn new(seed: u64, events: usize, abilities: Abilities) -> Self {
        Self {
            programs: Programs::Flat,
            seed,
            events,
            operations: 60,
            tries: 120,
            within: None,
            abilities,
        }
    }

    /// The same for guests with tables of their own.
    pub fn with_tables(seed: u64, events: usize, abilities: Abilities) -> Self {
        Self {
            programs: Programs::WithTables,
            operations: 400,
            tries: 400,
            ..Self::new(seed, events, abilities)
        }
    }

    /// The same for guests that run guests of their own.
    pub fn nested(seed: u64, events: usize, abilities: Abilities) -> Self {
        Self {
            programs: Programs::Nested,
            operations: 200,
            tries: 300,
            ..Self::new(seed, events, abilities)
        }
    }

    fn program(&self, seed: u64) -> Program {
        match self.programs {
            Programs::Flat => Program::random(seed, self.operations, self.abilities),
            Programs::WithTables => Program::with_tables(seed, self.operations, self.abilities),
            Programs::Nested => Program::nested(seed, self.operations, self.abilities),
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// How many programs were run.
    pub programs: u64,
    /// How many operations were made.
    pub operations: usize,
    /// How many were not, since the kernel had refused what they need.
    pub left_out: usize,
    /// How many events and results were as predicted.
    pub events: usize,
    /// How many programs on shadow pages differed once and not again: the host's own doings, which have no event here.
    pub disturbed: u64,
    /// How many instructions guests executed.
    pub executed: usize,
    /// What the kernel counted of the shadow pages of all VMs.
    pub counted: MmuCounts,
    /// How long it took.
    pub elapsed: Duration,
    /// The first difference.
    pub finding: Option<Finding>,
}

/// A difference, in a program that was made as short as a few tries could make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The seed of the program.
    pub seed: u64,
    /// How many operations it had before it was shrunk.
    pub original: usize,
    /// What was not as predicted then.
    pub first: String,
    /// What happened, as a recording.
    pub recording: String,
    /// What is not as predicted.
    pub difference: String,
}

/// Why nothing could be compared.
#[derive(Debug, Error)]
pub enum LiveError {
    /// An operation.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// The trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Memory for slots.
    #[error("host memory: {0}")]
    Memory(std::io::Error),
    /// The kernel's text.
    #[error("the trace cannot be read: {0}")]
    Parse(#[from] ParseError),
}

/// Runs on this machine.
#[derive(Debug)]
pub struct Live {
    machine: Machine,
    /// The rule that is made wrong.
    planted: Option<Planted>,
    trace: Option<Trace>,
}

/// A program that was run.
#[derive(Debug)]
struct Ran {
    recording: String,
    operations: usize,
    left_out: usize,
    /// How many events and results agreed.
    events: usize,
    /// What the kernel had counted in the end.
    counted: MmuCounts,
    difference: Option<String>,
    /// Of which sort it is; `None` where the whole cannot be predicted.
    sort: Option<Sort>,
}

impl Live {
    /// A comparison on this machine.
    ///
    /// # Errors
    /// Its events cannot be captured.
    pub fn new(machine: Machine) -> Result<Self, LiveError> {
        quiet();
        let trace = Trace::start(whose(&machine)).map_err(TraceError::from)?;
        let trace = Some(trace);
        Ok(Self {
            machine,
            planted: None,
            trace,
        })
    }

    /// With one rule of the model made wrong.
    #[must_use]
    pub fn with_planted(self, planted: Planted) -> Self {
        Self {
            planted: Some(planted),
            ..self
        }
    }

    /// Runs random programs until enough is compared, or one differs.
    ///
    /// # Errors
    /// A program cannot be run or told of.
    pub fn compare(
        &mut self,
        config: &Config,
        mut progress: impl FnMut(usize),
    ) -> Result<Outcome, LiveError> {
        let begin = Instant::now();
        let mut outcome = Outcome {
            programs: 0,
            operations: 0,
            left_out: 0,
            events: 0,
            disturbed: 0,
            executed: 0,
            counted: MmuCounts::default(),
            elapsed: Duration::ZERO,
            finding: None,
        };
        let in_time = || config.within.is_none_or(|within| begin.elapsed() < within);
        while outcome.events < config.events && outcome.finding.is_none() && in_time() {
            let seed = config.seed.wrapping_add(outcome.programs);
            let program = config.program(seed);
            let mut ran = self.run(&program)?;
            if ran.difference.is_some() && config.programs != Programs::Flat {
                let again = self.steady(&program)?;
                outcome.disturbed += u64::from(again.difference.is_none());
                ran = again;
            }
            outcome.programs += 1;
            outcome.executed += program.executed();
            outcome.operations += ran.operations;
            outcome.left_out += ran.left_out;
            outcome.events += ran.events;
            outcome.counted += ran.counted;
            if ran.difference.is_some() {
                outcome.finding = Some(self.shrink(config, seed, (program, ran))?);
            }
            progress(outcome.events);
        }
        outcome.elapsed = begin.elapsed();
        Ok(outcome)
    }

    /// Runs a program that has differed again: what the host does by itself does not come back.
    fn steady(&mut self, program: &Program) -> Result<Ran, LiveError> {
        let mut ran = self.run(program)?;
        for _ in 0..AGAIN {
            if ran.difference.is_none() {
                break;
            }
            ran = self.run(program)?;
        }
        Ok(ran)
    }

    /// Runs one program: what happened, as a recording, and how it was predicted.
    ///
    /// # Errors
    /// It cannot be run or told of.
    pub fn record(&mut self, program: &Program) -> Result<(String, Verdict), LiveError> {
        let (recording, ..) = self.drive(program)?;
        let verdict = predict(&Recording::parse(&recording)?, &self.machine);
        Ok((recording, verdict))
    }

    /// What happened, how many operations were made, and how many were left out.
    fn drive(&mut self, program: &Program) -> Result<(String, usize, usize), LiveError> {
        let trace = match self.trace.take() {
            Some(trace) => trace,
            None => Trace::start(whose(&self.machine)).map_err(TraceError::from)?,
        };
        let areas = Areas::map(&program.areas).map_err(LiveError::Memory)?;
        if let Whose::Own = whose(&self.machine) {
            areas.keep();
        }
        let mut driver = Driver::new(areas, trace)?;
        let (mut operations, mut left_out) = (0, 0);
        for op in &program.ops {
            match driver.run(op) {
                Ok(()) => operations += 1,
                Err(DriveError::Missing { .. }) => left_out += 1,
                Err(error) => return Err(error.into()),
            }
        }
        let mut trace = driver.into_journal();
        let recording = trace.take();
        self.trace = Some(trace);
        Ok((recording?, operations, left_out))
    }

    fn run(&mut self, program: &Program) -> Result<Ran, LiveError> {
        let (recording, operations, left_out) = self.drive(program)?;
        let parsed = Recording::parse(&recording)?;
        let counted = last_counts(&parsed);
        let verdict = match self.planted {
            Some(planted) => predict_wrongly(&parsed, &self.machine, planted),
            None => predict(&parsed, &self.machine),
        };
        let (events, difference, sort) = match verdict {
            Verdict::Agrees { compared, .. } => (compared, None, None),
            Verdict::Differs {
                compared,
                difference,
            } => {
                let sort = Sort::of(&difference);
                (compared, Some(difference.to_string()), Some(sort))
            }
            Verdict::NotModelled(missing) => (0, Some(missing.to_string()), None),
        };
        Ok(Ran {
            recording,
            operations,
            left_out,
            events,
            counted,
            difference,
            sort,
        })
    }

    /// Leaves out what is not needed for a difference of the same sort: half of the operations, then quarters, and so on.
    fn shrink(
        &mut self,
        config: &Config,
        seed: u64,
        (mut best, mut least): (Program, Ran),
    ) -> Result<Finding, LiveError> {
        let original = best.ops.len();
        let first = least.difference.clone().unwrap_or_default();
        let (mut tries, mut size) = (0, original / 2);
        // What makes the VM and its vCPUs stays, and the parameters, which outlive a program.
        let is_setup = |op: &Op<'_>| {
            matches!(
                op,
                Op::ModuleParameter { .. }
                    | Op::CreateVm { .. }
                    | Op::CreateVcpu { .. }
                    | Op::SetCpuid { .. }
                    | Op::SetSregs { .. }
                    | Op::SetMsr { .. }
                    | Op::CloseVm
            )
        };
        while size > 0 && tries < config.tries {
            let mut from = 0;
            while from < best.ops.len() && tries < config.tries {
                let mut shorter = best.clone();
                let to = shorter.ops.len().min(from + size);
                let kept: Vec<_> = shorter.ops.drain(from..to).filter(is_setup).collect();
                if kept.len() == to - from {
                    from += size;
                    continue;
                }
                shorter.ops.splice(from..from, kept);
                tries += 1;
                match self.run(&shorter) {
                    Ok(ran) if ran.difference.is_some() && ran.sort == least.sort => {
                        (best, least) = (shorter, ran);
                    }
                    // Nothing can be made of what is left.
                    Ok(_) | Err(LiveError::Drive(_)) => from += size,
                    Err(error) => return Err(error),
                }
            }
            size /= 2;
        }
        Ok(Finding {
            seed,
            original,
            first,
            recording: least.recording,
            difference: least.difference.unwrap_or_default(),
        })
    }
}

/// How often a program that differs twice is run once more.
const AGAIN: u32 = 2;

fn last_counts(recording: &Recording<'_>) -> MmuCounts {
    let counts = |item: &Item<'_>| match item.what {
        What::Note(Note::Counts(counts)) => Some(counts),
        _ => None,
    };
    let last = recording.items.iter().rev().find_map(counts);
    last.unwrap_or_default()
}

/// Without a second stage the kernel is the one that everybody here works on, and their VMs are none of ours.
fn whose(machine: &Machine) -> Whose {
    match machine.tdp_mmu {
        TdpMmu::On => Whose::Everybodys,
        TdpMmu::Off => Whose::Own,
    }
}

/// Keeps the host from changing memory by itself, as far as it can be asked to. What cannot be set is as well: a change
/// shows as an event.
pub(crate) fn quiet() {
    const HUGE: &str = "/sys/kernel/mm/transparent_hugepage";
    for (file, value) in [
        ("khugepaged/defrag", "0"),
        ("khugepaged/scan_sleep_millisecs", "100000000"),
        ("use_zero_page", "0"),
        ("enabled", "madvise"),
    ] {
        let _ = std::fs::write(format!("{HUGE}/{file}"), value);
    }
    let ratio = "/sys/module/kvm/parameters/nx_huge_pages_recovery_ratio";
    let _ = std::fs::write(ratio, "0");
}
