//! From a line's words to what is to be done.

use slat_coco::psc::{PscEntry, PscOperation, PscQuirks};
use slat_coco::rmp::{Adjustment, Permissions, RmpSize, Visibility, Vmpl};
use slat_coco::snp::{ApCreation, Hole, RmpFaultPolicy};
use slat_memslot::{Gfn, GfnRange, Gpa, Pages};

use super::super::ParseError;
use super::super::args::Args;
use super::super::lex::{self, Parsed, number, number32};
use super::super::words::{self, Words};
use super::{
    AP_REQUESTS, HOLES, IMPLICIT, LAUNCH_TYPES, OPERATIONS, PERMISSIONS, POLICIES, QUIRKS, SIDES,
    SIZES, SnpStep,
};
use crate::snp_vm::{GuestAct, SnpCommand, SnpOp, VmmWays};

type Read<T> = Result<T, ParseError>;

/// What operation `op` asks for; `None` when there is no such operation.
pub(in crate::scenario) fn read(op: &str, args: &mut Args<'_>) -> Option<Read<SnpStep>> {
    if let Some(command) = command(op, args) {
        return Some(command.map(SnpStep::Command));
    }
    let done = match guest(op, args) {
        Some(act) => act.and_then(|act| {
            let vcpu = args.defaulted("vcpu", number32)?;
            Ok(SnpOp::Guest(vcpu, act))
        }),
        None => outside(op, args)?,
    };
    Some(done.map(SnpStep::Op))
}

fn command(op: &str, args: &mut Args<'_>) -> Option<Read<SnpCommand>> {
    Some(match op {
        "snp_launch_start" => launch_start(args),
        "snp_launch_update" => launch_update(args),
        "snp_launch_finish" => args
            .defaulted("flags", number)
            .map(|flags| SnpCommand::LaunchFinish { flags }),
        _ => return None,
    })
}

fn launch_start(args: &mut Args<'_>) -> Read<SnpCommand> {
    Ok(SnpCommand::LaunchStart {
        policy: args.required("policy", number)?,
        flags: args.defaulted("flags", number)?,
    })
}

fn launch_update(args: &mut Args<'_>) -> Read<SnpCommand> {
    let page = |text: &str| {
        let value = lex::value(LAUNCH_TYPES, text)?;
        u8::try_from(value).map_err(|_| "larger than 8 bits".to_owned())
    };
    Ok(SnpCommand::LaunchUpdate {
        gpa: args.required("gpa", number)?,
        size: args.required("size", number)?,
        page: args.optional("type", page)?.unwrap_or(1),
        tag: args.defaulted("tag", number)?,
        flags: args.defaulted("flags", number)?,
    })
}

fn guest(op: &str, args: &mut Args<'_>) -> Option<Read<GuestAct>> {
    Some(match op {
        "snp_read" => at_side(args).map(|(gfn, side)| GuestAct::Read(gfn, side)),
        "snp_write" => write(args),
        "snp_execute" => page(args).map(GuestAct::Execute),
        "snp_validate" => sized(args).map(|(gfn, size)| GuestAct::Validate(gfn, size)),
        "snp_rescind" => sized(args).map(|(gfn, size)| GuestAct::Rescind(gfn, size)),
        "snp_validate_all" => page(args).map(GuestAct::ValidateAll),
        "snp_adjust" => adjust(args),
        "snp_query" => query(args),
        "snp_psc" => args.required("entries", entries).map(GuestAct::Psc),
        "snp_msr" => args.required("value", number).map(GuestAct::Msr),
        "snp_ap_create" => ap_create(args),
        "snp_run_vmpl" => args.required("vmpl", vmpl).map(GuestAct::RunVmpl),
        "snp_init" => Ok(GuestAct::Init),
        _ => return None,
    })
}

