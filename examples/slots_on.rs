//! A VM's slots from boot to unplug, on the model, on `/dev/kvm`, or on both with every answer compared: the same
//! code in each case. Each step prints the plan, then what the machine said.
//!
//! `cargo run --example slots_on -- --on both`

use std::error::Error;
use std::io::{self, Write};

use slat::memslot::{Region, SlotFlags, SlotKey, VmType};

mod on;

const MIB: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&arguments, &mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(arguments: &[&str], out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let mut chosen = on::chosen(arguments, &[VmType::Default])?;
    writeln!(out, "{}", chosen.title())?;
    for (title, region) in steps(chosen.areas.writable.raw()) {
        writeln!(out, "\n# {title}")?;
        step(&mut chosen, &region, out)?;
    }
    writeln!(
        out,
        "\n{} slots at the end",
        chosen.memory.space(Default::default()).len()
    )?;
    Ok(())
}

/// What happens to the slots, on host memory from `hva` on.
fn steps(hva: u64) -> [(&'static str, Region); 8] {
    let ram = Region::new(SlotKey::normal(0), 0, 64 * MIB, hva);
    let rom = Region::new(SlotKey::normal(1), 0xfff0_0000, MIB, hva + 64 * MIB);
    let bar = Region::new(SlotKey::normal(2), 0xc000_0000, 16 * MIB, hva + 128 * MIB);
    let logged = SlotFlags::LOG_DIRTY_PAGES;
    [
        ("create memory", ram),
        ("create a ROM", rom.with_flags(SlotFlags::READONLY)),
        ("create a device's memory", bar),
        (
            "the guest moves the device onto memory",
            Region {
                gpa: 32 * MIB,
                ..bar
            },
        ),
        (
            "the guest moves it where there is room",
            Region {
                gpa: 0xd000_0000,
                ..bar
            },
        ),
        ("log the memory's dirty pages", ram.with_flags(logged)),
        (
            "grow the memory, which no slot can",
            Region {
                size: 128 * MIB,
                ..ram.with_flags(logged)
            },
        ),
        ("unplug the device", Region::delete(SlotKey::normal(2))),
    ]
}

/// Asks, calls, and keeps the VMM's own picture in step.
fn step(
    chosen: &mut on::Chosen,
    region: &Region,
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let plan = chosen.memory.check_region(region);
    match &plan {
        Ok(plan) => writeln!(out, "plan: {plan}")?,
        Err(refusal) => writeln!(out, "plan: none, {refusal}")?,
    }
    match chosen.vm.set_user_memory_region(region) {
        Ok(()) => writeln!(out, "result: ok")?,
        Err(error) => writeln!(out, "result: {error}")?,
    }
    if let Ok(plan) = plan {
        let effects = chosen.memory.commit_region(plan)?;
        writeln!(out, "effects: {effects}")?;
    }
    Ok(())
}
