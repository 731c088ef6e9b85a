//! Which descriptor is which VM.

use std::collections::BTreeMap;

/// What a descriptor of KVM belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// `/dev/kvm`.
    System,
    /// A VM.
    Vm(u32),
    /// A vCPU of a VM.
    Vcpu(u32),
}

impl Target {
    /// The VM, by number.
    pub(super) fn vm(self) -> Option<u32> {
        match self {
            Self::System => None,
            Self::Vm(vm) | Self::Vcpu(vm) => Some(vm),
        }
    }
}

type Table = BTreeMap<i32, Target>;

/// The descriptors of all processes in a trace. Threads share a table, a forked process has a copy; a process whose
/// birth the trace does not show shares the first table.
#[derive(Clone, Debug)]
pub(super) struct Fds {
    tables: Vec<Table>,
    /// The table of each thread that does not use the first.
    of: BTreeMap<u32, usize>,
    vms: u32,
}

impl Fds {
    pub(super) fn new() -> Self {
        Self {
            tables: vec![Table::new()],
            of: BTreeMap::new(),
            vms: 0,
        }
    }

    fn index(&self, pid: Option<u32>) -> usize {
        let own = pid.and_then(|pid| self.of.get(&pid));
        own.copied().unwrap_or(0)
    }

    /// What `fd` of thread `pid` belongs to.
    pub(super) fn get(&self, pid: Option<u32>, fd: i32) -> Option<Target> {
        self.tables.get(self.index(pid))?.get(&fd).copied()
    }

    /// Notes what `fd` belongs to; gives what it belonged to before.
    pub(super) fn set(&mut self, pid: Option<u32>, fd: i32, target: Target) -> Option<Target> {
        let index = self.index(pid);
        self.tables.get_mut(index)?.insert(fd, target)
    }

    /// Forgets `fd`; gives what it belonged to.
    pub(super) fn close(&mut self, pid: Option<u32>, fd: i32) -> Option<Target> {
        let index = self.index(pid);
        self.tables.get_mut(index)?.remove(&fd)
    }

    /// The number of a VM that has not been seen before.
    pub(super) fn new_vm(&mut self) -> u32 {
        let vm = self.vms;
        self.vms = self.vms.saturating_add(1);
        vm
    }

    /// A thread `child` that shares the descriptors of `parent`.
    pub(super) fn share(&mut self, parent: Option<u32>, child: u32) {
        match self.index(parent) {
            0 => drop(self.of.remove(&child)),
            index => drop(self.of.insert(child, index)),
        }
    }

    /// A process `child` with a copy of the descriptors of `parent`.
    pub(super) fn copy(&mut self, parent: Option<u32>, child: u32) {
        let copy = self.tables.get(self.index(parent)).cloned();
        self.of.insert(child, self.tables.len());
        self.tables.push(copy.unwrap_or_default());
    }
}
