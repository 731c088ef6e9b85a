//! A call whose files, mappings and host memory are names.

use slat_memslot::{Call, FileRef, GmemId, MapId};

use super::{Area, Names};

/// A call as a scenario writes it: with names where a running machine has numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub(super) template: Call,
    pub(super) file: Option<String>,
    pub(super) host: Option<String>,
    pub(super) binds: Option<String>,
}

/// A name stands for nothing that the call could use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbound {
    /// No file of this name is known.
    #[error("{0}: no guest_memfd of this name")]
    File(String),
    /// The file belongs to another VM, whose calls on it cannot be made from here.
    #[error("{0}: the guest_memfd belongs to another VM")]
    ForeignFile(String),
    /// No mapping of this name belongs to the current VM.
    #[error("{0}: no mapping of this name in this VM")]
    Map(String),
    /// No host memory of this name is known.
    #[error("{0}: no host memory or mapping of this name")]
    Host(String),
}

impl Request {
    /// A call without names.
    pub(super) fn plain(template: Call) -> Self {
        Self {
            template,
            file: None,
            host: None,
            binds: None,
        }
    }

    /// `call` with the names that `names` knows for its files and mappings, and its host memory as an offset from
    /// `host` where it lies in there; what has no name is called by its number, `g0` or `m0`.
    ///
    /// A call that makes a file or a mapping gives it no name; see [`Request::named`].
    pub fn of(call: &Call, names: &Names, host: Option<&Area>) -> Self {
        let mut request = Self::plain(call.clone());
        match &mut request.template {
            Call::SetRegion(region) => {
                if let FileRef::Gmem(id) = region.gmem {
                    request.file = names.file_name(id).map(str::to_owned);
                }
                if let Some((area, offset)) =
                    host.and_then(|area| Some((area, area.offset_of(region.hva)?)))
                {
                    region.hva = offset;
                    request.host = Some(area.name.clone());
                }
            }
            Call::File(id, _) => request.file = names.file_name(*id).map(str::to_owned),
            Call::Map(id, _) => request.host = names.map_name(*id).map(str::to_owned),
            Call::Contents(call) => {
                let address = super::contents::host_address(call);
                let placed = address.and_then(|at| Some((host?.offset_of(*at)?, at)));
                if let Some((offset, address)) = placed {
                    *address = offset;
                    request.host = host.map(|area| area.name.clone());
                }
            }
            Call::Sev(call) => {
                let address = super::sev::host_address(call);
                let placed = address.and_then(|at| Some((host?.offset_of(*at)?, at)));
                if let Some((offset, address)) = placed {
                    *address = offset;
                    request.host = host.map(|area| area.name.clone());
                }
            }
            Call::Tdx(call) => {
                let place = |at: &u64| host.and_then(|area| Some((area, area.offset_of(*at)?)));
                if let Some(address) = super::tdx::host_address(call) {
                    if let Some((area, offset)) = place(address) {
                        *address = offset;
                        request.host = Some(area.name.clone());
                    }
                }
            }
            _ => {}
        }
        request
    }

    /// The same giving `name` to what it makes.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.binds = Some(name.into());
        self
    }

    /// The word that the line begins with, such as `set_user_memory_region`.
    pub fn operation(call: &Call) -> &'static str {
        super::write::operation(call)
    }

    /// The call with its names left blank: where there is a [`file`](Self::file), file and mapping numbers are 0, and with a
    /// [`host`](Self::host) the address is the offset from it.
    pub fn template(&self) -> &Call {
        &self.template
    }

    /// The name of the guest_memfd that the call uses.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The name of the mapping or of the host memory that the call uses.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The name that stands for the new file or mapping once the call has succeeded.
    pub fn binds(&self) -> Option<&str> {
        self.binds.as_deref()
    }

    /// The call with the numbers that the names stand for.
    pub fn resolve(&self, names: &Names) -> Result<Call, Unbound> {
        let mut call = self.template.clone();
        match &mut call {
            Call::SetRegion(region) => {
                region.gmem = self.resolve_file(names, region.gmem)?;
                region.hva = self.resolve_address(names, region.hva)?;
            }
            Call::File(id, _) => *id = self.own_file(names, *id)?,
            Call::Map(id, _) => *id = self.map(names, *id)?,
            Call::Contents(call) => {
                if let Some(address) = super::contents::host_address(call) {
                    *address = self.resolve_address(names, *address)?;
                }
            }
            Call::Sev(call) => {
                if let Some(address) = super::sev::host_address(call) {
                    *address = self.resolve_address(names, *address)?;
                }
            }
            Call::Tdx(call) => {
                if let Some(address) = super::tdx::host_address(call) {
                    *address = self.resolve_address(names, *address)?;
                }
            }
            _ => {}
        }
        Ok(call)
    }

    fn resolve_file(&self, names: &Names, plain: FileRef) -> Result<FileRef, Unbound> {
        let Some(name) = &self.file else {
            return Ok(plain);
        };
        let file = names.file(name);
        file.ok_or_else(|| Unbound::File(name.clone()))
    }

    fn own_file(&self, names: &Names, plain: GmemId) -> Result<GmemId, Unbound> {
        let Some(name) = &self.file else {
            return Ok(plain);
        };
        match names.file(name) {
            Some(FileRef::Gmem(id)) => Ok(id),
            Some(_) => Err(Unbound::ForeignFile(name.clone())),
            None => Err(Unbound::File(name.clone())),
        }
    }

    fn map(&self, names: &Names, plain: MapId) -> Result<MapId, Unbound> {
        let Some(name) = &self.host else {
            return Ok(plain);
        };
        let map = names.map(name);
        map.ok_or_else(|| Unbound::Map(name.clone()))
    }

    /// The address, past the end of the address space as well: a wrong value may be what one asks about.
    fn resolve_address(&self, names: &Names, plain: u64) -> Result<u64, Unbound> {
        let Some(name) = &self.host else {
            return Ok(plain);
        };
        let base = names.host(name);
        let base = base.ok_or_else(|| Unbound::Host(name.clone()))?;
        Ok(base.raw().wrapping_add(plain))
    }
}
