//! One run of one program in the machine.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::emulator;
use crate::failure::{Doing, Failure, Outcome};
use crate::kernel::Image;
use crate::options::Machine;
use crate::tool;

/// Runs `program` with `arguments` in the folder that is current, with the variables of this process. Passes its
/// output on while it runs, and returns its exit status: 128 and the signal's number if one ended it.
pub(crate) fn run(
    machine: &Machine,
    image: &Image,
    program: &Path,
    arguments: &[OsString],
) -> Outcome<u8> {
    let job = Job::new(machine, image, program, arguments)?;
    let end = job.wait(machine);
    if let Some(kept) = &machine.console {
        fs::copy(job.path("console"), kept)
            .doing(format_args!("write the console to {}", kept.display()))?;
    }
    job.show_warnings();
    end
}

/// The folder of a run, and the machine that works on it.
struct Job {
    folder: TempDir,
    writable: Vec<PathBuf>,
    image: Image,
}

impl Job {
    fn new(
        machine: &Machine,
        image: &Image,
        program: &Path,
        arguments: &[OsString],
    ) -> Outcome<Self> {
        let folder = TempDir::with_prefix("slat-vm-").doing("make a folder for the run")?;
        let writable = machine
            .write
            .iter()
            .map(|folder| {
                folder
                    .canonicalize()
                    .doing(format_args!("share {}", folder.display()))
            })
            .collect::<Outcome<Vec<_>>>()?;
        let job = Self {
            folder,
            writable,
            image: image.clone(),
        };
        let program = tool::find(program)
            .ok_or_else(|| Failure::new(format!("there is no {}", program.display())))?;
        job.write("command", &script(&program, arguments)?)?;
        job.write("writable", job.writable_list().as_bytes())?;
        for name in ["stdout", "stderr", "console"] {
            job.write(name, &[])?;
        }
        image.write_initrd(&job.path("initrd"))?;
        Ok(job)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Outcome<()> {
        let path = self.path(name);
        fs::write(&path, content).doing(format_args!("write {}", path.display()))
    }

    /// The writable shares: tag and folder.
    fn shares(&self) -> Vec<(String, &Path)> {
        let tags = (0..).map(|number| format!("write{number}"));
        tags.zip(self.writable.iter().map(PathBuf::as_path))
            .collect()
    }

    fn writable_list(&self) -> String {
        let line = |(tag, folder): &(String, &Path)| format!("{tag} {}\n", folder.display());
        self.shares().iter().map(line).collect()
    }

    /// Boots the machine and stays with it to its end.
    fn wait(&self, machine: &Machine) -> Outcome<u8> {
        let shares = self.shares();
        let mut qemu = emulator::command(machine, &self.image, self.folder.path(), &shares);
        qemu.stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(File::create(self.path("qemu")).doing("write a log of QEMU")?);
        let child = qemu
            .spawn()
            .doing("start QEMU (`cargo vm setup` installs it)")?;
        let mut output = Output::new(self)?;
        let end = wait_for(child, Duration::from_secs(machine.timeout), &mut output)?;
        output.pass_on()?;
        match end {
            None => Err(Failure::late(format!(
                "the program did not end within {} seconds, so the machine was stopped (--timeout)",
                machine.timeout
            ))),
            Some(end) => self.status(end),
        }
    }

    /// The program's exit status, as the machine left it.
    fn status(&self, end: ExitStatus) -> Outcome<u8> {
        let text = fs::read_to_string(self.path("status")).unwrap_or_default();
        text.trim().parse().map_err(|_| {
            Failure::new(format!(
                "the machine ended without a result (QEMU: {end})\n{}{}",
                self.last_lines("qemu", 10),
                self.last_lines("console", 30)
            ))
        })
    }

    fn last_lines(&self, name: &str, count: usize) -> String {
        let text = fs::read(self.path(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(count);
        let line = |line: &&str| format!("  {name}: {line}\n");
        lines[from..].iter().map(line).collect()
    }

    /// A kernel that finds its own MMU wrong says so on the console only.
    fn show_warnings(&self) {
        let text = fs::read(self.path("console")).unwrap_or_default();
        let signs = ["WARNING:", "BUG:", "Oops:", "Kernel panic"];
        for line in String::from_utf8_lossy(&text).lines() {
            if signs.iter().any(|sign| line.contains(sign)) {
                eprintln!("slat-vm: the kernel says: {}", line.trim_end());
            }
        }
    }
}

/// What the machine's shell carries out: variables, folder, program.
fn script(program: &Path, arguments: &[OsString]) -> Outcome<Vec<u8>> {
    let mut script = Vec::new();
    for (name, value) in std::env::vars_os() {
        if is_shell_name(name.as_bytes()) {
            script.extend_from_slice(b"export ");
            script.extend_from_slice(name.as_bytes());
            script.push(b'=');
            quote(&mut script, value.as_bytes());
            script.push(b'\n');
        }
    }
    let folder = std::env::current_dir().doing("name the current folder")?;
    script.extend_from_slice(b"cd ");
    quote(&mut script, folder.as_os_str().as_bytes());
    script.extend_from_slice(b" || exit 125\nexec ");
    quote(&mut script, program.as_os_str().as_bytes());
    for argument in arguments {
        script.push(b' ');
        quote(&mut script, argument.as_bytes());
    }
    script.push(b'\n');
    Ok(script)
}

fn is_shell_name(name: &[u8]) -> bool {
    let starts = name
        .first()
        .is_some_and(|&byte| byte == b'_' || byte.is_ascii_alphabetic());
    starts
        && name
            .iter()
            .all(|&byte| byte == b'_' || byte.is_ascii_alphanumeric())
}

/// Within single quotes a shell takes every byte for itself but the quote.
fn quote(script: &mut Vec<u8>, text: &[u8]) {
    script.push(b'\'');
    for &byte in text {
        match byte {
            b'\'' => script.extend_from_slice(b"'\\''"),
            _ => script.push(byte),
        }
    }
    script.push(b'\'');
}

/// The two streams of the program, as far as they have been passed on.
struct Output {
    stdout: File,
    stderr: File,
}

impl Output {
    fn new(job: &Job) -> Outcome<Self> {
        let open = |name| File::open(job.path(name)).doing("read the program's output");
        Ok(Self {
            stdout: open("stdout")?,
            stderr: open("stderr")?,
        })
    }

    /// Passes on what is new.
    fn pass_on(&mut self) -> Outcome<()> {
        let doing = "pass the program's output on";
        copy(&mut self.stdout, &mut io::stdout().lock()).doing(doing)?;
        copy(&mut self.stderr, &mut io::stderr().lock()).doing(doing)
    }
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    io::copy(from, to)?;
    to.flush()
}

/// Waits for the emulator and passes output on meanwhile; nothing if it had to be killed.
fn wait_for(mut qemu: Child, limit: Duration, output: &mut Output) -> Outcome<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(end) = qemu.try_wait().doing("wait for QEMU")? {
            return Ok(Some(end));
        }
        let late = started.elapsed() >= limit;
        let passed = output.pass_on();
        if late || passed.is_err() {
            qemu.kill().doing("stop QEMU")?;
            qemu.wait().doing("wait for QEMU")?;
            passed?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
