//! A directory of tracefs with buffers and events of its own.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use super::CaptureError;

/// Where tracefs may be.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// What the names of our instances begin with; the process and a number follow.
const NAME: &str = "slat-";

/// Tracefs.
pub(super) fn find() -> Result<PathBuf, CaptureError> {
    let places = PLACES.into_iter().map(PathBuf::from);
    let mounted = |place: &PathBuf| place.join("instances").is_dir();
    places
        .into_iter()
        .find(mounted)
        .ok_or(CaptureError::NotMounted)
}

/// An instance; it goes when this does.
#[derive(Debug)]
pub(super) struct Instance {
    path: PathBuf,
}

impl Instance {
    /// Makes an instance, and removes those of processes that are gone.
    pub(super) fn make(tracefs: &Path) -> Result<Self, CaptureError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let instances = tracefs.join("instances");
        remove_orphans(&instances);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = instances.join(format!("{NAME}{}-{number}", process::id()));
        fs::create_dir(&path).map_err(CaptureError::at(&path))?;
        Ok(Self { path })
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    pub(super) fn write(&self, file: &str, text: &str) -> Result<(), CaptureError> {
        let path = self.path(file);
        fs::write(&path, text).map_err(CaptureError::at(&path))
    }

    /// Switches an event on; says whether the kernel has it.
    pub(super) fn enable(&self, event: &str) -> Result<bool, CaptureError> {
        let path = self.path(&format!("events/{event}/enable"));
        match fs::write(&path, "1") {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(CaptureError::at(&path)(error)),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Nothing can be done about a failure; the next capture tries again.
        let _removed = remove(&self.path);
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    fs::write(path.join("tracing_on"), "0")?;
    fs::write(path.join("events/enable"), "0")?;
    fs::remove_dir(path)
}

/// Removes the instances of processes that crashed.
fn remove_orphans(instances: &Path) {
    let entries = fs::read_dir(instances).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(NAME));
        let owner = owner.and_then(|rest| rest.split_once('-'));
        let process = owner.and_then(|(process, _)| process.parse::<u32>().ok());
        let gone = process.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists());
        if gone {
            let _removed = remove(&entry.path());
        }
    }
}
