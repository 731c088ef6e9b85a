//! Records the memory calls that any VMM makes: runs it under ptrace and writes down what it asks KVM for.
//!
//! The traced program needs no preparation and no privilege beyond its own access to `/dev/kvm`. A seccomp filter,
//! installed just before the program starts, stops it at the few system calls that matter, so
//! that `KVM_RUN` and everything else runs at full speed. Arguments are read from the program's memory before the
//! kernel sees them, results when the call returns.
//!
//! What holds for a recording:
//!
//! - Events are in the order in which the calls *returned*; of two calls that overlap in time, the kernel may have
//!   carried out either one first.
//! - VMs, guest_memfd files and mappings are numbered in the order of their creation: VMs within the recording, files
//!   and mappings within their VM.
//! - A file counts as closed when the last descriptor known to name it is closed by `close`, `close_range` or `dup2`;
//!   the end of a process and `execve` close silently.
//! - Descriptors are followed through `dup`, `fcntl` and `fork`, but not through `SCM_RIGHTS` or `pidfd_getfd`: calls
//!   on such a descriptor are missing, and counted in [`Recording::undecoded`].
//! - 32-bit programs run, but leave no events.

mod child;
mod decode;
mod files;
mod filter;
mod memory;
mod scenario;
mod syscall;
mod task;
mod tracer;

pub use scenario::Converted;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use slat_memslot::{Call, Errno};

/// One call that the recorded program made, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The VM, by order of creation from 0; a `KVM_CREATE_VM` that failed has the number it would have got.
    pub vm: u32,
    /// What was asked.
    pub call: RecordedCall,
    /// What the system call returned; descriptors and addresses are the recorded program's own.
    pub result: Result<i64, Errno>,
}

/// What a recorded program asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordedCall {
    /// `KVM_CREATE_VM`.
    CreateVm {
        /// The machine type, `KVM_X86_*`.
        vm_type: u64,
    },
    /// `close` of the last descriptor of the VM.
    CloseVm,
    /// A call on the VM, one of its vCPUs, its guest_memfd files or a mapping of these.
    Call(Call),
    /// An ioctl whose argument could not be read, or does not fit a [`Call`].
    Unknown {
        /// The ioctl's request number.
        request: u32,
    },
}

/// How to record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordOptions {
    /// Kills the program, with all of its descendants, after this long; `None` waits for its end.
    pub timeout: Option<Duration>,
}

/// How the recorded program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It was still running, or left descendants running, when the time was over.
    TimedOut,
}

/// Everything that one run of a program gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The calls, in the order in which they returned.
    pub events: Vec<Recorded>,
    /// How the program ended.
    pub exit: Exit,
    /// KVM ioctls that were seen but are not in `events`, by request number, with how often they were made.
    ///
    /// These are ioctls on a VM that do not concern memory, and memory ioctls on descriptors of unknown origin.
    /// Ioctls that the filter lets pass, such as `KVM_RUN`, are not counted.
    pub undecoded: BTreeMap<u32, u64>,
}

/// Why a program could not be recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The command is empty.
    #[error("no command to record")]
    EmptyCommand,
    /// The program could not be started, or not be traced.
    #[error("cannot start {program:?} under ptrace with a seccomp filter: {source}")]
    Start {
        /// The program's name.
        program: OsString,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tracing request failed.
    #[error("{operation} failed: {source}")]
    Trace {
        /// The request.
        operation: &'static str,
        /// What the system said.
        source: nix::Error,
    },
    /// The program was gone before it began.
    #[error("the program ended before its first instruction")]
    Vanished,
}

/// Runs `command` to its end, or until the time is over, and gives the memory calls that it made.
///
/// Standard input, output and error are the caller's. The program and its descendants are killed if the calling
/// process ends.
///
/// ```
/// use slat_vmm::record::{Exit, RecordOptions, record};
///
/// let recording = record(&["true".into()], RecordOptions::default())?;
/// assert_eq!(recording.exit, Exit::Code(0));
/// assert!(recording.events.is_empty());
/// # Ok::<(), slat_vmm::record::RecordError>(())
/// ```
///
/// # Errors
///
/// Fails if the program cannot be started or the system does not allow tracing. A program that ends badly is no
/// error; see [`Recording::exit`].
pub fn record(command: &[OsString], options: RecordOptions) -> Result<Recording, RecordError> {
    // A thread of its own: ptrace binds tracees to the thread that started them, and waiting for the children of one
    // thread leaves the caller's other children alone.
    std::thread::scope(|scope| {
        let tracer = scope.spawn(|| tracer::run(command, options));
        tracer
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
