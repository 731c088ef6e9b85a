//! Whole role words: the text of an allocation leaves out parts of the role.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::CaptureError;
use super::instance;

/// An event probe on `kvm_mmu_get_page`, which says the whole role; gone when this is. Needs 5.15.
#[derive(Debug)]
pub struct RoleProbe {
    events: PathBuf,
}

impl RoleProbe {
    /// The event, as [`Setup::events`](super::Setup::events) names it.
    pub const EVENT: &'static str = "slat/sp_role";

    /// Adds it.
    ///
    /// # Errors
    /// There is no tracefs, no right to use it, or the kernel knows no such probes.
    pub fn add() -> Result<Self, CaptureError> {
        let events = instance::find()?.join("dynamic_events");
        let (name, of) = (Self::EVENT, "kvmmmu/kvm_mmu_get_page");
        let fields = "gfn=$gfn:x64 role=$role:x32 created=$created:u8";
        append(&events, &format!("e:{name} {of} {fields}"))?;
        Ok(Self { events })
    }
}

impl Drop for RoleProbe {
    fn drop(&mut self) {
        // Fails while somebody uses it, who will then remove it.
        let _removed = append(&self.events, &format!("-:{}", Self::EVENT));
    }
}

fn append(path: &Path, line: &str) -> Result<(), CaptureError> {
    let file = OpenOptions::new().append(true).open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .map_err(CaptureError::at(path))
}
