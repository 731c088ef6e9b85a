//! Slots under load: looking them up, setting them, and whole random sequences of calls, each beside a floor.
//!
//! `cargo bench --bench slots` measures everything; `cargo bench --bench slots -- targets` prints only the lines of
//! the targets. See `docs/performance.md`.

mod paired;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use paired::{Bound, Side, Target};
use slat::memslot::{AsId, Call, Gfn, Memory, Profile, Region, SlotFlags, SlotKey, VmType};
use slat::vmm::differential::{self, Sequence};
use slat::vmm::{Areas, Machine, MemoryVm, model};

/// User slots of one address space, all of them.
const ALL_SLOTS: u16 = 32764;
/// From one slot's first frame to the next one's.
const STRIDE: u64 = 24;
/// Frames of a slot; the rest up to the next one is a hole.
const PAGES: u64 = 16;
const PAGE: u64 = 4096;
/// How many random numbers are used in turn.
const NUMBERS: usize = 1 << 14;
const HVA: u64 = 0x7000_0000_0000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    if !has("targets") {
        let mut criterion = Criterion::default()
            .sample_size(20)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1))
            .configure_from_args();
        all_groups(&mut criterion);
        criterion.final_summary();
    }
    if !has("--test") {
        targets().iter_mut().for_each(Target::report);
    }
}

/// Every target as a criterion group of two.
fn all_groups(criterion: &mut Criterion) {
    for target in targets() {
        let mut group = criterion.benchmark_group(target.name);
        for mut side in [target.measured, target.beside] {
            group.bench_function(&side.label, |b| b.iter_custom(&mut side.work));
        }
        group.finish();
    }
}

/// Everything that is measured, with its bound.
fn targets() -> Vec<Target> {
    let mut targets = vec![
        lookup("lookup by frame, 1 slot", 1),
        lookup("lookup by frame, 512 slots", 512),
        lookup("lookup by frame, 32764 slots", ALL_SLOTS),
        check_region(),
        create_delete(),
        huge_slot("create and delete, 1 TiB", SlotFlags::empty()),
        huge_slot(
            "create and delete, 1 TiB, logged",
            SlotFlags::LOG_DIRTY_PAGES,
        ),
    ];
    targets.extend(random_calls());
    targets
}

/// The request for slot `id` of a VM of many slots.
fn region(id: u16) -> Region {
    let at = u64::from(id);
    let hva = HVA + at * PAGES * PAGE;
    Region::new(SlotKey::normal(id), at * STRIDE * PAGE, PAGES * PAGE, hva)
}

fn many_slots(slots: u16) -> Memory {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    for id in 0..slots {
        set(&mut memory, &region(id));
    }
    memory
}

fn set(memory: &mut Memory, request: &Region) {
    let _effects = black_box(memory.set_region(black_box(request))).expect("a valid request");
}

/// Numbers below `end`, more than branch prediction can learn.
fn random_numbers(end: u64) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % end
    };
    (0..NUMBERS).map(|_| next()).collect()
}

/// An id of one of `slots` slots, at random.
fn random_id(slots: u16) -> impl FnMut() -> u16 {
    let mut numbers = random_numbers(u64::from(slots)).into_iter().cycle();
    move || {
        let number = numbers.next().and_then(|n| u16::try_from(n).ok());
        number.expect("below a 16-bit number")
    }
}

/// The slot of the packed range that holds `key`, found without a branch on hit or miss.
#[inline]
fn slot_in(packed: &[(u64, u64, u32)], key: u64) -> Option<u32> {
    let after = packed.partition_point(|(base, _, _)| *base <= key);
    let (_, end, slot) = packed.get(after.checked_sub(1)?)?;
    Some(*slot).filter(|_| key < *end)
}

/// `AddressSpace::by_gfn` of random frames, a third of them in holes, beside a binary search in one packed array; both
/// give a slot or nothing.
fn lookup(name: &'static str, slots: u16) -> Target {
    let memory = many_slots(slots);
    let packed: Vec<(u64, u64, u32)> = memory
        .space(AsId::NORMAL)
        .iter()
        .map(|s| {
            (
                s.range().start().raw(),
                s.range().end().raw(),
                u32::from(s.key().id.raw()),
            )
        })
        .collect();
    let frames = u64::from(slots) * STRIDE;
    let gfns = random_numbers(frames);
    let keys = gfns.clone();
    Target {
        name,
        measured: Side::new("by_gfn", move || {
            for gfn in &gfns {
                let space = black_box(&memory).space(AsId::NORMAL);
                black_box(space.by_gfn(Gfn::new(*gfn)));
            }
        }),
        beside: Side::new("packed array", move || {
            for key in &keys {
                black_box(slot_in(black_box(&packed), *key));
            }
        }),
        bound: Bound::AtMost(2.0),
    }
}

