//! Deleting a slot: only its leaves go, or all roots with everything that other slots had mapped. Which, is a matter of VM
//! type and of the quirk `SLOT_ZAP_ALL`; the thread that asked for a flag of the slot is why the quirk exists.
//!
//! The model's page tables say what goes and what has to be faulted in again. Then the same calls are made on the model, on
//! `/dev/kvm`, or on both with every answer compared. With both, and where KVM has the TDP MMU, slots are deleted once more while
//! the kernel traces its page tables: each event is predicted, and counted.
//!
//! `cargo run --example slot_zap -- --on both`; `docs/zap.md` says how next to a kernel with the TDP MMU.

use std::error::Error;
use std::io::{self, Write};

use slat::memslot::{
    Call, Gfn, GfnRange, Gpa, PAGE_SIZE, Pages, Profile, Quirks, Region, SlotKey, VmType, cap,
};
use slat::mmu::fault::Kind;
use slat::mmu::host::Host;
use slat::mmu::spte::Npt;
use slat::vmm::tdp_vm::{Activity, TdpVm};
use slat::vmm::traces::Predicted;

mod on;

/// Pages touched in the slot that goes, and in the one that stays.
const TOUCHED: u64 = 64;
/// The first frames of the two.
const GOES: u64 = 0x400;
const STAYS: u64 = 0x800;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&arguments, &mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(arguments: &[&str], out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let mut chosen = on::chosen(arguments, &[VmType::Default])?;
    writeln!(out, "# On page tables, Linux 6.12, NPT")?;
    for (title, vm_type, quirks) in [
        ("default VM, quirk on", VmType::Default, Quirks::empty()),
        (
            "default VM, quirk off",
            VmType::Default,
            Quirks::SLOT_ZAP_ALL,
        ),
        (
            "protected VM, quirk on",
            VmType::SwProtected,
            Quirks::empty(),
        ),
    ] {
        let cost = cost(vm_type, quirks)?;
        writeln!(out, "{title}: {cost}")?;
    }
    writeln!(out, "\n# The calls, on {}", chosen.title())?;
    for quirks in [Quirks::empty(), Quirks::SLOT_ZAP_ALL] {
        calls(&mut chosen, quirks, out)?;
    }
    if arguments == ["--on", "both"] {
        writeln!(out, "\n# Page tables of this kernel, event by event")?;
        traced(out)?;
    }
    Ok(())
}

/// Deletions on the live kernel, with everything that its MMU traces.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn traced(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    use slat::vmm::live::{abilities, here};
    use slat::vmm::programs::{Tally, deletions, make};
    use slat::vmm::replay::{Verdict, predict};
    use slat::vmm::traces::Recording;

    let machine = match here() {
        Ok(machine) => machine,
        Err(why) => return Ok(writeln!(out, "not here: {why}")?),
    };
    for program in deletions(abilities(&machine)) {
        let text = make(&program)?;
        let recording = Recording::parse(&text)?;
        let Verdict::Agrees { compared, .. } = predict(&recording, &machine) else {
            return Err(format!("{} is not as predicted", program.name).into());
        };
        writeln!(
            out,
            "{}: {compared} events and results as predicted",
            program.name
        )?;
        let tallies = Tally::of(&recording, &machine.host);
        let deleted = tallies.iter().skip_while(|tally| !is_deletion(tally));
        for tally in deleted.take_while(|tally| !tally.operation.starts_with("close")) {
            if let Some(leaves) = tally.leaves_before {
                writeln!(out, "  {leaves}")?;
            }
            // Such a call only looks.
            if !tally.operation.contains("slot=0 ") {
                writeln!(out, "  {}: {tally}", tally.operation)?;
            }
        }
    }
    Ok(())
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn is_deletion(tally: &slat::vmm::programs::Tally) -> bool {
    tally.operation.contains(" npages=0")
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn traced(_out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    Ok(())
}

/// What one deletion costs, on the model's page tables.
fn cost(vm_type: VmType, quirks: Quirks) -> Result<String, Box<dyn Error>> {
    let profile = Profile::named("debian-6.12.117").ok_or("a profile of this name")?;
    let vm = TdpVm::<Npt>::new(profile, vm_type, &Host::npt(40));
    let mut vm = vm.ok_or("a host with a second stage")?;
    vm.create_vcpu(0);
    if !quirks.is_empty() {
        vm.enable_cap(cap::DISABLE_QUIRKS2, quirks.bits());
    }
    for (slot, gfn, pages) in [(0, 0, 16), (1, GOES, 0x200), (2, STAYS, 0x200)] {
        vm.set_region(&region(slot, gfn, pages, 0x4000_0000));
    }
    for gfn in touched(GOES).chain(touched(STAYS)) {
        touch(&mut vm, gfn);
    }
    let _ = vm.take();

    vm.set_region(&region(1, GOES, 0, 0x4000_0000));
    let told = vm.take();
    let is_entry = |event: &&Predicted| matches!(event, Predicted::SpteChanged { .. });
    let is_table = |event: &&Predicted| matches!(event, Predicted::PageZapped { .. });
    let entries = told.iter().filter(is_entry).count();
    let tables = told.iter().filter(is_table).count();

    for gfn in touched(STAYS) {
        touch(&mut vm, gfn);
    }
    let is_fault = |event: &&Predicted| matches!(event, Predicted::SpteRequested { .. });
    let faults = vm.take().iter().filter(is_fault).count();
    Ok(format!(
        "{entries} entries changed, {tables} tables gone, {faults} faults to touch the other slot again"
    ))
}

fn touched(first: u64) -> impl Iterator<Item = u64> {
    first..first + TOUCHED
}

/// The guest writes to a page. Its page on the host is told beforehand, and that of its code.
fn touch(vm: &mut TdpVm<Npt>, gfn: u64) {
    let pages = [1, gfn].map(|gfn| (Gfn::new(gfn), 0x10_0000 + gfn));
    vm.host_mut().supply(pages.to_vec());
    let write = Activity::halt(Gpa::new(PAGE_SIZE)).step(Kind::Write, gfn * PAGE_SIZE);
    vm.run_guest(0, &write);
}

fn region(slot: u16, gfn: u64, pages: u64, base: u64) -> Region {
    let key = SlotKey::normal(slot);
    Region::new(
        key,
        gfn * PAGE_SIZE,
        pages * PAGE_SIZE,
        base + gfn * PAGE_SIZE,
    )
}

/// The same deletion as calls; before each, what is foreseen of it.
fn calls(
    chosen: &mut on::Chosen,
    quirks: Quirks,
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let base = chosen.areas.writable.raw();
    if !quirks.is_empty() {
        let call = Call::EnableCap {
            cap: cap::DISABLE_QUIRKS2,
            flags: 0,
            args: [quirks.bits(), 0, 0, 0],
        };
        let _foreseen = chosen.memory.call(&call);
        if let Err(error) = chosen.vm.call(&call) {
            writeln!(out, "quirk off: {error}")?;
            return Ok(());
        }
    }
    for pages in [0x200, 0] {
        let request = region(1, GOES, pages, base);
        if pages == 0 {
            let change = chosen.memory.check_region(&request)?;
            let zap = change.zap.ok_or("a deletion zaps")?;
            writeln!(out, "delete: zaps {zap}")?;
        }
        let call = Call::SetRegion(request);
        let _foreseen = chosen.memory.call(&call);
        let _answer = chosen.vm.call(&call)?;
    }
    let range = GfnRange::new(Gfn::new(GOES), Pages::new(0x200)).ok_or("a range")?;
    writeln!(out, "deleted {range}: ok")?;
    Ok(())
}
