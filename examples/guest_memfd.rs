//! The life of a guest_memfd: made, bound to a slot, bound a second time in vain, pages made private, closed under a
//! live slot. On the model, on `/dev/kvm`, or on both with every answer compared.
//!
//! `cargo run --example guest_memfd -- --on both`

use std::error::Error;
use std::io::{self, Write};

use slat::memslot::{Attributes, Call, FileCall, GmemId, Region, SlotKey, VmType};

mod on;

const MIB: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&arguments, &mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(arguments: &[&str], out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let mut chosen = on::chosen(arguments, &[VmType::SwProtected, VmType::Default])?;
    writeln!(out, "{}", chosen.title())?;
    let create = Call::CreateGmem {
        size: 64 * MIB,
        flags: 0,
        reserved: 0,
    };
    if !step(&mut chosen, "create a file of 64 MiB", &create, out)? {
        writeln!(out, "this kernel has no guest_memfd to show")?;
        return Ok(());
    }
    for (title, call) in steps(chosen.areas.writable.raw(), GmemId::new(0)) {
        step(&mut chosen, title, &call, out)?;
    }
    report(&chosen, out)?;
    Ok(())
}

/// What happens to `file`, with shared memory from `hva` on.
fn steps(hva: u64, file: GmemId) -> [(&'static str, Call); 6] {
    let ram = Region::new(SlotKey::normal(0), 0, 64 * MIB, hva).with_gmem(file, 0);
    let again = Region::new(SlotKey::normal(1), 1 << 32, 16 * MIB, hva).with_gmem(file, 48 * MIB);
    let private = Call::SetAttributes {
        address: 0,
        size: 2 * MIB,
        attributes: Attributes::PRIVATE.bits(),
        flags: 0,
    };
    [
        ("bind all of it to slot 0", Call::SetRegion(ram)),
        ("bind its end to slot 1 as well", Call::SetRegion(again)),
        ("make the first 2 MiB private", private),
        ("write to the file", Call::File(file, FileCall::Write)),
        ("close it under the slot", Call::File(file, FileCall::Close)),
        ("bind the closed file", Call::SetRegion(again)),
    ]
}

/// Asks, calls, and keeps the VMM's own picture in step; whether the machine took the call.
fn step(
    chosen: &mut on::Chosen,
    title: &str,
    call: &Call,
    out: &mut impl Write,
) -> Result<bool, Box<dyn Error>> {
    writeln!(out, "\n# {title}")?;
    match chosen.memory.call(call) {
        Ok(outcome) => writeln!(out, "foreseen: {outcome:?}")?,
        Err(refusal) => {
            let (reason, errno) = (refusal.reason, refusal.errno());
            writeln!(
                out,
                "foreseen: {errno}, {reason} ({})",
                reason.kernel_site()
            )?;
        }
    }
    let result = chosen.vm.call(call);
    match &result {
        Ok(_) => writeln!(out, "result: ok")?,
        Err(error) => writeln!(out, "result: {error}")?,
    }
    Ok(result.is_ok())
}

/// What is left: the slot lives on without its file.
fn report(chosen: &on::Chosen, out: &mut impl Write) -> io::Result<()> {
    writeln!(out)?;
    for slot in chosen.memory.space(Default::default()).iter() {
        let file = slot.binding().and_then(|binding| binding.file);
        writeln!(
            out,
            "slot {} at {}: file {file:?}",
            slot.key(),
            slot.range()
        )?;
    }
    Ok(())
}
