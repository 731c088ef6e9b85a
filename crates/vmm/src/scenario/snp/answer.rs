//! What is answered, as words behind `=>`.

use slat_coco::psc::{Direction, MapGpaRange};
use slat_coco::rmp::{PageState, RmpSize, Visibility};
use slat_coco::snp::{ApError, Found, SnpViolation, Value};
use slat_memslot::{Gfn, GfnRange, Gpa, PAGE_SIZE, PageSize, Pages};

use super::super::lex::{Parsed, number, number32};
use super::super::words;
use super::super::write::hex;
use super::read::{permissions, side, size};
use super::write::size as size_text;
use super::{PERMISSIONS, STATES};
use crate::snp_vm::{SnpAnswer, SnpStop};

/// The words.
pub(in crate::scenario) fn text(answer: &SnpAnswer) -> String {
    match answer {
        SnpAnswer::Done => "done".to_owned(),
        SnpAnswer::Found(Found::Value(Value::Zero)) => "zero".to_owned(),
        SnpAnswer::Found(Found::Value(Value::Tag(tag))) => format!("tag {tag}"),
        SnpAnswer::Found(Found::Scrambled) => "noise".to_owned(),
        SnpAnswer::Changed => "changed".to_owned(),
        SnpAnswer::Unchanged => "unchanged".to_owned(),
        SnpAnswer::Refused(code) => format!("refused {code}"),
        SnpAnswer::Allows(allowed, of) => {
            let allowed = words::join(PERMISSIONS, u64::from(allowed.bits()));
            format!("allows {allowed} {}", size_text(*of))
        }
        SnpAnswer::Psc(info, cursor, exits) => {
            let exits: Vec<String> = exits.iter().map(exit).collect();
            let exits = match exits.is_empty() {
                true => "none".to_owned(),
                false => exits.join(","),
            };
            format!("psc {} cur={cursor} exits={exits}", hex(*info))
        }
        SnpAnswer::RunFailed => "run-failed".to_owned(),
        SnpAnswer::Msr(value) => format!("msr {}", hex(*value)),
        SnpAnswer::ApRefused(code) => format!("ap-refused {code}"),
        SnpAnswer::Entry(state, of) => format!("entry {} {}", state_text(*state), size_text(*of)),
        SnpAnswer::NoPage => "none".to_owned(),
        SnpAnswer::Oops => "oops".to_owned(),
        SnpAnswer::Audit(codes) if codes.is_empty() => "clean".to_owned(),
        SnpAnswer::Audit(codes) => format!("violations {}", codes.join(",")),
        SnpAnswer::Stopped(stop) => stop_text(*stop),
    }
}

fn stop_text(stop: SnpStop) -> String {
    let at = |word: &str, gfn: Gfn| format!("{word} gpa={}", hex(gfn.gpa().raw()));
    match stop {
        SnpStop::MemoryFault(gfn, access) => {
            let flags = match access {
                Visibility::Private => "PRIVATE",
                Visibility::Shared => "0",
            };
            let gpa = hex(gfn.gpa().raw());
            format!(
                "memory-fault flags={flags} gpa={gpa} size={}",
                hex(PAGE_SIZE)
            )
        }
        SnpStop::Mmio(gfn) => at("mmio", gfn),
        SnpStop::NoPage(gfn) => at("no-page", gfn),
        SnpStop::Vc(code) => format!("vc {code:#x}"),
        SnpStop::Injected(gfn) => at("injected", gfn),
        SnpStop::Stuck(gfn) => at("stuck", gfn),
        SnpStop::FailEntry => "fail-entry".to_owned(),
        SnpStop::Halted => "halted".to_owned(),
    }
}

fn exit(exit: &MapGpaRange) -> String {
    let to = match exit.to {
        Direction::ToPrivate => "private",
        Direction::ToShared => "shared",
    };
    let hint = match exit.hint {
        PageSize::Size4K => "4K",
        PageSize::Size2M | PageSize::Size1G => "2M",
    };
    format!(
        "{}+{}:{to}:{hint}",
        hex(exit.gpa().raw()),
        exit.range.pages().raw()
    )
}

fn state_text(state: PageState) -> &'static str {
    let place = PageState::ALL.iter().position(|known| *known == state);
    let place = place.and_then(|place| u64::try_from(place).ok());
    place
        .and_then(|place| words::name(STATES, place))
        .unwrap_or("reclaim")
}

/// Reads the words behind `=>`.
pub(in crate::scenario) fn read(all: &[&str]) -> Parsed<SnpAnswer> {
    if let Some(answer) = plain(all) {
        return Ok(answer);
    }
    match *all {
        ["tag", tag] => Ok(SnpAnswer::Found(Found::Value(Value::Tag(number(tag)?)))),
        ["refused", code] => number32(code).map(SnpAnswer::Refused),
        ["allows", allowed, of] => Ok(SnpAnswer::Allows(permissions(allowed)?, size(of)?)),
        ["psc", info, cursor, exits] => psc(info, cursor, exits),
        ["msr", value] => number(value).map(SnpAnswer::Msr),
        ["ap-refused", code] => known(&ApError::CODES, code).map(SnpAnswer::ApRefused),
        ["entry", state, of] => Ok(SnpAnswer::Entry(page_state(state)?, size(of)?)),
        ["violations", codes] => {
            let codes = codes
                .split(',')
                .map(|code| known(&SnpViolation::CODES, code));
            codes.collect::<Parsed<_>>().map(SnpAnswer::Audit)
        }
        _ => stop(all).map(SnpAnswer::Stopped),
    }
}

