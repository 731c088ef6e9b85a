//! A plan being carried out: step by step, to its end or back.

use slat_memslot::Errno;

use super::{Executor, Outcome, Plan, Step};

/// A conversion on its way. It is a plain value: it can be kept while the VMM does something else, and taken up again.
///
/// A step that fails takes everything back that was done before it, in reverse order, and the guest has what it had. Once the
/// attributes are set and devices know, the conversion has happened, and it stays so: discarding what nobody uses any more may fail, and
/// is then [left over](Run::left_over), but the guest is told that it has what it asked for. There is no error that has an effect.
///
/// One conversion of a VM at a time, or two of them take each other's steps back.
///
/// ```
/// use slat_coco::convert::{Ended, Executor, MapGpaRangeExit, Outcome, Plan, Policy, Request, Run, Step};
/// use slat_memslot::{Errno, Memory, Profile, Region, SlotKey, VmType};
///
/// struct Vmm(Vec<String>);
/// impl Executor for Vmm {
///     fn carry_out(&mut self, step: &Step) -> Result<(), Errno> {
///         self.0.push(step.to_string());
///         match step {
///             // A backing that cannot be given back, as of hugetlbfs.
///             Step::DiscardShared(_) => Err(Errno::EINVAL),
///             _ => Ok(()),
///         }
///     }
/// }
///
/// let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
/// let file = memory.create_gmem(1 << 21, 0).unwrap();
/// let _effects = memory.set_region(&Region::new(SlotKey::normal(0), 0, 1 << 21, 0x7f00_0000_0000).with_gmem(file, 0)).unwrap();
/// let request = Request::from_hypercall(&MapGpaRangeExit { nr: 12, args: [0, 16, 0x10] }).unwrap();
/// let plan = Plan::new(&memory, &request, &Policy::default()).unwrap();
///
/// let mut vmm = Vmm(Vec::new());
/// let mut run = Run::new(plan);
/// let ended = run.to_end(&mut vmm).unwrap();
/// assert_eq!((ended, ended.outcome()), (Ended::Converted, Outcome::Done));
/// assert_eq!(run.left_over().len(), 1, "the memory is used twice, and the VMM knows");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    plan: Plan,
    at: At,
    left_over: Vec<LeftOver>,
}

/// Something that could not be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeftOver {
    /// The step.
    pub step: Step,
    /// Why it failed.
    pub errno: Errno,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before this step that can be taken back.
    Prepare(usize),
    /// Before this one that cannot.
    Finish(usize),
    /// So many steps are still to be taken back, and of the last of them this part is next.
    Undo {
        steps: usize,
        part: usize,
        why: Errno,
    },
    Ended(Ended),
}

/// How a conversion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// It has happened.
    Converted,
    /// It has not, and everything is as before.
    TakenBack {
        /// What the step said that failed.
        why: Errno,
    },
}

impl Ended {
    /// What the guest hears.
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::Converted => Outcome::Done,
            // There may be memory later.
            Self::TakenBack {
                why: Errno::ENOMEM | Errno::EAGAIN | Errno::EINTR,
            } => Outcome::TryAgain,
            Self::TakenBack { .. } => Outcome::Refused,
        }
    }
}

/// A step did not come to an end, and may be tried again: the run is where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Pause {
    /// It was interrupted, or something is busy.
    #[error("{step}: {errno}; it may be tried again")]
    Interrupted {
        /// The step.
        step: Step,
        /// `EINTR` or `EAGAIN`.
        errno: Errno,
    },
    /// A step that takes another back failed. The VM must not run on before it has been tried again with success: parts of the range
    /// are converted and others are not.
    #[error("{step}, which takes back what was done, failed with {errno}: the VM must not run on")]
    Halfway {
        /// The step.
        step: Step,
        /// Why it failed.
        errno: Errno,
    },
}

impl Run {
    /// A run at its begin.
    pub const fn new(plan: Plan) -> Self {
        Self {
            plan,
            at: At::Prepare(0),
            left_over: Vec::new(),
        }
    }

