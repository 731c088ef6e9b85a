//! Page tables rebuilt from a trace alone: of any real VM, also where the trace begins in the middle.
//!
//! Every change of a TDP MMU's entry is an event with the entry's old and new value. [`rebuild`] stores the new ones, and
//! holds each old one against what it has stored before: the trace checks itself. What no event tells is inferred, and
//! counted as such ([`Counts`]):
//!
//! - **the root** of a change, of which the event has the address space only: the table whose entry is the old one;
//! - **accessed and dirty bits**, which hardware sets: an old entry may have more of them than the rebuilt one;
//! - **the children of a split huge leaf**: as KVM makes them;
//! - **entries from before the trace**: unknown, until the old value of a change or a fault tells; what stays unknown is named
//!   ([`Unknown`]);
//! - **changes while events were lost**: after a loss nothing counts as certain until it is told again;
//! - **which thread works for which VM**: going by its process, if the trace has it, and by the entries that it changes;
//! - **the host**: going by the bits of the entries.
//!
//! Whatever contradicts the rest is a [`Failure`]. The tables of each VM are [audited](slat_mmu::tdp::audit).
//!
//! Shadow pages are not linked by events, so that their trees cannot be rebuilt: they are listed, with the leaves that faults
//! stored.
//!
//! ```
//! use slat_vmm::rebuild::{Options, rebuild};
//! let text = "\
//!  CPU 0/KVM-8 [001] d..1. 93.1: kvm_mmu_get_page: sp gen 0 gfn 400 l1 8-byte q0 direct wux nxe ad root 0 sync new
//!  CPU 0/KVM-8 [001] d..1. 93.2: kvm_tdp_mmu_spte_changed: as id 0 gfn 400 level 2 old_spte 143800ee7 new_spte 142a47827
//!  CPU 0/KVM-8 [001] d..1. 93.3: kvm_tdp_mmu_spte_changed: as id 0 gfn 401 level 1 old_spte 143801e67 new_spte 143801e65
//! ";
//! let rebuilt = rebuild(text, &Options::default())?;
//! assert_eq!(rebuilt.failures, []);
//! assert_eq!((rebuilt.counts.split_children, rebuilt.counts.split_confirmed), (512, 1));
//! let dump = rebuilt.vms[0].dump.to_string();
//! assert!(dump.contains("0x401..0x402 l1 r-x pfn 0x143801 hw mw ad pat"), "{dump}");
//! assert!(rebuilt.vms[0].audit.is_empty());
//! # Ok::<(), slat_vmm::traces::ParseError>(())
//! ```

mod change;
mod find;
mod finish;
mod host;
mod merge;
mod other;
mod report;
mod shadow;
mod table;
mod world;

use std::collections::BTreeMap;

use slat_memslot::GfnRange;
use slat_mmu::host::{Host, SecondStage};
use slat_mmu::spte::{Codec, Ept, Format, Npt};
use slat_mmu::tdp::dump::{Dump, RootNumber};

use crate::traces::kernel::{self, Record, Said};
use crate::traces::{ParseError, Traced};
use change::Change;
pub use report::{Contradiction, Counts, Failure};
pub use shadow::ShadowPage;
use world::World;

/// How a trace is read.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The host, where its entries do not tell enough.
    pub host: Option<Host>,
    /// Only what these threads or processes did; all if there are none.
    pub only: Vec<u32>,
    /// Stop before this line.
    pub until: Option<u32>,
}

/// What came of a trace.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    /// What kind of text it was.
    pub format: kernel::Format,
    /// The host, given or inferred.
    pub host: Host,
    /// Whether the TDP MMU changed anything. If not, there are shadow pages at most.
    pub has_tdp: bool,
    /// The VMs that are there in the end.
    pub vms: Vec<RebuiltVm>,
    /// The shadow pages that are there in the end, of all VMs.
    pub shadow: Vec<ShadowPage>,
    /// What was checked and inferred.
    pub counts: Counts,
    /// What contradicts the rest.
    pub failures: Vec<Failure>,
    /// Where events were lost, and how many, if that is known.
    pub lost: Vec<(u32, Option<u64>)>,
    /// The events that do not matter, with their numbers.
    pub skipped: BTreeMap<String, u64>,
    /// The texts that were written to `trace_marker`, with their lines.
    pub markers: Vec<(u32, String)>,
}

/// One VM.
#[derive(Clone, Debug)]
pub struct RebuiltVm {
    /// Its number in this trace.
    pub number: usize,
    /// Its process, if the trace tells.
    pub process: Option<u32>,
    /// The threads that worked for it.
    pub threads: BTreeMap<u32, String>,
    /// Its tables, with raw entries. A root has one reference, since the real ones are not in a trace.
    pub dump: Dump,
    /// What stayed unknown.
    pub unknown: Vec<Unknown>,
    /// What the audit found.
    pub audit: Vec<String>,
    /// Why there is no audit.
    pub not_audited: Option<String>,
}

