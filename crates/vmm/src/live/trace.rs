//! The kernel's trace buffer as a journal: operations and the events that they cause, in one order.

use std::io;

use thiserror::Error;

use super::driver::Journal;
use crate::capture::{Capture, CaptureError, Context, EVENTS, RoleProbe, Setup, Whose};

/// Captured events that become a recording.
#[derive(Debug)]
pub struct Trace {
    // Closed first: the probe is in use until then.
    capture: Capture,
    roles: Option<RoleProbe>,
}

/// Why there is no recording.
#[derive(Debug, Error)]
pub enum TraceError {
    /// Nothing can be captured.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Events are missing.
    #[error("{0} events did not fit the buffer")]
    Lost(u64),
}

/// Events that only guests with tables of their own cause.
const OF_SHADOWS: [&str; 5] = [
    "kvmmmu/kvm_mmu_set_accessed_bit",
    "kvmmmu/kvm_mmu_set_dirty_bit",
    "kvmmmu/kvm_mmu_unsync_page",
    "kvmmmu/kvm_mmu_sync_page",
    "kvm/kvm_nested_vmexit_inject",
];
/// What is no event of recordings.
const ELSEWHERE: &str = "kvm/kvm_mmio";
/// For each processor.
const BUFFER_KIB: u32 = 96 << 10;

impl Trace {
    /// Begins. With the events of all processes no other VM should run meanwhile; with one's own, what the host's memory
    /// management does elsewhere is not seen.
    ///
    /// # Errors
    /// There is no tracefs, no right to use it, or KVM has no events.
    pub fn start(whose: Whose) -> Result<Self, CaptureError> {
        let roles = RoleProbe::add().ok();
        let events = EVENTS.iter().filter(|event| **event != ELSEWHERE);
        let probe = roles.iter().map(|_| &RoleProbe::EVENT);
        let capture = Capture::start(&Setup {
            whose,
            context: Context::Hidden,
            buffer_kib: BUFFER_KIB,
            events: events
                .chain(probe)
                .chain(&OF_SHADOWS)
                .map(|event| (*event).to_owned())
                .collect(),
            ..Setup::default()
        })?;
        Ok(Self { capture, roles })
    }

    /// Whether whole role words are recorded.
    pub fn has_roles(&self) -> bool {
        self.roles.is_some()
    }

    /// What was recorded since this was last asked, as the text of a recording.
    ///
    /// # Errors
    /// It cannot be read, or events were lost.
    pub fn take(&mut self) -> Result<String, TraceError> {
        let captured = self.capture.take()?;
        match captured.lost.events() {
            0 => {}
            lost => return Err(TraceError::Lost(lost)),
        }
        let lines = captured.text.lines().filter_map(recorded);
        Ok(lines.fold(String::new(), |all, line| all + &line + "\n"))
    }
}

impl Journal for Trace {
    fn say(&mut self, line: &str) -> io::Result<()> {
        self.capture.mark(line)
    }
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

#[cfg(test)]
mod tests {
    use super::recorded;

    #[test]
    fn lines_become_those_of_a_recording() {
        let marked = "           tracing_mark_write: OP KVM_CREATE_VM type=0";
        assert_eq!(recorded(marked).as_deref(), Some("OP KVM_CREATE_VM type=0"));
        let probed = "sp_role: (kvmmmu.kvm_mmu_get_page) gfn=0x0 role=0x3784 created=1";
        let role = "  fn sp_role: gfn=0x0 role=0x3784 created=1";
        assert_eq!(recorded(probed).as_deref(), Some(role));
        let event = "kvm_mmu_spte_requested: gfn 400 pfn 143d33 level 1";
        assert_eq!(recorded(event), Some(format!("  {event}")));
        assert_eq!(recorded("# tracer: nop"), None);
        assert_eq!(recorded(""), None);
    }
}
