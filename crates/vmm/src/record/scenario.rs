//! From a recording to a scenario that can be run again.

use std::collections::BTreeMap;

use slat_memslot::{Call, Errno, FileCall, GmemId, Hva, MapId, Outcome};

use super::{Recorded, RecordedCall, Recording};
use crate::capability::is_foreign_to_memory;
use crate::scenario::{Recorder, Request, Scenario};

/// A recording as a scenario, and what of it is not in there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// The calls with their results.
    pub scenario: Scenario,
    /// How many calls of each kind were recorded: those that succeeded, and those that failed.
    pub counts: BTreeMap<&'static str, (u64, u64)>,
    /// Calls on capabilities that are no matter of memory; they are left out.
    pub other_capabilities: u64,
    /// Ioctls whose argument could not be read; they are left out.
    pub unknown: u64,
    /// Calls that a signal interrupted; they are left out.
    pub interrupted: u64,
}

impl Recording {
    /// The same as a scenario whose results come from the kernel `profile`.
    ///
    /// Every VM has a name of its own, `vm0`, `vm1` and so on, and is dropped behind its last event. The result of
    /// `KVM_GET_DIRTY_LOG` and `KVM_RESET_DIRTY_RINGS` is `ok` without values, since the guest's writes are not recorded.
    /// Host addresses are the program's own, but for mappings of guest_memfd.
    pub fn to_scenario(&self, profile: &str) -> Converted {
        let mut converter = Converter::new(&self.events);
        converter.recorder.profile(profile);
        for (at, event) in self.events.iter().enumerate() {
            converter.event(at, event);
        }
        Converted {
            scenario: converter.recorder.finish(),
            ..converter.done
        }
    }
}

struct Converter {
    recorder: Recorder,
    done: Converted,
    /// The name of each VM that lives.
    names: BTreeMap<u32, String>,
    current: Option<u32>,
    /// How many names were given.
    named: u32,
    /// The last event of each VM.
    last: BTreeMap<u32, usize>,
    made: BTreeMap<u32, (u32, u32)>,
}

impl Converter {
    fn new(events: &[Recorded]) -> Self {
        let last = events.iter().enumerate().map(|(at, e)| (e.vm, at));
        Self {
            recorder: Recorder::new([]),
            done: Converted {
                scenario: Scenario::default(),
                counts: BTreeMap::new(),
                other_capabilities: 0,
                unknown: 0,
                interrupted: 0,
            },
            names: BTreeMap::new(),
            current: None,
            named: 0,
            last: last.collect(),
            made: BTreeMap::new(),
        }
    }

    fn event(&mut self, at: usize, event: &Recorded) {
        self.count(event);
        match &event.call {
            RecordedCall::CreateVm { vm_type } => self.create_vm(event, *vm_type),
            RecordedCall::CloseVm => {}
            RecordedCall::Unknown { .. } => self.done.unknown += 1,
            RecordedCall::Call(_) if event.result == Err(Errno::EINTR) => {
                self.done.interrupted += 1;
            }
            RecordedCall::Call(call) if is_foreign_to_memory(call) => {
                self.done.other_capabilities += 1;
            }
            RecordedCall::Call(call) => self.call(event, call),
        }
        if self.last.get(&event.vm) == Some(&at) {
            self.drop_vm(event.vm);
        }
    }

    fn count(&mut self, event: &Recorded) {
        let kind = match &event.call {
            RecordedCall::CreateVm { .. } => "create_vm",
            RecordedCall::CloseVm => "close_vm",
            RecordedCall::Unknown { .. } => "unknown",
            RecordedCall::Call(call) => Request::operation(call),
        };
        let count = self.done.counts.entry(kind).or_default();
        match event.result {
            Ok(_) => count.0 += 1,
            Err(_) => count.1 += 1,
        }
    }

