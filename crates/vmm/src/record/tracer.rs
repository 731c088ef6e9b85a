//! The loop around all threads of the recorded program.

use std::collections::HashMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::syscall::{Caller, Log, Pending};
use super::task::{self, Resume, Stop, Waited};
use super::{Exit, RecordError, RecordOptions, Recording, child};

/// A thread of the recorded program.
#[derive(Debug)]
struct Task {
    /// Its process.
    process: Pid,
    /// Whether the stop that ptrace makes at its birth is still to come.
    newborn: bool,
    /// The system call that it is in, if that matters.
    pending: Option<Pending>,
}

/// The recorded program.
#[derive(Debug)]
struct Tracer {
    root: Pid,
    tasks: HashMap<Pid, Task>,
    log: Log,
    exit: Option<Exit>,
    timed_out: bool,
}

/// Runs the command and records it; must have the thread for itself.
pub(super) fn run(command: &[OsString], options: RecordOptions) -> Result<Recording, RecordError> {
    let deadline = options.timeout.and_then(|t| Instant::now().checked_add(t));
    let root = child::start(command)?;
    let mut tracer = Tracer::new(root);
    let done = tracer.begin().and_then(|()| tracer.follow(deadline));
    if done.is_err() {
        tracer.kill_all();
    }
    done.map(|()| tracer.finish())
}

/// Names the request that failed.
fn failed(operation: &'static str) -> impl FnOnce(Errno) -> RecordError {
    move |source| RecordError::Trace { operation, source }
}

