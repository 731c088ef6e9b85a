//! What real programs did, on the model and again on the live kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_memslot::Profile;
use slat_vmm::{
    CheckedMachine, Machine, OnDivergence, Report, StepReport, Verdict, model, recordings, run,
    scenario::{self, Scenario},
};

/// Runs the wanted recordings; gives how many results agree.
fn run_recorded(
    wanted: impl Fn(&Scenario) -> bool,
    mut run_one: impl FnMut(&Scenario) -> Report,
) -> usize {
    let mut agreed = 0;
    let mut failures = Vec::new();
    for (name, text) in recordings::RECORDED {
        let scenario = scenario::parse(text).unwrap();
        if !wanted(&scenario) {
            continue;
        }
        let report = run_one(&scenario);
        assert!(report.agreed() > 0, "{name}");
        agreed += report.agreed();
        let failed = report.failures().chain(report.not_tried());
        let text = |s: &StepReport| format!("{name}:{}: {} got {:?}", s.line, s.text, s.result);
        failures.extend(failed.map(text));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    agreed
}

/// Whether a recording is of the kind of host that shadow paging alone makes.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn is_of_a_shadow_paging_host(scenario: &Scenario) -> bool {
    scenario.profile() == Some("linux-6.18.44-pvm")
}

#[test]
fn model_predicts_every_recorded_call() {
    let agreed = run_recorded(
        |_| true,
        |scenario| {
            let profile = scenario.profile().and_then(Profile::named).unwrap();
            run(scenario, &mut model::Machine::new(profile)).unwrap()
        },
    );
    println!("{agreed} results agree");
    assert_eq!(agreed, 2861);
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn live_kernel_and_model_agree_on_every_recorded_call() {
    let kernel = match slat_vmm::kvm::Machine::open() {
        Ok(machine) if machine.profile().tdp.get() => {
            return println!("skipped: the recordings are of a host without TDP");
        }
        Ok(machine) => machine,
        Err(error) => return println!("skipped: {error}"),
    };
    let model = model::Machine::new(kernel.shared_profile());
    let mut both = CheckedMachine::new(kernel, model);
    let agreed = run_recorded(is_of_a_shadow_paging_host, |scenario| {
        run(scenario, &mut both).unwrap()
    });
    println!("{agreed} results agree");
}

/// A model that is wrong on purpose fails: the recordings do test something.
#[test]
fn a_model_of_another_kernel_is_found_out() {
    let (_, text) = recordings::RECORDED
        .iter()
        .find(|(name, _)| *name == "guest_memfd_test")
        .unwrap();
    let old = Profile::named("linux-6.1").unwrap();
    let report = run(
        &scenario::parse(text).unwrap(),
        &mut model::Machine::new(old),
    );
    assert!(report.unwrap().failures().count() > 50);
}

/// Two machines side by side that differ are reported step by step, even where the file agrees with the first one.
#[test]
fn machines_that_differ_are_reported() {
    let machine = |name| model::Machine::new(Profile::named(name).unwrap());
    let mut both = CheckedMachine::new(machine("linux-6.18"), machine("linux-6.1"))
        .on_divergence(OnDivergence::Keep);
    let text = "create_guest_memfd g size=64K => ok\ncreate_vcpu => ok";
    let report = run(&scenario::parse(text).unwrap(), &mut both).unwrap();
    let verdicts: Vec<&Verdict> = report.steps.iter().map(|step| &step.verdict).collect();
    assert!(
        matches!(
            verdicts[..],
            [Verdict::Diverges { model: Err(_) }, Verdict::Agrees]
        ),
        "{verdicts:?}"
    );
}
