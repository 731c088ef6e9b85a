//! SNP guests on the model: scenarios, and random guests on random VMMs with the contents of every page tracked.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "snp_vm/patterns.rs"]
mod patterns;
#[path = "snp_vm/random.rs"]
mod random;
#[path = "snp_vm/reference.rs"]
mod reference;

use slat_memslot::{Attributes, Call, Profile, Region, SlotKey, VmType, cap};
use slat_mmu::host::Host;
use slat_vmm::snp_vm::{EncryptOp, GuestAct, SnpAnswer, SnpCommand, SnpOp};
use slat_vmm::{Machine, MemoryVm, Verdict, model, run, scenario};

const SCENARIOS: [(&str, &str); 5] = [
    ("launch", include_str!("../scenarios/snp/launch.slat")),
    (
        "page-state",
        include_str!("../scenarios/snp/page-state.slat"),
    ),
    ("huge", include_str!("../scenarios/snp/huge.slat")),
    ("psc", include_str!("../scenarios/snp/psc.slat")),
    ("vcpus", include_str!("../scenarios/snp/vcpus.slat")),
];

fn profile() -> Profile {
    Profile::named("linux-6.12").unwrap()
}

fn machine() -> model::Machine {
    model::Machine::with_host(profile(), Host::npt(48)).with_snp()
}

#[test]
fn scenarios_end_as_the_rules_of_linux_6_12_have_it() {
    for (name, text) in SCENARIOS {
        let parsed = scenario::parse(text).unwrap();
        let report = run(
            &parsed,
            &mut model::Machine::for_scenario(profile(), &parsed),
        )
        .unwrap();
        let failures: Vec<_> = report
            .failures()
            .map(|s| {
                format!(
                    "line {}: {} gave {:?} {:?}",
                    s.line, s.text, s.result, s.snp
                )
            })
            .collect();
        assert!(failures.is_empty(), "{name}:\n{}", failures.join("\n"));
        // Only the case of a guest that is none has a VM without tables.
        assert!(report.not_tried().count() <= 1, "{name}");
        println!("{name}: {} answers agree", report.agreed());
    }
}

/// What is written down is read again, and means the same.
#[test]
fn scenarios_are_written_as_they_are_read() {
    for (name, text) in SCENARIOS {
        let parsed = scenario::parse(text).unwrap().renumbered();
        let again = scenario::parse(&parsed.to_string()).unwrap();
        assert_eq!(parsed, again, "{name}");
    }
}

/// Everything is answered somewhere in the scenarios.
#[test]
fn machines_without_snp_say_so() {
    let (_, text) = SCENARIOS[1];
    let parsed = scenario::parse(text).unwrap();
    for mut machine in [
        model::Machine::new(profile()),
        model::Machine::with_host(profile(), Host::ept(46)),
    ] {
        let report = run(&parsed, &mut machine).unwrap();
        let tried = |v: &Verdict| !matches!(v, Verdict::NotTried { .. });
        let tried = report.steps.iter().filter(|step| tried(&step.verdict));
        // The VMs cannot be made: that differs, and nothing else is tried.
        assert!(tried.clone().all(|step| step.text.starts_with("vm ")));
        assert_eq!(tried.count(), parsed.cases().count());
    }
}

const BASE: u64 = 0x7f00_0000_0000;

/// A VM that runs, with a file behind its frames, all shared, and some vCPUs.
fn guest(pages: u64, vcpus: u32) -> model::Vm {
    let mut vm = machine().create_vm(VmType::Snp.raw()).unwrap();
    let size = pages << 12;
    let file = vm.create_guest_memfd(size, 0).unwrap();
    let region = Region::new(SlotKey::normal(0), 0, size, BASE).with_gmem(file, 0);
    vm.set_user_memory_region(&region).unwrap();
    vm.enable_cap(cap::EXIT_HYPERCALL, 1 << 12).unwrap();
    for _ in 0..vcpus {
        vm.call(&Call::CreateVcpu).unwrap();
    }
    launch(&mut vm);
    vm
}

fn launch(vm: &mut model::Vm) {
    let start = SnpCommand::LaunchStart {
        policy: 0x3_0000,
        flags: 0,
    };
    for command in [start, SnpCommand::LaunchFinish { flags: 0 }] {
        vm.memory_encrypt_op(&EncryptOp::Snp(command)).unwrap();
    }
}

fn private(vm: &mut model::Vm, page: u64, pages: u64) {
    let private = Attributes::PRIVATE.bits();
    vm.set_memory_attributes(page << 12, pages << 12, private)
        .unwrap();
}

fn shared(vm: &mut model::Vm, page: u64, pages: u64) {
    vm.set_memory_attributes(page << 12, pages << 12, 0)
        .unwrap();
}

fn act(vm: &mut model::Vm, act: GuestAct) -> SnpAnswer {
    vm.snp(&SnpOp::Guest(0, act)).unwrap()
}

fn assert_clean(vm: &mut model::Vm) {
    assert_eq!(vm.audit_snp(), []);
}