fn outside(op: &str, args: &mut Args<'_>) -> Option<Read<SnpOp>> {
    Some(match op {
        "snp_vmm" => vmm(args),
        "snp_host" => host(args),
        "snp_convert" => convert(args),
        "snp_discard" => range(args).map(SnpOp::Discard),
        "snp_host_read" => page(args).map(SnpOp::HostRead),
        "snp_host_write" => host_write(args),
        "snp_host_peek" => page(args).map(SnpOp::HostPeek),
        "snp_entry" => page(args).map(SnpOp::Entry),
        "snp_audit" => Ok(SnpOp::Audit),
        _ => return None,
    })
}

fn page(args: &mut Args<'_>) -> Read<Gfn> {
    args.required("gpa", frame)
}

/// A page by its address.
fn frame(text: &str) -> Parsed<Gfn> {
    let gpa = Gpa::new(number(text)?);
    match gpa.is_page_aligned() {
        true => Ok(gpa.gfn()),
        false => Err("not the address of a page".to_owned()),
    }
}

fn at_side(args: &mut Args<'_>) -> Read<(Gfn, Visibility)> {
    Ok((page(args)?, args.required("c", c_bit)?))
}

fn c_bit(text: &str) -> Parsed<Visibility> {
    match text {
        "0" => Ok(Visibility::Shared),
        "1" => Ok(Visibility::Private),
        _ => Err("neither 0 nor 1".to_owned()),
    }
}

fn write(args: &mut Args<'_>) -> Read<GuestAct> {
    let (gfn, side) = at_side(args)?;
    Ok(GuestAct::Write(gfn, side, args.required("tag", number)?))
}

fn sized(args: &mut Args<'_>) -> Read<(Gfn, RmpSize)> {
    Ok((
        page(args)?,
        args.optional("size", size)?.unwrap_or(RmpSize::Size4K),
    ))
}

fn word<T: Copy>(words: Words, values: &[T], text: &str) -> Parsed<T> {
    let value = words::value(words, text).and_then(|value| usize::try_from(value).ok());
    let found = value.and_then(|value| values.get(value)).copied();
    found.ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        format!("{text:?} is none of {}", known.join(", "))
    })
}

pub(super) fn size(text: &str) -> Parsed<RmpSize> {
    word(SIZES, &[RmpSize::Size4K, RmpSize::Size2M], text)
}

pub(super) fn side(text: &str) -> Parsed<Visibility> {
    word(SIDES, &[Visibility::Shared, Visibility::Private], text)
}

fn hole(text: &str) -> Parsed<Hole> {
    word(HOLES, &[Hole::Kept, Hole::Punched], text)
}

fn vmpl(text: &str) -> Parsed<Vmpl> {
    Vmpl::new(number(text)?).ok_or_else(|| "none of 0 to 3".to_owned())
}

pub(super) fn permissions(text: &str) -> Parsed<Permissions> {
    let bits = lex::bits(PERMISSIONS, text)?;
    let known = u8::try_from(bits).ok().and_then(Permissions::from_bits);
    known.ok_or_else(|| "more than four bits".to_owned())
}

fn adjust(args: &mut Args<'_>) -> Read<GuestAct> {
    let (gfn, size) = sized(args)?;
    let adjustment = Adjustment {
        target: args.required("vmpl", vmpl)?,
        permissions: args.required("permissions", permissions)?,
        vmsa: args.defaulted("vmsa", number)? != 0,
    };
    Ok(GuestAct::Adjust(gfn, size, adjustment))
}

fn query(args: &mut Args<'_>) -> Read<GuestAct> {
    Ok(GuestAct::Query(page(args)?, args.required("vmpl", vmpl)?))
}

fn entries(text: &str) -> Parsed<Vec<PscEntry>> {
    let all: Vec<PscEntry> = text.split(',').map(entry).collect::<Parsed<_>>()?;
    match all.len() {
        0..=253 => Ok(all),
        _ => Err("more than 253 entries".to_owned()),
    }
}

