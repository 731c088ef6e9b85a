//! The operations of a SEV guest: its userspace's, its own, and questions.

use slat_memslot::{Call, SevCall, SevCommand, SevHost, SevQuestion, SevSide};

use super::args::Args;
use super::lex::{self, Parsed, number, number32};
use super::write::{Line, hex};
use super::{ParseError, Request};

type Read = Result<SevCall, ParseError>;

/// The call that operation `op` asks for; `None` when no operation of a SEV guest has this name.
pub(super) fn read(op: &str, args: &mut Args<'_>) -> Option<Result<Request, ParseError>> {
    if !op.starts_with("sev_") {
        return None;
    }
    let mut host = None;
    let call = command(op, args, &mut host).map(|command| command.map(SevCall::Command));
    let call = call.or_else(|| other(op, args, &mut host))?;
    Some(call.map(|call| {
        let mut request = Request::plain(Call::Sev(call));
        request.host = host;
        request
    }))
}

fn command(
    op: &str,
    args: &mut Args<'_>,
    host: &mut Option<String>,
) -> Option<Result<SevCommand, ParseError>> {
    Some(match op {
        "sev_init2" => Ok(SevCommand::Init2),
        "sev_launch_start" => args
            .defaulted("policy", number32)
            .map(|policy| SevCommand::LaunchStart { policy }),
        "sev_launch_update_data" => {
            address(args, host).map(|hva| SevCommand::LaunchUpdateData { hva })
        }
        "sev_launch_update_vmsa" => Ok(SevCommand::LaunchUpdateVmsa),
        "sev_launch_measure" => Ok(SevCommand::LaunchMeasure),
        "sev_launch_secret" => {
            written(args, host).map(|(hva, value)| SevCommand::LaunchSecret { hva, value })
        }
        "sev_launch_finish" => Ok(SevCommand::LaunchFinish),
        "sev_guest_status" => Ok(SevCommand::GuestStatus),
        "sev_send_start" => Ok(SevCommand::SendStart),
        "sev_send_update_data" => {
            part(args, host).map(|(hva, size)| SevCommand::SendUpdateData { hva, size })
        }
        "sev_send_finish" => Ok(SevCommand::SendFinish),
        "sev_send_cancel" => Ok(SevCommand::SendCancel),
        "sev_receive_start" => args
            .required("session", number)
            .map(|session| SevCommand::ReceiveStart { session }),
        "sev_receive_update_data" => part(args, host).and_then(|(hva, size)| {
            let packet = args.required("packet", number)?;
            Ok(SevCommand::ReceiveUpdateData { hva, size, packet })
        }),
        "sev_receive_finish" => Ok(SevCommand::ReceiveFinish),
        _ => return None,
    })
}

fn other(op: &str, args: &mut Args<'_>, host: &mut Option<String>) -> Option<Read> {
    Some(match op {
        "sev_register_region" => {
            part(args, host).map(|(hva, size)| SevCall::RegisterRegion { hva, size })
        }
        "sev_unregister_region" => {
            part(args, host).map(|(hva, size)| SevCall::UnregisterRegion { hva, size })
        }
        "sev_read" => access(args).map(|(vcpu, gpa, side)| SevCall::Read { vcpu, gpa, side }),
        "sev_write" => access(args).and_then(|(vcpu, gpa, side)| {
            let value = args.required("value", number)?;
            Ok(SevCall::Write {
                vcpu,
                gpa,
                side,
                value,
            })
        }),
        "sev_host_read" => address(args, host).map(|hva| SevCall::Host(SevHost::Read { hva })),
        "sev_host_write" => {
            written(args, host).map(|(hva, value)| SevCall::Host(SevHost::Write { hva, value }))
        }
        "sev_host_move" => address(args, host).map(|hva| SevCall::Host(SevHost::Move { hva })),
        "sev_send_plain" => {
            address(args, host).map(|hva| SevCall::Host(SevHost::SendPlain { hva }))
        }
        "sev_receive_plain" => address(args, host).and_then(|hva| {
            let packet = args.required("packet", number)?;
            Ok(SevCall::Host(SevHost::ReceivePlain { hva, packet }))
        }),
        "sev_pinned_pages" => Ok(SevCall::Ask(SevQuestion::PinnedPages)),
        "sev_is_pinned" => {
            address(args, host).map(|hva| SevCall::Ask(SevQuestion::IsPinned { hva }))
        }
        "sev_cache_flushes" => Ok(SevCall::Ask(SevQuestion::CacheFlushes)),
        "sev_is_shared" => args
            .required("gpa", number)
            .map(|gpa| SevCall::Ask(SevQuestion::IsShared { gpa })),
        _ => return None,
    })
}

fn address(args: &mut Args<'_>, host: &mut Option<String>) -> Result<u64, ParseError> {
    let (name, hva) = args.required("hva", lex::host)?;
    *host = name;
    Ok(hva)
}

fn part(args: &mut Args<'_>, host: &mut Option<String>) -> Result<(u64, u64), ParseError> {
    Ok((address(args, host)?, args.required("size", number)?))
}

fn written(args: &mut Args<'_>, host: &mut Option<String>) -> Result<(u64, u64), ParseError> {
    Ok((address(args, host)?, args.required("value", number)?))
}

fn access(args: &mut Args<'_>) -> Result<(u32, u64, SevSide), ParseError> {
    Ok((
        args.defaulted("vcpu", number32)?,
        args.required("gpa", number)?,
        args.required("side", side)?,
    ))
}

fn side(text: &str) -> Parsed<SevSide> {
    match text {
        "private" => Ok(SevSide::Private),
        "shared" => Ok(SevSide::Shared),
        _ => Err("neither private nor shared".to_owned()),
    }
}

