//! Traces of real VMs, rebuilt.

use std::io::Read as _;
use std::process::ExitCode;

use serde_json::{Value, json};
use slat_mmu::host::Host;
use slat_mmu::tdp::Dump;
use slat_vmm::rebuild::{Counts, Options, Rebuilt, RebuiltVm, ShadowPage, rebuild};
use slat_vmm::traces::{self, Builtin};

use super::Args;
use crate::Error;
use crate::dump::json as dump_json;

/// How a trace is read.
#[derive(Debug, clap::Args)]
pub(crate) struct ReadArgs {
    /// Stop before this line.
    #[arg(long, value_name = "LINE")]
    pub(crate) at: Option<u32>,
    /// Only what these threads or processes did.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pid: Vec<u32>,
    /// The host as the first line of a dump says it, where entries do not tell enough: `ept p2 maxphyaddr 46 levels 4 ad pml`.
    #[arg(long, value_name = "FACTS")]
    host: Option<String>,
}

impl ReadArgs {
    /// The options, with the end at another line.
    pub(crate) fn options(&self, at: Option<u32>) -> Result<Options, Error> {
        Ok(Options {
            host: self.host.as_deref().map(host).transpose()?,
            only: self.pid.clone(),
            until: at,
        })
    }
}

fn host(facts: &str) -> Result<Host, Error> {
    let dump: Result<Dump, _> = format!("slat-dump 1 {facts}").parse();
    let dump = dump.map_err(|error| format!("--host: {}: {}", error.value, error.reason))?;
    Ok(dump.host)
}

/// The text of a trace: a file, standard input, or a recording that comes with slat.
pub(crate) fn read(trace: &str) -> Result<String, Error> {
    if trace == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    let builtin = |one: &Builtin| format!("{}/{}", one.machine, one.scenario) == trace;
    let machine = trace.split_once('/').map(|(machine, _)| machine);
    let machine = machine.and_then(traces::Machine::named);
    if let Some(one) = machine.and_then(|machine| machine.recordings().into_iter().find(builtin)) {
        return Ok(one.text().to_owned());
    }
    let bytes = std::fs::read(trace).map_err(|error| format!("{trace}: {error}"))?;
    if bytes.starts_with(b"PERFILE2") {
        return Err(format!("{trace}: a file of perf; give the output of `perf script`").into());
    }
    if bytes.starts_with(b"\x17\x08\x44tracing") {
        return Err(
            format!("{trace}: a file of trace-cmd; give the output of `trace-cmd report`").into(),
        );
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!("{trace}: byte {at} is no text").into()
    })
}

