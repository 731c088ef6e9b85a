//! What a private page costs in the model, beside a shared one: faults, accepts, zaps, and memory.
//!
//! `cargo run --release -p slat-coco --example tdx_cost -- 65536`
//!
//! These are times of the model, not of hardware.

use std::time::{Duration, Instant};

use slat_coco::tdx::mirror::{Config, PrivateFault, TdxMmu, Vcpu};
use slat_coco::tdx::{Accept, Refusal};
use slat_memslot::{Gfn, GfnRange, Level, Pages};
use slat_mmu::spte::Pfn;
use slat_mmu::tdp::RootTypes;

const ROUNDS: u32 = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given = std::env::args().nth(1);
    let pages = given.map_or(Ok(65_536), |given| given.parse::<u64>())?;
    let range = GfnRange::new(Gfn::new(0x200), Pages::new(pages)).ok_or("no pages")?;
    let config = Config {
        host_pages: 0x4000 + pages * 2,
        ..Config::default()
    };
    let vm = TdxMmu::new(&config)?;
    vm.add_slot(1, range);
    vm.set_private(range);
    vm.finalize()?;
    let mut vcpu = vm.vcpu(0).ok_or("no vCPU")?;
    println!("{pages} pages of 4 KiB, best of {ROUNDS} rounds, ns per page");
    let empty = (vm.module().bytes(), vm.linked_tables());
    let private = rounds(|| private(&vm, &mut vcpu, range))?;
    let full = (vm.module().bytes(), vm.linked_tables());
    vm.set_shared(range);
    let shared = rounds(|| Ok(shared(&vm, &mut vcpu, range)))?;
    let per_page = |took: Duration| took.as_nanos() as f64 / pages as f64;
    for (name, [fault, accept, zap]) in [("private", private), ("shared", shared)] {
        println!(
            "{name:8} fault {:7.1}  accept {:6.1}  zap {:7.1}",
            per_page(fault),
            per_page(accept),
            per_page(zap)
        );
    }
    let bytes = |new: usize, old: usize| (new - old) as f64 / pages as f64;
    println!(
        "bytes per private page: page metadata {:.1}, S-EPT {:.1}, mirror {:.1}",
        bytes(full.0.0, empty.0.0),
        bytes(full.0.1, empty.0.1),
        (full.1 - empty.1) as f64 * 4096.0 / pages as f64,
    );
    Ok(())
}

type Times = [Duration; 3];

/// The shortest time of each step.
fn rounds(mut round: impl FnMut() -> Result<Times, Refusal>) -> Result<Times, Refusal> {
    let mut best = [Duration::MAX; 3];
    for _ in 0..ROUNDS {
        for (best, took) in best.iter_mut().zip(round()?) {
            *best = took.min(*best);
        }
    }
    Ok(best)
}

fn frames(range: GfnRange) -> impl Iterator<Item = Gfn> {
    (range.start().raw()..range.end().raw()).map(Gfn::new)
}

/// `PAGE.AUG`, `PAGE.ACCEPT`, then `RANGE.BLOCK`, `TRACK`, `PAGE.REMOVE`, `PAGE.WBINVD`.
fn private(vm: &TdxMmu, vcpu: &mut Vcpu, range: GfnRange) -> Result<Times, Refusal> {
    let start = Instant::now();
    for gfn in frames(range) {
        let fault = vm.fault_private(vcpu, gfn);
        assert_eq!(fault, PrivateFault::Fixed);
    }
    let faulted = start.elapsed();
    let start = Instant::now();
    for gfn in frames(range) {
        let accepted = vm.accept(vcpu, gfn, Level::L1)?;
        assert_eq!(accepted, Accept::Accepted);
    }
    let accepted = start.elapsed();
    vm.leave(vcpu);
    let start = Instant::now();
    let zapped = vm.zap_leafs(range, RootTypes::Mirror);
    assert_eq!(zapped, range.pages().raw());
    Ok([faulted, accepted, start.elapsed()])
}

fn shared(vm: &TdxMmu, vcpu: &mut Vcpu, range: GfnRange) -> Times {
    let start = Instant::now();
    for gfn in frames(range) {
        let fault = vm.fault_shared(vcpu, gfn, Pfn::new(gfn.raw()));
        assert_eq!(fault, PrivateFault::Fixed);
    }
    let faulted = start.elapsed();
    let start = Instant::now();
    let zapped = vm.zap_leafs(range, RootTypes::Direct);
    assert_eq!(zapped, range.pages().raw());
    [faulted, Duration::ZERO, start.elapsed()]
}
