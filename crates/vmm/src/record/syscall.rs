//! Follows one system call from the stop before it to the stop after it.

use std::collections::BTreeMap;

use libc::user_regs_struct;
use nix::unistd::Pid;
use slat_memslot::{Call, Errno, FileCall, GmemId, MapCall};

use super::decode::{self, Argument, Decoded, request};
use super::files::{self, Files, Object, VmIndex};
use super::memory::{self, descriptor, low_half, signed};
use super::{Recorded, RecordedCall};

/// A system call that the kernel is carrying out.
#[derive(Debug)]
pub(super) struct Pending {
    /// What to record when it returns.
    calls: Vec<(VmIndex, RecordedCall)>,
    /// What its success means for the descriptors.
    then: Then,
}

/// What the success of a system call means for the descriptors.
#[derive(Clone, Copy, Debug)]
enum Then {
    Nothing,
    VmCreated,
    VcpuCreated(VmIndex),
    GmemCreated(VmIndex),
    /// The result names this too.
    Duplicated(Object),
    /// The descriptor, closed by this, names something else now.
    Replaced(i32, Option<Object>),
    Mapped(VmIndex, u64),
    Unmapped(u64),
}

impl Pending {
    fn only(then: Then) -> Self {
        Self {
            calls: Vec::new(),
            then,
        }
    }

    fn call(vm: VmIndex, call: Call, then: Then) -> Self {
        Self {
            calls: vec![(vm, RecordedCall::Call(call))],
            then,
        }
    }
}

/// A thread that is about to make a system call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// The thread.
    pub(super) thread: Pid,
    /// Its process.
    pub(super) process: Pid,
}

/// What is known about the recorded program's calls.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Its descriptors.
    pub(super) files: Files,
    /// Finished calls.
    pub(super) events: Vec<Recorded>,
    /// Ioctls left out.
    pub(super) undecoded: BTreeMap<u32, u64>,
}

impl Log {
    /// The thread is about to make a system call; gives what to wait for, if its end matters.
    pub(super) fn enter(&mut self, caller: Caller, regs: &user_regs_struct) -> Option<Pending> {
        let process = caller.process;
        let fd = descriptor(regs.rdi);
        match signed(regs.orig_rax) {
            libc::SYS_ioctl => self.ioctl(caller, regs),
            libc::SYS_close => self.close(process, &[fd]),
            libc::SYS_close_range => self.close_range(process, regs),
            libc::SYS_dup | libc::SYS_fcntl => {
                let object = self.files.get(process, fd)?;
                Some(Pending::only(Then::Duplicated(object)))
            }
            libc::SYS_dup2 | libc::SYS_dup3 => self.replace(process, fd, descriptor(regs.rsi)),
            libc::SYS_munmap => self.unmap(process, regs.rdi, regs.rsi),
            _ => self.on_gmem(process, regs),
        }
    }

    fn ioctl(&mut self, caller: Caller, regs: &user_regs_struct) -> Option<Pending> {
        let fd = descriptor(regs.rdi);
        let number = low_half(regs.rsi);
        match self.files.get(caller.process, fd) {
            None if files::is_system(caller.process, fd) => create_vm(number, regs.rdx),
            None => {
                if files::is_of_unknown_vm(caller.process, fd) && request::ALL.contains(&number) {
                    self.leave_out(number);
                }
                None
            }
            Some(object) => self.memory_ioctl(caller, object, number, regs.rdx),
        }
    }

    /// An ioctl on a VM or one of its files.
    fn memory_ioctl(
        &mut self,
        caller: Caller,
        object: Object,
        number: u32,
        value: u64,
    ) -> Option<Pending> {
        let (Object::Vm(vm) | Object::Vcpu(vm, _) | Object::Gmem(vm, _)) = object;
        let argument = Argument {
            value,
            memory: &|address, length| memory::read(caller.thread, address, length),
            file: &|fd| self.files.reference(caller.process, vm, fd),
        };
        let decoded = match object {
            Object::Vm(_) => decode::on_vm(number, &argument),
            Object::Vcpu(_, index) => decode::on_vcpu(number, index, &argument),
            Object::Gmem(..) => Decoded::Unrelated,
        };
        match decoded {
            Decoded::Call(call) => {
                let then = created(vm, &call);
                Some(Pending::call(vm, call, then))
            }
            Decoded::Unreadable => Some(Pending {
                calls: vec![(vm, RecordedCall::Unknown { request: number })],
                then: Then::Nothing,
            }),
            Decoded::Unrelated => {
                if matches!(object, Object::Vm(_)) {
                    self.leave_out(number);
                }
                None
            }
        }
    }

