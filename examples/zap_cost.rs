//! What taking a slot's mappings away costs, on page tables of any size: the leaves alone, all roots at once as kernels since
//! 6.6 do it, and the two halves of that apart.
//!
//! `cargo run --release --example zap_cost -- --gib 1024` maps 1 TiB in 4 KiB leaves, which takes 2 GiB of memory. The tables
//! are the model's: no vCPU runs and no TLB is flushed, so these are the costs of the bookkeeping alone.

use std::error::Error;
use std::io::Write;
use std::time::{Duration, Instant};

use slat::memslot::{Gfn, GfnRange, PageSize, Pages};
use slat::mmu::host::Host;
use slat::mmu::role::{VcpuState, root_role_for_tdp};
use slat::mmu::roots::RootId;
use slat::mmu::spte::{Ept, Pfn};
use slat::mmu::tdp::{
    Limits, MapRequest, Passes, Progress, Tables, Uninterrupted, Unobserved, ZapInvalidated,
    ZapLeafs,
};

const GIB: u64 = 1 << 18;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&arguments, &mut std::io::stdout())
}

/// The whole example; what it finds goes to `out`.
pub(crate) fn run(arguments: &[&str], out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let gib = size(arguments)?;
    let pages = Pages::new(gib * GIB);
    let host = Host::ept(46);
    let limits = Limits {
        tables: u32::try_from(gib * 514 + 1024)?,
        readers: 1,
    };
    let mut tables = Tables::<Ept>::with_limits(&host, limits);

    let root = acquire(&mut tables, &host)?;
    let took = timed(|| map(&mut tables, root, pages))?;
    report(out, "map", pages, took)?;
    let bytes = tables.bytes() as f64 / pages.raw() as f64;
    writeln!(out, "{:<34} {bytes:>20.3} bytes a page", "memory")?;
    let took = timed(|| zap_leafs(&mut tables, pages))?;
    report(out, "zap its leaves", pages, took)?;
    let took = timed(|| map(&mut tables, root, pages))?;
    report(out, "map again", pages, took)?;

    tables.exclusive(Unobserved).put_root(root);
    let took = timed(|| {
        tables.exclusive(Unobserved).invalidate_roots();
        Ok(())
    })?;
    report(out, "fast zap: invalidate the roots", pages, took)?;
    let took = timed(|| zap_roots(&tables))?;
    report(out, "fast zap: zap them before return", pages, took)?;

    let root = acquire(&mut tables, &host)?;
    map(&mut tables, root, pages)?;
    tables.exclusive(Unobserved).put_root(root);
    tables.exclusive(Unobserved).invalidate_roots();
    let took = timed(|| {
        let _tables = tables.exclusive(Unobserved).discard_invalidated();
        Ok(())
    })?;
    report(out, "or free the tables unseen", pages, took)
}

/// The size from the command line, 16 GiB without one.
fn size(arguments: &[&str]) -> Result<u64, Box<dyn Error>> {
    let gib = match arguments {
        [] => Some(16),
        ["--gib", number] => number.parse().ok(),
        _ => None,
    };
    let known = gib.filter(|gib| (1..=4096).contains(gib));
    known.ok_or_else(|| "usage: zap_cost [--gib N], N from 1 to 4096".into())
}

fn acquire(tables: &mut Tables<Ept>, host: &Host) -> Result<RootId, Box<dyn Error>> {
    let tdp = host.tdp().ok_or("a host with a second stage")?;
    let role = root_role_for_tdp(&VcpuState::default(), &tdp);
    Ok(tables.exclusive(Unobserved).acquire_root(role)?.root())
}

fn map(tables: &mut Tables<Ept>, root: RootId, pages: Pages) -> Result<(), Box<dyn Error>> {
    let first = MapRequest::page(Gfn::new(0), PageSize::Size4K, Pfn::new(1 << 22));
    let mut locked = tables.exclusive(Unobserved);
    let table = locked.root_table(root).ok_or("the root is held")?;
    let _logged = locked.map_range(table, &first, pages)?;
    Ok(())
}

fn zap_leafs(tables: &mut Tables<Ept>, pages: Pages) -> Result<(), Box<dyn Error>> {
    let range = GfnRange::new(Gfn::new(0), pages).ok_or("a range that is not empty")?;
    let mut zap = ZapLeafs::of_valid_roots(range);
    let progress = zap.run(&mut tables.exclusive(Unobserved), &mut Uninterrupted);
    assert_eq!((progress, zap.zapped()), (Progress::Done, pages.raw()));
    Ok(())
}

fn zap_roots(tables: &Tables<Ept>) -> Result<(), Box<dyn Error>> {
    let mut reader = tables.reader().ok_or("a place is free")?;
    let mut zap = ZapInvalidated::new(Passes::SmallestFirst);
    let mut locked = tables.shared(&mut reader, Unobserved);
    let progress = zap.run(&mut locked, &mut Uninterrupted);
    assert_eq!((progress, tables.totals().pages_4k), (Progress::Done, 0));
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn report(
    out: &mut impl Write,
    what: &str,
    pages: Pages,
    took: Duration,
) -> Result<(), Box<dyn Error>> {
    let each = took.as_secs_f64() * 1e9 / pages.raw() as f64;
    writeln!(out, "{what:<34} {took:>11.3?} {each:8.3} ns a page")?;
    Ok(())
}