/// `FRAME:OPERATION[:SIZE[:DONE]]`, frames by number, since an entry can name what is no frame of a guest.
fn entry(text: &str) -> Parsed<PscEntry> {
    let mut parts = text.split(':');
    let mut next = || parts.next();
    let gfn = number(next().unwrap_or_default())?;
    if gfn >> 40 != 0 {
        return Err(format!("{gfn:#x}: a frame has 40 bits"));
    }
    let operation = next().ok_or("an entry is FRAME:OPERATION[:SIZE[:DONE]]")?;
    let size = next().map_or(Ok(RmpSize::Size4K), size)?;
    let done = next().map_or(Ok(0), number)?;
    if next().is_some() {
        return Err("an entry is FRAME:OPERATION[:SIZE[:DONE]]".to_owned());
    }
    let cur_page = u16::try_from(done).ok().filter(|done| *done < 1 << 12);
    Ok(PscEntry {
        cur_page: cur_page.ok_or("more than 12 bits of pages done")?,
        ..PscEntry::new(Gfn::new(gfn), psc_operation(operation)?, size)
    })
}

fn psc_operation(text: &str) -> Parsed<PscOperation> {
    Ok(match lex::value(OPERATIONS, text)? {
        1 => PscOperation::Private,
        2 => PscOperation::Shared,
        3 => PscOperation::Psmash,
        4 => PscOperation::Unsmash,
        other => {
            let bits = u8::try_from(other).ok().filter(|bits| *bits < 16);
            PscOperation::Unknown(bits.ok_or("an operation has four bits")?)
        }
    })
}

fn ap_create(args: &mut Args<'_>) -> Read<GuestAct> {
    let request = args.required("request", |text| {
        u32::try_from(lex::value(AP_REQUESTS, text)?).map_err(|_| "larger than 32 bits".to_owned())
    })?;
    let apic_id = args.required("apic_id", number32)?;
    Ok(GuestAct::ApCreate(ApCreation {
        exit_info_1: u64::from(apic_id) << 32 | u64::from(request),
        exit_info_2: args.defaulted("vmsa", number)?,
        sev_features: args.optional("features", number)?.unwrap_or(1),
    }))
}

fn vmm(args: &mut Args<'_>) -> Read<SnpOp> {
    let implicit = |text: &str| {
        let all = [Some(Hole::Kept), Some(Hole::Punched), None];
        word(IMPLICIT, &all, text)
    };
    let quirks = |text: &str| {
        let all = [PscQuirks::kvm(), PscQuirks::kvm_2026(), PscQuirks::strict()];
        word(QUIRKS, &all, text)
    };
    let careful = VmmWays::CAREFUL;
    Ok(SnpOp::Vmm(VmmWays {
        explicit: args.optional("explicit", hole)?.unwrap_or(careful.explicit),
        implicit: args
            .optional("implicit", implicit)?
            .unwrap_or(careful.implicit),
        quirks: args.optional("quirks", quirks)?.unwrap_or(careful.quirks),
        chunk: args.optional("chunk", number)?.filter(|chunk| *chunk > 0),
        fails_at: args.optional("fails_at", number32)?.filter(|at| *at > 0),
    }))
}

fn host(args: &mut Args<'_>) -> Read<SnpOp> {
    let policy = |text: &str| {
        let all = [
            RmpFaultPolicy::Upstream,
            RmpFaultPolicy::Rfc2021,
            RmpFaultPolicy::Strict,
        ];
        word(POLICIES, &all, text)
    };
    Ok(SnpOp::Host {
        policy: args.optional("policy", policy)?.unwrap_or_default(),
        folio: args.optional("folio", size)?.unwrap_or(RmpSize::Size4K),
    })
}

fn range(args: &mut Args<'_>) -> Read<GfnRange> {
    let start = page(args)?;
    let pages = args.required("size", |text| {
        let pages = Pages::new(frame(text)?.raw());
        GfnRange::new(start, pages).ok_or_else(|| "no pages, or beyond the last frame".to_owned())
    })?;
    Ok(pages)
}

fn convert(args: &mut Args<'_>) -> Read<SnpOp> {
    let frames = range(args)?;
    let to = args.required("to", side)?;
    let hole = args.optional("hole", hole)?.unwrap_or(Hole::Punched);
    Ok(SnpOp::Convert(frames, to, hole))
}

fn host_write(args: &mut Args<'_>) -> Read<SnpOp> {
    Ok(SnpOp::HostWrite(page(args)?, args.required("tag", number)?))
}
