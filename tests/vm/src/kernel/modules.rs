//! The modules that a prebuilt kernel needs in the machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Doing, Failure, Outcome};
use crate::tool;

/// KVM for AMD, the host's files, and the overlay that makes them writable.
const WANTED: [&str; 4] = ["9pnet_virtio", "9p", "overlay", "kvm_amd"];

/// The file that names the others, dependencies first.
pub(crate) const ORDER: &str = "order";

/// Copies the wanted modules and what they depend on, uncompressed, and writes their order.
pub(crate) fn collect(tree: &Path, to: &Path) -> Outcome<()> {
    let mut collected = Collected {
        known: find(tree)?,
        to: to.to_owned(),
        order: Vec::new(),
    };
    for name in WANTED {
        collected.add(name)?;
    }
    let order: String = collected
        .order
        .iter()
        .map(|name| format!("{name}.ko\n"))
        .collect();
    fs::write(to.join(ORDER), order).doing("write the order of modules")
}

/// Every module below a folder by its name.
fn find(folder: &Path) -> Outcome<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).doing(format_args!("read {}", folder.display()))?;
        for entry in entries {
            let path = entry
                .doing(format_args!("read {}", folder.display()))?
                .path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if let Some(name) = module_name(&path) {
                found.insert(name, path);
            }
        }
    }
    Ok(found)
}

/// A module's file may have dashes where its name has underscores.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, compression) = file.split_once(".ko")?;
    ["", ".xz", ".zst", ".gz"]
        .contains(&compression)
        .then(|| name.replace('-', "_"))
}

struct Collected {
    known: BTreeMap<String, PathBuf>,
    to: PathBuf,
    order: Vec<String>,
}

impl Collected {
    fn add(&mut self, name: &str) -> Outcome<()> {
        if self.order.iter().any(|done| done == name) {
            return Ok(());
        }
        let path = self
            .known
            .get(name)
            .ok_or_else(|| Failure::new(format!("the kernel's package has no module {name}")))?;
        let content = uncompressed(path)?;
        for dependency in dependencies(&content) {
            self.add(&dependency)?;
        }
        let copy = self.to.join(format!("{name}.ko"));
        fs::write(&copy, content).doing(format_args!("write {}", copy.display()))?;
        self.order.push(name.to_owned());
        Ok(())
    }
}

fn uncompressed(path: &Path) -> Outcome<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).doing(format_args!("read {}", path.display())),
    };
    tool::bytes(Command::new(program).arg("-dc").arg(path))
}

/// What a module says about itself: strings that end with a zero byte, one of them `depends=a,b`.
fn dependencies(module: &[u8]) -> Vec<String> {
    let line = module
        .split(|&byte| byte == 0)
        .find_map(|text| text.strip_prefix(b"depends="))
        .unwrap_or_default();
    String::from_utf8_lossy(line)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}
