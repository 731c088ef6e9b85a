//! The kernel's trace buffer as a journal: operations and the events that they cause, in one order.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::driver::Journal;

/// An instance of tracefs of this process's own, with the events of KVM's MMU.
///
/// Events of all processes are in it: what the host's memory management does to a VM may happen in another one. So that
/// nobody else's are, no other VM may run meanwhile.
#[derive(Debug)]
pub struct Trace {
    instance: PathBuf,
    root: PathBuf,
    marker: File,
    probe: bool,
}

/// Where tracefs may be mounted.
const MOUNTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// The events of the MMU that say nothing about the host's tables.
const GUEST_WALKS: [&str; 5] = [
    "kvm_mmu_pagetable_walk",
    "kvm_mmu_paging_element",
    "kvm_mmu_set_accessed_bit",
    "kvm_mmu_set_dirty_bit",
    "kvm_mmu_walker_error",
];
/// What is worth knowing beside them.
const OF_KVM: [&str; 4] = [
    "kvm_page_fault",
    "kvm_unmap_hva_range",
    "kvm_age_hva",
    "kvm_smm_transition",
];
/// The text of an allocation leaves out parts of the role.
const ROLE_PROBE: &str =
    "e:slat/sp_role kvmmmu/kvm_mmu_get_page gfn=$gfn:x64 role=$role:x32 created=$created:u8";
/// For each processor.
const BUFFER_KIB: &str = "98304";

impl Trace {
    /// Makes an instance, and begins.
    ///
    /// # Errors
    /// There is no tracefs, no right to use it, or KVM has no such events.
    pub fn start() -> io::Result<Self> {
        let mounted = MOUNTS.iter().map(Path::new);
        let root = mounted
            .filter(|at| at.join("instances").is_dir())
            .find(|at| at.join("events/kvmmmu").is_dir());
        let root = root.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "no tracefs with events of KVM's MMU",
            )
        })?;
        let instance = root.join(format!("instances/slat-{}", std::process::id()));
        fs::create_dir(&instance)?;
        let marker = OpenOptions::new()
            .write(true)
            .open(instance.join("trace_marker"));
        let mut trace = Self {
            marker: marker.inspect_err(|_| drop(fs::remove_dir(&instance)))?,
            instance,
            root: root.to_owned(),
            probe: false,
        };
        trace.set_up()?;
        Ok(trace)
    }

    fn set_up(&mut self) -> io::Result<()> {
        self.write("tracing_on", "0")?;
        self.write("buffer_size_kb", BUFFER_KIB)?;
        self.write("trace_clock", "counter")?;
        self.write("options/overwrite", "0")?;
        self.write("options/context-info", "0")?;
        self.write("events/kvmmmu/enable", "1")?;
        for event in GUEST_WALKS {
            let path = format!("events/kvmmmu/{event}/enable");
            if self.instance.join(&path).exists() {
                self.write(&path, "0")?;
            }
        }
        for event in OF_KVM {
            self.write(&format!("events/kvm/{event}/enable"), "1")?;
        }
        self.probe = self.probe_roles().is_ok();
        self.write("tracing_on", "1")
    }

    fn probe_roles(&self) -> io::Result<()> {
        // It is there already if somebody else has it.
        let _ = append(&self.root.join("dynamic_events"), ROLE_PROBE);
        self.write("events/slat/sp_role/enable", "1")
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        let path = self.instance.join(file);
        fs::write(&path, text)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Whether whole role words are recorded.
    pub fn has_roles(&self) -> bool {
        self.probe
    }

    /// What was recorded since this was last asked, as the text of a recording.
    ///
    /// # Errors
    /// It cannot be read, or events were lost.
    pub fn take(&mut self) -> io::Result<String> {
        self.write("tracing_on", "0")?;
        let lost = self.lost()?;
        let text = fs::read_to_string(self.instance.join("trace"))?;
        self.write("trace", "")?;
        self.write("tracing_on", "1")?;
        if lost > 0 {
            return Err(io::Error::other(format!("{lost} events were lost")));
        }
        Ok(text
            .lines()
            .filter_map(recorded)
            .fold(String::new(), |all, line| all + &line + "\n"))
    }

    /// How many events found no room.
    fn lost(&self) -> io::Result<u64> {
        let mut lost = 0;
        for cpu in fs::read_dir(self.instance.join("per_cpu"))? {
            let stats = fs::read_to_string(cpu?.path().join("stats"))?;
            for line in stats.lines() {
                let (name, count) = line.split_once(": ").unwrap_or_default();
                if matches!(name, "overrun" | "dropped events" | "commit overrun") {
                    lost += count.trim().parse().unwrap_or(0);
                }
            }
        }
        Ok(lost)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.write("tracing_on", "0");
        let _ = self.write("events/enable", "0");
        let _ = fs::remove_dir(&self.instance);
        if self.probe {
            // Fails while another instance uses it.
            let _ = append(&self.root.join("dynamic_events"), "-:slat/sp_role");
        }
    }
}

impl Journal for Trace {
    fn say(&mut self, line: &str) -> io::Result<()> {
        self.marker.write_all(line.as_bytes())
    }
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.write_all(line.as_bytes())
}

/// A line of the buffer as recordings have it.
fn recorded(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(said) = line.strip_prefix("tracing_mark_write: ") {
        return Some(said.to_owned());
    }
    if let Some(probed) = line.strip_prefix("sp_role: ") {
        let (_, args) = probed.split_once(") ")?;
        return Some(format!("  fn sp_role: {args}"));
    }
    (!line.is_empty() && !line.starts_with('#')).then(|| format!("  {line}"))
}