    /// What it carries out.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How it ended, if it has.
    pub const fn ended(&self) -> Option<Ended> {
        match self.at {
            At::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    /// Whether the guest has what it asked for already: nothing is taken back from here on.
    pub const fn is_converted(&self) -> bool {
        matches!(self.at, At::Finish(_) | At::Ended(Ended::Converted))
    }

    /// What could not be given back: memory that is used twice, whose old contents come back with the next conversion.
    pub fn left_over(&self) -> &[LeftOver] {
        &self.left_over
    }

    /// Carries out one step; gives how it ended, if that was the last.
    ///
    /// # Errors
    /// The step may be tried again, by calling this once more.
    pub fn advance(&mut self, executor: &mut impl Executor) -> Result<Option<Ended>, Pause> {
        match self.at {
            At::Prepare(index) => self.prepare(index, executor)?,
            At::Finish(index) => self.finish(index, executor)?,
            At::Undo { steps, part, why } => self.undo(steps, part, why, executor)?,
            At::Ended(_) => {}
        }
        Ok(self.ended())
    }

    /// Carries out everything that is left.
    ///
    /// # Errors
    /// A step may be tried again, by calling this once more, which goes on there.
    pub fn to_end(&mut self, executor: &mut impl Executor) -> Result<Ended, Pause> {
        loop {
            if let Some(ended) = self.advance(executor)? {
                return Ok(ended);
            }
        }
    }

    /// Gives up: what was done is taken back, unless the conversion has happened. Whether it will be.
    pub fn give_up(&mut self, why: Errno) -> bool {
        if let At::Prepare(done) = self.at {
            self.take_back(done, why);
        }
        !self.is_converted()
    }

    /// Tries once more to give back what is left over; gives how much still is.
    pub fn give_back(&mut self, executor: &mut impl Executor) -> usize {
        self.left_over.retain_mut(|left| {
            let tried = executor.carry_out(&left.step);
            tried.is_err_and(|errno| {
                left.errno = errno;
                true
            })
        });
        self.left_over.len()
    }

    fn prepare(&mut self, index: usize, executor: &mut impl Executor) -> Result<(), Pause> {
        let Some(prepared) = self.plan.prepare.get(index) else {
            self.at = At::Finish(0);
            return self.finish(0, executor);
        };
        match executor.carry_out(&prepared.step) {
            Ok(()) => self.at = At::Prepare(index + 1),
            Err(errno) if may_be_tried_again(errno) => {
                let step = prepared.step;
                return Err(Pause::Interrupted { step, errno });
            }
            Err(errno) => self.take_back(index, errno),
        }
        Ok(())
    }

    fn finish(&mut self, index: usize, executor: &mut impl Executor) -> Result<(), Pause> {
        let Some(step) = self.plan.finish.get(index).copied() else {
            self.at = At::Ended(Ended::Converted);
            return Ok(());
        };
        match executor.carry_out(&step) {
            Ok(()) => {}
            Err(errno) if may_be_tried_again(errno) => {
                return Err(Pause::Interrupted { step, errno });
            }
            Err(errno) => self.left_over.push(LeftOver { step, errno }),
        }
        self.at = At::Finish(index + 1);
        Ok(())
    }

    fn take_back(&mut self, done: usize, why: Errno) {
        self.at = match done {
            0 => At::Ended(Ended::TakenBack { why }),
            steps => At::Undo {
                steps,
                part: 0,
                why,
            },
        };
    }

    fn undo(
        &mut self,
        steps: usize,
        part: usize,
        why: Errno,
        executor: &mut impl Executor,
    ) -> Result<(), Pause> {
        let last = steps.checked_sub(1).map(|last| &self.plan.prepare[last]);
        match last.and_then(|last| last.undo.get(part)) {
            Some(step) => {
                let step = *step;
                let done = executor.carry_out(&step);
                done.map_err(|errno| Pause::Halfway { step, errno })?;
                let part = part + 1;
                self.at = At::Undo { steps, part, why };
            }
            None => self.take_back(steps.saturating_sub(1), why),
        }
        Ok(())
    }
}

const fn may_be_tried_again(errno: Errno) -> bool {
    matches!(errno, Errno::EINTR | Errno::EAGAIN)
}
