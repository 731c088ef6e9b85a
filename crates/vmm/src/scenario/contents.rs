//! Operations on what memory holds, and the hypercall by which a guest asks for a conversion.

use slat_memslot::{Call, ContentsCall, GuestContents, Outcome};

use super::args::Args;
use super::lex::{self, Parsed, number, number32};
use super::write::{Line, hex};
use super::{ParseError, Request};

type Read = Result<ContentsCall, ParseError>;

/// Where a guest's instructions are when `code=` is left out.
const CODE: u64 = 0x1000;

/// The call that operation `op` asks for; `None` when no operation on contents has this name.
pub(super) fn read(op: &str, args: &mut Args<'_>) -> Option<Result<Request, ParseError>> {
    let mut host = None;
    let call = match op {
        "guest_fill" | "guest_check" | "map_gpa_range" => guest(op, args),
        "return_hypercall" => returned(args),
        "host_fill" | "host_check" | "dontneed" => on_host(op, args, &mut host),
        _ => return None,
    };
    Some(call.map(|call| {
        let mut request = Request::plain(Call::Contents(call));
        request.host = host;
        request
    }))
}

fn byte(text: &str) -> Parsed<u8> {
    u8::try_from(number(text)?).map_err(|_| "larger than 255".to_owned())
}

fn guest(op: &str, args: &mut Args<'_>) -> Read {
    let vcpu = args.defaulted("vcpu", number32)?;
    let code = args.optional("code", number)?.unwrap_or(CODE);
    let gpa = args.required("gpa", number)?;
    if op == "map_gpa_range" {
        let act = GuestContents::MapGpaRange {
            gpa,
            pages: args.required("pages", number)?,
            attributes: args.defaulted("attributes", number)?,
        };
        return Ok(ContentsCall::Guest { vcpu, code, act });
    }
    let size = args.required("size", number)?;
    let byte = args.required("byte", byte)?;
    let act = match op {
        "guest_fill" => GuestContents::Fill { gpa, size, byte },
        _ => GuestContents::Check { gpa, size, byte },
    };
    Ok(ContentsCall::Guest { vcpu, code, act })
}

fn returned(args: &mut Args<'_>) -> Read {
    Ok(ContentsCall::ReturnHypercall {
        vcpu: args.defaulted("vcpu", number32)?,
        ret: args.required("ret", number)?,
    })
}

fn on_host(op: &str, args: &mut Args<'_>, host: &mut Option<String>) -> Read {
    let (name, hva) = args.required("hva", lex::host)?;
    *host = name;
    let size = args.required("size", number)?;
    if op == "dontneed" {
        return Ok(ContentsCall::Discard { hva, size });
    }
    let byte = args.required("byte", byte)?;
    Ok(match op {
        "host_fill" => ContentsCall::HostFill { hva, size, byte },
        _ => ContentsCall::HostCheck { hva, size, byte },
    })
}

/// The address of userspace that a call names, if it names one.
pub(super) fn host_address(call: &mut ContentsCall) -> Option<&mut u64> {
    match call {
        ContentsCall::HostFill { hva, .. }
        | ContentsCall::HostCheck { hva, .. }
        | ContentsCall::Discard { hva, .. } => Some(hva),
        ContentsCall::Guest { .. } | ContentsCall::ReturnHypercall { .. } => None,
    }
}

/// The word that a line with `call` begins with.
pub(super) const fn operation(call: &ContentsCall) -> &'static str {
    match call {
        ContentsCall::Guest { act, .. } => match act {
            GuestContents::Fill { .. } => "guest_fill",
            GuestContents::Check { .. } => "guest_check",
            GuestContents::MapGpaRange { .. } => "map_gpa_range",
        },
        ContentsCall::ReturnHypercall { .. } => "return_hypercall",
        ContentsCall::HostFill { .. } => "host_fill",
        ContentsCall::HostCheck { .. } => "host_check",
        ContentsCall::Discard { .. } => "dontneed",
    }
}

/// The line of a call; `address` writes an address of userspace.
pub(super) fn line(call: &ContentsCall, address: impl Fn(u64) -> String) -> Line {
    let mut line = Line::new(operation(call));
    match *call {
        ContentsCall::Guest { vcpu, code, act } => {
            line.unless_zero("vcpu", vcpu.to_string());
            if code != CODE {
                line.pair("code", hex(code));
            }
            match act {
                GuestContents::Fill { gpa, size, byte }
                | GuestContents::Check { gpa, size, byte } => {
                    line.pair("gpa", hex(gpa));
                    line.pair("size", hex(size));
                    line.pair("byte", hex(byte.into()));
                }
                GuestContents::MapGpaRange {
                    gpa,
                    pages,
                    attributes,
                } => {
                    line.pair("gpa", hex(gpa));
                    line.pair("pages", pages.to_string());
                    line.unless_zero("attributes", hex(attributes));
                }
            }
        }
        ContentsCall::ReturnHypercall { vcpu, ret } => {
            line.unless_zero("vcpu", vcpu.to_string());
            line.pair("ret", hex(ret));
        }
        ContentsCall::HostFill { hva, size, byte }
        | ContentsCall::HostCheck { hva, size, byte } => {
            line.pair("hva", address(hva));
            line.pair("size", hex(size));
            line.pair("byte", hex(byte.into()));
        }
        ContentsCall::Discard { hva, size } => {
            line.pair("hva", address(hva));
            line.pair("size", hex(size));
        }
    }
    line
}

/// `exit gpa=.. pages=.. attributes=..`: a guest asks for a conversion.
pub(super) fn read_exit(fields: &[&str]) -> Parsed<Outcome> {
    const NEEDS: &str = "exit needs gpa=, pages= and attributes=";
    let [gpa, pages, attributes] = fields else {
        return Err(NEEDS.to_owned());
    };
    let field = |field: &str, key: &str| match field.split_once('=') {
        Some((known, value)) if known == key => lex::number(value),
        _ => Err(NEEDS.to_owned()),
    };
    Ok(Outcome::MapGpaRange {
        gpa: field(gpa, "gpa")?,
        pages: field(pages, "pages")?,
        attributes: field(attributes, "attributes")?,
    })
}

/// Whether a guest does something, which can end otherwise.
pub(super) const fn is_of_guest(call: &Call) -> bool {
    matches!(
        call,
        Call::Contents(ContentsCall::Guest { .. } | ContentsCall::ReturnHypercall { .. })
    )
}
