//! Asking before the ioctl: a VMM lays its guest's memory out on a [`Memory`] first, and learns of every call what it
//! will do, or why the kernel will refuse it and what would help.
//!
//! `cargo run --example explain_region`

use std::error::Error;
use std::io::{self, Write};

use slat::memslot::{Call, Memory, Profile, Region, Repair, Slot, SlotFlags, SlotKey, VmType};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Where this VMM has mapped its guest's memory.
const RAM: u64 = 0x7f00_0000_0000;

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    boot_layout(out)?;
    device_in_the_way(out)?;
    dirty_log_of_an_snp_guest(out)
}

/// A plain VM's layout: memory on both sides of the hole for devices below 4 GiB, and a read-only ROM in the hole.
fn boot_layout(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "# A layout that the kernel takes")?;
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    let rom = Region::new(SlotKey::normal(2), 4 * GIB - MIB, MIB, RAM + 5 * GIB);
    for region in [
        Region::new(SlotKey::normal(0), 0, 3 * GIB, RAM),
        Region::new(SlotKey::normal(1), 4 * GIB, 2 * GIB, RAM + 3 * GIB),
        rom.with_flags(SlotFlags::READONLY),
    ] {
        ask(&mut memory, region, out)?;
    }
    Ok(())
}

/// A device's memory set one page into the guest's.
fn device_in_the_way(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "\n# A device in the way of memory")?;
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    ask(
        &mut memory,
        Region::new(SlotKey::normal(0), 0, 3 * GIB, RAM),
        out,
    )?;
    let bar = Region::new(
        SlotKey::normal(1),
        3 * GIB - 0x1000,
        16 * MIB,
        RAM + 4 * GIB,
    );
    ask(&mut memory, bar, out)
}

/// Live migration of an SEV-SNP guest, as Cloud Hypervisor once began it: every slot is set again with the flags it
/// has and `LOG_DIRTY_PAGES`, also one whose private memory is a guest_memfd.
fn dirty_log_of_an_snp_guest(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "\n# start_dirty_log on an SEV-SNP guest")?;
    let mut memory = Memory::new(Profile::latest(), VmType::Snp);
    let file = memory.create_gmem(3 * GIB, 0)?;
    let ram = Region::new(SlotKey::normal(0), 0, 3 * GIB, RAM).with_gmem(file, 0);
    let bounce = Region::new(SlotKey::normal(1), 4 * GIB, 64 * MIB, RAM + 3 * GIB);
    ask(&mut memory, ram, out)?;
    ask(&mut memory, bounce, out)?;

    writeln!(out, "\n## every slot, as it was written first")?;
    ask(
        &mut memory,
        Region {
            flags: ram.flags | SlotFlags::LOG_DIRTY_PAGES.bits(),
            ..ram
        },
        out,
    )?;
    writeln!(
        out,
        "   The chain ends where it began: the slot without a log. KVM logs no slot with a guest_memfd."
    )?;

    writeln!(out, "\n## the mend: only slots that can be logged")?;
    start_dirty_log(&mut memory, out)
}

/// Switches the dirty log of every slot on that can have one; what the others hold has to be moved by other means.
fn start_dirty_log(memory: &mut Memory, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let slots: Vec<Slot> = memory.space(Default::default()).iter().cloned().collect();
    for slot in slots {
        if slot.binding().is_some() {
            writeln!(out, "slot {}: KVM cannot log private memory", slot.key())?;
            continue;
        }
        let (gpa, size) = (slot.range().start().gpa().raw(), slot.pages().bytes());
        let flags = slot.flags() | SlotFlags::LOG_DIRTY_PAGES;
        let region = Region::new(slot.key(), gpa, size, slot.hva().raw()).with_flags(flags);
        ask(memory, region, out)?;
    }
    Ok(())
}

/// Asks about a call; makes it when it will be taken, else prints the reason and the repairs one after the other.
fn ask(memory: &mut Memory, region: Region, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "{}", text(&region))?;
    match memory.check_region(&region) {
        Ok(plan) => {
            writeln!(out, "   plan: {}", indented(&plan.to_string()))?;
            // Here the VMM makes its ioctl, and tells the model that it has.
            let _effects = memory.commit_region(plan)?;
        }
        Err(refusal) => {
            let (errno, reason) = (refusal.errno(), refusal.reason);
            writeln!(out, "   {errno}: {reason}")?;
            writeln!(out, "   {} in {}", reason.code(), reason.kernel_site())?;
            for step in memory.repairs(&Call::SetRegion(region)) {
                print_repair(&step.repair, out)?;
            }
        }
    }
    Ok(())
}

fn print_repair(repair: &Repair, out: &mut impl Write) -> io::Result<()> {
    match repair {
        Repair::Calls { first, call } => {
            for call in first {
                writeln!(out, "   repair, first: {}", call_text(call))?;
            }
            writeln!(out, "   repair: {}", call_text(call))
        }
        Repair::Impossible { why } => writeln!(out, "   no repair: {why}"),
    }
}

fn call_text(call: &Call) -> String {
    match call {
        Call::SetRegion(region) => text(region),
        other => format!("{other:?}"),
    }
}

fn text(region: &Region) -> String {
    let Region {
        slot,
        flags,
        gpa,
        size,
        ..
    } = *region;
    let flags = match SlotFlags::from_bits_retain(flags) {
        none if none.is_empty() => String::from("no flags"),
        flags => flags
            .iter_names()
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
            .join("|"),
    };
    format!("set slot {slot}: gpa {gpa:#x}, size {size:#x}, {flags}")
}

fn indented(text: &str) -> String {
    text.replace('\n', "\n   ")
}
