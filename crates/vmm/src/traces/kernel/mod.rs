//! Traces as users bring them: the kernel's own text, `trace-cmd report`, `perf script`, or a [`Recording`](super::Recording).
//!
//! [`read`] finds out which it is and gives one [`Record`] after the other; a trace may be larger than memory has room for
//! its records. Events that do not matter to page tables are skipped and counted ([`Reader::skipped`]); a line that is
//! no line of a trace, or a known event with other fields, is an error with the number of the line.
//!
//! | source | what it looks like |
//! |---|---|
//! | `trace`, `trace_pipe` | `CPU 0/KVM-812 (  790) [001] ..... 93.123456: kvm_mmu_set_spte: gfn 8 ...` |
//! | `trace-cmd report` | `CPU 0/KVM-812 [001] 93.123456: kvm_mmu_set_spte:     gfn 8 ...` |
//! | `perf script` | `CPU 0/KVM 812/790 [001] 93.123456: kvmmmu:kvm_mmu_set_spte: gfn 8 ...` |
//!
//! Fields may also be printed by name (`options/fields`, `trace-cmd report -R`, and whatever `perf` could not parse): then a
//! page table's role is known in full.
//!
//! ```
//! use slat_vmm::traces::{Traced, kernel::{self, Said}};
//! let text = "\
//!  CPU 0/KVM-812 [001] d..1. 93.123456: kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level 4 old_spte 0 new_spte 142a74827
//!  CPU 0/KVM-812 [001] ..... 93.123460: kvm_entry: vcpu 0
//! ";
//! let mut reader = kernel::read(text);
//! let record = reader.next().unwrap()?;
//! assert!(matches!(record.said, Said::Event(Traced::SpteChanged { new: 0x142a74827, .. })));
//! assert_eq!(record.task.unwrap().thread, 812);
//! assert!(reader.next().is_none());
//! assert_eq!(reader.skipped()["kvm_entry"], 1);
//! # Ok::<(), slat_vmm::traces::ParseError>(())
//! ```

mod fields;
mod head;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::iter::Enumerate;
use std::str::Lines;

use slat_memslot::Gfn;
use slat_mmu::role::{PageRole, RoleLayout};

use self::fields::{Fields, Plain};
use self::head::Head;
pub use self::head::Task;
use super::lex::Input;
use super::parse::Line;
use super::{ParseError, Probe, Traced, What, event};

/// What kind of text a trace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One of slat's own recordings.
    Recording,
    /// The kernel's `trace` or `trace_pipe`.
    Ftrace,
    /// `trace-cmd report`.
    TraceCmd,
    /// `perf script`.
    PerfScript,
}

impl Format {
    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Recording => "recording",
            Self::Ftrace => "ftrace",
            Self::TraceCmd => "trace-cmd",
            Self::PerfScript => "perf script",
        }
    }
}

/// One thing that a trace says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its line, from 1.
    pub line: u32,
    /// Whose it is; recordings do not tell.
    pub task: Option<Task<'a>>,
    /// What it says.
    pub said: Said<'a>,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// An event.
    Event(Traced<'a>),
    /// The whole role of the page table that the event before is about.
    Role {
        /// The frame of that event.
        gfn: Gfn,
        /// The role.
        role: PageRole,
    },
    /// A text that somebody wrote to `trace_marker`; in recordings an operation.
    Marker(&'a str),
    /// Events are missing here.
    Lost {
        /// Of this CPU, if it is known.
        cpu: Option<u32>,
        /// How many, if it is known.
        events: Option<u64>,
    },
}

/// Reads a trace; see [`Reader`].
pub fn read(text: &str) -> Reader<'_> {
    Reader {
        format: detect(text),
        lines: text.lines().enumerate(),
        role: None,
        skipped: BTreeMap::new(),
        failed: false,
    }
}

/// The records of a trace, in order; ends at the first error.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    format: Format,
    lines: Enumerate<Lines<'a>>,
    /// What the line before said beside its event.
    role: Option<Record<'a>>,
    skipped: BTreeMap<&'a str, u64>,
    failed: bool,
}

