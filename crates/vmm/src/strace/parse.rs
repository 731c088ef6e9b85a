//! From lines to events.

use std::collections::BTreeMap;

use slat_memslot::{Call, Errno, Region, SlotFlags};

use super::fds::{Fds, Target};
use super::ioctl::{IoctlRequest, MemoryIoctl};
use super::line::{
    Arg, Line, Part, SysCall, UNFINISHED, signed, split, unsigned, without_comments,
};
use super::{Event, EventKind, ParseError, Returned};
use crate::parse_error::column;

/// The events of a trace, in the order in which their calls end. Lines that have nothing to do with KVM are passed over; a
/// line with a KVM ioctl that cannot be read gives an error, and the walk goes on behind it.
#[derive(Clone, Debug)]
pub struct Events<'a> {
    lines: core::iter::Zip<core::ops::RangeFrom<u32>, core::str::Split<'a, char>>,
    fds: Fds,
    begun: BTreeMap<Option<u32>, Begun>,
    /// At the end of the trace: the calls that it does not end, the last first.
    lost: Vec<Begun>,
}

/// A call whose end is yet to come, or that is all there.
#[derive(Clone, Debug)]
struct Begun {
    line: u32,
    column: u32,
    pid: Option<u32>,
    /// What the descriptor of an ioctl belongs to when the call begins.
    target: Option<Target>,
    text: String,
}

type Found = Result<Option<Event>, ParseError>;

impl<'a> Events<'a> {
    /// Walks over `trace`.
    pub fn new(trace: &'a str) -> Self {
        Self {
            lines: (1..).zip(trace.split('\n')),
            fds: Fds::new(),
            begun: BTreeMap::new(),
            lost: Vec::new(),
        }
    }

    fn line(&mut self, number: u32, text: &str) -> Found {
        let Line { pid, offset, body } = Line::new(text);
        let begun = |call: &str| Begun {
            line: number,
            column: column(text, offset),
            pid,
            target: ioctl_descriptor(call).and_then(|fd| self.fds.get(pid, fd)),
            text: call.to_owned(),
        };
        match Part::of(body) {
            Part::Whole(call) => {
                let begun = begun(call);
                self.call(&begun)
            }
            Part::Begun(call) => {
                let begun = begun(call);
                match self.begun.insert(pid, begun) {
                    Some(lost) => self.lost(lost),
                    None => Ok(None),
                }
            }
            Part::Resumed(end) => match self.begun.remove(&pid) {
                Some(mut begun) => {
                    begun.text.push_str(end);
                    self.call(&begun)
                }
                None => Ok(None),
            },
            Part::Other => Ok(None),
        }
    }

    /// A call whose end the trace does not show.
    fn lost(&mut self, mut begun: Begun) -> Found {
        begun.text.push_str(") = ?");
        self.call(&begun)
    }

    fn call(&mut self, begun: &Begun) -> Found {
        // A call whose thread was killed is `ioctl(4, KVM_RUN <unfinished ...>) = ?`.
        let text = begun.text.replace(UNFINISHED, "");
        let call = match SysCall::new(&text) {
            Ok(call) => call,
            Err(at) if begun.claims_kvm() => return Err(begun.error(at, "the call has no end")),
            Err(_) => return Ok(None),
        };
        let event = match call.name {
            "ioctl" => return self.ioctl(begun, &call),
            "open" | "openat" => self.open(begun, &call),
            "close" => self.close(begun, &call),
            "dup" | "dup2" | "dup3" | "fcntl" => self.dup(begun, &call),
            "clone" | "clone3" | "fork" | "vfork" => self.fork(begun, &call),
            _ => None,
        };
        Ok(event)
    }

    fn open(&mut self, begun: &Begun, call: &SysCall<'_>) -> Option<Event> {
        let device = call.args.iter().any(|arg| arg.text == "\"/dev/kvm\"");
        let fd = call.returned.descriptor().filter(|_| device)?;
        self.fds.set(begun.pid, fd, Target::System);
        None
    }

    fn close(&mut self, begun: &Begun, call: &SysCall<'_>) -> Option<Event> {
        let fd = descriptor(call.arg(0)?.text)?;
        let done = matches!(call.returned, Returned::Value(_));
        let target = self.fds.get(begun.pid, fd).filter(|_| done)?;
        self.fds.close(begun.pid, fd);
        Some(begun.event(fd, target.vm(), EventKind::Close, call.returned))
    }

