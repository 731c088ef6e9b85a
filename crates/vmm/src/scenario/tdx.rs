//! The operations of a TD: its userspace's, its guest's, and questions.

use core::fmt;

use slat_memslot::{
    Call, Level, TdOp, TdSide, TdxCall, TdxCommand, TdxConversion, TdxCount, TdxEntry, TdxFinding,
    TdxHost, TdxOutcome, TdxQuestion, TdxSlotZap, WaitingEvent,
};

use super::args::Args;
use super::lex::{self, Parsed, bits, bits32, number, number32};
use super::words::{self, Words};
use super::write::{Line, hex};
use super::{ParseError, Request};

type Read = Result<TdxCall, ParseError>;

const INIT_FLAGS: Words = &[("MEASURE", 1 << 0)];
const ATTRIBUTES: Words = &[("DEBUG", 1 << 0), ("SEPT_VE_DISABLE", 1 << 28)];

/// The call that operation `op` asks for; `None` when no operation of a TD has this name.
pub(super) fn read(op: &str, args: &mut Args<'_>) -> Option<Result<Request, ParseError>> {
    let mut host = None;
    let call = match op {
        "tdx_init_vm" => init_vm(args),
        "tdx_init_vcpu" => init_vcpu(args),
        "tdx_init_mem_region" => init_mem_region(args, &mut host),
        "tdx_finalize_vm" => finalize(args),
        "td_read" | "td_write" | "td_accept" | "td_map_gpa" => guest(op, args),
        "complete_hypercall" => complete(args),
        "host_write" => host_write(args, &mut host),
        "discard" | "dma_map" | "dma_unmap" => on_range(op, args),
        "tdx_slot_zap" => args
            .word("a policy", slot_zap)
            .map(to_host(TdxHost::SlotZap)),
        "tdx_busy" => busy(args),
        "tdx_teardown" => Ok(TdxCall::Host(TdxHost::Teardown)),
        "tdx_count" => args
            .word("what to count", |text| known(text, TdxCount::named(text)))
            .map(|what| TdxCall::Ask(TdxQuestion::Count(what))),
        "tdx_report" => Ok(TdxCall::Ask(TdxQuestion::Report)),
        "tdx_entry" => args
            .required("gpa", number)
            .map(|gpa| TdxCall::Ask(TdxQuestion::Entry { gpa })),
        _ => return None,
    };
    Some(call.map(|call| {
        let mut request = Request::plain(Call::Tdx(call));
        request.host = host;
        request
    }))
}

fn known<T>(text: &str, found: Option<T>) -> Parsed<T> {
    found.ok_or_else(|| format!("{text:?} is not known"))
}

fn to_host<T>(make: impl Fn(T) -> TdxHost) -> impl Fn(T) -> TdxCall {
    move |value| TdxCall::Host(make(value))
}

fn command(args: &mut Args<'_>, command: TdxCommand) -> Read {
    Ok(TdxCall::Command {
        command,
        hw_error: args.defaulted("hw_error", number)?,
    })
}

fn init_vm(args: &mut Args<'_>) -> Read {
    let width = |text: &str| {
        let bits = number32(text)?;
        u8::try_from(bits).map_err(|_| "larger than 255".to_owned())
    };
    let init = TdxCommand::InitVm {
        attributes: args.defaulted("attributes", |text| bits(ATTRIBUTES, text))?,
        gpaw: args.optional("gpaw", width)?.unwrap_or(DEFAULT_WIDTH),
        maxphyaddr: args.optional("maxphyaddr", width)?.unwrap_or(MAXPHYADDR),
        flags: args.defaulted("flags", number32)?,
        nent: args.defaulted("nent", number32)?,
    };
    command(args, init)
}

/// What `gpaw` is when it is left out.
const DEFAULT_WIDTH: u8 = 48;
/// What `maxphyaddr` is when it is left out: all that a host can have.
const MAXPHYADDR: u8 = 52;

fn init_vcpu(args: &mut Args<'_>) -> Read {
    let init = TdxCommand::InitVcpu {
        vcpu: args.defaulted("vcpu", number32)?,
        flags: args.defaulted("flags", number32)?,
    };
    command(args, init)
}

fn init_mem_region(args: &mut Args<'_>, host: &mut Option<String>) -> Read {
    let vcpu = args.defaulted("vcpu", number32)?;
    let flags = args.defaulted("flags", |text| bits32(INIT_FLAGS, text))?;
    let (name, source) = args.required("source", lex::host)?;
    *host = name;
    let init = TdxCommand::InitMemRegion {
        vcpu,
        flags,
        source,
        gpa: args.required("gpa", number)?,
        pages: args.required("pages", number)?,
        signal: args.optional("signal", number)?,
    };
    command(args, init)
}

