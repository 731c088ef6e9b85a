//! The operations: from a line's words to a call with names.

use slat_memslot::{
    AccessKind, AsId, Buffer, Call, ClearBits, FileCall, FileRef, GmemId, GuestAccess, MapCall,
    MapId, OtherFile, Region, RegionVersion,
};

use super::args::Args;
use super::lex::{self, Parsed, bits, bits32, number, number32};
use super::{ParseError, Request};
use super::{contents, sev, tdx, words};

type Read = Result<Request, ParseError>;

/// The call that operation `op` asks for; `None` when there is no such operation.
pub(super) fn read(op: &str, args: &mut Args<'_>) -> Option<Read> {
    slot_call(op, args)
        .or_else(|| file_call(op, args))
        .or_else(|| map_call(op, args))
        .or_else(|| vm_call(op, args))
        .or_else(|| contents::read(op, args))
        .or_else(|| sev::read(op, args))
        .or_else(|| tdx::read(op, args))
}

fn slot_call(op: &str, args: &mut Args<'_>) -> Option<Read> {
    Some(match op {
        "set_user_memory_region" => region(args, RegionVersion::V1),
        "set_user_memory_region2" => region(args, RegionVersion::V2),
        "set_memory_attributes" => attributes(args),
        "get_dirty_log" => get_dirty_log(args),
        "clear_dirty_log" => clear_dirty_log(args),
        "create_guest_memfd" => create_guest_memfd(args),
        _ => return None,
    })
}

fn file_call(op: &str, args: &mut Args<'_>) -> Option<Read> {
    Some(match op {
        "close" => on_file(args, |_| Ok(FileCall::Close)),
        "read" => on_file(args, |_| Ok(FileCall::Read)),
        "write" => on_file(args, |_| Ok(FileCall::Write)),
        "pread" => on_file(args, |_| Ok(FileCall::Pread)),
        "pwrite" => on_file(args, |_| Ok(FileCall::Pwrite)),
        "lseek" => on_file(args, |_| Ok(FileCall::Lseek)),
        "fchmod" => on_file(args, |_| Ok(FileCall::Chmod)),
        "ftruncate" => on_file(args, truncate),
        "size" => on_file(args, |_| Ok(FileCall::Size)),
        "blocks" => on_file(args, |_| Ok(FileCall::Blocks)),
        "fallocate" => on_file(args, fallocate),
        "mmap" => on_file(args, mmap).and_then(|request| binding(args, request)),
        _ => return None,
    })
}

fn map_call(op: &str, args: &mut Args<'_>) -> Option<Read> {
    Some(match op {
        "touch" => on_map(args, touch),
        "madvise" => on_map(args, madvise),
        "mprotect" => on_map(args, mprotect),
        "munmap" => on_map(args, |_| Ok(MapCall::Unmap)),
        _ => return None,
    })
}

fn vm_call(op: &str, args: &mut Args<'_>) -> Option<Read> {
    let call = match op {
        "reset_dirty_rings" => Ok(Call::ResetDirtyRings),
        "harvest_dirty_ring" => args
            .required("vcpu", number32)
            .map(|vcpu| Call::HarvestDirtyRing { vcpu }),
        "enable_cap" => enable_cap(args),
        "check_extension" => args
            .word("a capability", lex::capability)
            .map(|cap| Call::CheckExtension { cap }),
        "create_vcpu" => Ok(Call::CreateVcpu),
        "create_irqchip" => Ok(Call::CreateIrqchip),
        "pre_fault_memory" => pre_fault(args),
        "set_nr_mmu_pages" => args
            .word("a number", number)
            .map(|pages| Call::SetNrMmuPages { pages }),
        "set_tss_addr" => address(args).map(|gpa| Call::SetTssAddr { gpa }),
        "set_identity_map_addr" => address(args).map(|gpa| Call::SetIdentityMapAddr { gpa }),
        "guest_read" => guest_access(args, AccessKind::Read),
        "guest_write" => guest_access(args, AccessKind::Write),
        "guest_execute" => guest_access(args, AccessKind::Execute),
        _ => return None,
    };
    Some(call.map(Request::plain))
}

fn guest_access(args: &mut Args<'_>, kind: AccessKind) -> Result<Call, ParseError> {
    Ok(Call::Guest(GuestAccess {
        vcpu: args.defaulted("vcpu", number32)?,
        as_id: args.defaulted("as_id", as_id)?,
        kind,
        gpa: args.required("gpa", number)?,
        code: match kind {
            AccessKind::Execute => None,
            AccessKind::Read | AccessKind::Write => args.optional("code", number)?,
        },
    }))
}

