//! Which second-level roots the vCPUs of one VM can need, and what chooses among them.
//!
//! Pre-faulting fills the tables of the root that the vCPU is on at that moment; a VMM that wants the right ones filled
//! has to know what chooses a root. Six are possible: four or five levels, in system-management mode, in a nested guest.
//!
//! `cargo run --example tdp_roots`

use std::error::Error;
use std::io::{self, Write};

use slat::mmu::host::Host;
use slat::mmu::role::{
    PhysBits, RoleLayout, VcpuMode, VcpuState, reachable_tdp_roots, root_role_for_tdp,
};

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    for (name, host) in [
        ("EPT with five levels", Host::ept(52).with_five_levels()),
        (
            "EPT with four levels, A/D bits off",
            Host::ept(46).without_ad(),
        ),
        ("NPT on a host that pages with four levels", Host::npt(48)),
    ] {
        let tdp = host.tdp().ok_or("the host has a second stage")?;
        writeln!(out, "# {name}")?;
        for role in reachable_tdp_roots(tdp) {
            writeln!(out, "{:#9x}  {role:#}", role.word(RoleLayout::Baseline))?;
        }
    }
    choices(out)
}

/// Only the guest's MAXPHYADDR and the vCPU's mode choose; control registers do not.
fn choices(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let host = Host::ept(52).with_five_levels();
    let tdp = host.tdp().ok_or("the host has a second stage")?;
    writeln!(out, "# what a vCPU gets on EPT with five levels")?;
    for (bits, mode) in [
        (39, VcpuMode::Normal),
        (48, VcpuMode::Smm),
        (49, VcpuMode::Normal),
        (52, VcpuMode::Guest),
    ] {
        let vcpu = VcpuState {
            phys_bits: PhysBits::from_leaf(Some(bits)),
            mode,
            ..VcpuState::default()
        };
        let word = root_role_for_tdp(&vcpu, &tdp).word(RoleLayout::Baseline);
        writeln!(out, "guest MAXPHYADDR {bits}, {mode:?}: {word:#x}")?;
    }
    Ok(())
}
