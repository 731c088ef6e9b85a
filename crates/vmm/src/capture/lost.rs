//! Events that did not fit the buffers.

use std::fs;

use super::CaptureError;
use super::instance::Instance;

/// What is missing in a capture, over all CPUs (`per_cpu/*/stats`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Events that were overwritten by later ones.
    pub overrun: u64,
    /// Events that were lost while others were written.
    pub commit_overrun: u64,
    /// Events that were not recorded, the buffer being full.
    pub dropped: u64,
}

impl Lost {
    /// How many events are missing.
    pub const fn events(&self) -> u64 {
        self.overrun + self.commit_overrun + self.dropped
    }

    pub(super) fn of(instance: &Instance) -> Result<Self, CaptureError> {
        let path = instance.path("per_cpu");
        let mut lost = Self::default();
        for cpu in fs::read_dir(&path).map_err(CaptureError::at(&path))? {
            let cpu = cpu.map_err(CaptureError::at(&path))?.path().join("stats");
            let stats = fs::read_to_string(&cpu).map_err(CaptureError::at(&cpu))?;
            lost.add(&stats);
        }
        Ok(lost)
    }

    /// Adds one CPU's.
    pub(super) fn add(&mut self, stats: &str) {
        for line in stats.lines() {
            let Some((name, value)) = line.split_once(": ") else {
                continue;
            };
            let value = value.trim().parse().unwrap_or(0);
            match name {
                "overrun" => self.overrun += value,
                "commit overrun" => self.commit_overrun += value,
                "dropped events" => self.dropped += value,
                _ => {}
            }
        }
    }
}