fn finalize(args: &mut Args<'_>) -> Read {
    let finalize = TdxCommand::FinalizeVm {
        flags: args.defaulted("flags", number32)?,
    };
    command(args, finalize)
}

fn guest(op: &str, args: &mut Args<'_>) -> Read {
    let vcpu = args.defaulted("vcpu", number32)?;
    let gpa = args.required("gpa", number)?;
    let op = match op {
        "td_accept" => TdOp::Accept {
            gpa,
            level: args.optional("level", level)?.unwrap_or(Level::L1),
        },
        "td_write" => TdOp::Write {
            gpa,
            side: args.defaulted("side", side)?,
            value: args.required("value", number)?,
        },
        "td_read" => TdOp::Read {
            gpa,
            side: args.defaulted("side", side)?,
        },
        _ => TdOp::MapGpa {
            gpa,
            side: args.defaulted("side", side)?,
            size: args.required("size", number)?,
        },
    };
    Ok(TdxCall::Guest { vcpu, op })
}

fn complete(args: &mut Args<'_>) -> Read {
    Ok(TdxCall::CompleteHypercall {
        vcpu: args.defaulted("vcpu", number32)?,
        ret: args.defaulted("ret", number)?,
        event: args.defaulted("event", |text| match text {
            "pending" => Ok(WaitingEvent::Pending),
            "none" => Ok(WaitingEvent::None),
            _ => Err("neither pending nor none".to_owned()),
        })?,
    })
}

fn host_write(args: &mut Args<'_>, host: &mut Option<String>) -> Read {
    let (name, hva) = args.required("hva", lex::host)?;
    *host = name;
    let value = args.required("value", number)?;
    Ok(TdxCall::Host(TdxHost::Write { hva, value }))
}

fn on_range(op: &str, args: &mut Args<'_>) -> Read {
    let address = args.required("address", number)?;
    let size = args.required("size", number)?;
    Ok(TdxCall::Host(match op {
        "discard" => TdxHost::Discard { address, size },
        "dma_map" => TdxHost::DmaMap { address, size },
        _ => TdxHost::DmaUnmap { address, size },
    }))
}

fn busy(args: &mut Args<'_>) -> Read {
    let skip = args.defaulted("skip", number32)?;
    Ok(TdxCall::Host(TdxHost::Busy { skip }))
}

fn slot_zap(text: &str) -> Parsed<TdxSlotZap> {
    match text {
        "leafs" => Ok(TdxSlotZap::Leafs),
        "shared-roots" => Ok(TdxSlotZap::SharedRoots),
        "all-roots" => Ok(TdxSlotZap::AllRoots),
        _ => Err("neither leafs nor shared-roots nor all-roots".to_owned()),
    }
}

fn side(text: &str) -> Parsed<TdSide> {
    match text {
        "shared" => Ok(TdSide::Shared),
        "as-given" => Ok(TdSide::AsGiven),
        _ => Err("neither shared nor as-given".to_owned()),
    }
}

const LEVELS: [(&str, Level); 3] = [("4K", Level::L1), ("2M", Level::L2), ("1G", Level::L3)];

fn level(text: &str) -> Parsed<Level> {
    let found = LEVELS.iter().find(|(name, _)| *name == text);
    found
        .map(|(_, level)| *level)
        .ok_or_else(|| "neither 4K nor 2M nor 1G".to_owned())
}

fn level_name(level: Level) -> String {
    let found = LEVELS.iter().find(|(_, known)| *known == level);
    found.map_or_else(|| (level as u8).to_string(), |(name, _)| (*name).to_owned())
}

/// The address of userspace that a call names, if it names one.
pub(super) fn host_address(call: &mut TdxCall) -> Option<&mut u64> {
    match call {
        TdxCall::Command {
            command: TdxCommand::InitMemRegion { source, .. },
            ..
        } => Some(source),
        TdxCall::Host(TdxHost::Write { hva, .. }) => Some(hva),
        _ => None,
    }
}

/// The word that a line with `call` begins with.
pub(super) const fn operation(call: &TdxCall) -> &'static str {
    match call {
        TdxCall::Command { command, .. } => match command {
            TdxCommand::InitVm { .. } => "tdx_init_vm",
            TdxCommand::InitVcpu { .. } => "tdx_init_vcpu",
            TdxCommand::InitMemRegion { .. } => "tdx_init_mem_region",
            TdxCommand::FinalizeVm { .. } => "tdx_finalize_vm",
        },
        TdxCall::Guest { op, .. } => match op {
            TdOp::Read { .. } => "td_read",
            TdOp::Write { .. } => "td_write",
            TdOp::Accept { .. } => "td_accept",
            TdOp::MapGpa { .. } => "td_map_gpa",
        },
        TdxCall::CompleteHypercall { .. } => "complete_hypercall",
        TdxCall::Host(host) => match host {
            TdxHost::Write { .. } => "host_write",
            TdxHost::Discard { .. } => "discard",
            TdxHost::DmaMap { .. } => "dma_map",
            TdxHost::DmaUnmap { .. } => "dma_unmap",
            TdxHost::SlotZap(_) => "tdx_slot_zap",
            TdxHost::Busy { .. } => "tdx_busy",
            TdxHost::Teardown => "tdx_teardown",
        },
        TdxCall::Ask(question) => match question {
            TdxQuestion::Count(_) => "tdx_count",
            TdxQuestion::Report => "tdx_report",
            TdxQuestion::Entry { .. } => "tdx_entry",
        },
    }
}

