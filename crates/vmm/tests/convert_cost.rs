//! What a conversion costs the model: by what is mapped and by borders, not by pages.
//!
//! `a_gibibyte` and `two_mebibytes` are also there to be counted, instruction by instruction: `docs/convert.md` says how. What is
//! counted and asserted without a clock is among the laws of `slat zap --scaling`.
#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::time::{Duration, Instant};

use slat_coco::convert::{Cause, Ended, LeftBehind, Policy, Request};
use slat_coco::migration::Status;
use slat_memslot::{Call, Gfn, GfnRange, GuestAccess, PageSize, Pages, Profile, Region, SlotKey};
use slat_mmu::host::Host;
use slat_vmm::traces::Predicted;
use slat_vmm::{Machine, MemoryVm, convert, model};

const GIB: u64 = 1 << 30;
/// The memory that is converted begins here.
const DATA: u64 = GIB;
const HOST: u64 = 0x7f00_0000_0000;
const ROUNDS: u32 = 200;

/// 3 GiB in one slot of one file, on NPT; the instructions lie in another.
fn vm() -> model::Vm {
    let profile = Profile::named("debian-6.12.117-sw-protected").unwrap();
    let mut vm = model::Machine::with_host(profile, Host::npt(40))
        .create_vm(1)
        .unwrap();
    let file = vm.create_guest_memfd(3 * GIB, 0).unwrap();
    let code = Region::new(SlotKey::normal(0), 0, 0x10000, HOST);
    let data = Region::new(SlotKey::normal(1), DATA, 3 * GIB, HOST + DATA).with_gmem(file, 0);
    for slot in [code, data] {
        vm.set_user_memory_region(&slot).unwrap();
    }
    vm.call(&Call::CreateVcpu).unwrap();
    touch(&mut vm, &[]);
    vm
}

/// The guest writes pages of the memory that is converted, after its first instruction.
fn touch(vm: &mut model::Vm, pages: &[u64]) {
    let halt = GuestAccess::execute(0x1000);
    vm.call(&Call::Guest(halt)).unwrap();
    for page in pages {
        let write = GuestAccess::write(DATA + page * 0x1000).by_code_at(0x1000);
        vm.call(&Call::Guest(write)).unwrap();
    }
}

/// Plans and applies one conversion of the first bytes of the memory.
fn go(vm: &mut model::Vm, bytes: u64, to: Status) {
    let request = Request {
        range: GfnRange::new(Gfn::new(DATA >> 12), Pages::in_bytes(bytes)).unwrap(),
        to,
        hint: PageSize::Size2M,
        cause: Cause::Hypercall,
    };
    let policy = Policy {
        left_behind: LeftBehind::Discard,
        ..Policy::default()
    };
    let run = convert::convert(vm, &request, &policy).unwrap();
    assert_eq!(run.ended(), Some(Ended::Converted));
}

#[inline(never)]
fn a_gibibyte(vm: &mut model::Vm) {
    go(vm, GIB, Status::Private);
    go(vm, GIB, Status::Shared);
}

#[inline(never)]
fn two_mebibytes(vm: &mut model::Vm) {
    go(vm, 2 << 20, Status::Private);
    go(vm, 2 << 20, Status::Shared);
}

/// The best of many, which noise makes no better.
fn best(vm: &mut model::Vm, convert: fn(&mut model::Vm)) -> Duration {
    let times = (0..ROUNDS).map(|_| {
        let begin = Instant::now();
        convert(vm);
        begin.elapsed()
    });
    times.min().unwrap()
}

/// Changes of entries in what happened.
fn changes(events: &[Predicted]) -> usize {
    let changes = events
        .iter()
        .filter(|event| matches!(event, Predicted::SpteChanged { .. }));
    changes.count()
}

#[test]
fn a_gibibyte_costs_at_most_twenty_times_two_mebibytes() {
    let mut vm = vm();
    let (small, large) = (best(&mut vm, two_mebibytes), best(&mut vm, a_gibibyte));
    println!("there and back: 2 MiB {small:?}, 1 GiB {large:?}");
    assert!(large <= small * 20, "1 GiB {large:?}, 2 MiB {small:?}");
}

/// Where tables are left of pages that were mapped once, here one of 4 KiB entries for each 2 MiB, a zap passes them: it knows that
/// nothing is in them.
#[test]
fn tables_that_are_empty_are_passed() {
    const TABLES: u64 = 512;
    let mut vm = vm();
    let pages: Vec<u64> = (0..TABLES).map(|page| page * 512).collect();
    touch(&mut vm, &pages);
    a_gibibyte(&mut vm);
    let (small, large) = (best(&mut vm, two_mebibytes), best(&mut vm, a_gibibyte));
    println!("there and back, with {TABLES} empty tables: 2 MiB {small:?}, 1 GiB {large:?}");
    assert!(large <= small * 20, "1 GiB {large:?}, 2 MiB {small:?}");
}

/// With leaves in it, a range costs each of them once, wherever they are.
#[test]
fn each_leaf_is_zapped_once() {
    for pages in [
        vec![0],
        (0..64).collect::<Vec<u64>>(),
        (0..64).map(|page| page * 512).collect(),
    ] {
        for (bytes, inside) in [(2 << 20, 512), (GIB, u64::MAX)] {
            let mut vm = vm();
            vm.watch(true);
            touch(&mut vm, &pages);
            let _before = vm.take();
            go(&mut vm, bytes, Status::Private);
            let leaves = pages.iter().filter(|page| **page < inside).count();
            assert_eq!(changes(&vm.take()), leaves, "{bytes:#x}");
        }
    }
}
