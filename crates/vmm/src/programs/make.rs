//! A program, made on the kernel that this runs on.

use super::Named;
use crate::capture::Whose;
use crate::live::{Areas, DriveError, Driver, Journal, LiveError, Trace, TraceError};

/// Makes a program on `/dev/kvm`, and gives the recording: operations with their results, and every event of the MMU between
/// them. Others should run no VM meanwhile.
///
/// # Errors
/// An operation cannot be made, or events cannot be captured, or are lost.
pub fn make(program: &Named) -> Result<String, LiveError> {
    let trace = Trace::start(Whose::Everybodys).map_err(TraceError::from)?;
    let events = make_into(program, trace)?.take()?;
    Ok(format!("# scenario {} status 0\n{events}", program.name))
}

/// Makes a program on `/dev/kvm`, and tells it to a journal: where that has no events of the kernel, operations, results and
/// what the program saw remain.
///
/// # Errors
/// An operation cannot be made, or not be told.
pub fn make_into<J: Journal>(program: &Named, journal: J) -> Result<J, LiveError> {
    crate::live::quiet();
    let areas = Areas::map(&program.program.areas).map_err(LiveError::Memory)?;
    let mut driver = Driver::new(areas, journal)?;
    for op in &program.program.ops {
        match driver.run(op) {
            // The kernel had refused what it needs, and has told so.
            Ok(()) | Err(DriveError::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(driver.into_journal())
}