    fn create_vm(&mut self, event: &Recorded, vm_type: u64) {
        let name = format!("vm{}", self.named);
        self.named += 1;
        let vm_type = u32::try_from(vm_type).unwrap_or(u32::MAX);
        self.recorder
            .create_vm(&name, vm_type, event.result.map(drop));
        self.current = None;
        if event.result.is_ok() {
            self.names.insert(event.vm, name);
            self.current = Some(event.vm);
        }
    }

    /// Drops a VM behind its last event: while a guest_memfd is open, the VM lives on without a descriptor.
    fn drop_vm(&mut self, vm: u32) {
        if let Some(name) = self.names.remove(&vm) {
            self.recorder.drop_vm(&name);
            self.current = self.current.filter(|current| *current != vm);
        }
    }

    fn call(&mut self, event: &Recorded, call: &Call) {
        let Some(name) = self.names.get(&event.vm) else {
            self.done.unknown += 1;
            return;
        };
        if self.current != Some(event.vm) {
            self.recorder.vm(name, None);
            self.current = Some(event.vm);
        }
        let made = self.made.entry(event.vm).or_default();
        let result = event.result.map(|value| outcome(call, value, made));
        self.recorder.call(call, &result);
    }
}

/// What a system call's value means; `made` counts the VM's files and mappings.
fn outcome(call: &Call, value: i64, made: &mut (u32, u32)) -> Outcome {
    let unsigned = u64::try_from(value).unwrap_or_default();
    match call {
        Call::CreateGmem { .. } => {
            made.0 += 1;
            Outcome::Gmem(GmemId::new(made.0 - 1))
        }
        Call::File(_, FileCall::Mmap { .. }) => {
            made.1 += 1;
            Outcome::Mapped(MapId::new(made.1 - 1), Hva::new(unsigned))
        }
        Call::CheckExtension { .. } => Outcome::Value(unsigned),
        _ => Outcome::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Exit;
    use slat_memslot::{Buffer, Region, SlotKey};

    fn event(vm: u32, call: RecordedCall, result: Result<i64, Errno>) -> Recorded {
        Recorded { vm, call, result }
    }

    fn converted(events: Vec<Recorded>) -> Converted {
        Recording {
            events,
            exit: Exit::Code(0),
            undecoded: BTreeMap::new(),
        }
        .to_scenario("linux-6.18")
    }

    #[test]
    fn vms_get_names_and_go_after_their_last_event() {
        let create = |vm| event(vm, RecordedCall::CreateVm { vm_type: 0 }, Ok(4));
        let call = |vm, call, result| event(vm, RecordedCall::Call(call), result);
        let region = Region::new(SlotKey::normal(0), 0, 0x1000, 0x7000);
        let log = Call::GetDirtyLog {
            slot: 0,
            buffer: Buffer::Good,
        };
        let done = converted(vec![
            create(0),
            create(1),
            call(0, Call::SetRegion(region), Ok(0)),
            event(1, RecordedCall::CloseVm, Ok(0)),
            call(0, log, Err(Errno::ENOENT)),
            call(0, Call::CheckExtension { cap: 188 }, Ok(1)),
            call(0, Call::CheckExtension { cap: 16 }, Ok(1)),
            event(0, RecordedCall::Unknown { request: 1 }, Ok(0)),
            event(0, RecordedCall::CloseVm, Ok(0)),
            event(2, RecordedCall::CreateVm { vm_type: 9 }, Err(Errno::EINVAL)),
        ]);
        assert_eq!(
            done.scenario.to_string(),
            "profile linux-6.18\n\
             vm vm0 type=default => ok\n\
             vm vm1 type=default => ok\n\
             vm vm0\n\
             set_user_memory_region slot=0 gpa=0 size=0x1000 hva=0x7000 => ok\n\
             drop_vm vm1\n\
             get_dirty_log slot=0 => ENOENT\n\
             check_extension SYNC_MMU => 1\n\
             drop_vm vm0\n\
             vm vm2 type=9 => EINVAL\n"
        );
        assert_eq!((done.other_capabilities, done.unknown), (1, 1));
        assert_eq!(done.counts["create_vm"], (2, 1));
    }
}