    /// Counts an ioctl that is not recorded.
    fn leave_out(&mut self, number: u32) {
        *self.undecoded.entry(number).or_default() += 1;
    }

    /// Forgets descriptors. This is done before the call, since another thread may get the number again before this
    /// one is seen to return.
    fn close(&mut self, process: Pid, descriptors: &[i32]) -> Option<Pending> {
        let closed = descriptors
            .iter()
            .filter_map(|fd| self.files.close(process, *fd));
        let calls: Vec<_> = closed.filter_map(closing).collect();
        (!calls.is_empty()).then_some(Pending {
            calls,
            then: Then::Nothing,
        })
    }

    fn close_range(&mut self, process: Pid, regs: &user_regs_struct) -> Option<Pending> {
        if low_half(regs.rdx) & libc::CLOSE_RANGE_CLOEXEC != 0 {
            return None;
        }
        let (first, last) = (low_half(regs.rdi), low_half(regs.rsi));
        let descriptors = self.files.within(process, first, last);
        self.close(process, &descriptors)
    }

    /// `dup2`: `onto` comes to name what `from` names.
    fn replace(&self, process: Pid, from: i32, onto: i32) -> Option<Pending> {
        let object = self.files.get(process, from);
        let matters = object.is_some() || self.files.get(process, onto).is_some();
        (from != onto && matters).then_some(Pending::only(Then::Replaced(onto, object)))
    }

    fn unmap(&self, process: Pid, address: u64, len: u64) -> Option<Pending> {
        let (vm, id) = self.files.mapping(process, address, len)?;
        let call = Call::Map(id, MapCall::Unmap);
        Some(Pending::call(vm, call, Then::Unmapped(address)))
    }

    /// A system call on a guest_memfd, which has its descriptor in the first register or, with `mmap`, in the fifth.
    fn on_gmem(&self, process: Pid, regs: &user_regs_struct) -> Option<Pending> {
        let number = signed(regs.orig_rax);
        let fd = match number {
            libc::SYS_mmap => regs.r8,
            _ => regs.rdi,
        };
        let (vm, id) = self.gmem(process, descriptor(fd))?;
        let mut then = Then::Nothing;
        let call = match number {
            libc::SYS_fallocate => FileCall::Fallocate {
                mode: low_half(regs.rsi),
                offset: regs.rdx,
                len: regs.r10,
            },
            libc::SYS_ftruncate => FileCall::Truncate { len: regs.rsi },
            libc::SYS_mmap => {
                then = Then::Mapped(vm, regs.rsi);
                FileCall::Mmap {
                    len: regs.rsi,
                    prot: low_half(regs.rdx),
                    flags: low_half(regs.r10),
                    offset: regs.r9,
                }
            }
            _ => return None,
        };
        Some(Pending::call(vm, Call::File(id, call), then))
    }

    fn gmem(&self, process: Pid, fd: i32) -> Option<(VmIndex, GmemId)> {
        match self.files.get(process, fd)? {
            Object::Gmem(vm, id) => Some((vm, id)),
            Object::Vm(_) | Object::Vcpu(..) => None,
        }
    }

    /// The system call returned `value`.
    pub(super) fn leave(&mut self, process: Pid, pending: Pending, value: u64) {
        let value = signed(value);
        if WILL_RESTART.contains(&value) {
            return;
        }
        let result = outcome(value);
        let calls = pending.calls.into_iter().map(|(vm, call)| Recorded {
            vm: if call_creates_vm(&call) {
                self.files.next_vm()
            } else {
                vm
            },
            call,
            result,
        });
        self.events.extend(calls);
        if result.is_ok() {
            self.succeeded(process, pending.then, value);
        }
    }