/// Answers of one word.
fn plain(all: &[&str]) -> Option<SnpAnswer> {
    let [word] = all else { return None };
    Some(match *word {
        "done" => SnpAnswer::Done,
        "zero" => SnpAnswer::Found(Found::Value(Value::Zero)),
        "noise" => SnpAnswer::Found(Found::Scrambled),
        "changed" => SnpAnswer::Changed,
        "unchanged" => SnpAnswer::Unchanged,
        "run-failed" => SnpAnswer::RunFailed,
        "none" => SnpAnswer::NoPage,
        "oops" => SnpAnswer::Oops,
        "clean" => SnpAnswer::Audit(Vec::new()),
        "fail-entry" => SnpAnswer::Stopped(SnpStop::FailEntry),
        "halted" => SnpAnswer::Stopped(SnpStop::Halted),
        _ => return None,
    })
}

fn stop(all: &[&str]) -> Parsed<SnpStop> {
    match *all {
        ["vc", code] => number32(code).map(SnpStop::Vc),
        ["mmio", at] => gpa(at).map(SnpStop::Mmio),
        ["no-page", at] => gpa(at).map(SnpStop::NoPage),
        ["injected", at] => gpa(at).map(SnpStop::Injected),
        ["stuck", at] => gpa(at).map(SnpStop::Stuck),
        ["memory-fault", flags, at, "size=0x1000"] => {
            let access = match field("flags", flags)? {
                "PRIVATE" => Visibility::Private,
                "0" => Visibility::Shared,
                _ => return Err("flags are 0 or PRIVATE".to_owned()),
            };
            Ok(SnpStop::MemoryFault(gpa(at)?, access))
        }
        _ => Err("not a result".to_owned()),
    }
}

fn field<'a>(key: &str, text: &'a str) -> Parsed<&'a str> {
    let value = text.split_once('=').filter(|(known, _)| *known == key);
    value
        .map(|(_, value)| value)
        .ok_or_else(|| format!("{text} is no {key}="))
}

fn gpa(text: &str) -> Parsed<Gfn> {
    let gpa = Gpa::new(number(field("gpa", text)?)?);
    match gpa.is_page_aligned() {
        true => Ok(gpa.gfn()),
        false => Err("not the address of a page".to_owned()),
    }
}

fn known(codes: &[&'static str], text: &str) -> Parsed<&'static str> {
    let found = codes.iter().find(|code| **code == text);
    found
        .copied()
        .ok_or_else(|| format!("{text:?} is none of {}", codes.join(", ")))
}

fn page_state(text: &str) -> Parsed<PageState> {
    let place = words::value(STATES, text).and_then(|place| usize::try_from(place).ok());
    let state = place.and_then(|place| PageState::ALL.get(place));
    state
        .copied()
        .ok_or_else(|| format!("{text:?} is no state of a page"))
}

fn psc(info: &str, cursor: &str, exits: &str) -> Parsed<SnpAnswer> {
    let cursor = number(field("cur", cursor)?)?;
    let cursor = u16::try_from(cursor).map_err(|_| "larger than 16 bits".to_owned())?;
    let exits = match field("exits", exits)? {
        "none" => Vec::new(),
        list => list.split(',').map(read_exit).collect::<Parsed<_>>()?,
    };
    Ok(SnpAnswer::Psc(number(info)?, cursor, exits))
}

/// `GPA+PAGES:SIDE:SIZE`.
fn read_exit(text: &str) -> Parsed<MapGpaRange> {
    const FORM: &str = "an exit is GPA+PAGES:private|shared:SIZE";
    let (frames, rest) = text.split_once(':').ok_or(FORM)?;
    let (to, hint) = rest.split_once(':').ok_or(FORM)?;
    let (at, pages) = frames.split_once('+').ok_or(FORM)?;
    let range = GfnRange::new(Gpa::new(number(at)?).gfn(), Pages::new(number(pages)?));
    Ok(MapGpaRange {
        range: range.ok_or(FORM)?,
        to: match side(to)? {
            Visibility::Private => Direction::ToPrivate,
            Visibility::Shared => Direction::ToShared,
        },
        hint: match size(hint)? {
            RmpSize::Size4K => PageSize::Size4K,
            RmpSize::Size2M => PageSize::Size2M,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for words in [
            "done",
            "tag 7",
            "zero",
            "noise",
            "refused 6",
            "allows READ|WRITE 2M",
            "psc 0x100000002 cur=1 exits=0x10000+3:private:4K,0x200000+512:shared:2M",
            "psc 0 cur=1 exits=none",
            "msr 0x15",
            "ap-refused huge-aligned",
            "entry guest-valid-vmsa 4K",
            "violations N01,N16",
            "clean",
            "memory-fault flags=PRIVATE gpa=0x7000 size=0x1000",
            "vc 0x404",
            "stuck gpa=0",
            "halted",
        ] {
            let parts: Vec<&str> = words.split(' ').collect();
            let answer = read(&parts).unwrap_or_else(|why| panic!("{words}: {why}"));
            assert_eq!(text(&answer), words);
        }
    }
}
