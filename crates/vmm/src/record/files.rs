//! Which descriptor of which process names which VM, vCPU or guest_memfd.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use slat_memslot::{FileRef, GmemId, MapId, OtherFile};

/// A VM of the recording, by order of creation.
pub(super) type VmIndex = u32;

/// What a descriptor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    /// A VM.
    Vm(VmIndex),
    /// A vCPU: its VM and its index there.
    Vcpu(VmIndex, u32),
    /// A guest_memfd: its VM and its number there.
    Gmem(VmIndex, GmemId),
}

/// How much of each kind a VM has created so far.
#[derive(Clone, Copy, Debug, Default)]
struct Created {
    vcpus: u32,
    gmems: u32,
    maps: u32,
}

/// A mapping of a guest_memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    vm: VmIndex,
    id: MapId,
    len: u64,
}

/// A descriptor and the text of its link in `/proc`, which tells whether the number has another file by now.
#[derive(Clone, Debug)]
struct Descriptor {
    object: Object,
    link: Option<PathBuf>,
}

/// The descriptors and mappings of one process.
#[derive(Clone, Debug, Default)]
struct Process {
    descriptors: HashMap<i32, Descriptor>,
    mappings: HashMap<u64, Mapping>,
}

/// The descriptors of all processes.
#[derive(Debug, Default)]
pub(super) struct Files {
    processes: HashMap<Pid, Process>,
    vms: Vec<Created>,
}

/// The text of a descriptor's link.
fn link(process: Pid, fd: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{process}/fd/{fd}")).ok()
}

/// Whether the descriptor names KVM's device, `/dev/kvm`, or `kvm` in another directory.
pub(super) fn is_system(process: Pid, fd: i32) -> bool {
    link(process, fd).is_some_and(|path| path.is_absolute() && path.ends_with("kvm"))
}

/// Whether the descriptor, which is not a known one, names a VM or a vCPU all the same.
pub(super) fn is_of_unknown_vm(process: Pid, fd: i32) -> bool {
    link(process, fd).is_some_and(|path| {
        let text = path.as_os_str().as_encoded_bytes();
        text.starts_with(b"anon_inode:kvm-v")
    })
}

/// Takes the next number of a counter.
fn next(counter: &mut u32) -> u32 {
    let number = *counter;
    *counter += 1;
    number
}

impl Files {
    /// What the descriptor names, if it is one of a VM.
    pub(super) fn get(&self, process: Pid, fd: i32) -> Option<Object> {
        let known = self.processes.get(&process)?.descriptors.get(&fd)?;
        (link(process, fd) == known.link).then_some(known.object)
    }

    /// Notes that the descriptor names `object`.
    pub(super) fn insert(&mut self, process: Pid, fd: i32, object: Object) {
        let link = link(process, fd);
        let descriptors = &mut self.processes.entry(process).or_default().descriptors;
        descriptors.insert(fd, Descriptor { object, link });
    }

    /// Notes that the descriptor is closed; gives what it named if no other descriptor names that.
    pub(super) fn close(&mut self, process: Pid, fd: i32) -> Option<Object> {
        let closed = self.processes.get_mut(&process)?.descriptors.remove(&fd)?;
        let mut rest = self.processes.values().flat_map(|p| p.descriptors.values());
        let last = !rest.any(|other| other.object == closed.object);
        last.then_some(closed.object)
    }

    /// The known descriptors of a process from `first` to `last`, in order.
    pub(super) fn within(&self, process: Pid, first: u32, last: u32) -> Vec<i32> {
        let known = self.processes.get(&process);
        let mut numbers: Vec<i32> = known
            .into_iter()
            .flat_map(|p| p.descriptors.keys().copied())
            .filter(|fd| u32::try_from(*fd).is_ok_and(|fd| (first..=last).contains(&fd)))
            .collect();
        numbers.sort_unstable();
        numbers
    }

    /// The number that the next VM gets.
    pub(super) fn next_vm(&self) -> VmIndex {
        u32::try_from(self.vms.len()).unwrap_or(u32::MAX)
    }

    /// A VM was created.
    pub(super) fn vm_created(&mut self, process: Pid, fd: i32) {
        let vm = self.next_vm();
        self.vms.push(Created::default());
        self.insert(process, fd, Object::Vm(vm));
    }

    /// A vCPU was created.
    pub(super) fn vcpu_created(&mut self, process: Pid, fd: i32, vm: VmIndex) {
        if let Some(created) = self.created(vm) {
            let index = next(&mut created.vcpus);
            self.insert(process, fd, Object::Vcpu(vm, index));
        }
    }

    /// A guest_memfd was created.
    pub(super) fn gmem_created(&mut self, process: Pid, fd: i32, vm: VmIndex) {
        if let Some(created) = self.created(vm) {
            let id = GmemId::new(next(&mut created.gmems));
            self.insert(process, fd, Object::Gmem(vm, id));
        }
    }

    /// A guest_memfd of `vm` was mapped.
    pub(super) fn mapped(&mut self, process: Pid, vm: VmIndex, address: u64, len: u64) {
        if let Some(created) = self.created(vm) {
            let id = MapId::new(next(&mut created.maps));
            let mappings = &mut self.processes.entry(process).or_default().mappings;
            mappings.insert(address, Mapping { vm, id, len });
        }
    }

