//! What real programs did, on the model and again on the live kernel.

use slat_memslot::Profile;
use slat_vmm::{
    CheckedMachine, Machine, OnDivergence, StepReport, Verdict, model, recordings, run, scenario,
};

#[test]
fn model_predicts_every_recorded_call() {
    let mut agreed = 0;
    let mut failures = Vec::new();
    for (name, text) in recordings::RECORDED {
        let scenario = scenario::parse(text).unwrap();
        let profile = scenario.profile().and_then(Profile::named).unwrap();
        let report = run(&scenario, &mut model::Machine::new(profile)).unwrap();
        assert!(report.agreed() > 0, "{name}");
        agreed += report.agreed();
        let failed = report.failures().chain(report.not_tried());
        let text = |s: &StepReport| format!("{name}:{}: {} got {:?}", s.line, s.text, s.result);
        failures.extend(failed.map(text));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("{agreed} results agree");
    assert_eq!(agreed, 2861);
}

/// A host of the kind that a recording is of gives its results; any other gives what the model of that host says.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn live_kernel_and_model_agree_on_every_recorded_call() {
    let kernel = match slat_vmm::kvm::Machine::open() {
        Ok(machine) => machine,
        Err(error) => return println!("skipped: {error}"),
    };
    let tdp = kernel.profile().tdp.get();
    let model = model::Machine::new(kernel.shared_profile());
    let mut both = CheckedMachine::new(kernel, model).on_divergence(OnDivergence::Keep);
    for (name, text) in recordings::RECORDED {
        let scenario = scenario::parse(text).unwrap();
        let recorded_on = scenario.profile().and_then(Profile::named).unwrap();
        let report = run(&scenario, &mut both).unwrap();
        let same_kind = !tdp && !recorded_on.tdp.get();
        let failed = report
            .failures()
            .filter(|step| same_kind || matches!(step.verdict, Verdict::Diverges { .. }));
        let not_tried = report.not_tried().filter(|_| same_kind);
        let failed: Vec<&StepReport> = failed.chain(not_tried).collect();
        assert!(failed.is_empty(), "{name}: {failed:#?}");
        println!(
            "{name}: {} of {} results as recorded, {} not tried",
            report.agreed(),
            report.steps.len(),
            report.not_tried().count()
        );
    }
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
