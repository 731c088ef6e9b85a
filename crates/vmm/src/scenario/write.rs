//! From steps to text.

use core::fmt::{self, Write as _};

use slat_memslot::{
    AccessKind, Buffer, Call, ClearBits, FileCall, FileRef, GuestAccess, MapCall, OtherFile,
    Region, RegionVersion,
};

use super::contents;
use super::convert;
use super::sev;
use super::tdx;
use super::words::{self, Words};
use super::{Request, Scenario, SnpStep, Step, StepKind, snp};

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.steps.iter().enumerate() {
            if lines(at, step) > 1 {
                f.write_char('\n')?;
            }
            writeln!(f, "{step}")?;
        }
        Ok(())
    }
}

/// How many lines step number `at` takes: a case stands off by a blank line.
pub(super) fn lines(at: usize, step: &Step) -> u32 {
    match step.kind {
        StepKind::Case(_) if at != 0 => 2,
        _ => 1,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        let call = match &self.kind {
            StepKind::Call(request) => Some(request.template()),
            _ => None,
        };
        match &self.expect {
            Some(expect) => write!(f, " => {}", expect.text(call)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Profile(name) => write!(f, "profile {name}"),
            Self::Case(title) => write!(f, "case {}", quoted(title)),
            Self::Vm { name, vm_type } => {
                let mut line = Line::new("vm");
                line.word(name);
                if let Some(vm_type) = vm_type {
                    line.pair("type", value(words::VM_TYPES, u64::from(*vm_type)));
                }
                f.write_str(&line.0)
            }
            Self::DropVm(name) => write!(f, "drop_vm {name}"),
            Self::Call(request) => write!(f, "{request}"),
            Self::Snp(SnpStep::Command(command)) => f.write_str(&snp::write_command(command)),
            Self::Snp(SnpStep::Op(op)) => f.write_str(&snp::write_op(op)),
            Self::Convert(op) => f.write_str(&convert::line(op)),
        }
    }
}

fn quoted(title: &str) -> String {
    let mut text = String::from("\"");
    for c in title.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// A line that grows by words.
pub(super) struct Line(String);

impl Line {
    pub(super) fn new(op: &str) -> Self {
        Self(op.to_owned())
    }

    pub(super) fn text(self) -> String {
        self.0
    }

    pub(super) fn word(&mut self, word: impl AsRef<str>) {
        self.0.push(' ');
        self.0.push_str(word.as_ref());
    }

    pub(super) fn pair(&mut self, key: &str, value: impl AsRef<str>) {
        self.word(key);
        self.0.push('=');
        self.0.push_str(value.as_ref());
    }

    /// A pair that is left out when the value is `0`.
    pub(super) fn unless_zero(&mut self, key: &str, value: String) {
        if value != "0" {
            self.pair(key, value);
        }
    }
}

/// A number in hex, and 0 as `0`.
pub(super) fn hex(value: u64) -> String {
    match value {
        0 => "0".to_owned(),
        value => format!("{value:#x}"),
    }
}

/// The ioctls' `slot`, with its address space before a colon unless that is 0.
pub(super) fn slot(key: u32) -> String {
    match (key >> 16, key & 0xffff) {
        (0, id) => id.to_string(),
        (as_id, id) => format!("{as_id}:{id}"),
    }
}

pub(super) fn value(words: Words, value: u64) -> String {
    match words::name(words, value) {
        Some(name) => name.to_owned(),
        None => value.to_string(),
    }
}

fn bits32(words: Words, bits: u32) -> String {
    words::join(words, u64::from(bits))
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match &self.template {
            Call::SetRegion(region) => self.region(region),
            Call::File(id, call) => {
                let name = self.file.clone();
                self.on_file(&name.unwrap_or_else(|| format!("g{}", id.index())), *call)
            }
            Call::Map(id, call) => {
                let name = self.host.clone();
                on_map(&name.unwrap_or_else(|| format!("m{}", id.index())), *call)
            }
            Call::CreateGmem {
                size,
                flags,
                reserved,
            } => self.create_guest_memfd(*size, *flags, *reserved),
            Call::Contents(call) => contents::line(call, |address| self.address(address)),
            Call::Sev(call) => sev::line(call, |address| self.address(address)),
            Call::Tdx(call) => tdx::line(call, |address| self.address(address)),
            other => vm_call(other),
        };
        f.write_str(&line.0)
    }
}

impl Request {
    fn region(&self, region: &Region) -> Line {
        let mut line = Line::new(region_op(region));
        line.pair("slot", slot(region.slot));
        line.unless_zero("flags", bits32(words::SLOT_FLAGS, region.flags));
        let (gpa, hva) = (hex(region.gpa), self.address(region.hva));
        if region.size == 0 {
            line.unless_zero("gpa", gpa);
            line.pair("size", "0");
            line.unless_zero("hva", hva);
        } else {
            line.pair("gpa", gpa);
            line.pair("size", hex(region.size));
            line.pair("hva", hva);
        }
        if region.version == RegionVersion::V2 {
            self.newer_fields(&mut line, region);
        }
        line
    }

    fn address(&self, hva: u64) -> String {
        match (&self.host, hva) {
            (None, hva) => hex(hva),
            (Some(name), 0) => name.clone(),
            (Some(name), offset) => format!("{name}+{offset:#x}"),
        }
    }

    fn newer_fields(&self, line: &mut Line, region: &Region) {
        if region.gmem != FileRef::default() {
            line.pair("gmem", self.file_ref(region.gmem));
        }
        line.unless_zero("gmem_offset", hex(region.gmem_offset));
        line.unless_zero("padding", hex(u64::from(region.padding)));
    }

    fn file_ref(&self, file: FileRef) -> String {
        if let Some(name) = &self.file {
            return name.clone();
        }
        match file {
            FileRef::NotOpen(-1) => "none".to_owned(),
            FileRef::NotOpen(fd) => format!("fd:{fd}"),
            FileRef::Other(OtherFile::Null) => "null".to_owned(),
            FileRef::Other(OtherFile::Memfd) => "memfd".to_owned(),
            FileRef::Other(OtherFile::Vm) => "vmfd".to_owned(),
            FileRef::Other(OtherFile::Kvm) => "kvmfd".to_owned(),
            FileRef::Foreign => "foreign".to_owned(),
            FileRef::Gmem(id) => format!("g{}", id.index()),
        }
    }

    fn create_guest_memfd(&self, size: u64, flags: u64, reserved: u64) -> Line {
        let mut line = Line::new("create_guest_memfd");
        if let Some(name) = &self.binds {
            line.word(name);
        }
        line.pair("size", hex(size));
        line.unless_zero("flags", words::join(words::GMEM_FLAGS, flags));
        line.unless_zero("reserved", hex(reserved));
        line
    }

    fn on_file(&self, name: &str, call: FileCall) -> Line {
        let mut line = Line::new(file_op(call));
        line.word(name);
        match call {
            FileCall::Truncate { len } => line.pair("len", hex(len)),
            FileCall::Fallocate { mode, offset, len } => {
                line.pair("mode", bits32(words::FALLOCATE, mode));
                line.pair("offset", hex(offset));
                line.pair("len", hex(len));
            }
            FileCall::Mmap {
                len,
                prot,
                flags,
                offset,
            } => {
                if let Some(map) = &self.binds {
                    line.word("as");
                    line.word(map);
                }
                line.pair("len", hex(len));
                line.pair("prot", bits32(words::PROT, prot));
                line.pair("flags", bits32(words::MAP, flags));
                line.unless_zero("offset", hex(offset));
            }
            _ => {}
        }
        line
    }
}

fn file_op(call: FileCall) -> &'static str {
    match call {
        FileCall::Close => "close",
        FileCall::Read => "read",
        FileCall::Write => "write",
        FileCall::Pread => "pread",
        FileCall::Pwrite => "pwrite",
        FileCall::Lseek => "lseek",
        FileCall::Chmod => "fchmod",
        FileCall::Truncate { .. } => "ftruncate",
        FileCall::Size => "size",
        FileCall::Blocks => "blocks",
        FileCall::Fallocate { .. } => "fallocate",
        FileCall::Mmap { .. } => "mmap",
    }
}