fn as_id(text: &str) -> Parsed<AsId> {
    let known = u8::try_from(number(text)?).ok().and_then(AsId::new);
    known.ok_or_else(|| "neither 0 nor 1".to_owned())
}

fn address(args: &mut Args<'_>) -> Result<u64, ParseError> {
    args.word("an address", number)
}

fn region(args: &mut Args<'_>, version: RegionVersion) -> Read {
    let mut region = Region {
        version,
        slot: args.required("slot", lex::slot)?,
        flags: args.defaulted("flags", |text| bits32(words::SLOT_FLAGS, text))?,
        size: args.required("size", number)?,
        ..Region::default()
    };
    region.gpa = unless_deleted(args, "gpa", region.size, number)?;
    let (host, hva) = unless_deleted(args, "hva", region.size, lex::host)?;
    region.hva = hva;
    let file = match version {
        RegionVersion::V1 => None,
        RegionVersion::V2 => newer_fields(args, &mut region)?,
    };
    let mut request = Request::plain(Call::SetRegion(region));
    request.file = file;
    request.host = host;
    Ok(request)
}

/// `key`, which a call that deletes a slot may leave out.
fn unless_deleted<T: Default>(
    args: &mut Args<'_>,
    key: &str,
    size: u64,
    read: impl Fn(&str) -> Parsed<T>,
) -> Result<T, ParseError> {
    match size {
        0 => args.defaulted(key, read),
        _ => args.required(key, read),
    }
}

/// The fields that only the newer struct has; gives the name of the file.
fn newer_fields(args: &mut Args<'_>, region: &mut Region) -> Result<Option<String>, ParseError> {
    region.gmem_offset = args.defaulted("gmem_offset", number)?;
    region.padding = args.defaulted("padding", number32)?;
    let (gmem, name) = args.defaulted("gmem", file_ref)?;
    region.gmem = gmem;
    Ok(name)
}

/// What `gmem=` names: a file that is no guest_memfd of this VM, or a name.
fn file_ref(text: &str) -> Parsed<(FileRef, Option<String>)> {
    if let Some(file) = keyword(text) {
        return Ok((file, None));
    }
    if let Some(fd) = text.strip_prefix("fd:") {
        let fd = fd.parse().map_err(|_| "not a file number".to_owned())?;
        return Ok((FileRef::NotOpen(fd), None));
    }
    let name = lex::name(text)?;
    Ok((FileRef::Gmem(GmemId::new(0)), Some(name)))
}

fn keyword(text: &str) -> Option<FileRef> {
    Some(match text {
        "none" => FileRef::NotOpen(-1),
        "null" => FileRef::Other(OtherFile::Null),
        "memfd" => FileRef::Other(OtherFile::Memfd),
        "vmfd" => FileRef::Other(OtherFile::Vm),
        "kvmfd" => FileRef::Other(OtherFile::Kvm),
        "foreign" => FileRef::Foreign,
        _ => return None,
    })
}

/// A name that a new file may have.
fn new_file(text: &str) -> Parsed<String> {
    match keyword(text) {
        Some(_) => Err("a word with a meaning of its own in gmem=".to_owned()),
        None => lex::name(text),
    }
}

fn create_guest_memfd(args: &mut Args<'_>) -> Read {
    let binds = args.optional_word(new_file)?;
    let mut request = Request::plain(Call::CreateGmem {
        size: args.required("size", number)?,
        flags: args.defaulted("flags", |text| bits(words::GMEM_FLAGS, text))?,
        reserved: args.defaulted("reserved", number)?,
    });
    request.binds = binds;
    Ok(request)
}

