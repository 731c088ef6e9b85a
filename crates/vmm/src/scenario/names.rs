//! What the names of a running scenario stand for.

use std::collections::BTreeMap;

use slat_memslot::{FileRef, GmemId, Hva, MapId, Outcome};

use super::Request;

/// The VM that each case starts with.
pub const DEFAULT_VM: &str = "vm";

/// The host memory that every scenario may name, with its length in bytes: `A` is writable, `UN` is not mapped, `RO`
/// is mapped read-only.
pub const HOST_AREAS: [(&str, u64); 3] = [("A", 1 << 30), ("UN", 2 << 20), ("RO", 2 << 20)];

/// A named range of host memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// The name in the text.
    pub name: String,
    /// The first byte.
    pub base: Hva,
    /// The length in bytes.
    pub len: u64,
}

impl Area {
    /// `len` bytes from `base` under `name`.
    pub fn new(name: impl Into<String>, base: Hva, len: u64) -> Self {
        Self {
            name: name.into(),
            base,
            len,
        }
    }

    /// How far `address` lies behind the first byte, when it is inside.
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.base.raw())?;
        (offset < self.len).then_some(offset)
    }
}

/// What the names of a scenario stand for on one machine.
///
/// A machine that runs a scenario keeps one: it enters cases and VMs as the steps say, and binds names as calls
/// succeed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Names {
    areas: Vec<Area>,
    vm: String,
    files: BTreeMap<String, (String, GmemId)>,
    maps: BTreeMap<String, (String, MapId, Hva)>,
}

impl Names {
    /// Knows host memory only; the current VM is [`DEFAULT_VM`].
    pub fn new(areas: impl IntoIterator<Item = Area>) -> Self {
        Self {
            areas: areas.into_iter().collect(),
            vm: DEFAULT_VM.to_owned(),
            ..Self::default()
        }
    }

    /// Forgets all files and mappings, and makes [`DEFAULT_VM`] current.
    pub fn enter_case(&mut self) {
        self.files.clear();
        self.maps.clear();
        self.enter_vm(DEFAULT_VM);
    }

    /// Makes VM `name` the current one.
    pub fn enter_vm(&mut self, name: &str) {
        name.clone_into(&mut self.vm);
    }

    /// Forgets what VM `name` has made; was it the current one, [`DEFAULT_VM`] is current then.
    pub fn drop_vm(&mut self, name: &str) {
        self.files.retain(|_, (vm, _)| vm != name);
        self.maps.retain(|_, (vm, ..)| vm != name);
        if self.vm == name {
            self.enter_vm(DEFAULT_VM);
        }
    }

    /// The current VM.
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// Binds the name that `request` gives to what it made.
    pub fn bind(&mut self, request: &Request, outcome: &Outcome) {
        let Some(name) = request.binds() else { return };
        let (name, vm) = (name.to_owned(), self.vm.clone());
        match *outcome {
            Outcome::Gmem(id) => drop(self.files.insert(name, (vm, id))),
            Outcome::Mapped(id, base) => drop(self.maps.insert(name, (vm, id, base))),
            _ => {}
        }
    }

    /// The file `name`, as the current VM sees it.
    pub fn file(&self, name: &str) -> Option<FileRef> {
        let (vm, id) = self.files.get(name)?;
        Some(if *vm == self.vm {
            FileRef::Gmem(*id)
        } else {
            FileRef::Foreign
        })
    }

    /// The name of the current VM's file `id`: of several, the first in the alphabet.
    pub fn file_name(&self, id: GmemId) -> Option<&str> {
        let own = |(_, (vm, known)): &(&String, &(String, GmemId))| *vm == self.vm && *known == id;
        self.files.iter().find(own).map(|(name, _)| name.as_str())
    }

    /// The name of the current VM's mapping `id`: of several, the first in the alphabet.
    pub fn map_name(&self, id: MapId) -> Option<&str> {
        let own =
            |(_, (vm, known, _)): &(&String, &(String, MapId, Hva))| *vm == self.vm && *known == id;
        self.maps.iter().find(own).map(|(name, _)| name.as_str())
    }

    /// The mapping `name`, when the current VM made it.
    pub fn map(&self, name: &str) -> Option<MapId> {
        let (vm, id, _) = self.maps.get(name)?;
        (*vm == self.vm).then_some(*id)
    }

    /// The first byte of the mapping or the host memory `name`.
    pub fn host(&self, name: &str) -> Option<Hva> {
        if let Some((_, _, base)) = self.maps.get(name) {
            return Some(*base);
        }
        let area = self.areas.iter().find(|area| area.name == name);
        area.map(|area| area.base)
    }
}