fn on_map(name: &str, call: MapCall) -> Line {
    let mut line = Line::new(map_op(call));
    line.word(name);
    match call {
        MapCall::Touch { offset } => line.pair("offset", hex(offset)),
        MapCall::Madvise { advice } => {
            line.pair("advice", value(words::ADVICE, u64::from(advice)));
        }
        MapCall::Mprotect { prot } => line.pair("prot", bits32(words::PROT, prot)),
        MapCall::Unmap => {}
    }
    line
}

/// The calls that name nothing.
fn vm_call(call: &Call) -> Line {
    let mut line = Line::new(vm_op(call));
    match call {
        Call::GetDirtyLog { slot: key, buffer } => {
            line.pair("slot", slot(*key));
            if *buffer == Buffer::Null {
                line.pair("buffer", "null");
            }
        }
        Call::HarvestDirtyRing { vcpu } => line.pair("vcpu", vcpu.to_string()),
        Call::CheckExtension { cap } => line.word(capability(*cap)),
        Call::SetNrMmuPages { pages } => line.word(pages.to_string()),
        Call::SetTssAddr { gpa } | Call::SetIdentityMapAddr { gpa } => line.word(hex(*gpa)),
        Call::Guest(access) => guest_access(&mut line, access),
        longer => vm_fields(&mut line, longer),
    }
    line
}

