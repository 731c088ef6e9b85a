//! From a long sequence that ends in a difference to a short one.

use slat_memslot::{Call, FileCall, FileRef, GmemId, MapId, Profile, Reason};

use super::pair::{Made, Pair};
use super::{Config, Difference, Finding, Stats, oracle, written};
use crate::scenario::Scenario;
use crate::{CallError, Machine, MemoryVm, model};

/// A call of the sequence, and whether the kernel accepted it at first.
#[derive(Clone, Debug)]
struct Step {
    call: Call,
    succeeded: bool,
}

impl From<Made> for Step {
    fn from((call, answer): Made) -> Self {
        Self {
            call,
            succeeded: answer.is_ok(),
        }
    }
}

/// Drops calls as long as the sequence still ends in a difference of the same kind.
pub(super) fn shrink<K: Machine>(
    kernel: &mut K,
    model: &mut model::Machine,
    vm_type: u32,
    history: Vec<Made>,
    difference: Difference,
    config: &Config,
) -> Result<Finding, CallError> {
    let original_calls = history.len();
    let mut calls: Vec<Step> = history.into_iter().map(Step::from).collect();
    if let Difference::Reason(wrong) = &difference {
        // The oracle's own calls are made again by the oracle.
        calls.push(Step {
            call: wrong.call.clone(),
            succeeded: false,
        });
    }
    let mut replay = Replay {
        kernel,
        model,
        vm_type,
        config,
        wanted: kind(&difference),
    };
    let mut best = (difference, Vec::new());
    let mut step = calls.len().div_ceil(2);
    while step > 0 {
        let mut at = 0;
        while at < calls.len() {
            let shorter = without(&calls, at, step);
            match replay.differs(&shorter)? {
                Some((difference, made)) => {
                    calls = shorter;
                    if kind(&difference).is_none() {
                        // Nothing behind the first difference was called.
                        calls.truncate(made.len().max(1));
                    }
                    best = (difference, made);
                }
                None => at += step,
            }
        }
        step /= 2;
    }
    if best.1.is_empty() {
        if let Some(found) = replay.differs(&calls)? {
            best = found;
        }
    }
    let scenario = write(kernel.profile(), kernel.areas(), vm_type, &best.1, &best.0);
    Ok(Finding {
        difference: best.0,
        scenario,
        original_calls,
    })
}

/// What makes two differences the same while shrinking.
fn kind(difference: &Difference) -> Option<Reason> {
    match difference {
        Difference::Answer(_) => None,
        Difference::Reason(wrong) => Some(wrong.reason),
    }
}

struct Replay<'m, K: Machine> {
    kernel: &'m mut K,
    model: &'m mut model::Machine,
    vm_type: u32,
    config: &'m Config,
    wanted: Option<Reason>,
}

type Found = (Difference, Vec<Made>);

impl<K: Machine> Replay<'_, K> {
    /// Makes the calls on fresh VMs; gives the first difference and what was called up to it.
    fn differs(&mut self, calls: &[Step]) -> Result<Option<Found>, CallError> {
        let mut pair = Pair::new(
            self.kernel.create_vm(self.vm_type)?,
            self.model.create_vm(self.vm_type)?,
        );
        let mut stats = Stats::default();
        let difference = calls
            .iter()
            .find_map(|step| self.step(&mut pair, &step.call, &mut stats).err());
        let same = difference.filter(|found| match (kind(found), self.wanted) {
            (Some(found), Some(wanted)) => found.code() == wanted.code(),
            (found, wanted) => found.is_none() && wanted.is_none(),
        });
        Ok(same.map(|difference| (difference, pair.into_history())))
    }

    fn step(&self, pair: &mut Pair<K::Vm>, call: &Call, stats: &mut Stats) -> Result<(), Difference>
    where
        K::Vm: MemoryVm,
    {
        let answer = pair.call(call, stats)?;
        match (answer, self.wanted) {
            (Err(CallError::Refused { .. }), Some(_)) => {
                oracle::confirm(pair, call, self.config.planted, stats)
            }
            _ => Ok(()),
        }
    }
}

/// The calls without `count` of them from `at`; later files and mappings are renumbered, and calls on those that are
/// no longer made go too.
fn without(calls: &[Step], at: usize, count: usize) -> Vec<Step> {
    let (mut files, mut maps) = (Renumbering::default(), Renumbering::default());
    let mut kept = Vec::with_capacity(calls.len());
    for (index, step) in calls.iter().enumerate() {
        let dropped = (at..at + count).contains(&index);
        let renamed = rename(&step.call, &files, &maps).filter(|_| !dropped);
        match step.call {
            Call::CreateGmem { .. } if step.succeeded => files.push(renamed.is_some()),
            Call::File(_, FileCall::Mmap { .. }) if step.succeeded => maps.push(renamed.is_some()),
            _ => {}
        }
        kept.extend(renamed.map(|call| Step {
            call,
            succeeded: step.succeeded,
        }));
    }
    kept
}

/// New numbers of things numbered in order of creation.
#[derive(Default)]
struct Renumbering {
    new: Vec<Option<u32>>,
    next: u32,
}

impl Renumbering {
    fn push(&mut self, kept: bool) {
        self.new.push(kept.then_some(self.next));
        self.next += u32::from(kept);
    }

    fn get(&self, index: usize) -> Option<u32> {
        self.new
            .get(index)
            .copied()
            .unwrap_or_else(|| u32::try_from(index).ok())
    }
}

fn rename(call: &Call, files: &Renumbering, maps: &Renumbering) -> Option<Call> {
    let mut call = call.clone();
    match &mut call {
        Call::SetRegion(region) => {
            if let FileRef::Gmem(id) = region.gmem {
                region.gmem = FileRef::Gmem(GmemId::new(files.get(id.index())?));
            }
        }
        Call::File(id, _) => *id = GmemId::new(files.get(id.index())?),
        Call::Map(id, _) => *id = MapId::new(maps.get(id.index())?),
        _ => {}
    }
    Some(call)
}

/// The shrunk sequence as a scenario that expects what the kernel answered.
fn write(
    profile: &Profile,
    areas: crate::Areas,
    vm_type: u32,
    made: &[Made],
    difference: &Difference,
) -> Scenario {
    let mut recorder = written::recorder(profile, areas);
    written::write_case(&mut recorder, "shrunk difference", vm_type, made);
    if let Difference::Reason(wrong) = difference {
        recorder.because(wrong.reason.code());
    }
    recorder.finish()
}