    fn dup(&mut self, begun: &Begun, call: &SysCall<'_>) -> Option<Event> {
        let is_dup = |arg: Arg<'_>| {
            let command = without_comments(arg.text);
            command.starts_with("F_DUPFD") || matches!(command.as_str(), "0" | "0x406")
        };
        if call.name == "fcntl" && !call.arg(1).is_some_and(is_dup) {
            return None;
        }
        let from = descriptor(call.arg(0)?.text)?;
        let to = call.returned.descriptor().filter(|to| *to != from)?;
        let Some(target) = self.fds.get(begun.pid, from) else {
            let target = self.fds.close(begun.pid, to)?;
            return Some(begun.event(to, target.vm(), EventKind::Close, call.returned));
        };
        self.fds.set(begun.pid, to, target);
        Some(begun.event(from, target.vm(), EventKind::Dup { to }, call.returned))
    }

    fn fork(&mut self, begun: &Begun, call: &SysCall<'_>) -> Option<Event> {
        let child = call
            .returned
            .descriptor()
            .and_then(|pid| u32::try_from(pid).ok())?;
        let says = |flag: &str| call.args.iter().any(|arg| arg.text.contains(flag));
        let named = call.name.ends_with("fork") || says("CLONE_") || says("SIGCHLD");
        if named && !says("CLONE_FILES") {
            self.fds.copy(begun.pid, child);
        } else {
            self.fds.share(begun.pid, child);
        }
        None
    }

    fn ioctl(&mut self, begun: &Begun, call: &SysCall<'_>) -> Found {
        let Some(request) = call.arg(1).and_then(|arg| request(arg.text)) else {
            return match begun.claims_kvm() {
                true => Err(begun.error(0, "the request is neither a name nor a number")),
                false => Ok(None),
            };
        };
        if !request.is_kvm() {
            return Ok(None);
        }
        let arg = call.arg(0).unwrap_or(Arg {
            offset: 0,
            text: "",
        });
        let Some(fd) = descriptor(arg.text) else {
            return Err(begun.error(arg.offset, "not a descriptor"));
        };
        let target = begun
            .target
            .or_else(|| self.new_target(begun.pid, fd, arg.text, &request, call.returned));
        let mut kind = kind(begun, call, request.clone())?;
        if let (Some(Target::Vcpu(_)), EventKind::Call(_)) = (target, &kind) {
            kind = undecoded(request);
        }
        let vm = self.made(begun, target, &kind, call.returned);
        Ok(Some(begun.event(fd, vm, kind, call.returned)))
    }

    /// What `fd`, unknown when the call began, belongs to: as the trace has shown since, as its decoration says, or as the
    /// request implies.
    fn new_target(
        &mut self,
        pid: Option<u32>,
        fd: i32,
        text: &str,
        request: &IoctlRequest,
        returned: Returned,
    ) -> Option<Target> {
        if let Some(target) = self.fds.get(pid, fd) {
            return Some(target);
        }
        let open = !matches!(returned, Returned::Failed(Errno::EBADF | Errno::ENOTTY));
        let implied = open && request.memory().is_some_and(implies_vm);
        if fd < 0 || !(implied || text.contains("anon_inode:kvm-vm")) {
            return None;
        }
        let target = Target::Vm(self.fds.new_vm());
        self.fds.set(pid, fd, target);
        Some(target)
    }

    /// Notes a new descriptor; gives the VM of the call.
    fn made(
        &mut self,
        begun: &Begun,
        target: Option<Target>,
        kind: &EventKind,
        returned: Returned,
    ) -> Option<u32> {
        let vm = target.and_then(Target::vm);
        let Some(fd) = returned.descriptor() else {
            return vm;
        };
        let made = match (kind, vm) {
            (EventKind::CreateVm { .. }, _) => Target::Vm(self.fds.new_vm()),
            (EventKind::Call(Call::CreateVcpu), Some(vm)) => Target::Vcpu(vm),
            _ => return vm,
        };
        self.fds.set(begun.pid, fd, made);
        made.vm()
    }
}

impl Iterator for Events<'_> {
    type Item = Result<Event, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some((number, text)) = self.lines.next() {
            if let Some(found) = self.line(number, text).transpose() {
                return Some(found);
            }
        }
        if !self.begun.is_empty() {
            self.lost
                .extend(core::mem::take(&mut self.begun).into_values());
            self.lost
                .sort_by_key(|begun| core::cmp::Reverse(begun.line));
        }
        while let Some(lost) = self.lost.pop() {
            if let Some(found) = self.lost(lost).transpose() {
                return Some(found);
            }
        }
        None
    }
}

impl core::iter::FusedIterator for Events<'_> {}

