//! VMs of type TDX: scenarios, guests that follow scripts, mistakes from the field, random calls.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod guests;
mod mistakes;
mod random;
mod scenarios;

use slat_memslot::{Profile, VmType};
use slat_vmm::scenario::{self, Scenario};
use slat_vmm::tdx_vm::TdxSettings;
use slat_vmm::{Machine as _, model, run};

/// A machine with a small host, which is quick to make VMs on.
fn machine(profile: &str) -> model::Machine {
    let settings = TdxSettings {
        host_pages: 0x4000,
        tables: 0x1000,
        ..TdxSettings::default()
    };
    model::Machine::new(Profile::named(profile).unwrap()).with_tdx(settings)
}

fn vm(profile: &str) -> model::Vm {
    machine(profile).create_vm(VmType::Tdx.raw()).unwrap()
}

/// Plays a scenario on the kernel that it names; all its answers have to come.
fn play(scenario: &Scenario) -> usize {
    let report = run(scenario, &mut machine(scenario.profile().unwrap())).unwrap();
    let wrong = report.failures().chain(report.not_tried());
    let wrong: Vec<_> = wrong
        .map(|s| format!("line {}: {} gave {:?}", s.line, s.text, s.result))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    report.agreed()
}

fn parsed(text: &str) -> Scenario {
    scenario::parse(text).unwrap()
}
