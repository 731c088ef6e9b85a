//! Starts the recorded program: traced, filtered, and stopped before its first instruction.

#![expect(
    unsafe_code,
    reason = "a seccomp filter and a hook between fork and exec have no safe interface"
)]

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{sock_filter, sock_fprog};
use nix::sys::{prctl, ptrace};
use nix::unistd::Pid;

use super::{RecordError, filter};

/// Starts `command`; it stops with `SIGTRAP` once it is loaded, as a tracee of the calling thread.
pub(super) fn start(command: &[OsString]) -> Result<Pid, RecordError> {
    let (program, arguments) = command.split_first().ok_or(RecordError::EmptyCommand)?;
    let failed = |source| RecordError::Start {
        program: program.clone(),
        source,
    };
    let mut lines = filter::program();
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe work is allowed: it makes system
    // calls and touches memory that was allocated before the fork.
    unsafe { command.pre_exec(move || submit(&mut lines)) };
    let child = command.spawn().map_err(failed)?;
    // The tracer waits for all of its tracees; the handle is not needed, and dropping it does not wait.
    let id = i32::try_from(child.id()).map_err(|_| failed(io::ErrorKind::Other.into()))?;
    Ok(Pid::from_raw(id))
}

/// Makes the calling process a tracee and installs the filter.
///
/// None of the system calls from here to `execve` is one that the filter stops: before the tracer has set its
/// options, those would fail.
fn submit(lines: &mut [sock_filter]) -> io::Result<()> {
    ptrace::traceme()?;
    prctl::set_no_new_privs()?;
    let program = sock_fprog {
        len: u16::try_from(lines.len()).map_err(io::Error::other)?,
        filter: lines.as_mut_ptr(),
    };
    // SAFETY: `program` describes the `lines`, which live longer than this call; the kernel copies them.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
