//! The order of two steps that decides which page tables a guest runs on.
//!
//! When a nested guest exits to its hypervisor, KVM loads the hypervisor's CR3 and gives the MMU the hypervisor's role.
//! A root that was found is not looked at again, so CR3 first and role second leaves the hypervisor on the nested guest's
//! tables. A thread of February 2022 found this by reading and asked for an audit; here it is.
//!
//! `cargo run --example root_role_audit`

use std::error::Error;
use std::io::{self, Write};

use slat::mmu::role::{CpuRole, Cr0, Cr4, Efer, PageRole, RoleLayout, VcpuMode, VcpuState};
use slat::mmu::roots::{FlushOnReuse, GuestRoot, Pgd, RootTable, TdpMmu, VcpuMmu};

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    for (name, order) in [
        ("role first, then CR3", Order::RoleFirst),
        ("CR3 first, then role", Order::Cr3First),
    ] {
        let (mut mmu, table) = nested_guest();
        exit_to_l1(&mut mmu, &table, order);
        let audit = match mmu.check(&table) {
            Ok(()) => "the audit is content".to_owned(),
            Err(mismatch) => {
                format!(
                    "the audit objects to {}",
                    mismatch.fields().collect::<Vec<_>>().join(", ")
                )
            }
        };
        writeln!(out, "{name}: {audit}")?;
    }
    Ok(())
}

/// Which of the two steps comes first.
#[derive(Clone, Copy)]
enum Order {
    RoleFirst,
    Cr3First,
}

/// The page that CR3 names, the same for the nested guest and its hypervisor.
const CR3: u64 = 0x1000;

/// A vCPU whose hypervisor (L1) has run before and whose nested guest (L2) runs now, both on shadow paging.
fn nested_guest() -> (VcpuMmu, RootTable<()>) {
    let table = RootTable::new(TdpMmu::On);
    let mut mmu = VcpuMmu::new(shadow_role(VcpuMode::Normal));
    load_cr3(&mut mmu, &table);
    mmu.init(shadow_role(VcpuMode::Guest));
    load_cr3(&mut mmu, &table);
    (mmu, table)
}

fn exit_to_l1(mmu: &mut VcpuMmu, table: &RootTable<()>, order: Order) {
    match order {
        Order::RoleFirst => {
            mmu.init(shadow_role(VcpuMode::Normal));
            load_cr3(mmu, table);
        }
        Order::Cr3First => {
            load_cr3(mmu, table);
            mmu.init(shadow_role(VcpuMode::Normal));
        }
    }
}

/// Looks CR3's root up in the cache, and makes one before the entry if there is none.
fn load_cr3(mmu: &mut VcpuMmu, table: &RootTable<()>) {
    let _found = mmu.new_pgd(table, Pgd::new(CR3), FlushOnReuse::Off);
    let _loaded = mmu.load(table, GuestRoot::Visible(Pgd::new(CR3)), || ());
}

fn shadow_role(mode: VcpuMode) -> PageRole {
    let vcpu = VcpuState {
        cr0: Cr0::PE | Cr0::PG | Cr0::WP,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        mode,
        ..VcpuState::default()
    };
    CpuRole::of(&vcpu, RoleLayout::Baseline).shadow_root_role()
}