pub(super) fn run(args: &Args, trace: &str) -> Result<ExitCode, Error> {
    let text = read(trace)?;
    let options = args.read.options(args.read.at)?;
    let mut rebuilt = rebuild(&text, &options).map_err(|error| format!("{trace}: {error}"))?;
    if rebuilt.counts.records == 0 && options.until.is_none() {
        return Err(format!("{trace}: no event of kvmmmu in it").into());
    }
    if let Some(number) = args.vm {
        let numbers: Vec<String> = rebuilt.vms.iter().map(|vm| vm.number.to_string()).collect();
        rebuilt.vms.retain(|vm| vm.number == number);
        if rebuilt.vms.is_empty() {
            let there = numbers.join(", ");
            return Err(format!("--vm {number}: {trace} has vm {there}").into());
        }
    }
    if !args.raw {
        let roots = rebuilt.vms.iter_mut().flat_map(|vm| &mut vm.dump.roots);
        roots.for_each(|root| root.entries.clear());
    }
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&to_json(trace, &rebuilt))?
        );
    } else {
        print(trace, &rebuilt);
    }
    Ok(match rebuilt.is_clean() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// The most failures that are printed one by one.
const SHOWN: usize = 20;

/// All that is no dump is a comment, so that the output for one VM is a dump still.
fn print(trace: &str, rebuilt: &Rebuilt) {
    let counts = &rebuilt.counts;
    println!(
        "# {trace}: {}, {} records, {} changes of entries",
        rebuilt.format.name(),
        counts.records,
        counts.changes
    );
    for line in checks(rebuilt) {
        println!("# {line}");
    }
    if !rebuilt.skipped.is_empty() {
        let skipped: Vec<String> = rebuilt
            .skipped
            .iter()
            .map(|(name, n)| format!("{name} {n}"))
            .collect();
        println!("# skipped: {}", skipped.join(", "));
    }
    for failure in rebuilt.failures.iter().take(SHOWN) {
        eprintln!("{trace}: {failure}");
    }
    if let Some(more) = rebuilt.failures.len().checked_sub(SHOWN).filter(|n| *n > 0) {
        eprintln!("{trace}: and {more} more");
    }
    for vm in &rebuilt.vms {
        print_vm(trace, vm);
    }
    print_shadow(&rebuilt.shadow);
}

/// What was checked, and what inferred, in words.
fn checks(rebuilt: &Rebuilt) -> Vec<String> {
    let counts = &rebuilt.counts;
    let failures = rebuilt.failures.len();
    let mut lines = vec![format!(
        "self-check: {} old entries, {} leaves and {} roles as rebuilt; {failures} failures",
        counts.confirmed, counts.leaves_confirmed, counts.roles_confirmed
    )];
    let inferred: Vec<String> = inferred(counts)
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if !inferred.is_empty() {
        lines.push(format!("inferred: {}", inferred.join("; ")));
    }
    if !rebuilt.lost.is_empty() {
        let known: u64 = rebuilt.lost.iter().filter_map(|(_, events)| *events).sum();
        let places = rebuilt.lost.len();
        lines.push(format!("lost: at least {known} events, in {places} places"));
    }
    if !rebuilt.has_tdp {
        lines.push(
            "the TDP MMU changed nothing: shadow pages only, whose links no event tells".to_owned(),
        );
    }
    lines
}

fn inferred(counts: &Counts) -> [(u64, &'static str); 8] {
    [
        (
            counts.hardware_marks,
            "entries that hardware marked accessed or dirty",
        ),
        (counts.split_children, "children of split huge pages"),
        (
            counts.execution_regained,
            "split children that execute again",
        ),
        (counts.from_before, "entries from before the trace"),
        (counts.tables_from_before, "tables from before the trace"),
        (
            counts.after_loss,
            "entries that changed while events were lost",
        ),
        (counts.ambiguous, "changes that fit more than one root"),
        (counts.fast_faults, "changes told by fast_page_fault alone"),
    ]
}

fn print_vm(trace: &str, vm: &RebuiltVm) {
    let threads: Vec<String> = vm
        .threads
        .iter()
        .filter(|(_, name)| !name.is_empty())
        .map(|(id, name)| format!("{name}-{id}"))
        .collect();
    let process = vm
        .process
        .map(|id| format!(", process {id}"))
        .unwrap_or_default();
    println!();
    match threads.as_slice() {
        [] => println!("# vm {}{process}", vm.number),
        some => println!("# vm {}{process}, {}", vm.number, some.join(", ")),
    }
    println!("{}", vm.dump.to_string().trim_end());
    for unknown in &vm.unknown {
        let (start, end) = (unknown.frames.start().raw(), unknown.frames.end().raw());
        println!("# unknown: root {} {start:#x}..{end:#x}", unknown.root);
    }
    for violation in &vm.audit {
        eprintln!("{trace}: vm {}: {violation}", vm.number);
    }
    match (&vm.not_audited, vm.audit.len()) {
        (Some(why), _) => println!("# audit: not possible: {why}"),
        (None, 0) => println!("# audit: clean"),
        (None, count) => println!("# audit: {count} violations"),
    }
}

fn print_shadow(pages: &[ShadowPage]) {
    if pages.is_empty() {
        return;
    }
    println!();
    println!(
        "# {} shadow pages, with the leaves that faults stored in them",
        pages.len()
    );
    for page in pages {
        let (gfn, leaves) = (page.gfn.raw(), page.leaves.len());
        println!("#   {} gfn {gfn:#x}: {leaves} leaves", page.role);
    }
}

fn to_json(trace: &str, rebuilt: &Rebuilt) -> Value {
    let failure = |failure: &slat_vmm::rebuild::Failure| {
        json!({
            "line": failure.line, "vm": failure.vm, "gfn": failure.gfn.raw(),
            "level": failure.level as u8, "what": failure.what.to_string(),
        })
    };
    let lost = |(line, events): &(u32, Option<u64>)| json!({ "line": line, "events": events });
    let names = inferred(&rebuilt.counts).into_iter();
    let inferred: serde_json::Map<String, Value> = names
        .map(|(count, what)| (what.replace(' ', "_"), count.into()))
        .collect();
    json!({
        "trace": trace,
        "format": rebuilt.format.name(),
        "records": rebuilt.counts.records,
        "changes": rebuilt.counts.changes,
        "confirmed": {
            "old_entries": rebuilt.counts.confirmed,
            "leaves": rebuilt.counts.leaves_confirmed,
            "roles": rebuilt.counts.roles_confirmed,
            "split_children": rebuilt.counts.split_confirmed,
        },
        "inferred": inferred,
        "failures": rebuilt.failures.iter().map(failure).collect::<Vec<_>>(),
        "lost": rebuilt.lost.iter().map(lost).collect::<Vec<_>>(),
        "skipped": rebuilt.skipped,
        "tdp_mmu": rebuilt.has_tdp,
        "vms": rebuilt.vms.iter().map(vm_json).collect::<Vec<_>>(),
        "shadow_pages": rebuilt.shadow.iter().map(shadow_json).collect::<Vec<_>>(),
        "clean": rebuilt.is_clean(),
    })
}

fn vm_json(vm: &RebuiltVm) -> Value {
    let unknown = |unknown: &slat_vmm::rebuild::Unknown| {
        json!({
            "root": unknown.root.to_string(),
            "start": unknown.frames.start().raw(),
            "end": unknown.frames.end().raw(),
        })
    };
    json!({
        "vm": vm.number,
        "process": vm.process,
        "threads": vm.threads,
        "dump": dump_json::dump(&vm.dump),
        "unknown": vm.unknown.iter().map(unknown).collect::<Vec<_>>(),
        "audit": vm.audit,
        "not_audited": vm.not_audited,
    })
}

fn shadow_json(page: &ShadowPage) -> Value {
    json!({
        "role": page.role.to_string(),
        "gfn": page.gfn.raw(),
        "level": page.role.level() as u8,
        "leaves": page.leaves.len(),
    })
}
