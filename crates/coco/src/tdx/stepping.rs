//! The guard against a host that never lets a vCPU get on (zero-step).

use slat_memslot::Gpa;

/// Private EPT violations at one instruction before faulting addresses are noted.
pub(crate) const THRESHOLD: u8 = 6;
/// How many addresses are noted.
pub(crate) const LIST: usize = 32;

/// What the module remembers of a vCPU's private EPT violations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stepping {
    rip_at_entry: u64,
    violations: u8,
    noted: Vec<Gpa>,
}

impl Stepping {
    /// A vCPU is about to run from here.
    pub(crate) const fn entered_at(&mut self, rip: u64) {
        self.rip_at_entry = rip;
    }

    /// A vCPU has exited here, for another reason than a private EPT violation.
    pub(crate) fn exited_at(&mut self, rip: u64) {
        if rip != self.rip_at_entry {
            self.violations = 0;
            self.noted.clear();
        }
    }

    /// A private EPT violation.
    pub(crate) fn violation(&mut self, rip: u64, gpa: Gpa) {
        self.exited_at(rip);
        if self.violations < THRESHOLD {
            self.violations += 1;
        } else if self.noted.len() < LIST && !self.noted.contains(&gpa) {
            self.noted.push(gpa);
        }
    }

    /// The addresses that have to be mapped before the vCPU runs again; not empty when the host is suspected.
    pub(crate) fn noted(&self) -> &[Gpa] {
        &self.noted
    }
}