/// What to say of a tracee that may have been killed meanwhile.
fn unless_gone<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Tracer {
    fn new(root: Pid) -> Self {
        let task = Task {
            process: root,
            newborn: false,
            pending: None,
        };
        Self {
            root,
            tasks: HashMap::from([(root, task)]),
            log: Log::default(),
            exit: None,
            timed_out: false,
        }
    }

    /// Takes the program from its stop after `execve`.
    fn begin(&mut self) -> Result<(), RecordError> {
        let soon = Instant::now() + Duration::from_secs(10);
        match task::wait(Some(soon)).map_err(failed("waitpid"))? {
            Waited::Stopped(pid, Stop::Signal(_)) if pid == self.root => {}
            _ => return Err(RecordError::Vanished),
        }
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACESECCOMP
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(self.root, options).map_err(failed("PTRACE_SETOPTIONS"))?;
        task::resume(self.root, Resume::Run(0)).map_err(failed("PTRACE_CONT"))
    }

    /// Serves stops until no thread is left.
    fn follow(&mut self, deadline: Option<Instant>) -> Result<(), RecordError> {
        loop {
            let until = deadline.filter(|_| !self.timed_out);
            match task::wait(until).map_err(failed("waitpid"))? {
                Waited::AllGone => return Ok(()),
                Waited::TimedOut => {
                    self.timed_out = true;
                    self.kill_all();
                }
                Waited::Stopped(pid, stop) => self.serve(pid, stop)?,
            }
        }
    }

    fn serve(&mut self, pid: Pid, stop: Stop) -> Result<(), RecordError> {
        let how = match stop {
            Stop::Ended(exit) => {
                self.ended(pid, exit);
                return Ok(());
            }
            Stop::Event(libc::PTRACE_EVENT_SECCOMP) => self.enter(pid)?,
            Stop::Event(event) => self.event(pid, event)?,
            Stop::Syscall => self.leave(pid)?,
            Stop::Signal(signal) => self.signal(pid, signal),
        };
        if self.timed_out {
            end(pid);
        }
        task::resume(pid, how).map_err(failed("PTRACE_CONT"))
    }

    /// The thread is about to make a system call that the filter stopped.
    fn enter(&mut self, pid: Pid) -> Result<Resume, RecordError> {
        let regs = unless_gone(ptrace::getregs(pid)).map_err(failed("PTRACE_GETREGS"))?;
        let (Some(regs), Some(task)) = (regs, self.tasks.get_mut(&pid)) else {
            return Ok(Resume::Run(0));
        };
        let caller = Caller {
            thread: pid,
            process: task.process,
        };
        task.pending = self.log.enter(caller, &regs);
        Ok(match task.pending {
            Some(_) => Resume::ToReturn,
            None => Resume::Run(0),
        })
    }

    /// The thread's system call returned.
    fn leave(&mut self, pid: Pid) -> Result<Resume, RecordError> {
        let regs = unless_gone(ptrace::getregs(pid)).map_err(failed("PTRACE_GETREGS"))?;
        let task = self.tasks.get_mut(&pid);
        let pending = task.and_then(|task| Some((task.process, task.pending.take()?)));
        if let (Some(regs), Some((process, pending))) = (regs, pending) {
            self.log.leave(process, pending, regs.rax);
        }
        Ok(Resume::Run(0))
    }

    /// The thread cloned itself or runs another program.
    fn event(&mut self, pid: Pid, event: i32) -> Result<Resume, RecordError> {
        let message = unless_gone(ptrace::getevent(pid)).map_err(failed("PTRACE_GETEVENTMSG"))?;
        let other = message.and_then(|m| i32::try_from(m).ok());
        if let Some(other) = other.map(Pid::from_raw) {
            if event == libc::PTRACE_EVENT_EXEC {
                self.executed(pid, other);
            } else {
                self.born(other);
            }
        }
        Ok(Resume::Run(0))
    }

    /// Thread `former` of process `pid` runs another program, and is the process's only thread now.
    fn executed(&mut self, pid: Pid, former: Pid) {
        if former != pid {
            self.tasks.remove(&former);
        }
        if let Some(task) = self.tasks.get_mut(&pid) {
            task.pending = None;
        }
        self.log.files.executed(pid);
    }

    /// A thread or process began; told by its parent's stop or by its own, whichever is first.
    fn born(&mut self, pid: Pid) {
        if self.tasks.contains_key(&pid) {
            return;
        }
        let Some((process, parent)) = relations(pid) else {
            return;
        };
        if process == pid {
            self.log.files.forked(parent, pid);
        }
        let task = Task {
            process,
            newborn: true,
            pending: None,
        };
        self.tasks.insert(pid, task);
    }

    /// A signal is to be delivered, or it is the stop at the thread's birth.
    fn signal(&mut self, pid: Pid, signal: i32) -> Resume {
        self.born(pid);
        let task = self.tasks.get_mut(&pid);
        let birth = task.is_some_and(|task| {
            signal == libc::SIGSTOP && std::mem::replace(&mut task.newborn, false)
        });
        // A stop of the whole process looks like its signal a second time, but has no signal to give.
        let group_stop = ptrace::getsiginfo(pid) == Err(Errno::EINVAL);
        Resume::Run(if birth || group_stop { 0 } else { signal })
    }

    fn ended(&mut self, pid: Pid, exit: Exit) {
        let task = self.tasks.remove(&pid);
        if task.is_some_and(|task| task.process == pid) {
            self.log.files.ended(pid);
        }
        if pid == self.root {
            self.exit = Some(exit);
        }
    }

    /// Kills every thread, and with it its process.
    fn kill_all(&self) {
        self.tasks.values().map(|task| task.process).for_each(end);
    }

    fn finish(self) -> Recording {
        let exit = match self.exit {
            Some(exit) if !self.timed_out => exit,
            _ => Exit::TimedOut,
        };
        Recording {
            events: self.log.events,
            exit,
            undecoded: self.log.undecoded,
        }
    }
}

/// Kills a process; one that is gone already is as good.
fn end(pid: Pid) {
    let _gone = kill(pid, Signal::SIGKILL);
}

/// The process of a thread, and that process's parent.
fn relations(pid: Pid) -> Option<(Pid, Pid)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().parse().ok().map(Pid::from_raw)
    };
    Some((field("Tgid:")?, field("PPid:")?))
}