impl Begun {
    fn event(&self, fd: i32, vm: Option<u32>, kind: EventKind, returned: Returned) -> Event {
        Event {
            line: self.line,
            pid: self.pid,
            fd,
            vm,
            kind,
            returned,
        }
    }

    /// An error at byte `offset` of the call.
    fn error(&self, offset: usize, message: &str) -> ParseError {
        ParseError {
            line: self.line,
            column: self.column + column(&self.text, offset) - 1,
            message: message.to_owned(),
        }
    }

    fn wrong(&self, arg: Arg<'_>, message: &str) -> ParseError {
        self.error(arg.offset, &format!("{}: {message}", arg.text))
    }

    /// Whether the text says that it is a KVM ioctl.
    fn claims_kvm(&self) -> bool {
        let named = self.text.contains(", KVM_") || self.text.contains(", 0xae, ");
        self.text.starts_with("ioctl(") && named
    }
}

/// The ioctls that only a VM takes.
fn implies_vm(ioctl: MemoryIoctl) -> bool {
    use MemoryIoctl as M;
    !matches!(
        ioctl,
        M::CreateVm | M::CheckExtension | M::EnableCap | M::PreFaultMemory
    )
}

/// The descriptor of an ioctl.
fn ioctl_descriptor(call: &str) -> Option<i32> {
    let (first, _) = call.strip_prefix("ioctl(")?.split_once(',')?;
    descriptor(first)
}

/// `4` or `4<anon_inode:kvm-vm>`.
fn descriptor(text: &str) -> Option<i32> {
    let number = text.split_once('<').map_or(text, |(number, _)| number);
    i32::try_from(signed(number)?).ok()
}

/// `KVM_RUN`, `0xae80`, `0xae80 /* KVM_RUN */` or `_IOC(_IOC_WRITE, 0xae, 0x49, 0xa0)`.
fn request(text: &str) -> Option<IoctlRequest> {
    let text = without_comments(text);
    if let Some(inner) = text.strip_prefix("_IOC(") {
        return composed(inner.strip_suffix(')')?).map(IoctlRequest::Number);
    }
    if let Some(number) = unsigned(&text) {
        return Some(IoctlRequest::Number(number));
    }
    let name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mut names = text.split(" or ");
    let valid = names.all(|n| !n.is_empty() && n.chars().all(name));
    valid.then_some(IoctlRequest::Name(text))
}

/// `_IOC_READ|_IOC_WRITE, 0xae, 0xd4, 0x40` as a number.
fn composed(text: &str) -> Option<u64> {
    let mut parts = text.split(", ");
    let direction = parts.next()?.split('|').try_fold(0, |all, bit| {
        Some(
            all | match bit {
                "_IOC_NONE" => 0,
                "_IOC_WRITE" => 1,
                "_IOC_READ" => 2,
                number => unsigned(number).filter(|n| *n < 4)?,
            },
        )
    })?;
    let mut byte = |limit: u64| unsigned(parts.next()?).filter(|n| *n < limit);
    let (kind, number, size) = (byte(1 << 8)?, byte(1 << 8)?, byte(1 << 14)?);
    let whole = direction << 30 | size << 16 | kind << 8 | number;
    parts.next().is_none().then_some(whole)
}

fn undecoded(request: IoctlRequest) -> EventKind {
    let memory = request.memory();
    EventKind::Undecoded { request, memory }
}

/// What the ioctl asks for, as far as its arguments show.
fn kind(begun: &Begun, call: &SysCall<'_>, request: IoctlRequest) -> Result<EventKind, ParseError> {
    use MemoryIoctl as M;
    let Some(memory) = request.memory() else {
        return Ok(undecoded(request));
    };
    let number = || number(begun, call);
    let visible = match memory {
        M::CreateVm => {
            let vm_type = vm_type(begun, call)?;
            return Ok(EventKind::CreateVm { vm_type });
        }
        M::SetUserMemoryRegion => region(begun, call)?.map(Call::SetRegion),
        M::CheckExtension => capability(begun, call)?.map(|cap| Call::CheckExtension { cap }),
        M::SetNrMmuPages => Some(Call::SetNrMmuPages { pages: number()? }),
        M::SetTssAddr => Some(Call::SetTssAddr { gpa: number()? }),
        M::CreateVcpu => Some(Call::CreateVcpu),
        M::CreateIrqchip => Some(Call::CreateIrqchip),
        M::ResetDirtyRings => Some(Call::ResetDirtyRings),
        _ => None,
    };
    Ok(match visible {
        Some(call) => EventKind::Call(call),
        None => undecoded(request),
    })
}

