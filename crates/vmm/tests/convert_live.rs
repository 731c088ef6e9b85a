//! Random conversions on the kernel that this runs on: model and kernel agree on attributes (by what accesses find), faults, exits and
//! the levels that memory is mapped at.
//!
//! `SLAT_CONVERT_OPS` and `SLAT_SEED` choose how many operations and which. Needs a kernel with the TDP MMU, its events, and
//! software-protected VMs.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use slat_vmm::convert::live::{Comparison, Tally, program};
use slat_vmm::live::{Abilities, HostAbilities, abilities, here};

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Operations of one program.
const OPERATIONS: usize = 400;

#[test]
fn conversions_are_predicted() {
    let machine = match here() {
        Ok(machine) => machine,
        Err(why) => return println!("skipped: {why}"),
    };
    let abilities = abilities(&machine);
    if !abilities.private_memory {
        return println!("skipped: this kernel has no software-protected VMs");
    }
    let wanted = usize::try_from(number("SLAT_CONVERT_OPS", 4000)).expect("a number");
    let seed = number("SLAT_SEED", 1);
    let mut comparison = Comparison::new(machine).expect("a capture");
    let (mut operations, mut events, mut programs) = (0, 0, 0);
    let mut all = Tally::default();
    while operations < wanted {
        let seed = seed.wrapping_add(programs);
        let program = program(seed, OPERATIONS, abilities);
        match comparison.run(&program).expect("a program that runs") {
            Ok((made, agreed)) => {
                operations += made;
                events += agreed;
            }
            Err(difference) => {
                println!("{}", difference.recording);
                panic!("seed {seed}: {}", difference.what);
            }
        }
        programs += 1;
        add(&mut all, program.tally);
    }
    assert!(
        all.converted > 0 && all.taken_back > 0 && all.across_slots > 0,
        "{all:?}"
    );
    println!(
        "seed {seed}: {programs} programs, {operations} operations, {events} events and results as predicted; {all:?}"
    );
}

fn add(all: &mut Tally, tally: Tally) {
    all.converted += tally.converted;
    all.taken_back += tally.taken_back;
    all.refused += tally.refused;
    all.nothing += tally.nothing;
    all.steps += tally.steps;
    all.across_slots += tally.across_slots;
}

/// The same seed gives the same program, on any machine.
#[test]
fn programs_repeat() {
    let abilities = Abilities {
        private_memory: true,
        smm: false,
        pre_fault: true,
        rings: false,
        host: HostAbilities::default(),
        shared_roots: true,
    };
    let one = program(7, OPERATIONS, abilities);
    assert_eq!(one, program(7, OPERATIONS, abilities));
    assert!(one.tally.converted > 20, "{:?}", one.tally);
    assert_ne!(one, program(8, OPERATIONS, abilities));
}
