//! Programs that the runner needs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::failure::{Doing, Failure, Outcome};

/// The file of a program: of the folders of programs, unless the name has a folder itself.
pub(crate) fn find(name: impl AsRef<Path>) -> Option<PathBuf> {
    let name = name.as_ref();
    if name.components().count() > 1 {
        return name.canonicalize().ok();
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Runs it; its output is shown only if it fails.
pub(crate) fn run(command: &mut Command) -> Outcome<()> {
    finished(command).map(drop)
}

/// What it printed.
pub(crate) fn output(command: &mut Command) -> Outcome<String> {
    let output = finished(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The bytes it printed.
pub(crate) fn bytes(command: &mut Command) -> Outcome<Vec<u8>> {
    finished(command).map(|output| output.stdout)
}

fn finished(command: &mut Command) -> Outcome<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .doing(format_args!("start {name}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let line = command.get_args().fold(name, |line, argument| {
        format!("{line} {}", argument.to_string_lossy())
    });
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!(
        "`{line}` failed ({})\n{}",
        output.status,
        said.trim_end()
    )))
}