/// The third argument, which the ioctl needs.
fn argument<'a>(begun: &Begun, call: &SysCall<'a>) -> Result<Arg<'a>, ParseError> {
    let arg = call.arg(2);
    arg.ok_or_else(|| begun.error(begun.text.len(), "no third argument"))
}

fn number(begun: &Begun, call: &SysCall<'_>) -> Result<u64, ParseError> {
    let arg = argument(begun, call)?;
    let value = unsigned(&without_comments(arg.text));
    value.ok_or_else(|| begun.wrong(arg, "not a number"))
}

fn vm_type(begun: &Begun, call: &SysCall<'_>) -> Result<u64, ParseError> {
    let names = [
        "KVM_X86_DEFAULT_VM",
        "KVM_X86_SW_PROTECTED_VM",
        "KVM_X86_SEV_VM",
        "KVM_X86_SEV_ES_VM",
        "KVM_X86_SNP_VM",
        "KVM_X86_TDX_VM",
    ];
    let arg = argument(begun, call)?;
    match (0..).zip(names).find(|(_, name)| *name == arg.text) {
        Some((vm_type, _)) => Ok(vm_type),
        None => number(begun, call),
    }
}

/// The capability; `None` for a name that is not known.
fn capability(begun: &Begun, call: &SysCall<'_>) -> Result<Option<u32>, ParseError> {
    let arg = argument(begun, call)?;
    if let Some(name) = arg.text.strip_prefix("KVM_CAP_") {
        return Ok(crate::capability::number(name));
    }
    let value = number(begun, call)?;
    let cap = u32::try_from(value);
    cap.map(Some)
        .map_err(|_| begun.wrong(arg, "larger than 32 bits"))
}

/// The region; `None` where strace shows only an address.
fn region(begun: &Begun, call: &SysCall<'_>) -> Result<Option<Region>, ParseError> {
    let arg = argument(begun, call)?;
    let Some(inner) = arg.text.strip_prefix('{') else {
        return match unsigned(arg.text) {
            Some(_) => Ok(None),
            None => Err(begun.wrong(arg, "neither a struct nor an address")),
        };
    };
    let Some(inner) = inner.strip_suffix('}') else {
        return Err(begun.wrong(arg, "the struct has no end"));
    };
    let mut fields = Fields {
        begun,
        fields: split(inner, arg.offset + 1),
        whole: arg,
    };
    let region = Region {
        slot: fields.number32("slot", unsigned)?,
        flags: fields.number32("flags", flags)?,
        gpa: fields.number("guest_phys_addr", unsigned)?,
        size: fields.number("memory_size", unsigned)?,
        hva: fields.number("userspace_addr", unsigned)?,
        ..Region::default()
    };
    match fields.fields.first() {
        Some(other) => Err(begun.wrong(*other, "no such field")),
        None => Ok(Some(region)),
    }
}

/// The fields of a struct that are yet to be read.
struct Fields<'a> {
    begun: &'a Begun,
    fields: Vec<Arg<'a>>,
    whole: Arg<'a>,
}

impl Fields<'_> {
    fn number(&mut self, key: &str, read: fn(&str) -> Option<u64>) -> Result<u64, ParseError> {
        let value = |text: &str| {
            text.strip_prefix(key)
                .and_then(|t| t.strip_prefix('='))
                .map(without_comments)
        };
        let found = self.fields.iter().position(|f| value(f.text).is_some());
        let Some(at) = found else {
            return Err(self.begun.wrong(self.whole, &format!("no {key}=")));
        };
        let field = self.fields.remove(at);
        let number = value(field.text).and_then(|text| read(&text));
        number.ok_or_else(|| self.begun.wrong(field, "not a number"))
    }

    fn number32(&mut self, key: &str, read: fn(&str) -> Option<u64>) -> Result<u32, ParseError> {
        let value = self.number(key, read)?;
        let narrow = u32::try_from(value);
        narrow.map_err(|_| {
            self.begun
                .wrong(self.whole, &format!("{key}= is larger than 32 bits"))
        })
    }
}

/// `KVM_MEM_READONLY|0x4`.
fn flags(text: &str) -> Option<u64> {
    text.split('|').try_fold(0, |all, part| {
        let flag = part.strip_prefix("KVM_MEM_").and_then(SlotFlags::from_name);
        let bits = flag.map(|flag| u64::from(flag.bits()));
        Some(all | bits.or_else(|| unsigned(part))?)
    })
}
