//! Where kernels are kept, so that they are built once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::failure::{Doing, Failure, Outcome};

/// A folder of folders, each complete from the moment it is there.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// `$SLAT_VM_CACHE`, else `slat-vm` where the user's caches are.
    pub(crate) fn of_user() -> Outcome<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let folder = if let Some(own) = set("SLAT_VM_CACHE") {
            PathBuf::from(own)
        } else if let Some(caches) = set("XDG_CACHE_HOME") {
            Path::new(&caches).join("slat-vm")
        } else if let Some(home) = set("HOME") {
            Path::new(&home).join(".cache/slat-vm")
        } else {
            return Err(Failure::new(
                "no place for the kernels: SLAT_VM_CACHE, XDG_CACHE_HOME or HOME has to be set",
            ));
        };
        fs::create_dir_all(&folder).doing(format_args!("make {}", folder.display()))?;
        let folder = folder
            .canonicalize()
            .doing(format_args!("use {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// The newest entry whose name begins and ends like this.
    pub(crate) fn newest(&self, prefix: &str, suffix: &str) -> Option<PathBuf> {
        let entries = fs::read_dir(&self.folder).ok()?.filter_map(Result::ok);
        entries
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.starts_with(prefix) && name.ends_with(suffix)
            })
            .max_by_key(|entry| entry.metadata().and_then(|data| data.modified()).ok())
            .map(|entry| entry.path())
    }

    /// The entry of this name, which `fill` makes in an empty folder if it is not there. It may use a second folder,
    /// which is gone afterwards.
    pub(crate) fn get_or_make(
        &self,
        name: &str,
        fill: impl FnOnce(&Path, &Path) -> Outcome<()>,
    ) -> Outcome<PathBuf> {
        let path = self.folder.join(name);
        if !path.exists() {
            let scratch = TempDir::with_prefix_in("scratch-", &self.folder)
                .doing(format_args!("make a folder in {}", self.folder.display()))?;
            let entry = scratch.path().join("entry");
            fs::create_dir(&entry).doing(format_args!("make {}", entry.display()))?;
            fill(&entry, scratch.path())?;
            fs::rename(&entry, &path).doing(format_args!("keep {}", path.display()))?;
        }
        Ok(path)
    }

    /// Keeps other setups waiting until the file is closed.
    pub(crate) fn lock(&self) -> Outcome<File> {
        let path = self.folder.join("lock");
        let doing = format!("lock {}", path.display());
        let file = File::create(&path).doing(&doing)?;
        if file.try_lock().is_err() {
            eprintln!("slat-vm: waiting for another setup");
            file.lock().doing(&doing)?;
        }
        Ok(file)
    }
}
