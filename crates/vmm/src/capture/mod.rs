//! The kernel's own account of what its MMU does: trace events of this process, captured. Linux only; needs root and tracefs.
//!
//! A [`Capture`] has a tracefs instance of its own, so that nobody else's tracing is disturbed. Only events of the threads of this
//! process are recorded, and of those that they start. What is written with [`Capture::mark`] stands between the events, in
//! one order with them. When the capture is dropped its instance goes; one that a crashed process left behind goes with the
//! next capture that is started.
//!
//! The text is read by [`traces::kernel`](crate::traces::kernel), and tables are rebuilt from it by
//! [`rebuild`](crate::rebuild).
//!
//! ```no_run
//! use slat_vmm::capture::{Capture, Setup};
//! use slat_vmm::rebuild::{Options, rebuild};
//!
//! let mut capture = Capture::start(&Setup::default())?;
//! capture.mark("OP guest vcpu=0 WRITE gpa=0x400000")?;
//! // ... run the guest ...
//! let captured = capture.stop()?;
//! assert_eq!(captured.lost.events(), 0);
//! let rebuilt = rebuild(&captured.text, &Options::default())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod instance;
mod lost;
mod role_probe;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use instance::Instance;
pub use lost::Lost;
pub use role_probe::RoleProbe;
use thiserror::Error;

/// Why nothing can be captured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// There is no tracefs.
    #[error("tracefs is not mounted; as root: mount -t tracefs nodev /sys/kernel/tracing")]
    NotMounted,
    /// The kernel has no events of KVM's MMU.
    #[error("{}: KVM's MMU has no events here; is kvm loaded?", path.display())]
    NoEvents {
        /// Where they would be.
        path: PathBuf,
    },
    /// A file of tracefs.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        error: io::Error,
    },
}

impl CaptureError {
    /// What went wrong with a file.
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |error| Self::File {
            path: path.to_owned(),
            error,
        }
    }
}

/// How fields are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Fields {
    /// As the kernel's maintainers wish to read them.
    #[default]
    Text,
    /// By name, with all bits: the roles of page tables are whole. Needs 6.4.
    Raw,
}

/// Whose events are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Whose {
    /// Those of the threads of this process, and of those that they start.
    #[default]
    Own,
    /// All. What the host's memory management does to a VM may happen in another process.
    Everybodys,
}

/// What stands before an event in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Context {
    /// Task, processor, clock.
    #[default]
    Shown,
    /// Nothing.
    Hidden,
}

/// What is captured, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Whose events.
    pub whose: Whose,
    /// What stands before them.
    pub context: Context,
    /// The buffer of each CPU, in KiB. An event of the TDP MMU takes some 40 bytes.
    pub buffer_kib: u32,
    /// How fields are printed.
    pub fields: Fields,
    /// The events, as `SYSTEM/NAME`. Those that a kernel does not have are left out.
    pub events: Vec<String>,
}

impl Default for Setup {
    /// 64 MiB for each CPU, fields as text, [`EVENTS`].
    fn default() -> Self {
        Self {
            whose: Whose::Own,
            context: Context::Shown,
            buffer_kib: 64 << 10,
            fields: Fields::Text,
            events: EVENTS.iter().map(|event| (*event).to_owned()).collect(),
        }
    }
}

/// The events that matter to page tables. Those of the guest's own tables do not.
pub const EVENTS: &[&str] = &[
    "kvmmmu/kvm_tdp_mmu_spte_changed",
    "kvmmmu/kvm_mmu_get_page",
    "kvmmmu/kvm_mmu_prepare_zap_page",
    "kvmmmu/kvm_mmu_set_spte",
    "kvmmmu/kvm_mmu_spte_requested",
    "kvmmmu/kvm_mmu_split_huge_page",
    "kvmmmu/kvm_mmu_zap_all_fast",
    "kvmmmu/fast_page_fault",
    "kvmmmu/mark_mmio_spte",
    "kvmmmu/check_mmio_spte",
    "kvmmmu/handle_mmio_page_fault",
    "kvm/kvm_page_fault",
    "kvm/kvm_unmap_hva_range",
    "kvm/kvm_age_hva",
    "kvm/kvm_test_age_hva",
    "kvm/kvm_mmio",
    "kvm/kvm_smm_transition",
];

