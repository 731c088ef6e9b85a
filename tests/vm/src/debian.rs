//! Packages of Debian: what is installed, what can be had, and what is in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Doing, Failure, Outcome};
use crate::tool;

/// Installs what `wanted` names (a file that has to exist in a folder of programs or at its path, and its package) and
/// the machine lacks.
pub(crate) fn install_missing(wanted: &[(&str, &str)]) -> Outcome<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(file, _)| tool::find(file).is_none())
        .map(|&(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" ");
    require_apt()?;
    if !is_root() {
        return Err(Failure::lacking(format!(
            "packages are missing, and only root can install them:\n    sudo apt-get install --no-install-recommends {missing}"
        )));
    }
    eprintln!("slat-vm: installing {missing}");
    update_lists_once()?;
    tool::run(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(missing.split(' ')),
    )
    .map_err(Failure::for_lack)
}

/// Debian's tools are needed for Debian's packages.
pub(crate) fn require_apt() -> Outcome<()> {
    if ["apt-get", "apt-cache", "dpkg-deb"]
        .into_iter()
        .all(|name| tool::find(name).is_some())
    {
        return Ok(());
    }
    Err(Failure::lacking(
        "the kernels are made from Debian's packages, which needs apt-get and dpkg-deb. \
         Elsewhere, run the setup in a container of Debian and copy its cache (docs/vm.md)",
    ))
}

fn is_root() -> bool {
    tool::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// The lists of packages may be missing (as in an image of a container) or old, but root alone can fetch them.
fn update_lists_once() -> Outcome<()> {
    static DONE: std::sync::Once = std::sync::Once::new();
    let mut outcome = Ok(());
    DONE.call_once(|| outcome = tool::run(Command::new("apt-get").arg("update")));
    outcome.map_err(Failure::for_lack)
}

/// The newest package among those whose name consists of `prefix`, a number and `suffix` with whatever Debian puts
/// between (`+deb12`), but no other flavour.
pub(crate) fn newest_of(prefix: &str, suffix: &str) -> Outcome<String> {
    let find = || -> Outcome<Option<String>> {
        let names = tool::output(Command::new("apt-cache").args(["pkgnames", prefix]))?;
        let numbered = names.lines().filter_map(|name| {
            let middle = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
            let digits = middle
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(middle.len());
            let number: u32 = middle[..digits].parse().ok()?;
            (!middle.contains('-')).then_some((number, name.to_owned()))
        });
        Ok(numbered.max().map(|(_, name)| name))
    };
    with_lists(find, &format!("{prefix}*{suffix}"))
}

/// The version of a package that would be installed.
pub(crate) fn candidate(package: &str) -> Outcome<String> {
    let find = || -> Outcome<Option<String>> {
        let policy = tool::output(
            Command::new("apt-cache")
                .env("LC_ALL", "C")
                .args(["policy", package]),
        )?;
        let line = policy
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "));
        Ok(line
            .filter(|version| *version != "(none)")
            .map(str::to_owned))
    };
    with_lists(find, package)
}

/// What `find` finds in the lists of packages, which are fetched if it finds nothing.
fn with_lists(find: impl Fn() -> Outcome<Option<String>>, what: &str) -> Outcome<String> {
    if let Some(found) = find()? {
        return Ok(found);
    }
    if is_root() {
        update_lists_once()?;
        if let Some(found) = find()? {
            return Ok(found);
        }
    }
    Err(Failure::lacking(format!(
        "apt knows no package {what}; perhaps `apt-get update` helps"
    )))
}

/// The version that is installed.
pub(crate) fn installed(package: &str) -> Option<String> {
    let query = ["-W", "-f", "${db:Status-Status} ${Version}", package];
    let text = tool::output(Command::new("dpkg-query").args(query)).ok()?;
    text.strip_prefix("installed ").map(str::to_owned)
}

/// Downloads a package and unpacks it into `to`. Installs nothing.
pub(crate) fn unpack(package: &str, to: &Path) -> Outcome<()> {
    fs::create_dir_all(to).doing(format_args!("make {}", to.display()))?;
    tool::run(
        Command::new("apt-get")
            .current_dir(to)
            // Its other user cannot write here.
            .args(["-o", "APT::Sandbox::User=root", "download", package]),
    )
    .map_err(Failure::for_lack)?;
    let file = find_file(to, "", ".deb")?;
    tool::run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(to))?;
    fs::remove_file(&file).doing(format_args!("remove {}", file.display()))
}

/// A file of a folder, by how its name begins and ends.
pub(crate) fn find_file(folder: &Path, prefix: &str, suffix: &str) -> Outcome<PathBuf> {
    let entries = fs::read_dir(folder).doing(format_args!("read {}", folder.display()))?;
    entries
        .filter_map(Result::ok)
        .find(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(prefix) && name.ends_with(suffix)
        })
        .map(|entry| entry.path())
        .ok_or_else(|| Failure::new(format!("no {prefix}*{suffix} in {}", folder.display())))
}
