//! The kernels that can be booted, and the first file system that each is given.

mod build;
mod modules;
mod prebuilt;
mod selftests;
mod setup;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::archive::Archive;
use crate::cache::Cache;
use crate::failure::{Doing, Failure, Outcome};
use crate::options::Kernel;

pub(crate) use setup::{Setup, set_up_selftests, setup};

/// The series of Linux that both kernels belong to.
const SERIES: &str = "6.12";

/// The first process in the machine.
const INIT: &str = include_str!("../../init");

/// What a machine boots.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The compressed kernel.
    pub(crate) kernel: PathBuf,
    /// The modules it needs, with the order to load them in.
    modules: Option<PathBuf>,
    /// The shell and the tools of the first process.
    busybox: PathBuf,
}

impl Image {
    /// The kernel that was asked for, as the setup left it.
    pub(crate) fn find(kernel: &Kernel, cache: &Cache) -> Outcome<Self> {
        let missing = |what: &str| {
            Failure::new(format!(
                "{what} is not there yet: run `cargo vm setup` (docs/vm.md)"
            ))
        };
        let (kernel, modules) = match kernel {
            Kernel::Built => {
                let folder = build::cached(cache).ok_or_else(|| missing("the built kernel"))?;
                (folder.join(build::IMAGE), None)
            }
            Kernel::Debian => {
                let folder = prebuilt::cached(cache).ok_or_else(|| missing("Debian's kernel"))?;
                (
                    folder.join(prebuilt::IMAGE),
                    Some(folder.join(prebuilt::MODULES)),
                )
            }
            Kernel::Image(path) => (
                path.canonicalize()
                    .doing(format_args!("boot {}", path.display()))?,
                None,
            ),
        };
        let busybox = setup::cached_busybox(cache).ok_or_else(|| missing("busybox"))?;
        Ok(Self {
            kernel,
            modules,
            busybox,
        })
    }

    /// Writes the archive that the kernel unpacks when it starts.
    pub(crate) fn write_initrd(&self, path: &Path) -> Outcome<()> {
        File::create(path)
            .and_then(|file| self.archive(BufWriter::new(file)))
            .doing(format_args!("write {}", path.display()))
    }

    fn archive(&self, to: impl Write) -> io::Result<()> {
        let mut archive = Archive::new(to);
        // Linux gives the first process no output if this folder is missing.
        archive.folder("dev")?;
        archive.file("init", INIT.as_bytes())?;
        archive.file("busybox", &fs::read(&self.busybox)?)?;
        if let Some(modules) = &self.modules {
            archive.folder("modules")?;
            let order = fs::read_to_string(modules.join(modules::ORDER))?;
            for name in order.lines().chain([modules::ORDER]) {
                let content = fs::read(modules.join(name))?;
                archive.file(&format!("modules/{name}"), &content)?;
            }
        }
        archive.finish()
    }
}
