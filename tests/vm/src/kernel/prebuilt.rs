//! Debian's own kernel, as its users run it.

use std::fs;
use std::path::PathBuf;

use crate::cache::Cache;
use crate::debian;
use crate::failure::{Doing, Outcome};
use crate::kernel::{SERIES, modules};

/// The files of an entry in the cache.
pub(crate) const IMAGE: &str = "vmlinuz";
pub(crate) const MODULES: &str = "modules";

const PREFIX: &str = "debian-";

/// What an earlier setup left.
pub(crate) fn cached(cache: &Cache) -> Option<PathBuf> {
    cache.newest(PREFIX, "")
}

/// Takes the newest kernel of the series from its package.
pub(crate) fn fetch(cache: &Cache) -> Outcome<PathBuf> {
    let package = debian::newest_of(&format!("linux-image-{SERIES}."), "-amd64-unsigned")?;
    let version = debian::candidate(&package)?;
    cache.get_or_make(&format!("{PREFIX}{version}"), |entry, scratch| {
        eprintln!("slat-vm: downloading {package} {version} (107 MB)");
        let tree = scratch.join("package");
        debian::unpack(&package, &tree)?;
        let boot = debian::find_file(&tree.join("boot"), "vmlinuz-", "")?;
        fs::copy(&boot, entry.join(IMAGE)).doing(format_args!("copy {}", boot.display()))?;
        let modules = entry.join(MODULES);
        fs::create_dir(&modules).doing(format_args!("make {}", modules.display()))?;
        // Since Debian 13 /lib is /usr/lib in packages too.
        let lib = [tree.join("usr/lib/modules"), tree.join("lib/modules")];
        let lib = lib.iter().find(|path| path.exists()).unwrap_or(&lib[1]);
        modules::collect(lib, &modules)
    })
}