/// The line of a call; `address` writes an address of userspace.
pub(super) fn line(call: &TdxCall, address: impl Fn(u64) -> String) -> Line {
    let mut line = Line::new(operation(call));
    match *call {
        TdxCall::Command { command, hw_error } => {
            write_command(&mut line, command, address);
            line.unless_zero("hw_error", hex(hw_error));
        }
        TdxCall::Guest { vcpu, op } => {
            line.unless_zero("vcpu", vcpu.to_string());
            write_op(&mut line, op);
        }
        TdxCall::CompleteHypercall { vcpu, ret, event } => {
            line.unless_zero("vcpu", vcpu.to_string());
            line.unless_zero("ret", hex(ret));
            if event == WaitingEvent::Pending {
                line.pair("event", "pending");
            }
        }
        TdxCall::Host(host) => write_host(&mut line, host, address),
        TdxCall::Ask(TdxQuestion::Count(what)) => line.word(what.name()),
        TdxCall::Ask(TdxQuestion::Report) => {}
        TdxCall::Ask(TdxQuestion::Entry { gpa }) => line.pair("gpa", hex(gpa)),
    }
    line
}

fn write_command(line: &mut Line, command: TdxCommand, address: impl Fn(u64) -> String) {
    match command {
        TdxCommand::InitVm {
            attributes,
            gpaw,
            maxphyaddr,
            flags,
            nent,
        } => {
            line.unless_zero("attributes", words::join(ATTRIBUTES, attributes));
            if gpaw != DEFAULT_WIDTH {
                line.pair("gpaw", gpaw.to_string());
            }
            if maxphyaddr != MAXPHYADDR {
                line.pair("maxphyaddr", maxphyaddr.to_string());
            }
            line.unless_zero("flags", hex(u64::from(flags)));
            line.unless_zero("nent", nent.to_string());
        }
        TdxCommand::InitVcpu { vcpu, flags } => {
            line.unless_zero("vcpu", vcpu.to_string());
            line.unless_zero("flags", hex(u64::from(flags)));
        }
        TdxCommand::InitMemRegion {
            vcpu,
            flags,
            source,
            gpa,
            pages,
            signal,
        } => {
            line.unless_zero("vcpu", vcpu.to_string());
            line.unless_zero("flags", words::join(INIT_FLAGS, u64::from(flags)));
            line.pair("source", address(source));
            line.pair("gpa", hex(gpa));
            line.pair("pages", pages.to_string());
            if let Some(signal) = signal {
                line.pair("signal", signal.to_string());
            }
        }
        TdxCommand::FinalizeVm { flags } => line.unless_zero("flags", hex(u64::from(flags))),
    }
}

fn write_op(line: &mut Line, op: TdOp) {
    let write_side = |line: &mut Line, side| {
        if side == TdSide::Shared {
            line.pair("side", "shared");
        }
    };
    match op {
        TdOp::Read { gpa, side } => {
            line.pair("gpa", hex(gpa));
            write_side(line, side);
        }
        TdOp::Write { gpa, side, value } => {
            line.pair("gpa", hex(gpa));
            write_side(line, side);
            line.pair("value", value.to_string());
        }
        TdOp::Accept { gpa, level } => {
            line.pair("gpa", hex(gpa));
            if level != Level::L1 {
                line.pair("level", level_name(level));
            }
        }
        TdOp::MapGpa { gpa, side, size } => {
            line.pair("gpa", hex(gpa));
            write_side(line, side);
            line.pair("size", hex(size));
        }
    }
}

fn write_host(line: &mut Line, host: TdxHost, address: impl Fn(u64) -> String) {
    match host {
        TdxHost::Write { hva, value } => {
            line.pair("hva", address(hva));
            line.pair("value", value.to_string());
        }
        TdxHost::Discard { address, size }
        | TdxHost::DmaMap { address, size }
        | TdxHost::DmaUnmap { address, size } => {
            line.pair("address", hex(address));
            line.pair("size", hex(size));
        }
        TdxHost::SlotZap(how) => line.word(match how {
            TdxSlotZap::Leafs => "leafs",
            TdxSlotZap::SharedRoots => "shared-roots",
            TdxSlotZap::AllRoots => "all-roots",
        }),
        TdxHost::Busy { skip } => line.unless_zero("skip", skip.to_string()),
        TdxHost::Teardown => {}
    }
}