/// Events that are being captured.
#[derive(Debug)]
pub struct Capture {
    // Closed first: an instance with an open file cannot be removed.
    marker: fs::File,
    instance: Instance,
    fields: Fields,
}

/// What was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The kernel's text, for [`traces::kernel::read`](crate::traces::kernel::read).
    pub text: String,
    /// What is missing in it.
    pub lost: Lost,
}

impl Capture {
    /// Starts to capture events of this process.
    ///
    /// # Errors
    /// There is no tracefs, no right to use it, or KVM has no events.
    pub fn start(setup: &Setup) -> Result<Self, CaptureError> {
        let instance = Instance::make(&instance::find()?)?;
        instance.write("tracing_on", "0")?;
        // One counter for all CPUs: events have one order.
        instance.write("trace_clock", "counter")?;
        instance.write("buffer_size_kb", &setup.buffer_kib.to_string())?;
        match setup.context {
            Context::Hidden => instance.write("options/context-info", "0")?,
            Context::Shown => instance.write("options/record-tgid", "1")?,
        }
        if setup.whose == Whose::Own {
            instance.write("options/event-fork", "1")?;
            instance.write("set_event_pid", &own_threads()?)?;
        }
        let mut found = 0;
        for event in &setup.events {
            found += usize::from(instance.enable(event)?);
        }
        if found == 0 {
            return Err(CaptureError::NoEvents {
                path: instance.path("events/kvmmmu"),
            });
        }
        let path = instance.path("trace_marker");
        let marker = fs::OpenOptions::new().write(true).open(&path);
        let marker = marker.map_err(CaptureError::at(&path))?;
        instance.write("tracing_on", "1")?;
        Ok(Self {
            instance,
            marker,
            fields: setup.fields,
        })
    }

    /// Writes a text among the events.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn mark(&mut self, text: &str) -> io::Result<()> {
        self.marker.write_all(text.as_bytes())
    }

    /// Gives what was captured since this was last asked, and goes on.
    ///
    /// # Errors
    /// A file of tracefs cannot be read or written.
    pub fn take(&mut self) -> Result<Captured, CaptureError> {
        let captured = self.pause()?;
        self.instance.write("trace", "")?;
        self.instance.write("tracing_on", "1")?;
        Ok(captured)
    }

    /// Captures nothing more, and gives what there is.
    ///
    /// # Errors
    /// A file of tracefs cannot be read.
    pub fn stop(self) -> Result<Captured, CaptureError> {
        self.pause()
    }

    fn pause(&self) -> Result<Captured, CaptureError> {
        self.instance.write("tracing_on", "0")?;
        let lost = Lost::of(&self.instance)?;
        let text = self.text()?;
        if self.fields == Fields::Text {
            return Ok(Captured { text, lost });
        }
        self.instance.write("options/fields", "1")?;
        let raw = self.text()?;
        let lines = raw.lines().zip(text.lines());
        let lines = lines.map(|(raw, text)| if is_unknown(raw) { text } else { raw });
        let text = lines.flat_map(|line| [line, "\n"]).collect();
        self.instance.write("options/fields", "0")?;
        Ok(Captured { text, lost })
    }

    fn text(&self) -> Result<String, CaptureError> {
        let path = self.instance.path("trace");
        let bytes = fs::read(&path).map_err(CaptureError::at(&path))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// What has no fields is not printed by name: the marks.
fn is_unknown(line: &str) -> bool {
    line.contains(": UNKNOWN TYPE ")
}

/// The threads of this process, as `set_event_pid` takes them.
fn own_threads() -> Result<String, CaptureError> {
    let path = Path::new("/proc/self/task");
    let mut threads = String::new();
    for thread in fs::read_dir(path).map_err(CaptureError::at(path))? {
        let thread = thread.map_err(CaptureError::at(path))?;
        threads.push_str(&thread.file_name().to_string_lossy());
        threads.push(' ');
    }
    Ok(threads)
}
