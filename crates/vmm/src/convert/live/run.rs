//! A program made and predicted.

use crate::capture::Whose;
use crate::convert::live::Conversions;
use crate::live::{Areas, DriveError, Driver, LiveError, Trace, TraceError, quiet};
use crate::replay::{Machine, Verdict, predict};
use crate::traces::Recording;

/// Programs made on this machine.
#[derive(Debug)]
pub struct Comparison {
    machine: Machine,
    trace: Option<Trace>,
}

/// Where the model and the kernel differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// In words.
    pub what: String,
    /// Operations and events, for `slat replay`.
    pub recording: String,
}

impl Comparison {
    /// On this machine.
    ///
    /// # Errors
    /// Its events cannot be captured.
    pub fn new(machine: Machine) -> Result<Self, LiveError> {
        quiet();
        let trace = Some(Trace::start(Whose::Everybodys).map_err(TraceError::from)?);
        Ok(Self { machine, trace })
    }

    /// Makes a program; gives how many operations were made and how many events and results agree, or the first difference.
    ///
    /// # Errors
    /// It cannot be made, or not be told of.
    pub fn run(
        &mut self,
        program: &Conversions,
    ) -> Result<Result<(usize, usize), Difference>, LiveError> {
        let trace = match self.trace.take() {
            Some(trace) => trace,
            None => Trace::start(Whose::Everybodys).map_err(TraceError::from)?,
        };
        let areas = Areas::map(&program.program.areas).map_err(LiveError::Memory)?;
        let mut driver = Driver::new(areas, trace)?;
        let mut operations = 0;
        for op in &program.program.ops {
            match driver.run(op) {
                Ok(()) => operations += 1,
                Err(DriveError::Missing { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut trace = driver.into_journal();
        let recording = trace.take();
        self.trace = Some(trace);
        let recording = recording?;
        let what = match predict(&Recording::parse(&recording)?, &self.machine) {
            Verdict::Agrees { compared, .. } => return Ok(Ok((operations, compared))),
            Verdict::Differs { difference, .. } => difference.to_string(),
            Verdict::NotModelled(missing) => missing.to_string(),
        };
        Ok(Err(Difference { what, recording }))
    }
}
