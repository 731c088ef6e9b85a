//! Where does a guest's address go? Ten lines that a VMM can copy, and `KVM_TRANSLATE` beside them.
//!
//! `KVM_TRANSLATE` answers for a read in supervisor mode and nothing else; the model answers for any access.
//!
//! `cargo run --example translate -- --on model|kvm|both`

use std::error::Error;
use std::io::{self, Write};

use slat::memslot::Gva;
use slat::mmu::fault::Kind;
use slat::mmu::role::{Cr0, Cr4, Efer, VcpuState};
use slat::mmu::walk::{ErrorCode, GuestCpu, GuestPaging, Privilege};
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
    if on::wants_model(arguments)? {
        model(&memory, out)?;
    }
    if on::wants_kernel(arguments)? {
        for address in [0x1234, 0x2234, 0x5234, 0x20_0234] {
            match on::kernel(&memory, Gva::new(address))? {
                Some(gpa) => writeln!(out, "KVM_TRANSLATE {address:#x}: {gpa}")?,
                None => writeln!(out, "KVM_TRANSLATE {address:#x}: not valid")?,
            }
        }
    }
    Ok(())
}

fn model(memory: &Memory, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    // What KVM_GET_SREGS and the guest's CPUID say.
    let vcpu = VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr3: 0,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        ..VcpuState::default()
    };
    let paging = GuestPaging::new(&vcpu, &GuestCpu::new(46));
    for (kind, privilege, address) in [
        (Kind::Read, Privilege::Supervisor, 0x1234),
        (Kind::Write, Privilege::Supervisor, 0x1234),
        (Kind::Read, Privilege::User, 0x2234),
        (Kind::Read, Privilege::Supervisor, 0x5234),
        (Kind::Execute, Privilege::User, 0x20_0234),
    ] {
        match paging.translate(memory, Gva::new(address), ErrorCode::of(kind, privilege)) {
            Ok(found) => writeln!(
                out,
                "{privilege:?} {kind:?} {address:#x}: {}, {} page, rights {}",
                found.address, found.size, found.rights
            )?,
            Err(fault) => writeln!(out, "{privilege:?} {kind:?} {address:#x}: {fault}")?,
        }
    }
    Ok(())
}
