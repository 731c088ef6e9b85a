//! The kernel that is built from Debian's source package.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cache::Cache;
use crate::debian;
use crate::failure::{Doing, Failure, Outcome};
use crate::kernel::SERIES;
use crate::tool;

/// The file of an entry in the cache.
pub(crate) const IMAGE: &str = "bzImage";

const PREFIX: &str = "built-";

/// What the kernel has beyond `tinyconfig`.
const CONFIG: &str = include_str!("../../kernel.config");

/// What an earlier setup left, if it was made with the options of today.
pub(crate) fn cached(cache: &Cache) -> Option<PathBuf> {
    cache.newest(PREFIX, &suffix())
}

/// Another configuration is another kernel. FNV-1a, since the number has to stay the same for ever.
fn suffix() -> String {
    let hash = CONFIG
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("-{hash:016x}")
}

/// Builds the newest kernel of the series.
pub(crate) fn build(cache: &Cache) -> Outcome<PathBuf> {
    let package = source_package();
    let version = debian::candidate(&package)?;
    let name = format!("{PREFIX}{version}{}", suffix());
    cache.get_or_make(&name, |entry, scratch| {
        let source = unpack(&package, &version, &[], scratch)?;
        let output = scratch.join("build");
        configure(&source, &output)?;
        compile(&output, &entry.join("log"))?;
        for (from, to) in [("arch/x86/boot/bzImage", IMAGE), (".config", "config")] {
            fs::copy(output.join(from), entry.join(to)).doing(format_args!("copy {from}"))?;
        }
        Ok(())
    })
}

/// The package with the kernel's source.
pub(crate) fn source_package() -> String {
    format!("linux-source-{SERIES}")
}

/// The unpacked tree, or these parts of it; the archive of an installed package serves if it is of the right version.
pub(crate) fn unpack(
    package: &str,
    version: &str,
    parts: &[&str],
    scratch: &Path,
) -> Outcome<PathBuf> {
    let mut archive = Path::new("/usr/src").join(format!("{package}.tar.xz"));
    if debian::installed(package).as_deref() != Some(version) || !archive.exists() {
        eprintln!("slat-vm: downloading {package} {version} (152 MB)");
        let tree = scratch.join("package");
        debian::unpack(package, &tree)?;
        archive = tree.join(format!("usr/src/{package}.tar.xz"));
    }
    eprintln!("slat-vm: unpacking {}", archive.display());
    tool::run(
        Command::new("tar")
            .arg("-C")
            .arg(scratch)
            .arg("-xf")
            .arg(&archive)
            .args(parts.iter().map(|part| format!("{package}/{part}"))),
    )?;
    Ok(scratch.join(package))
}

fn configure(source: &Path, output: &Path) -> Outcome<()> {
    fs::create_dir(output).doing(format_args!("make {}", output.display()))?;
    let mut tiny = Command::new("make");
    tiny.arg("-C").arg(source);
    tiny.arg(format!("O={}", output.display()))
        .arg("tinyconfig");
    tool::run(&mut tiny)?;
    let fragment = output.join("fragment");
    fs::write(&fragment, CONFIG).doing(format_args!("write {}", fragment.display()))?;
    tool::run(
        Command::new(source.join("scripts/kconfig/merge_config.sh"))
            .current_dir(output)
            .args(["-m", ".config", "fragment"]),
    )?;
    tool::run(
        Command::new("make")
            .arg("-C")
            .arg(output)
            .arg("olddefconfig"),
    )?;
    check_configuration(&output.join(".config"))
}

/// Kconfig drops what another option rules out, and says nothing.
fn check_configuration(path: &Path) -> Outcome<()> {
    let text = fs::read_to_string(path).doing(format_args!("read {}", path.display()))?;
    let given: Vec<&str> = text.lines().collect();
    let lost: Vec<&str> = CONFIG
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !given.contains(line))
        .collect();
    if lost.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "this kernel cannot have {}",
        lost.join(", ")
    )))
}

/// Compiles at low priority, and says every now and then how far it is.
fn compile(output: &Path, log: &Path) -> Outcome<()> {
    const FILES: u32 = 1340;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    eprintln!("slat-vm: compiling the kernel (some 7 minutes on two cores)");
    let started = Instant::now();
    let mut make = Command::new("nice");
    make.args(["-n", "10", "make", "-C"]).arg(output);
    make.arg(format!("-j{jobs}")).arg("bzImage");
    make.stdin(Stdio::null()).stdout(Stdio::piped());
    make.stderr(File::create(log).doing(format_args!("write {}", log.display()))?);
    let mut make = make.spawn().doing("start make")?;
    if let Some(lines) = make.stdout.take() {
        report_progress(BufReader::new(lines), FILES, started);
    }
    let end = make.wait().doing("wait for make")?;
    if end.success() {
        eprintln!("slat-vm: compiled in {} s", started.elapsed().as_secs());
        return Ok(());
    }
    let said = fs::read_to_string(log).unwrap_or_default();
    Err(Failure::new(format!("the kernel does not compile\n{said}")))
}

fn report_progress(lines: impl BufRead, files: u32, started: Instant) {
    const STEP: Duration = Duration::from_secs(15);
    let mut compiled = 0_u32;
    let mut next = STEP;
    for line in lines.lines().map_while(Result::ok) {
        compiled += u32::from(line.trim_start().starts_with("CC "));
        if started.elapsed() >= next {
            next += STEP;
            let seconds = started.elapsed().as_secs();
            eprintln!("slat-vm: {compiled} of some {files} files, {seconds} s");
        }
    }
}
