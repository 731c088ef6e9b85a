//! A slot is deleted while others are mapped: with `KVM_X86_QUIRK_SLOT_ZAP_ALL`, without it, and in a VM with private memory,
//! on the kernel that this runs on. Every event is predicted, and counted: roots invalidated, leaves zapped, faults that follow.
//!
//! Where KVM has no TDP MMU or no events can be had, what is left are the numbers of leaves that debugfs tells.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_memslot::{Call, Memory, Profile, Region, SlotKey, VmType, ZapReach, cap};
use slat_mmu::host::Host;
use slat_vmm::kvm;
use slat_vmm::live::{Abilities, abilities, here};
use slat_vmm::programs::{Named, Tally, deletions, make, make_into};
use slat_vmm::replay::{Machine, Verdict, predict};
use slat_vmm::traces::{Leaves, Op, Recording};

/// How far the model says that a deletion reaches in a program's VM.
fn foreseen(program: &Named, profile: &Profile) -> ZapReach {
    let mut memory = Memory::new(profile.clone(), VmType::Default);
    for op in &program.program.ops {
        match op {
            Op::CreateVm { vm_type } => {
                let vm_type = VmType::from_raw(u32::try_from(*vm_type).unwrap()).unwrap();
                memory = Memory::new(profile.clone(), vm_type);
            }
            Op::EnableCap { arg, .. } => {
                let cap = cap::DISABLE_QUIRKS2;
                let (flags, args) = (0, [*arg, 0, 0, 0]);
                memory.call(&Call::EnableCap { cap, flags, args }).unwrap();
            }
            _ => {}
        }
    }
    let region = Region::new(SlotKey::normal(1), 0, 1 << 20, 0x7f00_0000_0000);
    let _created = memory.set_region(&region).unwrap();
    let change = memory.check_region(&Region { size: 0, ..region });
    change.unwrap().zap.unwrap().reach
}

/// One after the other: VMs of two threads would see each other's events.
#[test]
fn slots_are_deleted_and_every_event_is_predicted() {
    every_event_is_predicted();
    leaves_are_left_as_the_policy_says();
}

fn every_event_is_predicted() {
    let machine = match here() {
        Ok(machine) => machine,
        Err(why) => return println!("skipped: {why}"),
    };
    let abilities = abilities(&machine);
    let mut total = 0;
    for program in deletions(abilities) {
        let text = make(&program).unwrap();
        total += predicted(&program, &text, &machine);
        let recording = Recording::parse(&text).unwrap();
        let foreseen = foreseen(&program, &machine.profile);
        judge(&program, foreseen, &Tally::of(&recording, &machine.host));
    }
    println!("{total} events and results as predicted");
    if !abilities.private_memory {
        println!("skipped: deletions in a VM with private memory, which this kernel has not");
    }
}

/// How many events and results were predicted: all of them.
fn predicted(program: &Named, text: &str, machine: &Machine) -> usize {
    match predict(&Recording::parse(text).unwrap(), machine) {
        Verdict::Agrees { compared, .. } => compared,
        Verdict::Differs { difference, .. } => panic!("{}: {difference}\n{text}", program.name),
        Verdict::NotModelled(what) => panic!("{}: {what}", program.name),
    }
}

fn all(leaves: Leaves) -> u64 {
    leaves.pages_4k + leaves.pages_2m + leaves.pages_1g
}

/// The deletion, by its place among all operations.
fn deletion(tallies: &[Tally]) -> usize {
    let deletes = |tally: &Tally| tally.operation.contains(" npages=0");
    tallies.iter().position(deletes).unwrap()
}

/// Leaves before an operation.
fn leaves(tallies: &[Tally], at: usize) -> u64 {
    all(tallies[at].leaves_before.unwrap())
}

/// What was foreseen says what goes, what stays, and what has to be faulted in again.
fn judge(program: &Named, foreseen: ZapReach, tallies: &[Tally]) {
    let at = deletion(tallies);
    let gone = &tallies[at];
    let (before, after) = (leaves(tallies, at), leaves(tallies, at + 1));
    // What the guest touches again, until the next look at the numbers.
    let again: Vec<&Tally> = tallies[at + 2..]
        .iter()
        .take_while(|tally| tally.leaves_before.is_none())
        .collect();
    let faults: u64 = again.iter().map(|tally| tally.faults).sum();
    println!(
        "{}: {before} leaves, deleted: {gone}; {after} leaves; others touched again: {faults} faults",
        program.name
    );
    let own = match (
        program.name.contains("huge"),
        program.name.contains("private"),
    ) {
        (true, _) => 2,
        (false, true) => 128,
        (false, false) => 64,
    };
    match foreseen {
        ZapReach::AllRoots => {
            assert_eq!((gone.fast_zaps, after), (1, 0));
            assert_eq!((gone.leaves_zapped, faults), (before, before - own));
            assert!(gone.tables_zapped > 0);
        }
        ZapReach::Leafs { .. } => {
            assert_eq!((gone.fast_zaps, gone.tables_zapped), (0, 0));
            assert_eq!((gone.leaves_zapped, before - after), (own, own));
            assert_eq!((faults, gone.leaves_made), (0, 0));
        }
    }
}

/// On a kernel of any kind: which leaves are left, as debugfs counts them.
fn leaves_are_left_as_the_policy_says() {
    let plain = Abilities::default();
    let profile = match kvm::Machine::open() {
        Ok(machine) => machine.shared_profile(),
        Err(why) => return println!("skipped: {why}"),
    };
    let mut counted = 0;
    for program in deletions(plain) {
        let lines = match make_into(&program, Vec::<String>::new()) {
            Ok(lines) => lines.join("\n") + "\n",
            Err(why) => return println!("skipped: {why}"),
        };
        let recording = Recording::parse(&lines).unwrap();
        let tallies = Tally::of(&recording, &Host::shadow(52));
        let at = deletion(&tallies);
        if tallies[at].leaves_before.is_none() {
            return println!("skipped: debugfs does not tell how many leaves there are");
        }
        let (before, after) = (leaves(&tallies, at), leaves(&tallies, at + 1));
        if before == 0 {
            return println!("skipped: this KVM emulates the guest, and maps nothing for it");
        }
        println!(
            "{}: {before} leaves before the deletion, {after} after",
            program.name
        );
        match foreseen(&program, &profile) {
            ZapReach::AllRoots => assert_eq!(after, 0),
            ZapReach::Leafs { .. } => assert!(after > 0 && after < before),
        }
        counted += 1;
    }
    assert_eq!(counted, 4);
}
