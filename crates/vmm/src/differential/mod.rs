//! Random call sequences, made on the model and on a real kernel, compared call by call.
//!
//! Sequences are biased towards the edges of what exists: alignment, overlap by one page, wraps, limits, flag pairs,
//! live slots, shared guest_memfd ranges. Error numbers alone cannot confirm a reason, since nearly all of them are
//! `EINVAL`; so for a sample of refusals the model's repairs are applied on the live kernel, which must then accept
//! (the repair oracle). The first difference is shrunk to a few calls and written as a scenario.

pub(crate) mod dice;
mod generate;
mod oracle;
mod pair;
mod sequence;
mod shrink;
mod stats;
mod written;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) use dice::Dice;

use std::time::{Duration, Instant};

pub use generate::Area;
pub use oracle::{Planted, ReasonError};
pub use sequence::{Sequence, sequences};
pub use stats::Stats;

use generate::Generator;
use pair::Pair;
use slat_memslot::{Call, Reason};

use crate::scenario::{Recorder, Scenario};
use crate::{CallError, Divergence, Machine, MemoryVm, model};

/// What to compare.
#[derive(Clone, Debug)]
pub struct Config {
    /// The seed of the random numbers; equal seeds give equal sequences on equal kernels.
    pub seed: u64,
    /// How many calls to compare.
    pub calls: u64,
    /// Which parts of the interface.
    pub areas: Vec<Area>,
    /// Of how many refusals one is put to the repair oracle.
    pub oracle_every: u32,
    /// Calls on one VM before a fresh one is made.
    pub sequence: u32,
    /// Keep every call with the kernel's answer as a scenario.
    pub record: bool,
    /// Replaces the model's reasons by wrong ones, to see that the oracle notices.
    pub planted: Option<Planted>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            calls: 100_000,
            areas: Area::ALL.to_vec(),
            oracle_every: 16,
            sequence: 400,
            record: false,
            planted: None,
        }
    }
}

/// How the two sides differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// They answered a call differently.
    Answer(Box<Divergence>),
    /// They agree on the error number, but the model's reason for it is wrong.
    Reason(Box<WrongReason>),
}

/// A reason that the kernel does not confirm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongReason {
    /// The refused call.
    pub call: Call,
    /// The reason that the model gave.
    pub reason: Reason,
    /// What showed it to be wrong.
    pub error: ReasonError,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answer(divergence) => divergence.fmt(f),
            Self::Reason(wrong) => {
                let WrongReason {
                    call,
                    reason,
                    error,
                } = &**wrong;
                write!(
                    f,
                    "{call:?}\n  the model says: {reason} ({})\n  but {error}",
                    reason.code()
                )
            }
        }
    }
}

/// A difference, shrunk.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What differs at the end of the shrunk sequence.
    pub difference: Difference,
    /// The shrunk sequence with the kernel's results as expectations.
    pub scenario: Scenario,
    /// How many calls the sequence had before it was shrunk.
    pub original_calls: usize,
}

/// A comparison that has ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was called, with which results.
    pub stats: Stats,
    /// The first difference, if there was one.
    pub finding: Option<Finding>,
    /// What the kernel answered, one case per VM, if that was asked for.
    pub recording: Option<Scenario>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Compares a kernel with the model of its profile until `config.calls` calls are made or the two differ.
///
/// `progress` is told now and then how many calls are done.
///
/// # Errors
/// The kernel cannot make a VM of type 0.
pub fn compare<K: Machine>(
    kernel: &mut K,
    config: &Config,
    progress: impl FnMut(u64),
) -> Result<Outcome, CallError> {
    let model = model::Machine::new(kernel.profile().clone());
    compare_with(kernel, model, config, progress)
}

/// Compares a kernel with this model, which may know the kernel's host ([`model::Machine::with_host`]): guest accesses
/// then go through its page tables.
///
/// # Errors
/// As [`compare`].
pub fn compare_with<K: Machine>(
    kernel: &mut K,
    mut model: model::Machine,
    config: &Config,
    mut progress: impl FnMut(u64),
) -> Result<Outcome, CallError> {
    let start = Instant::now();
    let mut stats = Stats::default();
    let mut generator = Generator::new(config, kernel.profile(), kernel.areas());
    let mut recorder = config
        .record
        .then(|| written::recorder(kernel.profile(), kernel.areas()));
    let mut finding = None;
    while stats.calls < config.calls && finding.is_none() {
        let vm_type = generator.vm_type();
        let mut pair = Pair::new(kernel.create_vm(vm_type)?, model.create_vm(vm_type)?);
        let difference = sequence(&mut pair, &mut generator, config, &mut stats).err();
        let history = pair.into_history();
        if let Some(recorder) = &mut recorder {
            written::write_case(
                recorder,
                &format!("random VM {}", stats.vms),
                vm_type,
                &history,
            );
        }
        finding = match difference {
            Some(d) => Some(shrink::shrink(
                kernel, &mut model, vm_type, history, d, config,
            )?),
            None => None,
        };
        stats.vms += 1;
        progress(stats.calls);
    }
    let recording = recorder.map(Recorder::finish);
    Ok(Outcome {
        stats,
        finding,
        recording,
        elapsed: start.elapsed(),
    })
}

/// One sequence on a fresh pair of VMs.
fn sequence<K: MemoryVm>(
    pair: &mut Pair<K>,
    generator: &mut Generator,
    config: &Config,
    stats: &mut Stats,
) -> Result<(), Difference> {
    generator.begin();
    for _ in 0..config.sequence {
        if stats.calls >= config.calls {
            break;
        }
        let call = generator.call(pair.model().memory());
        let answer = pair.call(&call, stats)?;
        if let Err(CallError::Refused {
            reason: Some(_), ..
        }) = answer
        {
            if generator.one_in(config.oracle_every) {
                oracle::confirm(pair, &call, config.planted, stats)?;
            }
        }
    }
    for call in generator.read_back(pair.model().memory()) {
        let _compared = pair.call(&call, stats)?;
    }
    Ok(())
}
