//! Questions about a TD.

use slat_coco::tdx::mirror::{MirrorViolation, TdxMmu};
use slat_coco::tdx::{GpaMapping, SeptState};
use slat_memslot::{Gfn, Gpa, Level, Outcome, TdxCount, TdxEntry, TdxOutcome, TdxQuestion};

use super::TdxVm;
use crate::CallResult;

impl TdxVm {
    pub(super) fn answer(&self, question: TdxQuestion) -> CallResult {
        Ok(match question {
            TdxQuestion::Count(what) => Outcome::Value(self.count(what)),
            TdxQuestion::Report => Outcome::Tdx(TdxOutcome::Report(self.findings())),
            TdxQuestion::Entry { gpa } => Outcome::Tdx(TdxOutcome::Entry(self.entry(gpa))),
        })
    }

    /// Every invariant that does not hold: of the module, of the mirror, and of both against slots and attributes.
    pub fn audit(&self) -> Vec<MirrorViolation> {
        self.td.as_ref().map(TdxMmu::audit).unwrap_or_default()
    }

    /// One of the TD's counts; 0 before there is a TD.
    pub fn count(&self, what: TdxCount) -> u64 {
        let of_td = |count: fn(&TdxMmu) -> u64| self.td.as_ref().map_or(0, count);
        match what {
            TdxCount::EptViolations => self.counts.ept_violations,
            TdxCount::MemoryFaults => self.counts.memory_faults,
            TdxCount::Hypercalls => self.counts.hypercalls,
            TdxCount::Seamcalls => of_td(|td| td.module().calls()),
            TdxCount::PrivatePages => of_td(TdxMmu::private_pages),
            TdxCount::SharedPages => self.host.backed().count() as u64,
            TdxCount::DoublePages => {
                let double = |gfn: &Gfn| {
                    let td = self.td.as_ref();
                    td.is_some_and(|td| td.has_private_page(*gfn))
                };
                self.host.backed().filter(double).count() as u64
            }
            TdxCount::Tables => of_td(TdxMmu::linked_tables),
            TdxCount::Violations => self.audit().len() as u64,
        }
    }

    /// The state of the S-EPT's entry for a page; nothing where there is not even a table.
    fn entry(&self, gpa: u64) -> TdxEntry {
        let at = GpaMapping::new(Gpa::new(gpa).gfn().gpa(), Level::L1);
        let found = self.td.as_ref().and_then(|td| td.sept_entry(at));
        let state = found.unwrap_or(SeptState::Free);
        TdxEntry::named(state.name()).unwrap_or(TdxEntry::Free)
    }
}