/// The calls with more than two fields.
fn vm_fields(line: &mut Line, call: &Call) {
    match call {
        Call::SetAttributes {
            address,
            size,
            attributes,
            flags,
        } => {
            line.pair("address", hex(*address));
            line.pair("size", hex(*size));
            line.pair("attributes", words::join(words::ATTRIBUTES, *attributes));
            line.unless_zero("flags", hex(*flags));
        }
        Call::ClearDirtyLog {
            slot: key,
            first_page,
            num_pages,
            bits,
        } => {
            line.pair("slot", slot(*key));
            line.pair("first_page", first_page.to_string());
            line.pair("num_pages", num_pages.to_string());
            line.pair("bits", clear_bits(bits));
        }
        Call::EnableCap { cap, flags, args } => {
            line.word(capability(*cap));
            line.unless_zero("flags", hex(u64::from(*flags)));
            line.unless_zero("args", arguments(args));
        }
        Call::PreFault {
            vcpu,
            gpa,
            size,
            flags,
        } => {
            line.pair("vcpu", vcpu.to_string());
            line.pair("gpa", hex(*gpa));
            line.pair("size", hex(*size));
            line.unless_zero("flags", hex(*flags));
        }
        _ => {}
    }
}

/// The word that a line with `call` begins with.
pub(super) fn operation(call: &Call) -> &'static str {
    match call {
        Call::SetRegion(region) => region_op(region),
        Call::CreateGmem { .. } => "create_guest_memfd",
        Call::File(_, call) => file_op(*call),
        Call::Map(_, call) => map_op(*call),
        other => vm_op(other),
    }
}

fn region_op(region: &Region) -> &'static str {
    match region.version {
        RegionVersion::V1 => "set_user_memory_region",
        RegionVersion::V2 => "set_user_memory_region2",
    }
}

fn map_op(call: MapCall) -> &'static str {
    match call {
        MapCall::Touch { .. } => "touch",
        MapCall::Madvise { .. } => "madvise",
        MapCall::Mprotect { .. } => "mprotect",
        MapCall::Unmap => "munmap",
    }
}

fn vm_op(call: &Call) -> &'static str {
    match call {
        Call::SetAttributes { .. } => "set_memory_attributes",
        Call::GetDirtyLog { .. } => "get_dirty_log",
        Call::ClearDirtyLog { .. } => "clear_dirty_log",
        Call::ResetDirtyRings => "reset_dirty_rings",
        Call::HarvestDirtyRing { .. } => "harvest_dirty_ring",
        Call::EnableCap { .. } => "enable_cap",
        Call::CheckExtension { .. } => "check_extension",
        Call::CreateVcpu => "create_vcpu",
        Call::PreFault { .. } => "pre_fault_memory",
        Call::SetNrMmuPages { .. } => "set_nr_mmu_pages",
        Call::SetTssAddr { .. } => "set_tss_addr",
        Call::SetIdentityMapAddr { .. } => "set_identity_map_addr",
        Call::CreateIrqchip => "create_irqchip",
        Call::Guest(access) => guest_op(access.kind),
        Call::Contents(call) => contents::operation(call),
        Call::Sev(call) => sev::operation(call),
        Call::Tdx(call) => tdx::operation(call),
        Call::SetRegion(_) => "set_user_memory_region",
        Call::CreateGmem { .. } => "create_guest_memfd",
        Call::File(_, call) => file_op(*call),
        Call::Map(..) => "touch",
    }
}

fn guest_op(kind: AccessKind) -> &'static str {
    match kind {
        AccessKind::Read => "guest_read",
        AccessKind::Write => "guest_write",
        AccessKind::Execute => "guest_execute",
    }
}

fn guest_access(line: &mut Line, access: &GuestAccess) {
    line.unless_zero("vcpu", access.vcpu.to_string());
    line.unless_zero("as_id", access.as_id.index().to_string());
    line.pair("gpa", hex(access.gpa));
    if let (Some(code), false) = (access.code, access.kind == AccessKind::Execute) {
        line.pair("code", hex(code));
    }
}

fn capability(number: u32) -> String {
    match crate::capability::name(number) {
        Some(name) => name.to_owned(),
        None => number.to_string(),
    }
}

/// The arguments up to the last that is not 0; counts in decimal, large ones in hex.
fn arguments(args: &[u64; 4]) -> String {
    let used = args.iter().rposition(|arg| *arg != 0).unwrap_or(0);
    let texts = args.iter().take(used + 1).map(|arg| match arg {
        0..=0xffff => arg.to_string(),
        _ => hex(*arg),
    });
    texts.collect::<Vec<_>>().join(",")
}

fn clear_bits(bits: &ClearBits) -> String {
    match bits {
        ClearBits::All => "all".to_owned(),
        ClearBits::Null => "null".to_owned(),
        ClearBits::Words(words) if words.is_empty() => "none".to_owned(),
        ClearBits::Words(words) => {
            let texts: Vec<String> = words.iter().map(|word| hex(*word)).collect();
            texts.join(",")
        }
    }
}