/// Frames of a root of which nothing was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The root.
    pub root: RootNumber,
    /// The frames.
    pub frames: GfnRange,
}

impl Rebuilt {
    /// Whether nothing contradicts, and all tables are sound.
    pub fn is_clean(&self) -> bool {
        let sound = |vm: &RebuiltVm| vm.audit.is_empty() && vm.not_audited.is_none();
        self.failures.is_empty() && self.vms.iter().all(sound)
    }
}

/// Rebuilds the tables of all VMs in a trace.
///
/// # Errors
/// A line is none of a trace, or an event has other fields than it should.
pub fn rebuild(text: &str, options: &Options) -> Result<Rebuilt, ParseError> {
    let evidence = host::Evidence::of(kernel::read(text))?;
    let host = options.host.unwrap_or_else(|| evidence.host());
    match host.second_stage {
        SecondStage::Ept => run::<Ept>(text, options, &host, evidence.has_tdp),
        SecondStage::Npt | SecondStage::Off => run::<Npt>(text, options, &host, evidence.has_tdp),
    }
}

fn run<F: Format>(
    text: &str,
    options: &Options,
    host: &Host,
    has_tdp: bool,
) -> Result<Rebuilt, ParseError> {
    let mut world = World::<F>::new(Codec::new(host), has_tdp);
    let mut reader = kernel::read(text);
    let (mut lost, mut markers) = (Vec::new(), Vec::new());
    for record in reader.by_ref() {
        let record = record?;
        if options.until.is_some_and(|until| record.line >= until) {
            break;
        }
        match record.said {
            Said::Lost { events, .. } => lost.push((record.line, events)),
            Said::Marker(text) => markers.push((record.line, text.to_owned())),
            Said::Event(_) | Said::Role { .. } => {}
        }
        if is_wanted(&record, &options.only) {
            world.take(&record);
        }
    }
    world.settle();
    let vms = world.finished();
    let skipped = reader.skipped().iter();
    Ok(Rebuilt {
        format: reader.format(),
        host: *host,
        has_tdp,
        vms,
        counts: world.counts,
        failures: world.failures,
        shadow: world.shadow.into_pages(),
        lost,
        skipped: skipped
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect(),
        markers,
    })
}

/// Whether a record is of one of these threads or processes. What is nobody's is everybody's.
fn is_wanted(record: &Record<'_>, only: &[u32]) -> bool {
    let Some(task) = record.task.filter(|_| !only.is_empty()) else {
        return true;
    };
    let process = task.process.is_some_and(|process| only.contains(&process));
    process || only.contains(&task.thread)
}

impl<F: Format> World<F> {
    /// Takes a record over.
    fn take(&mut self, record: &Record<'_>) {
        self.line = record.line;
        self.counts.records += 1;
        let thread = record.task.map_or(0, |task| task.thread);
        if let Some(task) = record.task {
            self.has_threads = true;
            let known = self.thread(thread);
            if known.name != task.name {
                task.name.clone_into(&mut known.name);
            }
            known.process = known.process.or(task.process);
        }
        match &record.said {
            Said::Event(event) => self.event(thread, event),
            Said::Role { gfn, role } => self.told_role(thread, *gfn, *role),
            Said::Lost { .. } => self.lose(),
            Said::Marker(_) => {}
        }
    }

    fn event(&mut self, thread: u32, event: &Traced<'_>) {
        if !self.links_what_was_made(thread, event) {
            self.settle_made(thread);
        }
        match *event {
            Traced::SpteChanged {
                as_id,
                gfn,
                level,
                old,
                new,
            } => self.changed(&Change {
                thread,
                as_id,
                gfn,
                level,
                old,
                new,
            }),
            Traced::GetPage { ref page, created } => self.got_page(thread, page, created),
            Traced::PrepareZapPage { ref page } => self.zapping_page(thread, page),
            Traced::SetSpte {
                gfn,
                spte,
                level,
                at,
                ..
            } => self.set_spte(thread, (gfn, level), spte, at),
            Traced::FastPageFault {
                gva,
                old,
                new,
                fixed: true,
                ..
            } if old != new => self.fast_fault(thread, gva, (old, new)),
            Traced::MarkMmio {
                gfn, generation, ..
            } => self.mark_mmio(gfn, generation),
            Traced::ZapAllFast { .. } => self.zap_all(thread),
            _ => {}
        }
    }

    /// Whether an event links the table that its thread has just made.
    fn links_what_was_made(&mut self, thread: u32, event: &Traced<'_>) -> bool {
        let made = self.thread(thread).made;
        let (
            Some(made),
            Traced::SpteChanged {
                gfn, level, new, ..
            },
        ) = (made, event)
        else {
            return false;
        };
        level.child() == Some(made.role.level()) && *gfn == made.gfn && self.is_link(*new, *level)
    }
}