    /// The mapping that begins at `address` and is as long as `len`, in whole pages.
    pub(super) fn mapping(&self, process: Pid, address: u64, len: u64) -> Option<(VmIndex, MapId)> {
        let mapping = self.processes.get(&process)?.mappings.get(&address)?;
        (mapping.len.div_ceil(4096) == len.div_ceil(4096)).then_some((mapping.vm, mapping.id))
    }

    /// The mapping at `address` is gone.
    pub(super) fn unmapped(&mut self, process: Pid, address: u64) {
        if let Some(process) = self.processes.get_mut(&process) {
            process.mappings.remove(&address);
        }
    }

    fn created(&mut self, vm: VmIndex) -> Option<&mut Created> {
        self.vms.get_mut(usize::try_from(vm).ok()?)
    }

    /// `child` begins with the descriptors and mappings of `parent`.
    pub(super) fn forked(&mut self, parent: Pid, child: Pid) {
        if let Some(table) = self.processes.get(&parent).cloned() {
            self.processes.insert(child, table);
        }
    }

    /// The process runs another program: its mappings are gone, and the descriptors that close on exec.
    pub(super) fn executed(&mut self, process: Pid) {
        if let Some(table) = self.processes.get_mut(&process) {
            table.mappings.clear();
            table
                .descriptors
                .retain(|fd, known| known.link.is_some() && link(process, *fd) == known.link);
        }
    }

    /// The process is gone.
    pub(super) fn ended(&mut self, process: Pid) {
        self.processes.remove(&process);
    }

    /// What the number stands for in a set-region call on `vm`.
    ///
    /// A file that [`OtherFile`] has no name for stands as [`OtherFile::Null`]: the kernel only sees that it is no
    /// guest_memfd.
    pub(super) fn reference(&self, process: Pid, vm: VmIndex, fd: i32) -> FileRef {
        match self.get(process, fd) {
            Some(Object::Gmem(owner, id)) if owner == vm => FileRef::Gmem(id),
            Some(Object::Gmem(..)) => FileRef::Foreign,
            Some(Object::Vm(_)) => FileRef::Other(OtherFile::Vm),
            Some(Object::Vcpu(..)) => FileRef::Other(OtherFile::Null),
            None => {
                link(process, fd).map_or(FileRef::NotOpen(fd), |path| FileRef::Other(kind(&path)))
            }
        }
    }
}

/// The kind of file that a link's text tells.
fn kind(link: &Path) -> OtherFile {
    let text = link.as_os_str().as_encoded_bytes();
    if text == b"/dev/kvm" {
        OtherFile::Kvm
    } else if text == b"anon_inode:kvm-vm" {
        OtherFile::Vm
    } else if text.starts_with(b"/memfd:") {
        OtherFile::Memfd
    } else {
        OtherFile::Null
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No process has this number, hence no descriptor a link.
    const NOBODY: Pid = Pid::from_raw(i32::MAX);
    const CHILD: Pid = Pid::from_raw(i32::MAX - 1);

    #[test]
    fn objects_are_numbered_within_their_vm() {
        let mut files = Files::default();
        for fd in [10, 20] {
            files.vm_created(NOBODY, fd);
        }
        files.gmem_created(NOBODY, 11, 0);
        files.gmem_created(NOBODY, 21, 1);
        files.gmem_created(NOBODY, 22, 1);
        files.vcpu_created(NOBODY, 23, 1);
        assert_eq!(files.get(NOBODY, 22), Some(Object::Gmem(1, GmemId::new(1))));
        assert_eq!(files.get(NOBODY, 23), Some(Object::Vcpu(1, 0)));
        assert_eq!(files.reference(NOBODY, 1, 11), FileRef::Foreign);
        assert_eq!(
            files.reference(NOBODY, 1, 21),
            FileRef::Gmem(GmemId::new(0))
        );
        assert_eq!(
            files.reference(NOBODY, 1, 20),
            FileRef::Other(OtherFile::Vm)
        );
        assert_eq!(files.reference(NOBODY, 1, 99), FileRef::NotOpen(99));
        assert_eq!(files.within(NOBODY, 11, 21), [11, 20, 21]);
    }

    #[test]
    fn only_the_last_descriptor_closes() {
        let mut files = Files::default();
        files.vm_created(NOBODY, 10);
        files.insert(NOBODY, 11, Object::Vm(0));
        files.forked(NOBODY, CHILD);
        assert_eq!(files.close(NOBODY, 10), None);
        assert_eq!(files.close(CHILD, 10), None);
        files.ended(CHILD);
        assert_eq!(files.close(NOBODY, 11), Some(Object::Vm(0)));
        assert_eq!(files.close(NOBODY, 11), None);
    }

    #[test]
    fn mappings_match_in_whole_pages() {
        let mut files = Files::default();
        files.vm_created(NOBODY, 10);
        files.mapped(NOBODY, 0, 0x7000, 0x1fff);
        assert_eq!(
            files.mapping(NOBODY, 0x7000, 0x2000),
            Some((0, MapId::new(0)))
        );
        assert_eq!(files.mapping(NOBODY, 0x7000, 0x1000), None);
        files.unmapped(NOBODY, 0x7000);
        assert_eq!(files.mapping(NOBODY, 0x7000, 0x2000), None);
    }

    #[test]
    fn links_tell_the_kind() {
        assert_eq!(kind(Path::new("/dev/kvm")), OtherFile::Kvm);
        assert_eq!(kind(Path::new("/memfd:ram (deleted)")), OtherFile::Memfd);
        assert_eq!(kind(Path::new("socket:[17]")), OtherFile::Null);
    }
}
