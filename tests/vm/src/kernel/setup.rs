//! Everything that has to be there before a machine can be started.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cache::Cache;
use crate::debian;
use crate::failure::{Doing, Failure, Outcome};
use crate::kernel::{build, prebuilt, selftests};

/// What to set up.
#[derive(Args, Clone, Debug)]
pub(crate) struct Setup {
    /// This kernel alone
    #[arg(long, value_enum)]
    kernel: Option<Which>,
    /// Take newer packages, if there are any, although the cache has a kernel
    #[arg(long)]
    update: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    /// From Debian's source package
    Built,
    /// Debian's own
    Debian,
    /// None, but KVM's selftests
    Selftests,
}

/// Programs and the packages they come in.
const RUN: [(&str, &str); 2] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
];
const UNPACK: [(&str, &str); 1] = [("xz", "xz-utils")];
const BUILD: [(&str, &str); 7] = [
    ("gcc", "gcc"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("lz4", "lz4"),
    ("/usr/include/gelf.h", "libelf-dev"),
];

const BUSYBOX: &str = "busybox-static";

/// The first process's tools, if an earlier setup left them.
pub(crate) fn cached_busybox(cache: &Cache) -> Option<PathBuf> {
    Some(cache.newest(BUSYBOX, "")?.join("busybox"))
}

/// Installs, downloads and builds what is missing.
pub(crate) fn setup(what: &Setup, cache: &Cache) -> Outcome<()> {
    let _lock = cache.lock()?;
    let wants = |which| what.kernel.is_none_or(|only| only == which);
    debian::install_missing(&RUN)?;
    if what.update || cached_busybox(cache).is_none() {
        fetch_busybox(cache)?;
    }
    if wants(Which::Debian) {
        let cached = prebuilt::cached(cache).filter(|_| !what.update);
        let folder = match cached {
            Some(folder) => folder,
            None => {
                debian::install_missing(&UNPACK)?;
                debian::require_apt()?;
                prebuilt::fetch(cache)?
            }
        };
        eprintln!("slat-vm: Debian's kernel is in {}", folder.display());
    }
    if wants(Which::Built) {
        let cached = build::cached(cache).filter(|_| !what.update);
        let folder = match cached {
            Some(folder) => folder,
            None => {
                debian::install_missing(&[&UNPACK[..], &BUILD].concat())?;
                debian::require_apt()?;
                build::build(cache)?
            }
        };
        eprintln!("slat-vm: the built kernel is in {}", folder.display());
    }
    if wants(Which::Selftests) {
        let cached = selftests::cached(cache).filter(|_| !what.update);
        let folder = match cached {
            Some(folder) => folder,
            None => {
                debian::install_missing(&[&UNPACK[..], &BUILD].concat())?;
                debian::require_apt()?;
                selftests::build(cache)?
            }
        };
        eprintln!("slat-vm: KVM's selftests are in {}", folder.display());
    }
    Ok(())
}

/// KVM's selftests, built if they are not there yet.
pub(crate) fn set_up_selftests(cache: &Cache) -> Outcome<PathBuf> {
    if selftests::cached(cache).is_none() {
        let what = Setup {
            kernel: Some(Which::Selftests),
            update: false,
        };
        setup(&what, cache)?;
    }
    selftests::cached(cache).ok_or_else(|| Failure::new("KVM's selftests are not in the cache"))
}

fn fetch_busybox(cache: &Cache) -> Outcome<PathBuf> {
    debian::require_apt()?;
    let version = debian::candidate(BUSYBOX)?;
    cache.get_or_make(&format!("{BUSYBOX}-{version}"), |entry, scratch| {
        eprintln!("slat-vm: downloading {BUSYBOX} {version}");
        let tree = scratch.join("package");
        debian::unpack(BUSYBOX, &tree)?;
        let places = [tree.join("usr/bin/busybox"), tree.join("bin/busybox")];
        let program = places
            .iter()
            .find(|path| path.exists())
            .unwrap_or(&places[0]);
        std::fs::copy(program, entry.join("busybox"))
            .doing(format_args!("copy {}", program.display()))
            .map(drop)
    })
}
