//! What a slot's deletion leaves behind: the tables of a VM before and after, as a dump and as a difference.
//!
//! It runs on the model only. KVM has no dump of stage-2 tables on x86, so that there is nothing to hold it against on
//! `/dev/kvm`; what the kernel does to its tables shows in its tracepoints.
//!
//! `cargo run --example dump_tables`

use std::error::Error;
use std::io::{self, Write};

use slat::memslot::{AsId, Gfn, GfnRange, PageSize, Pages};
use slat::mmu::host::Host;
use slat::mmu::role::reachable_tdp_roots;
use slat::mmu::spte::{Npt, Pfn};
use slat::mmu::tdp::dump::{Detail, Dump};
use slat::mmu::tdp::{
    MapRequest, Passes, Progress, Tables, Uninterrupted, Unobserved, ZapInvalidated, ZapLeafs,
};

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let mut tables = guest()?;
    let before = tables.dump(Detail::Ranges);
    writeln!(out, "# a guest\n{before}")?;
    zap_leafs(&mut tables)?;
    let after = tables.dump(Detail::Ranges);
    writeln!(
        out,
        "# its second slot goes, leaf by leaf\n{}",
        before.diff(&after)
    )?;

    let mut tables = guest()?;
    zap_all_fast(&mut tables)?;
    let after = tables.dump(Detail::Ranges);
    writeln!(out, "# the same with a fast zap\n{}", before.diff(&after))?;

    // The text is as good as the value.
    let read: Dump = before.to_string().parse()?;
    writeln!(
        out,
        "# read back: {}",
        if read == before {
            "the same"
        } else {
            "different"
        }
    )?;
    Ok(())
}

/// A guest with two slots: 4 MiB in huge pages, and 64 KiB in small ones.
fn guest() -> Result<Tables<Npt>, Box<dyn Error>> {
    let host = Host::npt(48);
    let tdp = host.tdp().ok_or("the host has a second stage")?;
    let role = reachable_tdp_roots(tdp)
        .next()
        .ok_or("the host has roots")?;
    let mut tables = Tables::new(&host);
    let mut observer = Unobserved;
    let mut locked = tables.exclusive(&mut observer);
    let root = locked.acquire_root(role)?.root();
    let table = locked.root_table(root).ok_or("a root has a table")?;
    for (gfn, size, pfn, pages) in [
        (0, PageSize::Size2M, 0x4000, 1024),
        (0xc0000, PageSize::Size4K, 0x7_0000, 16),
    ] {
        let request = MapRequest::page(Gfn::new(gfn), size, Pfn::new(pfn));
        let _dirty = locked.map_range(table, &request, Pages::new(pages))?;
    }
    Ok(tables)
}

/// `KVM_X86_QUIRK_SLOT_ZAP_ALL` off: the slot's leaves go, and nothing else.
fn zap_leafs(tables: &mut Tables<Npt>) -> Result<(), Box<dyn Error>> {
    let slot = GfnRange::new(Gfn::new(0xc0000), Pages::new(16)).ok_or("the slot has frames")?;
    let mut observer = Unobserved;
    let mut zap = ZapLeafs::of_address_space(AsId::NORMAL, slot);
    while zap.run(&mut tables.exclusive(&mut observer), &mut Uninterrupted) == Progress::Paused {}
    Ok(())
}

/// The quirk on: all roots become invalid, and everything below goes. The vCPU has not dropped its root yet.
fn zap_all_fast(tables: &mut Tables<Npt>) -> Result<(), Box<dyn Error>> {
    let mut observer = Unobserved;
    tables.exclusive(&mut observer).invalidate_roots();
    let mut reader = tables.reader().ok_or("a free place for a reader")?;
    let mut zap = ZapInvalidated::new(Passes::SmallestFirst);
    let mut locked = tables.shared(&mut reader, &mut observer);
    while zap.run(&mut locked, &mut Uninterrupted) == Progress::Paused {}
    Ok(())
}