/// Whether a call can give this.
pub(super) const fn fits(outcome: &TdxOutcome, call: &TdxCall) -> bool {
    use TdxOutcome as O;
    match call {
        TdxCall::Guest { op, .. } => match op {
            TdOp::Read { .. } | TdOp::Write { .. } => matches!(outcome, O::Ve),
            TdOp::Accept { .. } => matches!(
                outcome,
                O::Accepted | O::AlreadyAccepted(_) | O::SizeMismatch(_) | O::OperandInvalid
            ),
            TdOp::MapGpa { .. } => matches!(outcome, O::Hypercall { .. } | O::MapGpa { .. }),
        },
        TdxCall::CompleteHypercall { .. } => {
            matches!(outcome, O::Hypercall { .. } | O::MapGpa { .. })
        }
        TdxCall::Ask(TdxQuestion::Entry { .. }) => matches!(outcome, O::Entry(_)),
        TdxCall::Ask(TdxQuestion::Report) => matches!(outcome, O::Report(_)),
        TdxCall::Ask(TdxQuestion::Count(_)) | TdxCall::Command { .. } | TdxCall::Host(_) => false,
    }
}

/// Writes what stands behind `=>`.
pub(super) fn write_outcome(outcome: &TdxOutcome, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match outcome {
        TdxOutcome::Ve => f.write_str("ve"),
        TdxOutcome::Accepted => f.write_str("accepted"),
        TdxOutcome::AlreadyAccepted(level) => write!(f, "already-accepted {}", level_name(*level)),
        TdxOutcome::SizeMismatch(level) => write!(f, "size-mismatch {}", level_name(*level)),
        TdxOutcome::OperandInvalid => f.write_str("operand-invalid"),
        TdxOutcome::Hypercall { gpa, pages, to } => {
            write!(f, "hypercall {} gpa={} pages={pages}", to.name(), hex(*gpa))
        }
        TdxOutcome::MapGpa { answer, next } => {
            write!(f, "map-gpa {} next={}", answer.name(), hex(*next))
        }
        TdxOutcome::Entry(entry) => write!(f, "entry {}", entry.name()),
        TdxOutcome::Report(findings) if findings.is_empty() => f.write_str("report none"),
        TdxOutcome::Report(findings) => {
            let names: Vec<&str> = findings.iter().map(|finding| finding.name()).collect();
            write!(f, "report {}", names.join(","))
        }
    }
}

/// Reads the words behind `=>`; `None` if they are none of a TD's.
pub(super) fn read_outcome(words: &[&str]) -> Option<Parsed<TdxOutcome>> {
    Some(Ok(match *words {
        ["ve"] => TdxOutcome::Ve,
        ["accepted"] => TdxOutcome::Accepted,
        ["operand-invalid"] => TdxOutcome::OperandInvalid,
        ["already-accepted", text] => return Some(level(text).map(TdxOutcome::AlreadyAccepted)),
        ["size-mismatch", text] => return Some(level(text).map(TdxOutcome::SizeMismatch)),
        ["hypercall", to, gpa, pages] => return Some(hypercall(to, gpa, pages)),
        ["map-gpa", answer, next] => return Some(map_gpa(answer, next)),
        ["entry", text] => {
            return Some(known(text, TdxEntry::named(text)).map(TdxOutcome::Entry));
        }
        ["report", "none"] => TdxOutcome::Report(Vec::new()),
        ["report", codes] => return Some(report(codes)),
        _ => return None,
    }))
}

fn field(key: &str, text: &str) -> Parsed<u64> {
    match text.split_once('=') {
        Some((known, value)) if known == key => number(value),
        _ => Err(format!("{text:?} is not {key}=")),
    }
}

fn hypercall(to: &str, gpa: &str, pages: &str) -> Parsed<TdxOutcome> {
    Ok(TdxOutcome::Hypercall {
        gpa: field("gpa", gpa)?,
        pages: field("pages", pages)?,
        to: known(to, TdxConversion::named(to))?,
    })
}

fn map_gpa(answer: &str, next: &str) -> Parsed<TdxOutcome> {
    Ok(TdxOutcome::MapGpa {
        answer: known(answer, slat_memslot::MapGpaAnswer::named(answer))?,
        next: field("next", next)?,
    })
}

fn report(codes: &str) -> Parsed<TdxOutcome> {
    let codes = codes.split(',');
    let found = codes.map(|code| known(code, TdxFinding::named(code)));
    let mut found = found.collect::<Parsed<Vec<_>>>()?;
    found.sort_unstable();
    found.dedup();
    Ok(TdxOutcome::Report(found))
}
