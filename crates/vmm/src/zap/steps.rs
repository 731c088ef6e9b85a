//! How many instructions a piece of work takes: a copy of the process does it one instruction at a time.
#![expect(unsafe_code, reason = "the process is copied")]

use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// The most instructions that are counted.
const MOST: u64 = 20_000_000;

/// Instructions of `work`, of this process alone. The system's work for it does not count, nor do page faults.
///
/// # Errors
/// The process cannot be copied or traced, or the work takes very long.
pub(super) fn instructions(work: impl FnOnce()) -> Result<u64, String> {
    let (with, without) = (between_stops(work)?, between_stops(|| {})?);
    Ok(with.saturating_sub(without))
}

fn between_stops(work: impl FnOnce()) -> Result<u64, String> {
    // SAFETY: the child is left by `_exit` and touches nothing that it shares with the parent. What it does beside the work is
    // to call the system; the work allocates memory at most, which the C library allows after a fork.
    match unsafe { fork() }.map_err(|why| format!("fork: {why}"))? {
        ForkResult::Child => {
            let traced = ptrace::traceme().and_then(|()| raise(Signal::SIGSTOP));
            work();
            let stopped = raise(Signal::SIGSTOP);
            let failed = i32::from(traced.is_err() || stopped.is_err());
            // SAFETY: it does not return, and runs nothing of this process at exit.
            unsafe { libc::_exit(failed) }
        }
        ForkResult::Parent { child } => {
            let counted = count(child);
            let _gone = ptrace::kill(child);
            let _status = waitpid(child, None);
            counted
        }
    }
}

fn count(child: Pid) -> Result<u64, String> {
    let failed = |why| format!("ptrace: {why}");
    match waitpid(child, None).map_err(failed)? {
        WaitStatus::Stopped(_, Signal::SIGSTOP) => {}
        other => return Err(format!("the copy did not stop: {other:?}")),
    }
    for steps in 1..=MOST {
        ptrace::step(child, None).map_err(failed)?;
        match waitpid(child, None).map_err(failed)? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, Signal::SIGSTOP) => return Ok(steps),
            other => return Err(format!("the copy ended early: {other:?}")),
        }
    }
    Err("it takes too long to be counted".to_owned())
}