fn on_file(
    args: &mut Args<'_>,
    call: impl Fn(&mut Args<'_>) -> Result<FileCall, ParseError>,
) -> Read {
    let file = args.word("the name of a file", lex::name)?;
    let mut request = Request::plain(Call::File(GmemId::new(0), call(args)?));
    request.file = Some(file);
    Ok(request)
}

/// `as NAME` behind the file.
fn binding(args: &mut Args<'_>, mut request: Request) -> Read {
    if args.skip("as") {
        request.binds = Some(args.word("a name behind `as`", lex::name)?);
    }
    Ok(request)
}

fn truncate(args: &mut Args<'_>) -> Result<FileCall, ParseError> {
    Ok(FileCall::Truncate {
        len: args.required("len", number)?,
    })
}

fn fallocate(args: &mut Args<'_>) -> Result<FileCall, ParseError> {
    Ok(FileCall::Fallocate {
        mode: args.required("mode", |text| bits32(words::FALLOCATE, text))?,
        offset: args.required("offset", number)?,
        len: args.required("len", number)?,
    })
}

fn mmap(args: &mut Args<'_>) -> Result<FileCall, ParseError> {
    Ok(FileCall::Mmap {
        len: args.required("len", number)?,
        prot: args.required("prot", |text| bits32(words::PROT, text))?,
        flags: args.required("flags", |text| bits32(words::MAP, text))?,
        offset: args.defaulted("offset", number)?,
    })
}

fn on_map(
    args: &mut Args<'_>,
    call: impl Fn(&mut Args<'_>) -> Result<MapCall, ParseError>,
) -> Read {
    let map = args.word("the name of a mapping", lex::name)?;
    let mut request = Request::plain(Call::Map(MapId::new(0), call(args)?));
    request.host = Some(map);
    Ok(request)
}

fn touch(args: &mut Args<'_>) -> Result<MapCall, ParseError> {
    Ok(MapCall::Touch {
        offset: args.defaulted("offset", number)?,
    })
}

fn madvise(args: &mut Args<'_>) -> Result<MapCall, ParseError> {
    let advice = |text: &str| {
        let value = lex::value(words::ADVICE, text)?;
        u32::try_from(value).map_err(|_| "larger than 32 bits".to_owned())
    };
    Ok(MapCall::Madvise {
        advice: args.required("advice", advice)?,
    })
}

fn mprotect(args: &mut Args<'_>) -> Result<MapCall, ParseError> {
    Ok(MapCall::Mprotect {
        prot: args.required("prot", |text| bits32(words::PROT, text))?,
    })
}

fn attributes(args: &mut Args<'_>) -> Read {
    Ok(Request::plain(Call::SetAttributes {
        address: args.required("address", number)?,
        size: args.required("size", number)?,
        attributes: args.required("attributes", |text| bits(words::ATTRIBUTES, text))?,
        flags: args.defaulted("flags", number)?,
    }))
}

fn get_dirty_log(args: &mut Args<'_>) -> Read {
    Ok(Request::plain(Call::GetDirtyLog {
        slot: args.required("slot", lex::slot)?,
        buffer: args.defaulted("buffer", buffer)?,
    }))
}

fn buffer(text: &str) -> Parsed<Buffer> {
    match text {
        "good" => Ok(Buffer::Good),
        "null" => Ok(Buffer::Null),
        _ => Err("neither good nor null".to_owned()),
    }
}

fn clear_dirty_log(args: &mut Args<'_>) -> Read {
    Ok(Request::plain(Call::ClearDirtyLog {
        slot: args.required("slot", lex::slot)?,
        first_page: args.required("first_page", number)?,
        num_pages: args.required("num_pages", number32)?,
        bits: args.required("bits", clear_bits)?,
    }))
}

fn clear_bits(text: &str) -> Parsed<ClearBits> {
    Ok(match text {
        "all" => ClearBits::All,
        "null" => ClearBits::Null,
        "none" => ClearBits::Words(Vec::new()),
        words => ClearBits::Words(words.split(',').map(number).collect::<Parsed<_>>()?),
    })
}

fn enable_cap(args: &mut Args<'_>) -> Result<Call, ParseError> {
    Ok(Call::EnableCap {
        cap: args.word("a capability", lex::capability)?,
        flags: args.defaulted("flags", number32)?,
        args: args.defaulted("args", four)?,
    })
}

/// Up to four numbers, the missing ones 0.
fn four(text: &str) -> Parsed<[u64; 4]> {
    let mut all = [0; 4];
    let mut places = all.iter_mut();
    for part in text.split(',') {
        let place = places.next().ok_or("more than four arguments")?;
        *place = number(part)?;
    }
    Ok(all)
}

fn pre_fault(args: &mut Args<'_>) -> Result<Call, ParseError> {
    Ok(Call::PreFault {
        vcpu: args.required("vcpu", number32)?,
        gpa: args.required("gpa", number)?,
        size: args.required("size", number)?,
        flags: args.defaulted("flags", number)?,
    })
}
