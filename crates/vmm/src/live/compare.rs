//! Random programs on a real kernel, each event of which is predicted.

use std::time::{Duration, Instant};

use thiserror::Error;

use super::sort::Sort;
use super::{Abilities, Areas, DriveError, Driver, Program, Trace, TraceError};
use crate::replay::{Machine, Planted, Verdict, predict, predict_wrongly};
use crate::traces::{Op, ParseError, Recording};

/// What to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
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
            seed,
            events,
            operations: 60,
            tries: 120,
            within: None,
            abilities,
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
        let trace = Trace::start().map_err(TraceError::from)?;
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
            elapsed: Duration::ZERO,
            finding: None,
        };
        let in_time = || config.within.is_none_or(|within| begin.elapsed() < within);
        while outcome.events < config.events && outcome.finding.is_none() && in_time() {
            let seed = config.seed.wrapping_add(outcome.programs);
            let program = Program::random(seed, config.operations, config.abilities);
            let ran = self.run(&program)?;
            outcome.programs += 1;
            outcome.operations += ran.operations;
            outcome.left_out += ran.left_out;
            outcome.events += ran.events;
            if ran.difference.is_some() {
                outcome.finding = Some(self.shrink(config, seed, (program, ran))?);
            }
            progress(outcome.events);
        }
        outcome.elapsed = begin.elapsed();
        Ok(outcome)
    }

    fn run(&mut self, program: &Program) -> Result<Ran, LiveError> {
        let trace = match self.trace.take() {
            Some(trace) => trace,
            None => Trace::start().map_err(TraceError::from)?,
        };
        let areas = Areas::map(&program.areas).map_err(LiveError::Memory)?;
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
        let recording = recording?;
        let parsed = Recording::parse(&recording)?;
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
