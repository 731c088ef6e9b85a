//! KVM's own selftests, built from Debian's source package of the kernel. Their sources are GPL and stay in the package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::cache::Cache;
use crate::debian;
use crate::failure::{Doing, Outcome};
use crate::kernel::build::{source_package, unpack};
use crate::tool;

const PREFIX: &str = "selftests-";

/// The programs, by their place in `tools/testing/selftests/kvm`.
const PROGRAMS: [&str; 7] = [
    "set_memory_region_test",
    "pre_fault_memory_test",
    "dirty_log_test",
    "x86_64/private_mem_conversions_test",
    "x86_64/private_mem_kvm_exits_test",
    "x86_64/smm_test",
    "x86_64/nx_huge_pages_test",
];

/// What of the kernel's tree they are built from.
const PARTS: [&str; 7] = [
    "tools", "include", "arch/x86", "scripts", "usr", "Makefile", "Kbuild",
];

/// What an earlier setup left, if it has all of them.
pub(crate) fn cached(cache: &Cache) -> Option<PathBuf> {
    let folder = cache.newest(PREFIX, "")?;
    let is_there = |program: &str| folder.join(name_of(program)).exists();
    PROGRAMS.into_iter().all(is_there).then_some(folder)
}

fn name_of(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// Builds them: statically, of the newest kernel of the series.
pub(crate) fn build(cache: &Cache) -> Outcome<PathBuf> {
    let package = source_package();
    let version = debian::candidate(&package)?;
    let name = format!("{PREFIX}{version}-{}", PROGRAMS.len());
    cache.get_or_make(&name, |entry, scratch| {
        let source = unpack(&package, &version, &PARTS, scratch)?;
        eprintln!("slat-vm: compiling KVM's selftests (half a minute on two cores)");
        let started = Instant::now();
        let output = scratch.join("build");
        compile(&source, &output)?;
        for program in PROGRAMS {
            let to = entry.join(name_of(program));
            fs::copy(output.join(program), to).doing(format_args!("copy {program}"))?;
        }
        eprintln!("slat-vm: compiled in {} s", started.elapsed().as_secs());
        Ok(())
    })
}

fn compile(source: &Path, output: &Path) -> Outcome<()> {
    fs::create_dir_all(output.join("x86_64")).doing(format_args!("make {}", output.display()))?;
    tool::run(make(source).arg("headers"))?;
    let wanted = PROGRAMS.map(|program| output.join(program));
    tool::run(
        make(&source.join("tools/testing/selftests/kvm"))
            .arg(format!("OUTPUT={}", output.display()))
            .arg("USERLDFLAGS=-static")
            .args(wanted),
    )
}

/// At low priority. What it prints is shown only if it fails.
fn make(folder: &Path) -> Command {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut make = Command::new("nice");
    make.args(["-n", "10", "make", "-C"]).arg(folder);
    make.arg(format!("-j{jobs}")).arg("ARCH=x86_64");
    make
}
