//! Scenarios of conversions, on the model without page tables, with NPT and with EPT, and beside the kernel that this runs on, if it has
//! software-protected VMs; SEV guests on the model.

use slat_memslot::{Profile, VmType};
use slat_mmu::host::Host;
use slat_vmm::scenario::{Scenario, parse};
use slat_vmm::{Machine, Verdict, model, run};

const CONVERSIONS: &str = include_str!("../scenarios/convert/conversions.slat");

fn scenario(text: &str) -> Scenario {
    let scenario = parse(text).unwrap_or_else(|error| panic!("{error}"));
    let again = parse(&scenario.to_string()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        again.to_string(),
        scenario.to_string(),
        "what is written is read"
    );
    scenario
}

/// Runs all steps; each with an expectation has to meet it.
fn check(machine: &mut impl Machine, scenario: &Scenario) -> usize {
    let report = run(scenario, machine).unwrap_or_else(|error| panic!("{error}"));
    for step in &report.steps {
        let met = matches!(step.verdict, Verdict::Agrees | Verdict::Unchecked);
        let name = &machine.profile().name;
        assert!(
            met,
            "{name}: line {}: {}: {:?} {:?}",
            step.line, step.text, step.verdict, step.result
        );
    }
    report.agreed()
}

fn sw_protected() -> Profile {
    Profile::named("debian-6.12.117-sw-protected").expect("a profile")
}

#[test]
fn conversions_on_the_model() {
    let scenario = scenario(CONVERSIONS);
    for mut machine in [
        model::Machine::new(sw_protected()),
        model::Machine::with_host(sw_protected(), Host::npt(40)),
        model::Machine::with_host(sw_protected(), Host::ept(46)),
    ] {
        let expected = scenario.steps.iter().filter(|step| step.expect.is_some());
        assert_eq!(check(&mut machine, &scenario), expected.count());
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn conversions_beside_the_kernel() {
    use slat_vmm::{CheckedMachine, kvm, live};
    let kernel = match kvm::Machine::open() {
        Ok(kernel) if kernel.profile().supports(VmType::SwProtected) => kernel.with_mapped_guests(),
        Ok(_) => return println!("skipped: the kernel has no software-protected VMs"),
        Err(why) => return println!("skipped: {why}"),
    };
    let host = match live::here() {
        Ok(machine) => machine.host,
        Err(why) => return println!("skipped: {why}"),
    };
    let model = model::Machine::with_host(kernel.shared_profile(), host);
    let agreed = check(
        &mut CheckedMachine::new(kernel, model),
        &scenario(CONVERSIONS),
    );
    println!("{agreed} answers of the kernel as expected");
}

const SEV: &str = include_str!("../scenarios/convert/sev.slat");

#[test]
fn sev_guests_on_the_model() {
    let scenario = scenario(SEV);
    let expected = scenario.steps.iter().filter(|step| step.expect.is_some());
    let mut machine = model::Machine::for_scenario(sw_protected(), &scenario);
    assert_eq!(check(&mut machine, &scenario), expected.count());
    let mut machine = model::Machine::new(sw_protected()).with_sev();
    check(&mut machine, &scenario);
}
