//! A TD from `KVM_CREATE_VM` to its end: made, measured in spite of signals, accepted eagerly and lazily, converted, its
//! memory plugged and unplugged, and one slot deleted in the three ways of the discussion of May 2024.
//!
//! `cargo run --example tdx_lifecycle -- --on model`

use std::error::Error;
use std::io::{self, Write};

use slat::memslot::{
    Call, Gfn, GfnRange, Pages, Profile, Region, SlotKey, TdxCall, TdxConversion, TdxCount,
    TdxHost, TdxSlotZap, VmType,
};
use slat::vmm::tdx_vm::script::{AcceptHow, CarefulVmm, Guest, Plan, Step};
use slat::vmm::{Machine, MemoryVm, model};

/// 16 MiB.
const RAM: Pages = Pages::new(4096);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&arguments, &mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(arguments: &[&str], out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    match arguments {
        [] | ["--on", "model"] => {}
        ["--on", "kvm" | "both"] => return kernel(out),
        _ => return Err("usage: --on model|kvm|both".into()),
    }
    life(out)?;
    slots(out)
}

/// A kernel is asked whether it could, and not more: no host without TDX can run one, and on one with TDX the guest's part
/// takes a guest.
fn kernel(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "{}", why_not())?;
    Ok(())
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn why_not() -> String {
    match slat::vmm::kvm::Machine::open() {
        Err(error) => format!("not on this machine: {error}"),
        Ok(machine) if !machine.profile().supports(VmType::Tdx) => {
            "not on this machine: KVM_CAP_VM_TYPES has no KVM_X86_TDX_VM".to_owned()
        }
        Ok(_) => "not here: the guest's part takes a TD's firmware".to_owned(),
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn why_not() -> String {
    "not on this machine: only Linux on x86-64 has TDs".to_owned()
}

fn booted(plan: &Plan) -> Result<(model::Vm, CarefulVmm, Guest), Box<dyn Error>> {
    let profile = Profile::named("linux-7.3-rc1-tdx").ok_or("no such kernel")?;
    let mut vm = model::Machine::new(profile).create_vm(VmType::Tdx.raw())?;
    let vmm = CarefulVmm::boot(&mut vm, plan)?;
    let guest = Guest::new(0).with_image(range(0, plan.image.raw())?);
    Ok((vm, vmm, guest))
}

fn range(start: u64, pages: u64) -> Result<GfnRange, Box<dyn Error>> {
    Ok(GfnRange::new(Gfn::new(start), Pages::new(pages)).ok_or("a range is not empty")?)
}

fn life(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let plan = Plan {
        signal: Some(5),
        ..Plan::new(RAM)
    };
    let (mut vm, mut vmm, mut guest) = booted(&plan)?;
    writeln!(
        out,
        "measured: {} pages",
        count(&vm, TdxCount::PrivatePages)
    )?;
    let (low, swiotlb, more) = (range(512, 1024)?, range(2048, 512)?, range(0x10_0000, 512)?);
    let chapters: [(&str, Vec<Step>); 5] = [
        (
            "4 MiB accepted ahead",
            vec![Step::Accept(low, AcceptHow::Largest)],
        ),
        (
            "what is needed, when it is needed",
            (3000..3010)
                .map(|gfn| Step::Write(Gfn::new(gfn), gfn))
                .collect(),
        ),
        (
            "2 MiB shared for I/O",
            vec![
                Step::Convert(swiotlb, TdxConversion::Shared),
                Step::WriteShared(Gfn::new(2048), 1),
            ],
        ),
        (
            "pages there and back",
            vec![
                Step::Storm(range(600, 16)?, 2),
                Step::Expect(Gfn::new(3005), 3005),
            ],
        ),
        (
            "memory plugged and unplugged",
            vec![
                Step::Plug(1, more),
                Step::Accept(more, AcceptHow::Largest),
                Step::Unplug(1, more),
            ],
        ),
    ];
    for (title, script) in chapters {
        let ran = guest.follow(&mut vm, &mut vmm, &script)?;
        writeln!(
            out,
            "{title}: {} accepted, {} too large, {} conversions; {} pages",
            ran.accepts,
            ran.mismatches,
            ran.hypercalls,
            count(&vm, TdxCount::PrivatePages)
        )?;
    }
    let td = vm.td().ok_or("a TD")?;
    let found: Vec<_> = td.findings().iter().map(|finding| finding.name()).collect();
    writeln!(out, "seen: {}", found.join(", "))?;
    writeln!(out, "violations: {}", td.audit().len())?;
    let end = vm.call(&Call::Tdx(TdxCall::Host(TdxHost::Teardown)))?;
    writeln!(out, "left: {end:?}")?;
    Ok(())
}

fn count(vm: &model::Vm, what: TdxCount) -> u64 {
    vm.td().map_or(0, |td| td.count(what))
}

/// What deleting a slot costs another one.
fn slots(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "\n# Deleting another slot")?;
    for (name, how) in [
        ("its leaves", TdxSlotZap::Leafs),
        ("all shared tables", TdxSlotZap::SharedRoots),
        ("all tables", TdxSlotZap::AllRoots),
    ] {
        let (mut vm, mut vmm, mut guest) = booted(&Plan::new(RAM))?;
        let other = range(0x10_0000, 16)?;
        let shared = range(100, 1)?;
        let script = [
            Step::Plug(1, other),
            Step::Write(other.start(), 1),
            Step::Write(Gfn::new(50), 5),
            Step::Convert(shared, TdxConversion::Shared),
            Step::WriteShared(Gfn::new(100), 6),
        ];
        guest.follow(&mut vm, &mut vmm, &script)?;
        vm.call(&Call::Tdx(TdxCall::Host(TdxHost::SlotZap(how))))?;
        if let Err(error) = vm.set_user_memory_region(&Region::delete(SlotKey::normal(1))) {
            writeln!(out, "{name}: {error}")?;
            continue;
        }
        let before = count(&vm, TdxCount::EptViolations);
        let after = [
            Step::Expect(Gfn::new(50), 5),
            Step::ExpectShared(Gfn::new(100), 6),
        ];
        guest.follow(&mut vm, &mut vmm, &after)?;
        let faults = count(&vm, TdxCount::EptViolations) - before;
        writeln!(out, "{name}: what stays is there, {faults} faults")?;
    }
    Ok(())
}