impl<'a> Reader<'a> {
    /// What kind of text it is.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The events that were skipped so far, with their number.
    pub const fn skipped(&self) -> &BTreeMap<&'a str, u64> {
        &self.skipped
    }

    fn record(&mut self, line: Line<'a>) -> Result<Option<Record<'a>>, ParseError> {
        match self.format {
            Format::Recording => recorded(line),
            Format::Ftrace | Format::TraceCmd | Format::PerfScript => self.traced(line),
        }
    }

    fn traced(&mut self, line: Line<'a>) -> Result<Option<Record<'a>>, ParseError> {
        let about = |said| Record {
            line: line.number,
            task: None,
            said,
        };
        if let Some(lost) = lost(line.text) {
            return Ok(Some(about(lost)));
        }
        if is_decoration(line.text) {
            return Ok(None);
        }
        let head = Head::parse(line.text)
            .ok_or_else(|| line.error(line.text, "no task, time and event of a trace"))?;
        let task = Some(head.task);
        if is_marker(head.event) {
            let text = head.rest.strip_prefix("tracing_mark_write:");
            let named = head.rest.split_once(" buf=").map(|(_, text)| text);
            let text = text.or(named).unwrap_or(head.rest).trim();
            return Ok(Some(Record {
                task,
                ..about(Said::Marker(text))
            }));
        }
        let traced = self.event(line, &head)?;
        Ok(traced.map(|traced| Record {
            task,
            ..about(Said::Event(traced))
        }))
    }

    /// The event of a line; `None` for one that does not matter, which is counted.
    fn event(&mut self, line: Line<'a>, head: &Head<'a>) -> Result<Option<Traced<'a>>, ParseError> {
        let Head { event, rest, .. } = *head;
        if !matters(event) || lacks_fields(event, rest) {
            *self.skipped.entry(event).or_default() += 1;
            return Ok(None);
        }
        let unparsed = rest.strip_prefix("[FAILED TO PARSE]");
        let named = unparsed.unwrap_or(rest).trim_start();
        if unparsed.is_none() && !fields::are_named(named) {
            let parser = |input: &mut Input<'a>| event::fields(event, input);
            return line.all(rest, event, parser).map(Some);
        }
        let plain = match unparsed {
            Some(_) => Plain::Decimal,
            None => Plain::AsFormatted,
        };
        let fields = Fields::of(line, event, named, plain);
        let Some(traced) = fields.traced()? else {
            *self.skipped.entry(event).or_default() += 1;
            return Ok(None);
        };
        if let Traced::GetPage { page, .. } = &traced {
            self.role = Some(Record {
                line: line.number,
                task: Some(head.task),
                said: Said::Role {
                    gfn: page.gfn,
                    role: page.role,
                },
            });
        }
        Ok(Some(traced))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Record<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(role) = self.role.take() {
            return Some(Ok(role));
        }
        while !self.failed {
            let (number, text) = self.lines.next()?;
            let number = u32::try_from(number + 1).unwrap_or(u32::MAX);
            if text.trim().is_empty() {
                continue;
            }
            match self.record(Line { number, text }) {
                Ok(None) => {}
                Ok(Some(record)) => return Some(Ok(record)),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// The events that are understood; the others are counted only.
fn matters(event: &str) -> bool {
    matches!(
        event,
        "kvm_tdp_mmu_spte_changed"
            | "kvm_mmu_get_page"
            | "kvm_mmu_prepare_zap_page"
            | "kvm_mmu_set_spte"
            | "kvm_mmu_spte_requested"
            | "fast_page_fault"
            | "mark_mmio_spte"
            | "check_mmio_spte"
            | "handle_mmio_page_fault"
            | "kvm_mmu_split_huge_page"
            | "kvm_mmu_zap_all_fast"
            | "kvm_page_fault"
            | "kvm_unmap_hva_range"
            | "kvm_age_hva"
            | "kvm_test_age_hva"
            | "kvm_smm_transition"
    )
}

/// Up to 6.0 a page fault had neither vCPU nor instruction; `trace-cmd`'s plugin leaves out which page is zapped.
fn lacks_fields(event: &str, rest: &str) -> bool {
    match event {
        "kvm_page_fault" => rest.starts_with("address "),
        "kvm_mmu_prepare_zap_page" => rest.starts_with(|c: char| c.is_ascii_digit()),
        _ => false,
    }
}

/// What `trace_marker` and the kernel's `trace_printk` make.
fn is_marker(event: &str) -> bool {
    matches!(event, "tracing_mark_write" | "print" | "bprint")
}

/// What stands between records: headers, comments, call chains, and marks where fields are printed by name.
fn is_decoration(line: &str) -> bool {
    let text = line.trim_start();
    text.starts_with('#')
        || text.starts_with("=>")
        || text.starts_with("cpus=")
        || text.starts_with("version =")
        || text.contains(": UNKNOWN TYPE ")
        || text.starts_with("CPU ") && text.ends_with(" is empty")
}

/// `CPU:1 [LOST 274 EVENTS]` of the kernel, `CPU:1 [274 EVENTS DROPPED]` of `trace-cmd`, `PERF_RECORD_LOST lost 3` of
/// `perf`, and the header of a buffer that has been overwritten.
fn lost(line: &str) -> Option<Said<'_>> {
    let number = |text: &str| text.split_whitespace().find_map(|word| word.parse().ok());
    let text = line.trim();
    if let Some(header) = text.strip_prefix("# entries-in-buffer/entries-written: ") {
        let (kept, written) = header.split_whitespace().next()?.split_once('/')?;
        let (kept, written): (u64, u64) = (kept.parse().ok()?, written.parse().ok()?);
        let gone = written.checked_sub(kept).filter(|gone| *gone > 0)?;
        return Some(Said::Lost {
            cpu: None,
            events: Some(gone),
        });
    }
    if let Some((_, after)) = text.split_once("PERF_RECORD_LOST") {
        return Some(Said::Lost {
            cpu: None,
            events: number(after),
        });
    }
    let (cpu, what) = text.strip_prefix("CPU:")?.split_once(' ')?;
    let what = what.strip_prefix('[')?.strip_suffix(']')?;
    let gone = what.contains("LOST") || what.contains("DROPPED");
    gone.then(|| Said::Lost {
        cpu: cpu.parse().ok(),
        events: number(what),
    })
}

/// What the first line says that is more than decoration.
fn detect(text: &str) -> Format {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    if text.starts_with("cpus=") || text.starts_with("version =") {
        return Format::TraceCmd;
    }
    let first = lines.find(|line| lost(line).is_none() && !is_decoration(line));
    match first.and_then(Head::parse) {
        Some(head) if head.is_perf => Format::PerfScript,
        Some(head) if head.has_flags || text.starts_with("# tracer:") => Format::Ftrace,
        Some(_) => Format::TraceCmd,
        None if text.starts_with("# tracer:") => Format::Ftrace,
        None => Format::Recording,
    }
}

/// A line of a recording.
fn recorded(line: Line<'_>) -> Result<Option<Record<'_>>, ParseError> {
    if let Some(comment) = line.text.strip_prefix('#') {
        let cut = comment.trim() == "truncated";
        return Ok(cut.then_some(Record {
            line: line.number,
            task: None,
            said: Said::Lost {
                cpu: None,
                events: None,
            },
        }));
    }
    let said = match line.what()? {
        What::Event(event) => Said::Event(event),
        What::Probe(Probe::SpRole { gfn, role, .. }) => {
            let known = PageRole::from_word(RoleLayout::Mirror, role);
            let role = known.map_err(|error| line.error(line.text, &error.to_string()))?;
            Said::Role { gfn, role }
        }
        What::Ret(_) | What::Note(_) | What::Probe(_) => return Ok(None),
        What::Op(_) => Said::Marker(line.text),
    };
    Ok(Some(Record {
        line: line.number,
        task: None,
        said,
    }))
}
