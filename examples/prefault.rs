//! Pre-faulting guest memory: which root the pages go into, how large the leaves are, how many faults it takes, when it cannot
//! help; then the call itself, on the model, on `/dev/kvm`, or on both with every answer compared.
//!
//! The thread in which the call was argued about names six roots and three ways to treat a vCPU in SMM or L2; the plans
//! show all of it, and the model's page tables show what becomes of each way, and where kernels before 6.15 never return.
//!
//! `cargo run --example prefault -- --on both`

use std::error::Error;
use std::io::{self, Write};

use slat::memslot::{Call, Gfn, GfnRange, Gpa, PageSize, Pages, Profile, Region, SlotKey, VmType};
use slat::mmu::fault::{Apicv, PrefaultOutside, Prefaulter};
use slat::mmu::host::Host;
use slat::mmu::role::{PhysBits, VcpuMode, VcpuState};
use slat::mmu::spte::Npt;
use slat::vmm::tdp_vm::{Activity, TdpVm};
use slat::vmm::traces::Predicted;

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
    let base = chosen.areas.writable.raw();
    for call in [
        Call::SetRegion(Region::new(SlotKey::normal(0), 0, 64 * MIB, base)),
        Call::CreateVcpu,
    ] {
        let _foreseen = chosen.memory.call(&call);
        let _answer = chosen.vm.call(&call)?;
    }

    plans(&chosen, out)?;
    policies(out)?;
    endless(out)?;
    calls(&mut chosen, out)
}

/// Four pages.
const FEW: Pages = Pages::new(4);

/// A VM of the model with page tables, on an AMD host: two slots, and a vCPU that has run.
fn with_tables(kernel: &str) -> Result<TdpVm<Npt>, Box<dyn Error>> {
    let profile = Profile::named(kernel).ok_or("a profile of this name")?;
    let vm = TdpVm::new(profile, VmType::Default, &Host::npt(48));
    let mut vm = vm.ok_or("a host with a second stage")?;
    vm.create_vcpu(0);
    for id in [0, 1] {
        let gpa = u64::from(id) * MIB;
        vm.set_region(&Region::new(
            SlotKey::normal(id),
            gpa,
            MIB,
            0x4000_0000 + gpa,
        ));
    }
    run_at(&mut vm, 0x8000);
    Ok(vm)
}

/// The guest runs at an address until it halts; gives how many faults that took.
fn run_at(vm: &mut TdpVm<Npt>, address: u64) -> usize {
    let _earlier = vm.take();
    vm.run_guest(0, &Activity::halt(Gpa::new(address)));
    let is_fault = |event: &&Predicted| matches!(event, Predicted::SpteRequested { .. });
    vm.take().iter().filter(is_fault).count()
}

/// What becomes of a vCPU in SMM, on the model's page tables.
fn policies(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "# Four pages by a vCPU in SMM, which then leaves it")?;
    for (title, outside) in [
        ("as merged", PrefaultOutside::CurrentRoot),
        ("always for the base mode", PrefaultOutside::BaseRoot),
        ("an error outside it", PrefaultOutside::Refused),
    ] {
        let mut vm = with_tables("debian-6.12.117")?;
        vm.set_prefault_outside(outside);
        vm.set_mode(0, VcpuMode::Smm);
        let ended = vm.pre_fault(0, Gfn::new(0), FEW, 0);
        vm.set_mode(0, VcpuMode::Normal);
        let faults = run_at(&mut vm, 0);
        writeln!(out, "{title}: {ended}; {faults} faults at the first page")?;
    }
    Ok(())
}

/// The call right after another slot was deleted, which throws the root away.
fn endless(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "\n# Four pages after another slot was deleted")?;
    for kernel in ["debian-6.12.117", "linux-6.18"] {
        let mut vm = with_tables(kernel)?;
        vm.set_region(&Region::new(SlotKey::normal(1), MIB, 0, 0));
        let ended = vm.pre_fault(0, Gfn::new(0), FEW, 0);
        writeln!(out, "{kernel}: {ended}")?;
    }
    writeln!(out)?;
    Ok(())
}

/// What several vCPUs would do with 96 MiB, of which the slot has 64.
fn plans(chosen: &on::Chosen, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let range = GfnRange::new(Gfn::new(0), Pages::in_bytes(96 * MIB)).ok_or("a range")?;
    let amd = Host::npt(48);
    let intel = Host::ept(52).with_five_levels();
    let old = Host::ept(39).without_ad();
    let vcpu = |width, mode| VcpuState {
        phys_bits: PhysBits::from_leaf(Some(width)),
        mode,
        ..VcpuState::default()
    };
    let (normal, smm) = (VcpuMode::Normal, VcpuMode::Smm);
    let cases = [
        ("AMD", &amd, vcpu(48, normal), PrefaultOutside::CurrentRoot),
        (
            "Intel, MAXPHYADDR 46",
            &intel,
            vcpu(46, normal),
            PrefaultOutside::CurrentRoot,
        ),
        (
            "Intel, MAXPHYADDR 52",
            &intel,
            vcpu(52, normal),
            PrefaultOutside::CurrentRoot,
        ),
        (
            "Intel without EPT A/D bits",
            &old,
            vcpu(39, normal),
            PrefaultOutside::CurrentRoot,
        ),
        (
            "in SMM, as merged",
            &amd,
            vcpu(48, smm),
            PrefaultOutside::CurrentRoot,
        ),
        (
            "in SMM, always for the base mode",
            &amd,
            vcpu(48, smm),
            PrefaultOutside::BaseRoot,
        ),
        (
            "in SMM, an error outside it",
            &amd,
            vcpu(48, smm),
            PrefaultOutside::Refused,
        ),
    ];
    for (title, host, vcpu, outside) in cases {
        let who = Prefaulter {
            host,
            vcpu: &vcpu,
            outside,
            apicv: Apicv::Active,
        };
        // As if the host had made all of it huge.
        let plan = who.plan(&chosen.memory, range, |_, _| PageSize::Size2M);
        match plan {
            Ok(plan) => writeln!(out, "\n# {title}\n{plan}")?,
            Err(refused) => writeln!(out, "\n# {title}\nrefused: {refused}")?,
        }
    }
    Ok(())
}

/// The call, inside the slot and beyond it.
fn calls(chosen: &mut on::Chosen, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "# KVM_PRE_FAULT_MEMORY")?;
    for (gpa, size) in [(0, 4 * MIB), (60 * MIB, 8 * MIB), (64 * MIB, 4 * MIB)] {
        let call = Call::PreFault {
            vcpu: 0,
            gpa,
            size,
            flags: 0,
        };
        match chosen.vm.call(&call) {
            Ok(outcome) => writeln!(out, "{gpa:#x}, {size:#x} bytes: {outcome:?}")?,
            Err(error) => writeln!(out, "{gpa:#x}, {size:#x} bytes: {error}")?,
        }
    }
    Ok(())
}