    fn succeeded(&mut self, process: Pid, then: Then, value: i64) {
        let fd = i32::try_from(value).unwrap_or(-1);
        match then {
            Then::Nothing => {}
            Then::VmCreated => self.files.vm_created(process, fd),
            Then::VcpuCreated(vm) => self.files.vcpu_created(process, fd, vm),
            Then::GmemCreated(vm) => self.files.gmem_created(process, fd, vm),
            Then::Duplicated(object) => self.files.insert(process, fd, object),
            Then::Replaced(onto, object) => self.replaced(process, onto, object),
            Then::Mapped(vm, len) => self.files.mapped(process, vm, value.unsigned_abs(), len),
            Then::Unmapped(address) => self.files.unmapped(process, address),
        }
    }

    fn replaced(&mut self, process: Pid, onto: i32, object: Option<Object>) {
        let closed = self.files.close(process, onto);
        if let Some(object) = object {
            self.files.insert(process, onto, object);
        }
        // A descriptor that is replaced by another one of the same file closes nothing.
        let closed = closed.filter(|closed| Some(*closed) != object);
        let calls = closed.and_then(closing);
        self.events.extend(calls.map(|(vm, call)| Recorded {
            vm,
            call,
            result: Ok(0),
        }));
    }
}

/// Results that the program never sees: the kernel makes the call again after a signal.
const WILL_RESTART: std::ops::RangeInclusive<i64> = -516..=-512;

/// What a system call's register means.
fn outcome(value: i64) -> Result<i64, Errno> {
    match i32::try_from(value) {
        Ok(error @ -4095..=-1) => Err(Errno::new(-error)),
        _ => Ok(value),
    }
}

fn call_creates_vm(call: &RecordedCall) -> bool {
    matches!(call, RecordedCall::CreateVm { .. })
}

/// An ioctl on `/dev/kvm`.
fn create_vm(number: u32, vm_type: u64) -> Option<Pending> {
    (number == request::CREATE_VM).then(|| Pending {
        calls: vec![(0, RecordedCall::CreateVm { vm_type })],
        then: Then::VmCreated,
    })
}

/// What the success of `call` creates.
fn created(vm: VmIndex, call: &Call) -> Then {
    match call {
        Call::CreateVcpu => Then::VcpuCreated(vm),
        Call::CreateGmem { .. } => Then::GmemCreated(vm),
        _ => Then::Nothing,
    }
}

/// The call that closes an object for good, if it is one to record.
fn closing(object: Object) -> Option<(VmIndex, RecordedCall)> {
    match object {
        Object::Vm(vm) => Some((vm, RecordedCall::CloseVm)),
        Object::Gmem(vm, id) => {
            let call = Call::File(id, FileCall::Close);
            Some((vm, RecordedCall::Call(call)))
        }
        Object::Vcpu(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results() {
        assert_eq!(outcome(5), Ok(5));
        assert_eq!(outcome(-17), Err(Errno::EEXIST));
        assert_eq!(outcome(-4096), Ok(-4096));
    }

    #[test]
    fn a_failed_creation_takes_no_number() {
        let (mut log, nobody) = (Log::default(), Pid::from_raw(i32::MAX));
        for value in [-12_i64, 9, 10] {
            let pending = create_vm(request::CREATE_VM, 1).unwrap();
            log.leave(nobody, pending, u64::from_ne_bytes(value.to_ne_bytes()));
        }
        let seen: Vec<_> = log.events.iter().map(|e| (e.vm, e.result)).collect();
        assert_eq!(seen, [(0, Err(Errno::ENOMEM)), (0, Ok(9)), (1, Ok(10))]);
    }

    #[test]
    fn a_call_that_restarts_leaves_no_event() {
        let (mut log, nobody) = (Log::default(), Pid::from_raw(i32::MAX));
        let pending = create_vm(request::CREATE_VM, 1).unwrap();
        log.leave(
            nobody,
            pending,
            u64::from_ne_bytes((-512_i64).to_ne_bytes()),
        );
        assert_eq!(log.events, []);
    }
}
