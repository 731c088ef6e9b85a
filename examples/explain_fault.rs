//! Why does an access fault? The entries on the way, what they allow, and the first check that fails; with two dimensions
//! also whose tables are at fault.
//!
//! `cargo run --example explain_fault -- --on model|kvm|both`

use std::error::Error;
use std::io::{self, Write};

use slat::memslot::Gva;
use slat::mmu::host::ExecuteOnly;
use slat::mmu::role::{Cr0, Cr4, Efer, VcpuState};
use slat::mmu::walk::second::NestedStage;
use slat::mmu::walk::{
    Dimension, ErrorCode, GuestCpu, GuestPaging, Ladder, NestedEptRoot, Unnested,
};
use slat::vmm::walks::Memory;

#[path = "on/walk.rs"]
mod on;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&arguments, &mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(arguments: &[&str], out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let memory = on::guest_tables();
    let read = ErrorCode::READ;
    for (address, access) in [
        (0x1000, ErrorCode::WRITE | ErrorCode::USER),
        (0x2000, ErrorCode::USER),
        (0x3000, read),
        (0x4000, read),
        (0x20_0000, ErrorCode::FETCH),
    ] {
        if on::wants_model(arguments)? {
            explain(&memory, Gva::new(address), access, out)?;
        }
        // The kernel tells no reason, and only of reads by the supervisor.
        if access == read && on::wants_kernel(arguments)? {
            let valid = on::kernel(&memory, Gva::new(address))?.is_some();
            writeln!(out, "KVM_TRANSLATE {address:#x}: valid {valid}")?;
        }
    }
    if on::wants_model(arguments)? {
        second_dimension(&memory, out)?;
    }
    Ok(())
}

fn paging() -> GuestPaging {
    let vcpu = VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        ..VcpuState::default()
    };
    GuestPaging::new(&vcpu, &GuestCpu::new(46))
}

fn explain(
    memory: &Memory,
    address: Gva,
    access: ErrorCode,
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let ladder = Ladder::default();
    let guest = &mut ladder.observer(Dimension::Guest);
    let end = paging().walk(memory, &mut Unnested, guest, address, access);
    for reference in ladder.references() {
        writeln!(
            out,
            "  {} level {}: {:#x}, rights {}",
            reference.dimension, reference.level as u8, reference.entry, reference.rights
        )?;
    }
    match end {
        Ok(found) => writeln!(out, "{address} goes to {}", found.address)?,
        Err(fault) => writeln!(out, "{fault}")?,
    }
    Ok(())
}

/// The same tables behind an EPT whose pages are missing: whose fault it is.
fn second_dimension(memory: &Memory, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    // EPT in page 7 leads nowhere.
    let root = NestedEptRoot::of(0x701e, ExecuteOnly::Unsupported);
    let ept = GuestPaging::nested_ept(&root, &GuestCpu::new(46));
    let mut stage = NestedStage::new(ept, memory, Unnested);
    let walked = paging().walk(
        memory,
        &mut stage,
        &mut (),
        Gva::new(0x1000),
        ErrorCode::READ,
    );
    match walked {
        Ok(found) => writeln!(out, "goes to {}", found.address)?,
        Err(fault) => writeln!(out, "{fault}")?,
    }
    Ok(())
}
