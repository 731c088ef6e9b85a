//! Waits for the threads of the recorded program and sets them going again.
//!
//! `nix` cannot express real-time signals, which threads of any C program get, so this speaks to the system itself.

#![expect(
    unsafe_code,
    reason = "waitpid and ptrace with any signal number have no safe interface"
)]

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::Exit;

/// Why a thread does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is gone.
    Ended(Exit),
    /// A `PTRACE_EVENT_*`.
    Event(i32),
    /// A system call returned.
    Syscall,
    /// This signal is to be delivered.
    Signal(i32),
}

/// What came of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// A thread stopped or ended.
    Stopped(Pid, Stop),
    /// No thread is left.
    AllGone,
    /// The time is over.
    TimedOut,
}

/// How a stopped thread goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// To its next stop, with this signal if it is not 0.
    Run(i32),
    /// To the end of the system call that it is about to make.
    ToReturn,
}

impl Stop {
    /// Decodes a wait status.
    fn from_status(status: i32) -> Self {
        if libc::WIFEXITED(status) {
            return Self::Ended(Exit::Code(libc::WEXITSTATUS(status)));
        }
        if libc::WIFSIGNALED(status) {
            return Self::Ended(Exit::Signal(libc::WTERMSIG(status)));
        }
        match (libc::WSTOPSIG(status), status >> 16) {
            (signal, 0) if signal == libc::SIGTRAP | 0x80 => Self::Syscall,
            (signal, 0) => Self::Signal(signal),
            (_, event) => Self::Event(event),
        }
    }
}

/// Waits for any tracee of the calling thread, until `deadline` if there is one.
pub(super) fn wait(deadline: Option<Instant>) -> Result<Waited, Errno> {
    let Some(deadline) = deadline else {
        return poll(0).map(|waited| waited.unwrap_or(Waited::AllGone));
    };
    let mut pause = Duration::from_micros(10);
    loop {
        if let Some(waited) = poll(libc::WNOHANG)? {
            return Ok(waited);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Waited::TimedOut);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(1));
    }
}

/// Asks for a tracee that stopped; `None` if there is none yet.
fn poll(flags: i32) -> Result<Option<Waited>, Errno> {
    let mut status = 0;
    // SAFETY: `status` is valid for writing during the call.
    let pid = unsafe {
        libc::waitpid(
            -1,
            &raw mut status,
            libc::__WALL | libc::__WNOTHREAD | flags,
        )
    };
    match Errno::result(pid) {
        Ok(0) => Ok(None),
        Ok(pid) => Ok(Some(Waited::Stopped(
            Pid::from_raw(pid),
            Stop::from_status(status),
        ))),
        Err(Errno::ECHILD) => Ok(Some(Waited::AllGone)),
        Err(Errno::EINTR) if flags != 0 => Ok(None),
        Err(Errno::EINTR) => poll(flags),
        Err(error) => Err(error),
    }
}

/// Lets a stopped thread go on; one that is gone by now is no error.
pub(super) fn resume(pid: Pid, how: Resume) -> Result<(), Errno> {
    let (request, signal) = match how {
        Resume::Run(signal) => (libc::PTRACE_CONT, signal),
        Resume::ToReturn => (libc::PTRACE_SYSCALL, 0),
    };
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: both requests take no pointer, only a signal number; they fail if `pid` is no stopped tracee.
    let done = unsafe { libc::ptrace(request, pid.as_raw(), nothing, libc::c_long::from(signal)) };
    match Errno::result(done) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let cases = [
            (0x0300, Stop::Ended(Exit::Code(3))),
            (9, Stop::Ended(Exit::Signal(9))),
            (0x857f, Stop::Syscall),
            (0x227f, Stop::Signal(34)),
            (0x7_057f, Stop::Event(libc::PTRACE_EVENT_SECCOMP)),
        ];
        for (status, stop) in cases {
            assert_eq!(Stop::from_status(status), stop, "{status:#x}");
        }
    }
}