const fn side_name(side: SevSide) -> &'static str {
    match side {
        SevSide::Private => "private",
        SevSide::Shared => "shared",
    }
}

/// The address of userspace that a call names, if it names one.
pub(super) fn host_address(call: &mut SevCall) -> Option<&mut u64> {
    match call {
        SevCall::Command(
            SevCommand::LaunchUpdateData { hva }
            | SevCommand::LaunchSecret { hva, .. }
            | SevCommand::SendUpdateData { hva, .. }
            | SevCommand::ReceiveUpdateData { hva, .. },
        )
        | SevCall::RegisterRegion { hva, .. }
        | SevCall::UnregisterRegion { hva, .. }
        | SevCall::Host(
            SevHost::Read { hva }
            | SevHost::Write { hva, .. }
            | SevHost::Move { hva }
            | SevHost::SendPlain { hva }
            | SevHost::ReceivePlain { hva, .. },
        )
        | SevCall::Ask(SevQuestion::IsPinned { hva }) => Some(hva),
        _ => None,
    }
}

/// The word that a line with `call` begins with.
pub(super) const fn operation(call: &SevCall) -> &'static str {
    match call {
        SevCall::Command(command) => match command {
            SevCommand::Init2 => "sev_init2",
            SevCommand::LaunchStart { .. } => "sev_launch_start",
            SevCommand::LaunchUpdateData { .. } => "sev_launch_update_data",
            SevCommand::LaunchUpdateVmsa => "sev_launch_update_vmsa",
            SevCommand::LaunchMeasure => "sev_launch_measure",
            SevCommand::LaunchSecret { .. } => "sev_launch_secret",
            SevCommand::LaunchFinish => "sev_launch_finish",
            SevCommand::GuestStatus => "sev_guest_status",
            SevCommand::SendStart => "sev_send_start",
            SevCommand::SendUpdateData { .. } => "sev_send_update_data",
            SevCommand::SendFinish => "sev_send_finish",
            SevCommand::SendCancel => "sev_send_cancel",
            SevCommand::ReceiveStart { .. } => "sev_receive_start",
            SevCommand::ReceiveUpdateData { .. } => "sev_receive_update_data",
            SevCommand::ReceiveFinish => "sev_receive_finish",
        },
        SevCall::RegisterRegion { .. } => "sev_register_region",
        SevCall::UnregisterRegion { .. } => "sev_unregister_region",
        SevCall::Read { .. } => "sev_read",
        SevCall::Write { .. } => "sev_write",
        SevCall::Host(host) => match host {
            SevHost::Read { .. } => "sev_host_read",
            SevHost::Write { .. } => "sev_host_write",
            SevHost::Move { .. } => "sev_host_move",
            SevHost::SendPlain { .. } => "sev_send_plain",
            SevHost::ReceivePlain { .. } => "sev_receive_plain",
        },
        SevCall::Ask(question) => match question {
            SevQuestion::PinnedPages => "sev_pinned_pages",
            SevQuestion::IsPinned { .. } => "sev_is_pinned",
            SevQuestion::CacheFlushes => "sev_cache_flushes",
            SevQuestion::IsShared { .. } => "sev_is_shared",
        },
    }
}

/// The line of a call; `address` writes an address of userspace.
pub(super) fn line(call: &SevCall, address: impl Fn(u64) -> String) -> Line {
    let mut line = Line::new(operation(call));
    if let Some(hva) = host_address(&mut call.clone()) {
        line.pair("hva", address(*hva));
    }
    match *call {
        SevCall::Command(SevCommand::LaunchStart { policy }) => {
            line.unless_zero("policy", hex(policy.into()));
        }
        SevCall::Command(SevCommand::LaunchSecret { value, .. })
        | SevCall::Host(SevHost::Write { value, .. }) => line.pair("value", hex(value)),
        SevCall::Command(SevCommand::SendUpdateData { size, .. })
        | SevCall::RegisterRegion { size, .. }
        | SevCall::UnregisterRegion { size, .. } => line.pair("size", hex(size)),
        SevCall::Command(SevCommand::ReceiveStart { session }) => {
            line.pair("session", session.to_string());
        }
        SevCall::Command(SevCommand::ReceiveUpdateData { size, packet, .. }) => {
            line.pair("size", hex(size));
            line.pair("packet", packet.to_string());
        }
        SevCall::Host(SevHost::ReceivePlain { packet, .. }) => {
            line.pair("packet", packet.to_string());
        }
        SevCall::Read { vcpu, gpa, side } => accessed(&mut line, (vcpu, gpa, side)),
        SevCall::Write {
            vcpu,
            gpa,
            side,
            value,
        } => {
            accessed(&mut line, (vcpu, gpa, side));
            line.pair("value", hex(value));
        }
        SevCall::Ask(SevQuestion::IsShared { gpa }) => line.pair("gpa", hex(gpa)),
        _ => {}
    }
    line
}

fn accessed(line: &mut Line, (vcpu, gpa, side): (u32, u64, SevSide)) {
    line.unless_zero("vcpu", vcpu.to_string());
    line.pair("gpa", hex(gpa));
    line.pair("side", side_name(side));
}

/// Whether a call reads a page, which can be noise.
pub(super) const fn reads(call: &Call) -> bool {
    matches!(
        call,
        Call::Sev(SevCall::Read { .. } | SevCall::Host(SevHost::Read { .. }))
    )
}

/// Whether a guest does something, which can end otherwise.
pub(super) const fn is_of_guest(call: &Call) -> bool {
    matches!(
        call,
        Call::Sev(SevCall::Read { .. } | SevCall::Write { .. })
    )
}