/// `check_region` of a random slot's move by a page, which no other slot is in the way of.
fn check_region() -> Target {
    let side = |slots: u16| {
        let memory = many_slots(slots);
        let mut id = random_id(slots);
        Side::new(format!("{slots} slots"), move || {
            let mut request = region(id());
            request.gpa += PAGE;
            let _plan = black_box(memory.check_region(black_box(&request))).expect("room to move");
        })
    };
    Target {
        name: "check_region, 32764 slots",
        measured: side(ALL_SLOTS),
        beside: side(16),
        bound: Bound::AtMost(4.0),
    }
}

/// A random slot deleted and created again.
fn create_delete() -> Target {
    let side = |slots: u16| {
        let mut memory = many_slots(slots);
        let mut id = random_id(slots);
        Side::new(format!("{slots} slots"), move || {
            let request = region(id());
            set(&mut memory, &Region { size: 0, ..request });
            set(&mut memory, &request);
        })
    };
    Target {
        name: "create and delete, 32764 slots",
        measured: side(ALL_SLOTS),
        beside: side(16),
        bound: Bound::AtMost(4.0),
    }
}

/// A slot of 1 TiB beside one of 1 MiB: nothing per page is made before a page needs it.
fn huge_slot(name: &'static str, flags: SlotFlags) -> Target {
    let side = |label: &str, size: u64| {
        let mut memory = Memory::new(Profile::latest(), VmType::Default);
        let request = Region::new(SlotKey::normal(0), 0, size, HVA).with_flags(flags);
        Side::new(label, move || {
            set(&mut memory, &request);
            set(&mut memory, &Region::delete(SlotKey::normal(0)));
        })
    };
    Target {
        name,
        measured: side("1 TiB", 1 << 40),
        beside: side("1 MiB", 1 << 20),
        bound: Bound::AtMost(2.0),
    }
}

/// The random calls of `slat diff` on a model VM beside the same calls on the kernel.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn random_calls() -> Option<Target> {
    let kernel = match slat::vmm::kvm::Machine::open() {
        Ok(kernel) => kernel,
        Err(error) => {
            println!("skipped: random calls beside the kernel: {error}");
            return None;
        }
    };
    let model = model::Machine::new(kernel.shared_profile());
    let sequences = possible_calls(
        kernel.clone(),
        random_sequences(kernel.profile(), kernel.areas()),
    );
    Some(Target {
        name: "random calls, model beside kernel",
        measured: all_calls("model", model, sequences.clone()),
        beside: all_calls("kernel", kernel, sequences),
        bound: Bound::AtLeast(20.0),
    })
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn random_calls() -> Option<Target> {
    println!("skipped: random calls beside the kernel: no /dev/kvm here");
    None
}

fn random_sequences(profile: &Profile, areas: Areas) -> Vec<Sequence> {
    let config = differential::Config {
        seed: 1,
        calls: 2000,
        ..differential::Config::default()
    };
    differential::sequences(&config, profile, areas).expect("VM types that the model knows")
}

/// The sequences without the calls that the machine cannot make, which would cost it nothing.
fn possible_calls(mut machine: impl Machine, mut sequences: Vec<Sequence>) -> Vec<Sequence> {
    for Sequence { vm_type, calls } in &mut sequences {
        let mut vm = machine
            .create_vm(*vm_type)
            .expect("a VM type of the profile");
        calls.retain(|call| !matches!(vm.call(call), Err(slat::vmm::CallError::NotTried { .. })));
    }
    sequences
}

/// All sequences, each on a fresh VM; making and dropping the VMs does not count.
fn all_calls(label: &str, mut machine: impl Machine + 'static, sequences: Vec<Sequence>) -> Side {
    let mut once = move || {
        let one = |sequence: &Sequence| {
            let vm = machine.create_vm(sequence.vm_type);
            made_in(&mut vm.expect("a VM type of the profile"), &sequence.calls)
        };
        sequences.iter().map(one).sum::<Duration>()
    };
    Side::timed(label, move |times| (0..times).map(|_| once()).sum())
}

fn made_in(vm: &mut impl MemoryVm, calls: &[Call]) -> Duration {
    let start = Instant::now();
    for call in calls {
        // Refusals are part of the mix.
        let _answer = black_box(vm.call(black_box(call)));
    }
    start.elapsed()
}
